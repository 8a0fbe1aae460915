//! SQLite: one writer thread with group commit, readers beside it.
//!
//! A write is a closure that runs in a savepoint of its own. Everything queued, up to [`BATCH`] callers,
//! shares one transaction and so one fsync; a caller gets its reply after that commit. One caller's error
//! or panic rolls back its own savepoint alone. Measured: 64 callers 55k rows/s with synchronous FULL.

mod reserve;
mod space;
mod threads;
mod tx;

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::sync::{oneshot, watch};

use self::reserve::Reserve;
pub use self::space::Full;
use self::space::Space;
use crate::error::ErrorKind;
use threads::{Done, Job, Worker};
pub use tx::SqliteTx;

/// Callers that share one transaction at the most.
const BATCH: usize = 256;
/// Jobs that wait for a thread at the most; more are refused.
const QUEUE: usize = 4096;
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
            Self::Full(_) | Self::Sqlite(_) | Self::Gone => ErrorKind::BackendUnavailable,
            Self::Overloaded => ErrorKind::Overloaded,
            Self::Waited => ErrorKind::Internal,
        }
    }

    /// What there is no room in, where that is why.
    #[must_use]
    pub fn full(&self) -> Option<Full> {
        match self {
            Self::Full(full) => Some(*full),
            Self::Sqlite(error) => space::is_no_room(error).then_some(Full::Disk),
            Self::Overloaded | Self::Gone | Self::Waited => None,
        }
    }
}

/// An open database.
pub struct Sqlite {
    writer: Worker,
    readers: Worker,
    full: watch::Receiver<Option<Full>>,
    /// Held until the threads are gone: another process is refused until then.
    lock: Mutex<Option<File>>,
}

impl Sqlite {
    /// Opens or makes the database at `path` and runs each owner's migrations that have not run, in order,
    /// each in a transaction. The file keeps to about `max_bytes`.
    pub fn open(
        path: &Path,
        durability: Durability,
        max_bytes: u64,
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
        let mut space = Space::new(path, max_bytes, reserve);
        space.bound(&writer)?;
        space.tick(&writer);
        Ok(Arc::new(Self {
            full: space.full(),
            writer: Worker::writer(writer, space, QUEUE, BATCH)?,
            readers: Worker::readers(readers, QUEUE)?,
            lock: Mutex::new(Some(lock)),
        }))
    }

    /// What there is no room in, as it changes: looked at every second, and at each write that adds something.
    #[must_use]
    pub fn full(&self) -> watch::Receiver<Option<Full>> {
        self.full.clone()
    }

