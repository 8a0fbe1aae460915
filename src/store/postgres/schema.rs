//! Whether the database is one that this program may serve from.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::classify::PgError;
use super::metrics::PostgresMetrics;
use super::migrate;
use super::pool::{ConnectAs, Postgres};
use super::tx::{PgTx, Tenants};
use crate::config::PostgresConfig;
use crate::tasks::Tasks;
use crate::telemetry::{BackendHealth, BackendState, Registry};

/// Between two looks at a database that does not answer, or that cannot be served from.
const AGAIN: Duration = Duration::from_millis(500);

/// Migrations, rights and who this is, in the database's own words.
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
const ROLE: &str = "SELECT current_user::text, rolsuper OR rolbypassrls, \
                    EXISTS (SELECT FROM pg_class WHERE relname IN ('events', 'event_groups') AND pg_has_role(relowner, 'MEMBER')) \
                    FROM pg_roles WHERE rolname = current_user";
const IDENTITY: &str = "SELECT id, epoch, cursor_key FROM outrigger_store";

/// What the store says of itself.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub id: Uuid,
    /// Raised after a restore to an earlier point.
    pub epoch: i64,
    /// Binds cursors to their tenant and topic.
    pub cursor_key: Vec<u8>,
}

/// Whether it may be served from.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// Nobody has looked yet.
    Unknown,
    /// It may.
    Good(Arc<Identity>),
    /// It may not, and this is what to do.
    Refused(String),
}

/// What a look found.
enum Look {
    Good(Identity),
    Refused(String),
}

/// Looks at the database until it can be served from, and again whenever it could not be reached.
pub(super) async fn watch(postgres: &Postgres, health: &BackendHealth, stopping: &CancellationToken) {
    loop {
        let pause = tokio::time::sleep(AGAIN);
        let good = match look(postgres).await {
            Ok(Look::Good(identity)) => {
                postgres.set_standing(Standing::Good(Arc::new(identity)));
                health.set(BackendState::Up, "");
                true
            }
            Ok(Look::Refused(reason)) => {
                if health.state() != BackendState::Down {
                    tracing::error!(reason, "the database cannot be served from");
                }
                postgres.set_standing(Standing::Refused(reason.clone()));
                health.set(BackendState::Down, reason);
                false
            }
            // What was found before still holds: calls go on to try.
            Err(error) => {
                health.set(BackendState::Down, format!("{error}: calls are answered 503 until it answers"));
                false
            }
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            () = async {
                pause.await;
                if good {
                    postgres.trouble().await;
                }
            } => {}
        }
    }
}

/// What `outrigger check` says of a database.
#[derive(Debug)]
pub struct Inspected {
    /// What there is, in a line.
    pub summary: String,
    /// What keeps this program from serving from it, and what would be right.
    pub problem: Option<String>,
    /// What would be better.
    pub warnings: Vec<String>,
    /// In whose days and months usage is counted, where it is decided.
    pub usage_time_zone: Option<String>,
}

const SERVER: &str = "SELECT current_setting('server_version'), current_setting('synchronous_standby_names') <> '', \
     current_setting('synchronous_commit'), current_setting('server_version_num')::int4, EXISTS ( \
         SELECT FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) AS rights \
         WHERE datname = current_database() AND rights.grantee = 0 AND rights.privilege_type = 'CONNECT')";
/// The oldest version of PostgreSQL that this program is tested with.
const OLDEST: i32 = 150_000;

/// Looks at a database once, as the application's role.
pub async fn inspect(database: &PostgresConfig) -> Result<Inspected, String> {
    let metrics = PostgresMetrics::new(&Registry::default()).map_err(|error| error.to_string())?;
    let role = ConnectAs::App(&database.app);
    let postgres =
        Postgres::new(database, &role, &metrics, &Tasks::default()).map_err(|error| error.to_string())?;
    let look = look(&postgres).await.map_err(|error| error.to_string())?;
    let server = postgres.run_unchecked(&Tenants::None, |transaction| server_in(transaction).boxed());
    let (version, replicated, commit, number, is_open) =
        server.await.map_err(|error: PgError| error.to_string())?;
    let usage_time_zone = match &look {
        Look::Good(_) => {
            postgres.run_unchecked(&Tenants::None, |transaction| usage_time_zone(transaction).boxed()).await
        }
        Look::Refused(_) => Ok(None),
    };
    let usage_time_zone = usage_time_zone.map_err(|error: PgError| error.to_string())?;
    let mut problem = match look {
        Look::Good(_) => None,
        Look::Refused(reason) => Some(reason),
    };
    if number < OLDEST {
        problem = Some(format!("this is PostgreSQL {version}: 15 is the oldest that is served from"));
    }
    let mut warnings = Vec::new();
    if !replicated {
        warnings.push(
            "`synchronous_standby_names` is empty: what was accepted last is lost where a standby takes over"
                .to_owned(),
        );
    }
    if !["on", "remote_apply"].contains(&commit.as_str()) {
        warnings.push(format!("`synchronous_commit` is `{commit}`: what was accepted last can be lost"));
    }
    if is_open {
        warnings.push(format!(
            "any role of the server may connect to the database, and so hold up publishing with locks: run `outrigger migrate`, \
             or as the owner of the database: {}",
            migrate::closing(database)
        ));
    }
    Ok(Inspected { summary: format!("PostgreSQL {version}"), problem, warnings, usage_time_zone })
}

