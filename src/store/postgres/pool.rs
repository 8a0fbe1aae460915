//! The connections of one role: few, made when needed, closed when unused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio_postgres::Row;

use super::classify::{Failure, PgError, words};
use super::connect::{Connector, StartError};
use super::left::Way;
use super::metrics::PostgresMetrics;
use super::schema::{self, Identity, Standing};
use super::shares::{Place, Share, Shares};
use super::tx::{ANSWER, PgTx, Tenants};
use crate::config::{PostgresConfig, PostgresRole};
use crate::tasks::Tasks;
use crate::telemetry::BackendHealth;

/// How often a transaction is run again whose last run wrote nothing and can succeed now.
const ATTEMPTS: usize = 5;

/// The database, as tenants' calls reach it.
pub struct Postgres {
    pool: Pool,
    shares: Shares,
    way: Arc<Way>,
    /// Whether its schema is one that this program knows, and its role one that row-level security holds.
    standing: watch::Sender<Standing>,
    /// Told when the database could not be reached.
    trouble: Notify,
    patience: Duration,
    /// Whether statements are named, and planned once a connection.
    prepared: bool,
    /// Whether its role is the owner, for a command.
    pub(super) is_owner: bool,
}

/// As whom a pool connects.
#[derive(Debug, Clone, Copy)]
pub enum ConnectAs<'c> {
    /// `postgres.app`: tenants' calls.
    App(&'c PostgresRole),
    /// `postgres.relay`: the log of everyone, to be carried on.
    Relay(&'c PostgresRole),
    /// `postgres.owner`: an operator's command that looks at everyone's, which row-level security does not hold.
    Owner(&'c PostgresRole),
}

impl<'c> ConnectAs<'c> {
    fn name(self) -> &'static str {
        match self {
            Self::App(_) => "app",
            Self::Relay(_) => "relay",
            Self::Owner(_) => "owner",
        }
    }

    fn role(self) -> &'c PostgresRole {
        match self {
            Self::App(role) | Self::Relay(role) | Self::Owner(role) => role,
        }
    }
}