    /// Runs `job` in a savepoint and returns what it returns, after the commit that holds it. A caller that
    /// stops waiting does not undo its job.
    pub async fn write<T, F>(&self, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.writer, 0, plain(job)).await
    }

    /// [`Sqlite::write`] of an entry of about so many bytes: refused without a try where there is no room for it.
    pub async fn store<T, F>(&self, bytes: u64, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.writer, bytes.max(1), plain(job)).await
    }

    /// Runs `job` on a reader: it sees what was committed when it began.
    pub async fn read<T, F>(&self, job: F) -> Result<T, SqliteError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        run(&self.readers, 0, plain(job)).await
    }

    /// Runs a transaction of several statements, which adds about so many bytes, as [`Sqlite::write`] runs a job.
    pub(super) async fn transact<T, E, F>(&self, bytes: u64, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(SqliteTx<'_>) -> Result<T, E> + Send + 'static,
    {
        run(&self.writer, bytes, |connection| SqliteTx::run_in(connection, work)).await
    }

    /// Runs statements that change nothing, as [`Sqlite::read`] runs a job. Each sees what was committed when it began.
    pub(super) async fn look<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(SqliteTx<'_>) -> Result<T, E> + Send + 'static,
    {
        run(&self.readers, 0, |connection| SqliteTx::run_in(connection, work)).await
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

async fn run<T, E, F>(worker: &Worker, bytes: u64, job: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<SqliteError> + Send + 'static,
    F: FnOnce(&mut Connection) -> Done<T, E> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    worker.send(Job::new(bytes, job, sender))?;
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
        (ended.map_err(SqliteError::from), no_room)
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

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BYTES: u64 = 1 << 30;
    const SCHEMA: &[Migrations] = &[("test", &["CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT) STRICT"])];

    fn open(directory: &Path) -> Arc<Sqlite> {
        Sqlite::open(&directory.join("t.db"), Durability::Full, MAX_BYTES, SCHEMA).unwrap()
    }

    async fn count(store: &Sqlite) -> i64 {
        store.read(|c| c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))).await.unwrap()
    }

    #[tokio::test]
    async fn many_callers_are_all_written_and_survive_a_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let writes = (0..1000).map(|k| {
            let store = Arc::clone(&store);
            async move { store.write(move |c| c.execute("INSERT INTO t VALUES (?1, 'v')", [k])).await }
        });
        for written in futures_join(writes).await {
            assert_eq!(written.unwrap(), 1);
        }
        assert_eq!(count(&store).await, 1000);
        store.close().await;
        assert!(matches!(store.write(|_| Ok(())).await, Err(SqliteError::Gone)));
        assert_eq!(count(&open(directory.path())).await, 1000);
    }

    async fn futures_join<T: Send + 'static>(
        futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
    ) -> Vec<T> {
        let mut set = tokio::task::JoinSet::new();
        for future in futures {
            set.spawn(future);
        }
        set.join_all().await
    }

    #[tokio::test]
    async fn a_caller_that_fails_or_panics_fails_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let writes = (0..300).map(|k| {
            let store = Arc::clone(&store);
            async move {
                store
                    .write(move |c| {
                        c.execute("INSERT INTO t VALUES (?1, 'v')", [k])?;
                        assert!(k % 100 != 7, "a job that panics");
                        if k % 10 == 3 { c.execute("INSERT INTO t VALUES (?1, 'again')", [k]) } else { Ok(1) }
                    })
                    .await
                    .is_ok()
            }
        });
        let written = futures_join(writes).await.into_iter().filter(|ok| *ok).count();
        assert_eq!(written, 300 - 30 - 3);
        assert_eq!(count(&store).await, 267);
    }

    #[tokio::test]
    async fn a_database_in_use_is_refused_until_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let path = directory.path().join("t.db");
        assert!(matches!(Sqlite::open(&path, Durability::Full, MAX_BYTES, SCHEMA), Err(OpenError::InUse)));
        store.close().await;
        assert!(Sqlite::open(&path, Durability::Full, MAX_BYTES, SCHEMA).is_ok());
    }

    #[tokio::test]
    async fn a_reader_cannot_write() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        assert!(store.read(|c| c.execute("INSERT INTO t VALUES (1, 'v')", [])).await.is_err());
    }

    /// Fills pages until there are no more: SQLite answers some of these errors by rolling back everything.
    #[tokio::test]
    async fn what_is_said_to_be_written_is_and_what_is_not_is_not_when_the_disk_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let limit = |pages: i64| {
            store.write(move |c| {
                c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
            })
        };
        limit(12).await.unwrap();
        let mut stored = 0;
        for round in 0..40 {
            let writes = (0..8).map(|at| {
                let (store, k) = (Arc::clone(&store), round * 8 + at);
                async move {
                    let bytes = if at == 4 { 200_000 } else { 10 };
                    let text = "x".repeat(bytes);
                    (k, store.write(move |c| c.execute("INSERT INTO t VALUES (?1, ?2)", (k, text))).await)
                }
            });
            for (k, written) in futures_join(writes).await {
                let found = store
                    .read(move |c| {
                        c.query_row("SELECT count(*) FROM t WHERE k = ?1", [k], |row| row.get::<_, i64>(0))
                    })
                    .await
                    .unwrap();
                assert_eq!(found, i64::from(written.is_ok()), "{k}: {written:?}");
                assert!(k % 8 != 4 || written.is_err(), "{k} has no room");
                stored += usize::from(written.is_ok());
            }
        }
        assert!(stored >= 40 * 3, "those after the one that has no room are written: {stored}");
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.db");
        let newer: &[Migrations] =
            &[("test", &["CREATE TABLE t (k INTEGER) STRICT", "CREATE TABLE u (k INTEGER) STRICT"])];
        Sqlite::open(&path, Durability::Full, MAX_BYTES, newer).unwrap().close().await;
        let refused = Sqlite::open(&path, Durability::Full, MAX_BYTES, SCHEMA).err();
        assert!(
            matches!(refused, Some(OpenError::Newer { owner: "test", found: 2, known: 1 })),
            "{refused:?}"
        );
        assert!(Sqlite::open(&path, Durability::Full, MAX_BYTES, newer).is_ok());
    }

    #[tokio::test]
    async fn large_writes_of_one_caller_do_not_hold_up_a_small_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let began = std::time::Instant::now();
        let slow = (0..40).map(|_| {
            let store = Arc::clone(&store);
            async move {
                store
                    .write(|_| {
                        let until = std::time::Instant::now() + std::time::Duration::from_millis(10);
                        while std::time::Instant::now() < until {
                            std::hint::spin_loop();
                        }
                        Ok(())
                    })
                    .await
                    .unwrap();
                std::time::Instant::now()
            }
        });
        let ended = futures_join(slow).await;
        let first = ended.into_iter().min().unwrap() - began;
        assert!(first < std::time::Duration::from_millis(200), "the first waited {first:?}");
    }
}
