//! The migrations, run by the role that owns the database.

use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, SqlSafeStr as _, query_scalar};

use crate::config::{PostgresConfig, PostgresRole, host_and_port, is_loopback};

/// Every step, in order; one that was released never changes.
const STEPS: &[(i64, &str, &str)] = &[
    (1, "store", include_str!("../../../migrations/postgres/0001_store.sql")),
    (2, "events", include_str!("../../../migrations/postgres/0002_events.sql")),
    (3, "usage", include_str!("../../../migrations/postgres/0003_usage.sql")),
];
/// The version that this program needs; one more is accepted, since migrations first add and only later take away.
pub(super) const KNOWN: i64 = 3;

/// What the roles of the configuration may do, said anew at each migration. `{app}` and `{relay}` are their names.
const APP_RIGHTS: &str = include_str!("../../../migrations/postgres/rights_app.sql");
const RELAY_RIGHTS: &str = include_str!("../../../migrations/postgres/rights_relay.sql");

const TABLE: &str = "_sqlx_migrations";
/// How long a server may take to be reached.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the database is not migrated. The text is for the operator who ran it.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The configuration says not who migrates.
    #[error("`postgres.owner` is missing: the role that owns the database, as which migrations run")]
    NoOwner,
    /// A secret cannot be read.
    #[error("the password of `{role}`: {reason}")]
    Password {
        /// Whose.
        role: String,
        /// Why.
        reason: String,
    },
    /// No server that takes writes.
    #[error("no server takes writes: {0}")]
    NoPrimary(String),
    /// A step failed, or an applied one is not what it was.
    #[error("{0}")]
    Step(#[from] MigrateError),
    /// PostgreSQL refused something else.
    #[error("{what}: {source}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// A role of the configuration is not one that row-level security holds.
    #[error("the role `{role}`: {reason}")]
    Role {
        /// Its name.
        role: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The steps, as `version name`.
    pub steps: Vec<String>,
    /// The version before them.
    pub from: i64,
    /// TimescaleDB, where it is installed, as it is after the steps.
    pub timescale: Option<Timescale>,
}

/// TimescaleDB, where it is installed in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timescale {
    /// The extension's version.
    pub version: String,
    /// Whether `usage_events` is a hypertable, which the step that makes it decides. It is not where the extension came later, or
    /// has the Apache licence alone.
    pub is_used: bool,
}

const TIMESCALE: &str = "SELECT extversion, coalesce((SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass('public.usage_events')), false) \
                         FROM pg_extension WHERE extname = 'timescaledb'";

/// Whether positions mean what they meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epoch {
    /// They do.
    Same,
    /// The database was restored to an earlier time: relays go on from its last event, whatever they had delivered.
    New,
}

const NEW_EPOCH: &str = "UPDATE outrigger_store SET epoch = epoch + 1, previous_epoch_end = (SELECT last_value FROM events_id_seq)";

/// What is put into force; what is not given stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// For how many days events are kept.
    pub events_days: Option<u32>,
    /// For how many days records of usage are kept.
    pub usage_days: Option<u32>,
    /// By what all sidecars count usage.
    pub usage: Option<UsageTerms>,
}

/// By what usage is counted, as a policy says it.
#[derive(Debug, Clone)]
pub struct UsageTerms {
    /// In which days and months begin, as IANA names it.
    pub time_zone: String,
    /// How long after its end a month closes, in milliseconds, or never.
    pub close_after_ms: Option<u64>,
    /// The metrics that the policy names.
    pub metrics: Vec<String>,
    /// Their tags by which totals can be grouped, each with its metric before it.
    pub tags: Vec<(String, String)>,
}

const PUT_TERMS: &str = "SELECT outrigger_put_usage_terms($1, $2, $3, $4, $5)";

