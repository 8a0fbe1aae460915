//! SQLite: one writer thread with group commit, readers beside it.
//!
//! A write is a closure that runs in a savepoint of its own. Everything queued, up to 256 callers,
//! shares one transaction and so one fsync; a caller gets its reply after that commit. One caller's error
//! or panic rolls back its own savepoint alone. Measured: 64 callers 55k rows/s with synchronous FULL.
//! Tenants take turns, and each has a part of what may wait and of what may be kept.

mod held;
mod queue;
mod reserve;
#[cfg(test)]
mod share_tests;
mod space;
#[cfg(test)]
mod tests;
mod threads;
mod tx;

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::{OnceCell, oneshot, watch};
use uuid::Uuid;

use self::held::Held;
use self::reserve::Reserve;
use self::space::Space;
pub use self::space::{Adds, Full};
use crate::error::ErrorKind;
use crate::fairness::Part;
use threads::{Done, Job, Order, Worker};
pub use tx::SqliteTx;

/// Reader connections, each with a thread.
const READERS: usize = 2;

/// How much a commit promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A commit survives power loss.
    Full,
    /// A commit survives the process; power loss may take the last ones, and leaves the file whole.
    Normal,
}

/// How large a database becomes.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    max_bytes: u64,
    tenant: Option<Part>,
}

impl Bound {
    /// About so many bytes over all tenants.
    #[must_use]
    pub fn of(max_bytes: u64) -> Self {
        Self { max_bytes, tenant: None }
    }

    /// Of these the entries of a tenant that is alone have so many in a hundred at the most. Its tables have `tenant_bytes`.
    #[must_use]
    pub fn with_tenant_percent(self, percent: u8) -> Self {
        let one = self.max_bytes / 100 * u64::from(percent);
        Self { tenant: Some(Part::new(self.max_bytes, one)), ..self }
    }
}

/// The owner of some tables (a primitive's name), and the SQL that makes them, step by step; a step that was
/// released never changes.
pub type Migrations = (&'static str, &'static [&'static str]);

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another process uses this database: give each outrigger a data directory of its own")]
    InUse,
    /// A later version of this program made it.
    #[error(
        "its `{owner}` tables are of version {found}, and this program knows {known}: use the newer program, or another data directory"
    )]
    Newer {
        /// Whose tables.
        owner: &'static str,
        /// Their version.
        found: u32,
        /// The last version that this program knows.
        known: usize,
    },
    /// The file system says no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// SQLite says no: not a database, no space, no right.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    /// There is no room for what the job would add; it was not run.
    #[error("the embedded database has no room: {0}")]
    Full(Full),
    /// SQLite refused: the disk is full, or a constraint does not hold. Nothing of this caller was written.
    #[error("the embedded database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Too many jobs wait.
    #[error("the embedded database has too much to do")]
    Overloaded,
    /// Too many jobs of the tenant wait.
    #[error("the embedded database has too much to do for one tenant")]
    ShareTaken,
    /// The database is closed, or the job panicked.
    #[error("the embedded database did not finish the job")]
    Gone,
    /// A defect: a transaction waited for something, with everybody's writes behind it.
    #[error("a transaction of the embedded database waits for nothing")]
    Waited,
}

impl SqliteError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            // Waiting does not help before what the tenant keeps ends.
            Self::Full(Full::Share) => ErrorKind::QuotaExhausted,
            Self::Full(Full::Disk | Full::Database) | Self::Sqlite(_) | Self::Gone => {
                ErrorKind::BackendUnavailable
            }
            Self::Overloaded | Self::ShareTaken => ErrorKind::Overloaded,
            Self::Waited => ErrorKind::Internal,
        }
    }

    /// What there is no room in, where that is why.
    #[must_use]
    pub fn full(&self) -> Option<Full> {
        match self {
            Self::Full(full) => Some(*full),
            Self::Sqlite(error) => space::is_no_room(error).then_some(Full::Disk),
            Self::Overloaded | Self::ShareTaken | Self::Gone | Self::Waited => None,
        }
    }
}

/// An open database.
pub struct Sqlite {
    writer: Worker,
    readers: Worker,
    full: watch::Receiver<Option<Full>>,
    promised: Arc<AtomicU64>,
    pub(super) cursor_key: OnceCell<Vec<u8>>,
    /// Held until the threads are gone: another process is refused until then.
    lock: Mutex<Option<File>>,
}

impl Sqlite {
    /// Opens or makes the database at `path` and runs each owner's migrations that have not run, in order,
    /// each in a transaction. The file keeps to about its bound.
    pub fn open(
        path: &Path,
        durability: Durability,
        bound: Bound,
        migrations: &[Migrations],
    ) -> Result<Arc<Self>, OpenError> {
        let lock = lock(path)?;
        close_to_others(path)?;
        let mut reserve = Reserve::open(path)?;
        let connections = match connect_all(path, durability, migrations) {
            // Even reading the log that a killed process left needs a few pages.
            Err(OpenError::Sqlite(error)) if space::is_no_room(&error) && reserve.is_held() => {
                reserve.release();
                connect_all(path, durability, migrations)
            }
            other => other,
        };
        let (writer, readers) = connections?;
        let mut space = Space::new(path, bound.max_bytes, reserve);
        space.bound(&writer)?;
        space.tick(&writer);
        let held = Held::load(&writer, bound.tenant)?;
        Ok(Arc::new(Self {
            full: space.full(),
            promised: space.promises(),
            writer: Worker::writer(writer, space, held)?,
            readers: Worker::readers(readers)?,
            cursor_key: OnceCell::new(),
            lock: Mutex::new(Some(lock)),
        }))
    }