impl Postgres {
    /// The pool of a role. It looks at the schema by itself, and says on `health` how it is.
    pub fn start(
        database: &PostgresConfig,
        role: &ConnectAs<'_>,
        health: BackendHealth,
        metrics: &PostgresMetrics,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let postgres = Self::new(database, role, metrics, tasks)?;
        let idle = Duration::from_millis(database.idle_ms);
        let (closing, stopping) = (Arc::clone(&postgres), tasks.stopping().clone());
        tasks.spawn("idle database connections", async move {
            let mut ticks = tokio::time::interval((idle / 4).max(Duration::from_millis(50)));
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    _ = ticks.tick() => closing.close_unused(idle),
                }
            }
        });
        let (watched, stopping) = (Arc::clone(&postgres), tasks.stopping().clone());
        tasks.spawn("database schema", async move { schema::watch(&watched, &health, &stopping).await });
        Ok(postgres)
    }

    pub(super) fn new(
        database: &PostgresConfig,
        role: &ConnectAs<'_>,
        metrics: &PostgresMetrics,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StartError> {
        let metrics = metrics.of(role.name());
        metrics.limit.set(i64::try_from(database.connections).unwrap_or(i64::MAX));
        let (connector, settings) = Connector::new(database, role.role())?;
        let way = Way::new(metrics, tasks.clone());
        Ok(Arc::new(Self {
            pool: pool(database, connector, settings)?,
            shares: Shares::new(database.connections, database.share()),
            way,
            standing: watch::Sender::new(Standing::Unknown),
            trouble: Notify::new(),
            patience: Duration::from_millis(database.wait_ms),
            prepared: database.prepared,
            is_owner: matches!(role, ConnectAs::Owner(_)),
        }))
    }

    /// Connections, used and unused.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.status().size
    }

    fn close_unused(&self, idle: Duration) {
        self.pool.retain(|_, used| used.last_used() < idle).removed.clear();
        self.count_connections();
    }

    fn count_connections(&self) {
        self.way.metrics.connections.set(i64::try_from(self.connections()).unwrap_or(i64::MAX));
    }

    /// What the store says of itself, once that is known.
    pub async fn identity(&self) -> Result<Arc<Identity>, PgError> {
        let mut standing = self.standing.subscribe();
        let known = standing.wait_for(|standing| !matches!(standing, Standing::Unknown));
        match tokio::time::timeout(self.patience, known).await {
            Ok(Ok(standing)) => match &*standing {
                Standing::Good(identity) => Ok(Arc::clone(identity)),
                Standing::Refused(reason) => Err(PgError::Schema(reason.clone())),
                Standing::Unknown => Err(PgError::NoConnection("not yet".to_owned())),
            },
            Ok(Err(_)) | Err(_) => {
                Err(PgError::NoConnection("the database has not been reached yet".to_owned()))
            }
        }
    }

    /// Runs `work` in a transaction for these tenants, and commits. It is run again where nothing was written and it can
    /// succeed now, so it does nothing but what its transaction does.
    pub(in crate::store) async fn run_for<T, E, F>(&self, tenants: Tenants, work: F) -> Result<T, E>
    where
        E: From<PgError>,
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, E>>,
    {
        self.identity().await?;
        let share = self.shares.enter(tenants.counted(), self.patience).await;
        let share = share.inspect_err(|error| match error {
            PgError::ShareTaken => self.way.metrics.overloads.inc(),
            other => self.failed(other.failure()),
        })?;
        self.run_within(&share, &tenants, work).await
    }

    /// The same before the schema is known.
    pub(super) async fn run_unchecked<T, E, F>(&self, tenants: &Tenants, work: F) -> Result<T, E>
    where
        E: From<PgError>,
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, E>>,
    {
        self.run_within(&Shares::nobody(), tenants, work).await
    }

    async fn run_within<T, E, F>(&self, share: &Share, tenants: &Tenants, work: F) -> Result<T, E>
    where
        E: From<PgError>,
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, E>>,
    {
        let mut attempt = 1;
        loop {
            let (ended, failure) = self.run_once(share, tenants, &work).await;
            if let Some(failure) = failure {
                self.failed(failure);
                if failure == Failure::Again && attempt < ATTEMPTS {
                    attempt += 1;
                    continue;
                }
            }
            return ended;
        }
    }

    async fn run_once<T, E, F>(
        &self,
        share: &Share,
        tenants: &Tenants,
        work: &F,
    ) -> (Result<T, E>, Option<Failure>)
    where
        E: From<PgError>,
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, E>>,
    {
        let failed = |error: PgError| {
            let failure = error.failure();
            (Err(error.into()), Some(failure))
        };
        let connection = match self.connection().await {
            Ok(connection) => connection,
            Err(error) => return failed(error),
        };
        let place = Place::new(share.clone(), &self.way.metrics.in_use);
        let began = Instant::now();
        let mut transaction = PgTx::new(connection, tenants.clone(), self.prepared, place, &self.way);
        let done = match work(&mut transaction).await {
            Ok(done) => done,
            Err(error) => {
                if transaction.is_silent() {
                    self.close_all();
                }
                return (Err(error), transaction.failure());
            }
        };
        match transaction.commit().await {
            Ok(()) => {
                self.way.metrics.transactions.observe(began.elapsed().as_secs_f64());
                (Ok(done), None)
            }
            Err(error) => {
                if error.is_silent() {
                    self.close_all();
                }
                failed(error)
            }
        }
    }

    /// Asks one statement that reaches nobody's rows, in a transaction of its own and one round trip.
    pub(crate) async fn ask(&self, statement: &'static str) -> Result<Vec<Row>, PgError> {
        self.identity().await?;
        let asked = self.ask_once(statement).await;
        if let Err(error) = &asked {
            self.failed(error.failure());
        }
        asked
    }

    async fn ask_once(&self, statement: &'static str) -> Result<Vec<Row>, PgError> {
        let connection = self.connection().await?;
        let _place = Place::new(Shares::nobody(), &self.way.metrics.in_use);
        let Ok(rows) = tokio::time::timeout(ANSWER, connection.query_typed(statement, &[])).await else {
            drop(Object::take(connection));
            self.close_all();
            return Err(PgError::Silent(Failure::Unavailable));
        };
        rows.map_err(PgError::of_statement)
    }

    fn failed(&self, failure: Failure) {
        self.way.metrics.failed(failure);
        if failure == Failure::Unavailable {
            self.trouble.notify_one();
        }
    }

    /// Those that are not in use lead to the server that hangs, each to be found out by itself.
    fn close_all(&self) {
        self.pool.retain(|_, _| false).removed.clear();
        self.count_connections();
    }

    async fn connection(&self) -> Result<Object, PgError> {
        let began = Instant::now();
        let connection = self.pool.get().await;
        self.way.metrics.wait.observe(began.elapsed().as_secs_f64());
        self.count_connections();
        connection.map_err(|error| {
            PgError::NoConnection(match &error {
                PoolError::Backend(error) => words(error),
                other => other.to_string(),
            })
        })
    }

    pub(super) fn set_standing(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// Until a transaction could not reach the database.
    pub(super) async fn trouble(&self) {
        self.trouble.notified().await;
    }
}

fn pool(
    database: &PostgresConfig,
    connector: Connector,
    settings: tokio_postgres::Config,
) -> Result<Pool, StartError> {
    let manager =
        Manager::from_connect(settings, connector, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let timeouts = Timeouts {
        wait: Some(Duration::from_millis(database.wait_ms)),
        // While one hangs the others are tried.
        create: Some(Duration::from_millis(database.connect_timeout_ms)),
        recycle: None,
    };
    let pool = Pool::builder(manager).max_size(database.connections).runtime(Runtime::Tokio1);
    Ok(pool.timeouts(timeouts).build()?)
}