/// Brings the database to this program's version, and gives the roles of the configuration their rights. With `dry_run`
/// it only says what it would do.
///
/// `settings` hold from then on; where there is usage in another time zone, all else is done before that is an error.
pub async fn migrate(
    database: &PostgresConfig,
    settings: &Settings,
    epoch: Epoch,
    dry_run: bool,
) -> Result<Migrated, MigrationError> {
    let owner = database.owner.as_ref().ok_or(MigrationError::NoOwner)?;
    let mut connection = connect(database, owner).await?;
    let migrator = migrator();
    let applied = applied(&mut connection).await?;
    let pending = migrator.iter().filter(|step| !applied.contains(&step.version));
    let steps = pending.map(|step| format!("{} {}", step.version, step.description)).collect();
    let from = applied.iter().copied().max().unwrap_or(0);
    for role in [Some(&database.app), database.relay.as_ref()].into_iter().flatten() {
        check_role(&mut connection, owner, role).await?;
    }
    if let Some(relay) = &database.relay {
        check_apart(&mut connection, &database.app, relay).await?;
    }
    if !dry_run {
        // Until the end of the connection: sqlx's own lock is not around what comes after its steps.
        let locked = connection.execute("SELECT pg_advisory_lock(1869968498)").await;
        locked.map(drop).map_err(refused("the lock"))?;
        migrator.run_direct(None, &mut connection, false).await?;
        keep(&mut connection, settings).await?;
        if epoch == Epoch::New {
            let begun = connection.execute(NEW_EPOCH).await;
            begun.map(drop).map_err(refused("the new epoch"))?;
        }
        grant(&mut connection, APP_RIGHTS, "{app}", &database.app).await?;
        if let Some(relay) = &database.relay {
            grant(&mut connection, RELAY_RIGHTS, "{relay}", relay).await?;
        }
        close_to_others(&mut connection, database).await?;
        if let Some(terms) = &settings.usage {
            put_terms(&mut connection, terms).await?;
        }
    }
    let timescale = timescale(&mut connection).await?;
    connection.close().await.map_err(refused("the end of the connection"))?;
    Ok(Migrated { steps, from, timescale })
}

fn refused(what: &'static str) -> impl FnOnce(sqlx::Error) -> MigrationError {
    move |source| MigrationError::Refused { what, source }
}

