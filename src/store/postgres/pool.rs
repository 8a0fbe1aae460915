//! The connections of one role: few, made when needed, closed when unused.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::classify::{Failure, PgError};
use super::connect::{Connector, StartError};
use super::tx::PgTx;
use crate::config::{PostgresConfig, PostgresRole};
use crate::policy::Permit;
use crate::tasks::Tasks;

/// How often a transaction is run again whose last run wrote nothing and can succeed now.
const ATTEMPTS: usize = 5;

/// The database, as tenants' calls reach it.
pub struct Postgres {
    pool: Pool,
}

impl Postgres {
    /// The pool of the application's role. It connects when the first transaction begins.
    pub fn start(database: &PostgresConfig, tasks: &Tasks) -> Result<Arc<Self>, StartError> {
        let postgres = Arc::new(Self { pool: pool(database, &database.app)? });
        let idle = Duration::from_millis(database.idle_ms);
        let (closing, stopping) = (Arc::clone(&postgres), tasks.stopping().clone());
        tasks.spawn("idle database connections", async move {
            let mut ticks = tokio::time::interval((idle / 4).max(Duration::from_millis(50)));
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    _ = ticks.tick() => closing.pool.retain(|_, used| used.last_used() < idle).removed.clear(),
                }
            }
        });
        Ok(postgres)
    }

    /// Connections, used and unused.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.status().size
    }

    /// Runs `work` in a transaction for the permit's tenant, and commits. It is run again where nothing was written
    /// and it can succeed now, so it does nothing but what its transaction does.
    pub async fn run<T, F>(&self, permit: &Permit, work: F) -> Result<T, PgError>
    where
        T: Send,
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, PgError>> + Send + Sync,
    {
        self.run_for(*permit.tenant().as_uuid(), work).await
    }

    pub(super) async fn run_for<T, F>(&self, tenant: Uuid, work: F) -> Result<T, PgError>
    where
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, PgError>>,
    {
        let mut attempt = 1;
        loop {
            match self.run_once(tenant, &work).await {
                Err(error) if error.failure() == Failure::Again && attempt < ATTEMPTS => attempt += 1,
                ended => return ended,
            }
        }
    }

    async fn run_once<T, F>(&self, tenant: Uuid, work: &F) -> Result<T, PgError>
    where
        F: for<'t> Fn(&'t mut PgTx) -> BoxFuture<'t, Result<T, PgError>>,
    {
        let mut transaction = PgTx::new(self.connection().await?, tenant);
        let done = work(&mut transaction).await?;
        transaction.commit().await?;
        Ok(done)
    }

    async fn connection(&self) -> Result<Object, PgError> {
        self.pool.get().await.map_err(|error| PgError::NoConnection(error.to_string()))
    }
}

fn pool(database: &PostgresConfig, role: &PostgresRole) -> Result<Pool, StartError> {
    let (connector, settings) = Connector::new(database, role)?;
    let manager =
        Manager::from_connect(settings, connector, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let timeouts = Timeouts {
        wait: Some(Duration::from_millis(database.wait_ms)),
        create: Some(Duration::from_millis(database.connect_timeout_ms)),
        recycle: None,
    };
    let pool = Pool::builder(manager).max_size(database.connections).runtime(Runtime::Tokio1);
    Ok(pool.timeouts(timeouts).build()?)
}
