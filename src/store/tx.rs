//! One store of two, and a transaction on it.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::postgres::{Failure, PgError, PgTx, Postgres, Tenants};
use super::sqlite::{Adds, Full, Sqlite, SqliteError, SqliteTx};
use uuid::Uuid;

use crate::error::ErrorKind;
use crate::policy::{FleetPermit, Permit};

/// A part of a transaction, while it runs.
type Work<'t, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>;

/// Where the transactional primitives keep everything.
#[derive(Clone)]
pub enum Store {
    /// A PostgreSQL database that a fleet shares.
    Postgres(Arc<Postgres>),
    /// `durable.db` in the data directory, of this process alone.
    Sqlite(Arc<Sqlite>),
}

/// A transaction that is under way.
pub enum Tx<'c> {
    /// On a connection to PostgreSQL. Row-level security holds it to its permits' tenants.
    Postgres(&'c mut PgTx),
    /// On the writer's thread.
    Sqlite(SqliteTx<'c>),
}

/// Whose rows a transaction reaches. Made from permits alone.
#[derive(Debug)]
pub struct Reach(Tenants);

impl Reach {
    /// No tenant's.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Tenants::None)
    }

    /// That tenant's, for background work that policy asked for: nothing that a caller says comes here.
    pub(crate) fn background(tenant: Uuid) -> Self {
        Self(Tenants::One(tenant))
    }

    /// Inserts for these, for background work on what their permits allowed before.
    pub(crate) fn background_batch(tenants: BTreeSet<Uuid>) -> Self {
        Self(Tenants::batch_of(tenants.into_iter().collect()))
    }

    /// Everyone's log, to be looked at only, for background work that finds out whose there is.
    pub(crate) fn everyone() -> Self {
        Self(Tenants::Fleet(Uuid::nil(), None))
    }
}

/// That tenant's.
impl From<&Permit> for Reach {
    fn from(permit: &Permit) -> Self {
        Self(Tenants::of(permit))
    }
}

/// Inserts for these, where a table's policy takes a batch. It is nobody's in particular, so that no tenant's share of the
/// connections counts it.
impl From<&[Permit]> for Reach {
    fn from(permits: &[Permit]) -> Self {
        Self(Tenants::batch(permits))
    }
}

/// The service's own, and those of its tenants where a table's policy lets fleets read.
impl From<&FleetPermit> for Reach {
    fn from(permit: &FleetPermit) -> Self {
        Self(Tenants::of_fleet(permit))
    }
}

/// Why a transaction did not end well.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL, or the way to it.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// SQLite.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// What was read is not what this program, or an earlier one, wrote.
    #[error("the store holds what this program does not understand: {0}")]
    Corrupt(String),
    /// Others were quicker, again and again: nothing was written, and it may be tried again.
    #[error("others wrote the same meanwhile, again and again")]
    Contended,
}

impl StoreError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Postgres(error) => error.kind(),
            Self::Sqlite(error) => error.kind(),
            Self::Corrupt(_) => ErrorKind::Internal,
            Self::Contended => ErrorKind::BackendUnavailable,
        }
    }
}

impl StoreError {
    /// Whether the store refused what it was given, and would again: something in it is wrong.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Postgres(error) => error.failure() == Failure::Refused,
            Self::Sqlite(_) | Self::Corrupt(_) | Self::Contended => false,
        }
    }

    /// Whether it is what was given that the store does not take, and not that it was given: a value, a constraint.
    #[must_use]
    pub fn is_of_data(&self) -> bool {
        match self {
            Self::Postgres(error) => error.is_of_data(),
            Self::Sqlite(_) | Self::Corrupt(_) | Self::Contended => false,
        }
    }

    /// Whether a statement's time ran out: a part of it may do.
    #[must_use]
    pub fn is_too_slow(&self) -> bool {
        match self {
            Self::Postgres(error) => error.is_too_slow(),
            Self::Sqlite(_) | Self::Corrupt(_) | Self::Contended => false,
        }
    }

    /// Whether one of those that share a transaction may be the reason alone: by themselves the others may do.
    #[must_use]
    pub fn may_be_of_one(&self) -> bool {
        self.is_refusal() || matches!(self, Self::Corrupt(_) | Self::Contended)
    }

    /// Whether its tenant has too much under way.
    #[must_use]
    pub fn is_share_taken(&self) -> bool {
        match self {
            Self::Postgres(error) => matches!(error, PgError::ShareTaken),
            Self::Sqlite(error) => matches!(error, SqliteError::ShareTaken),
            Self::Corrupt(_) | Self::Contended => false,
        }
    }

    /// What the embedded store has no room in, where that is why.
    #[must_use]
    pub fn full(&self) -> Option<Full> {
        match self {
            Self::Sqlite(error) => error.full(),
            Self::Postgres(_) | Self::Corrupt(_) | Self::Contended => None,
        }
    }
}