async fn usage_time_zone(transaction: &mut PgTx) -> Result<Option<String>, PgError> {
    let rows = transaction.query("SELECT usage_time_zone FROM outrigger_store", &[]).await?;
    rows.first().map_or(Ok(None), |row| row.try_get(0)).map_err(PgError::of_row)
}

impl Postgres {
    /// A pool for a command that ends soon; looks at the schema now.
    pub async fn open(database: &PostgresConfig, role: &ConnectAs<'_>) -> Result<Arc<Self>, String> {
        let metrics = PostgresMetrics::new(&Registry::default()).map_err(|error| error.to_string())?;
        let postgres =
            Self::new(database, role, &metrics, &Tasks::default()).map_err(|error| error.to_string())?;
        match look(&postgres).await {
            Ok(Look::Good(identity)) => {
                postgres.set_standing(Standing::Good(Arc::new(identity)));
                Ok(postgres)
            }
            Ok(Look::Refused(reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn server_in(transaction: &mut PgTx) -> Result<(String, bool, String, i32, bool), PgError> {
    let rows = transaction.query(SERVER, &[]).await?;
    let row = rows.first().ok_or(PgError::Ended)?;
    (|| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?)))()
        .map_err(PgError::of_row)
}

async fn look(postgres: &Postgres) -> Result<Look, PgError> {
    let is_owner = postgres.is_owner;
    postgres.run_unchecked(&Tenants::None, |transaction| look_in(transaction, is_owner).boxed()).await
}

async fn look_in(transaction: &mut PgTx, is_owner: bool) -> Result<Look, PgError> {
    let rows = match transaction.query(VERSION, &[]).await {
        Ok(rows) => rows,
        Err(error) if error.is(&SqlState::UNDEFINED_TABLE) => return Ok(behind(0)),
        Err(error) if error.is(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            return Ok(Look::Refused(
                "this role has no rights in the database: run `outrigger migrate --config FILE`, with this role as \
                 `postgres.app` in it"
                    .to_owned(),
            ));
        }
        Err(error) => return Err(error),
    };
    let found: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(PgError::of_row)?;
    if found < migrate::KNOWN {
        return Ok(behind(found));
    }
    if found > migrate::KNOWN + 1 {
        return Ok(Look::Refused(format!(
            "the database's schema is of version {found}, and this program knows {}: use a newer one",
            migrate::KNOWN
        )));
    }
    if let [row] = transaction.query(ROLE, &[]).await?.as_slice() {
        let (name, above, owns): (String, bool, bool) =
            (|| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))().map_err(PgError::of_row)?;
        if (above || owns) && !is_owner {
            return Ok(Look::Refused(format!(
                "row-level security would not hold the role `{name}`: `postgres.app` takes a role that is no superuser, has \
                 NOBYPASSRLS, owns nothing and is no member of the owner"
            )));
        }
    }
    let rows = transaction.query(IDENTITY, &[]).await?;
    let Some(row) = rows.first() else { return Ok(Look::Refused("`outrigger_store` is empty".to_owned())) };
    let identity =
        (|| Ok(Identity { id: row.try_get(0)?, epoch: row.try_get(1)?, cursor_key: row.try_get(2)? }))();
    identity.map(Look::Good).map_err(PgError::of_row)
}

fn behind(found: i64) -> Look {
    Look::Refused(format!(
        "the database's schema is of version {found}, and this program needs {}: run `outrigger migrate --config FILE`",
        migrate::KNOWN
    ))
}