fn migrator() -> Migrator {
    let step = |(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(STEPS.iter().map(step).collect())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, MigrationError> {
    let there: bool = query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .map_err(refused("the version"))?;
    if !there {
        return Ok(Vec::new());
    }
    let applied = connection.list_applied_migrations(TABLE).await?;
    Ok(applied.into_iter().map(|step| step.version).collect())
}

async fn connect(database: &PostgresConfig, role: &PostgresRole) -> Result<PgConnection, MigrationError> {
    let password = role
        .password
        .read()
        .map_err(|error| MigrationError::Password { role: role.user.clone(), reason: error.to_string() })?;
    let mut reasons = Vec::new();
    for server in &database.servers {
        let Some((host, port)) = host_and_port(server) else { continue };
        if database.tls.is_none() && !is_loopback(host) {
            reasons.push(format!("{server} is not on loopback, and `postgres.tls` is missing"));
            continue;
        }
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .username(&role.user)
            .password(password.expose())
            .database(&database.database)
            .application_name("outrigger migrate")
            .ssl_mode(if database.tls.is_some() { PgSslMode::VerifyFull } else { PgSslMode::Disable });
        if let Some(file) = database.tls.as_ref().and_then(|tls| tls.ca_file.as_ref()) {
            options = options.ssl_root_cert(file);
        }
        match tokio::time::timeout(PATIENCE, primary(&options)).await {
            Ok(Ok(Some(connection))) => return Ok(connection),
            Ok(Ok(None)) => reasons.push(format!("{server} is a standby")),
            Ok(Err(error)) => reasons.push(format!("{server}: {error}")),
            Err(_) => reasons.push(format!("{server}: no answer in {} s", PATIENCE.as_secs())),
        }
    }
    Err(MigrationError::NoPrimary(reasons.join("; ")))
}

/// A connection, where the server takes writes.
async fn primary(options: &PgConnectOptions) -> Result<Option<PgConnection>, sqlx::Error> {
    let mut connection = options.connect().await?;
    let standby: bool = query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut connection).await?;
    Ok((!standby).then_some(connection))
}

async fn check_role(
    connection: &mut PgConnection,
    owner: &PostgresRole,
    role: &PostgresRole,
) -> Result<(), MigrationError> {
    let wrong = |reason| Err(MigrationError::Role { role: role.user.clone(), reason });
    if role.user == owner.user {
        return wrong("is the owner, whom row-level security does not hold: a role of its own is right");
    }
    let above: Option<bool> = query_scalar(
        "SELECT rolsuper OR rolbypassrls OR pg_has_role(rolname, current_user, 'MEMBER') FROM pg_roles WHERE rolname = $1",
    )
    .bind(&role.user)
    .fetch_optional(connection)
    .await
    .map_err(refused("the roles"))?;
    match above {
        Some(false) => Ok(()),
        Some(true) => wrong(
            "row-level security would not hold it: right is a role that is no superuser, has NOBYPASSRLS and is no member of \
             the owner",
        ),
        None => wrong("is not there: CREATE ROLE … LOGIN NOBYPASSRLS PASSWORD …"),
    }
}

/// What the relay's role may see the application's may not.
async fn check_apart(
    connection: &mut PgConnection,
    app: &PostgresRole,
    relay: &PostgresRole,
) -> Result<(), MigrationError> {
    let member: bool = query_scalar("SELECT $1 = $2 OR pg_has_role($1, $2, 'MEMBER')")
        .bind(&app.user)
        .bind(&relay.user)
        .fetch_one(connection)
        .await
        .map_err(refused("the roles"))?;
    let reason =
        "is `postgres.relay`, or a member of it, which reads every tenant: right are two roles apart";
    if member { Err(MigrationError::Role { role: app.user.clone(), reason }) } else { Ok(()) }
}

async fn put_terms(connection: &mut PgConnection, terms: &UsageTerms) -> Result<(), MigrationError> {
    let (metrics, tags): (Vec<&str>, Vec<&str>) =
        terms.tags.iter().map(|(metric, tag)| (metric.as_str(), tag.as_str())).unzip();
    let closes_ms = terms.close_after_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
    let put = sqlx::query(PUT_TERMS).bind(&terms.time_zone).bind(closes_ms).bind(&terms.metrics);
    let put = put.bind(metrics).bind(tags).execute(connection).await;
    put.map(drop).map_err(refused("the usage policy"))
}

async fn keep(connection: &mut PgConnection, settings: &Settings) -> Result<(), MigrationError> {
    let days = |days: Option<u32>| days.map(|days| i32::try_from(days).unwrap_or(i32::MAX));
    let set = sqlx::query(
        "UPDATE outrigger_store SET events_retention_days = coalesce($1, events_retention_days), \
         usage_retention_days = coalesce($2, usage_retention_days)",
    );
    let set = set.bind(days(settings.events_days)).bind(days(settings.usage_days));
    set.execute(connection).await.map(drop).map_err(refused("the retention"))
}

async fn timescale(connection: &mut PgConnection) -> Result<Option<Timescale>, MigrationError> {
    let found: Option<(String, bool)> =
        sqlx::query_as(TIMESCALE).fetch_optional(connection).await.map_err(refused("TimescaleDB"))?;
    Ok(found.map(|(version, is_used)| Timescale { version, is_used }))
}

async fn grant(
    connection: &mut PgConnection,
    rights: &str,
    place: &str,
    role: &PostgresRole,
) -> Result<(), MigrationError> {
    // Only a name of the operator's own configuration goes in, quoted.
    let rights = rights.replace(place, &quoted(&role.user));
    let statements = sqlx::AssertSqlSafe(format!("BEGIN; {rights} COMMIT;"));
    connection.execute(statements).await.map(drop).map_err(refused("the rights of a role"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Lets the roles of the configuration connect, and no role that nobody named: whoever is connected can take advisory locks,
/// and so keep writers waiting. Where the owner of the tables does not own the database, `outrigger check` says what to run.
async fn close_to_others(
    connection: &mut PgConnection,
    database: &PostgresConfig,
) -> Result<(), MigrationError> {
    let own = "SELECT pg_has_role(datdba, 'MEMBER') FROM pg_database WHERE datname = current_database()";
    let may: bool =
        query_scalar(own).fetch_one(&mut *connection).await.map_err(refused("the database's owner"))?;
    if !may {
        return Ok(());
    }
    let statements = sqlx::AssertSqlSafe(format!("BEGIN; {} COMMIT;", closing(database)));
    connection.execute(statements).await.map(drop).map_err(refused("the right to connect"))
}

/// The statements that let these roles connect and no others. Only names of the operator's own configuration go in, quoted.
pub(super) fn closing(database: &PostgresConfig) -> String {
    let roles: Vec<String> = database.roles().map(|role| quoted(&role.user)).collect();
    let (name, roles) = (quoted(&database.database), roles.join(", "));
    format!("GRANT CONNECT ON DATABASE {name} TO {roles}; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC;")
}