impl Store {
    /// Runs `work` in a transaction within this reach and commits it; it adds an entry of about so many bytes.
    /// On PostgreSQL it is run again where nothing was written and it can succeed now, so it does
    /// nothing but what its transaction does. On SQLite nothing in it waits for anything else.
    /// Who stops waiting undoes it, unless it was begun in SQLite, or committed.
    pub async fn run<T, E, F>(&self, reach: impl Into<Reach>, bytes: u64, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
    {
        self.run_adding(reach, Adds::entry(bytes), work).await
    }

    /// [`Store::run`] of what adds something else than an entry.
    pub async fn run_adding<T, E, F>(&self, reach: impl Into<Reach>, adds: Adds, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
    {
        match self {
            Self::Postgres(postgres) => on_postgres(postgres, reach.into().0, work).await,
            Self::Sqlite(sqlite) => on_sqlite(sqlite, reach.into(), (adds, false), work).await,
        }
    }

    /// [`Store::run`] of what SQLite does though its caller stops waiting. On PostgreSQL whoever promises that must wait.
    pub async fn run_promised<T, E, F>(&self, reach: impl Into<Reach>, bytes: u64, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
    {
        match self {
            Self::Postgres(postgres) => on_postgres(postgres, reach.into().0, work).await,
            Self::Sqlite(sqlite) => on_sqlite(sqlite, reach.into(), (Adds::entry(bytes), true), work).await,
        }
    }

    /// 32 secret bytes that are the same for every process of this store.
    pub async fn cursor_key(&self) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Postgres(postgres) => Ok(postgres.identity().await?.cursor_key.clone()),
            Self::Sqlite(sqlite) => {
                // It is this file's for ever: a look for each read would wait in a line that is nobody's.
                let read =
                    || sqlite.read(|c| c.query_row("SELECT cursor_key FROM store", [], |row| row.get(0)));
                Ok(sqlite.cursor_key.get_or_try_init(read).await?.clone())
            }
        }
    }

    /// Runs `work`, which changes nothing, within this reach.
    pub async fn read<T, E, F>(&self, reach: impl Into<Reach>, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
    {
        match self {
            Self::Postgres(postgres) => on_postgres(postgres, reach.into().0, work).await,
            Self::Sqlite(sqlite) => {
                let owner = reach.into().0.counted();
                let ended = sqlite.look(owner, move |transaction| at_once(transaction, work)).await;
                ended.map_err(|Raised(error)| error)
            }
        }
    }
}

/// Lets an error of any transaction's come from a store's own, by way of [`StoreError`].
struct Raised<E>(E);

impl<E: From<StoreError>> From<PgError> for Raised<E> {
    fn from(error: PgError) -> Self {
        Self(E::from(StoreError::from(error)))
    }
}

impl<E: From<StoreError>> From<SqliteError> for Raised<E> {
    fn from(error: SqliteError) -> Self {
        Self(E::from(StoreError::from(error)))
    }
}

/// Runs a transaction's function to its end on this thread, which nothing in it may keep waiting.
fn at_once<T, E, F>(transaction: SqliteTx<'_>, work: F) -> Result<T, Raised<E>>
where
    E: From<StoreError>,
    F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E>,
{
    let mut tx = Tx::Sqlite(transaction);
    let mut working = pin!(work(&mut tx));
    match working.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ended) => ended.map_err(Raised),
        Poll::Pending => Err(SqliteError::Waited.into()),
    }
}

async fn on_sqlite<T, E, F>(sqlite: &Sqlite, reach: Reach, terms: (Adds, bool), work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
{
    let owner = reach.0.counted();
    let ended = sqlite.transact(owner, terms, move |transaction| at_once(transaction, work)).await;
    ended.map_err(|Raised(error)| error)
}

async fn on_postgres<T, E, F>(postgres: &Postgres, tenants: Tenants, work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: for<'t> Fn(&'t mut Tx<'_>) -> Work<'t, T, E> + Send + Sync + 'static,
{
    let work = Arc::new(work);
    let ended = postgres.run_for(tenants, move |transaction| {
        let work = Arc::clone(&work);
        Box::pin(async move { work(&mut Tx::Postgres(transaction)).await.map_err(Raised) })
    });
    ended.await.map_err(|Raised(error)| error)
}