    /// What there is no room in, as it changes: looked at every second, and at each write that adds something.
    #[must_use]
    pub fn full(&self) -> watch::Receiver<Option<Full>> {
        self.full.clone()
    }

    /// Keeps room for about so many bytes in all that were promised to be written ([`Adds::Promised`]): entries do not get it.
    pub fn promise(&self, bytes: u64) {
        self.promised.store(bytes, Ordering::Relaxed);
    }

    /// Runs `job` in a savepoint and returns what it returns, after the commit that holds it. A caller that
    /// stops waiting does not undo its job.
    pub async fn write<T, F>(&self, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.writer, PROMISED, plain(job)).await
    }

    /// [`Sqlite::write`] of an entry of about so many bytes: refused without a try where there is no room for it.
    pub async fn store<T, F>(&self, bytes: u64, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.writer, Order { adds: Adds::Entry(bytes.max(1)), ..PROMISED }, plain(job)).await
    }

    /// Runs `job` on a reader: it sees what was committed when it began. Not run where its caller left before its turn.
    pub async fn read<T, F>(&self, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.readers, Order { is_promised: false, ..PROMISED }, plain(job)).await
    }

    /// Runs a transaction of several statements in its owner's turn, as [`Sqlite::write`] runs a job; where it is not promised, not
    /// if its caller left before.
    pub(super) async fn transact<T, E, F>(
        &self,
        owner: Option<Uuid>,
        (adds, is_promised): (Adds, bool),
        work: F,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(SqliteTx<'_>) -> Result<T, E> + Send + 'static,
    {
        let order = Order { owner, adds, is_promised };
        run(&self.writer, order, |connection| SqliteTx::run_in(connection, work)).await
    }

    /// Runs statements that change nothing in their owner's turn, as [`Sqlite::read`] runs a job. Each sees what was committed when
    /// it began.
    pub(super) async fn look<T, E, F>(&self, owner: Option<Uuid>, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(SqliteTx<'_>) -> Result<T, E> + Send + 'static,
    {
        let order = Order { owner, is_promised: false, ..PROMISED };
        run(&self.readers, order, |connection| SqliteTx::run_in(connection, work)).await
    }

    /// Finishes every job that is queued, then closes the file. Jobs that come later fail.
    pub async fn close(&self) {
        let (writer, readers) = (self.writer.close(), self.readers.close());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in writer.into_iter().chain(readers) {
                if thread.join().is_err() {
                    tracing::error!("a database thread panicked");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("the database threads were not waited for");
        }
        self.lock.lock().take();
    }
}

/// Nobody's in particular, small, and done though its caller leaves.
const PROMISED: Order = Order { owner: None, adds: Adds::Nothing, is_promised: true };

async fn run<T, E, F>(worker: &Worker, order: Order, job: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<SqliteError> + Send + 'static,
    F: FnOnce(&mut Connection) -> Done<T, E> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    worker.send(Job::new(order, job, sender))?;
    receiver.await.map_err(|_| SqliteError::Gone)?
}

/// A job that is one closure over the connection.
fn plain<T, F>(job: F) -> impl FnOnce(&mut Connection) -> Done<T, SqliteError> + Send + 'static
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
{
    move |connection| {
        let ended = job(connection);
        let no_room = ended.as_ref().err().is_some_and(space::is_no_room);
        Done { ended: ended.map_err(SqliteError::from), no_room, held: Vec::new() }
    }
}

/// A file beside the database, locked while it is open. SQLite's own locks let two processes in.
fn lock(path: &Path) -> Result<File, OpenError> {
    let file = private().open(path.with_extension("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options
}

/// Makes the database's file before SQLite does, as 0600, and takes what others may do from one that is there.
/// SQLite gives its other files the same mode.
fn close_to_others(path: &Path) -> std::io::Result<()> {
    let file = private().open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o007 == 0 { Ok(()) } else { file.set_permissions(Permissions::from_mode(mode & 0o770)) }
}

/// The writer's connection, every migration run, and the readers'.
fn connect_all(
    path: &Path,
    durability: Durability,
    migrations: &[Migrations],
) -> Result<(Connection, Vec<Connection>), OpenError> {
    let mut writer = connect(path, durability)?;
    migrate(&mut writer, migrations)?;
    let readers = (0..READERS).map(|_| connect(path, durability)).collect::<Result<Vec<_>, _>>()?;
    for reader in &readers {
        reader.pragma_update(None, "query_only", true)?;
    }
    Ok((writer, readers))
}

fn connect(path: &Path, durability: Durability) -> Result<Connection, rusqlite::Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(
        None,
        "synchronous",
        if durability == Durability::Full { "FULL" } else { "NORMAL" },
    )?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -2048)?;
    connection.pragma_update(None, "journal_size_limit", space::LOG_BYTES.cast_signed())?;
    // What undoes a savepoint is kept in memory: a disk for temporary files may be as full.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn migrate(connection: &mut Connection, owners: &[Migrations]) -> Result<(), OpenError> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS migrations (owner TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
    )?;
    for (owner, steps) in owners {
        let done: Option<u32> = connection
            .query_row("SELECT version FROM migrations WHERE owner = ?1", [owner], |row| row.get(0))
            .optional()?;
        if let Some(found) =
            done.filter(|found| usize::try_from(*found).is_ok_and(|found| found > steps.len()))
        {
            return Err(OpenError::Newer { owner, found, known: steps.len() });
        }
        for (step, version) in steps.iter().zip(1_u32..).skip_while(|(_, version)| Some(*version) <= done) {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.execute("INSERT OR REPLACE INTO migrations VALUES (?1, ?2)", (owner, version))?;
            transaction.commit()?;
        }
    }
    Ok(())
}
