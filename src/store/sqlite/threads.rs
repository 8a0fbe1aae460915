//! The threads behind a database: SQLite blocks, so no async task may call it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::vec::Drain;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::SqliteError;
use super::space::{Full, PERIOD, Space, is_no_room};

/// After this time a group is committed with the jobs that it has: small writes do not wait for all the large ones.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// And after so many bytes, so that the write-ahead log, which holds a group whole, stays within the reserve.
const GROUP_BYTES: u64 = 4 * 1024 * 1024;

/// Tells a job's caller how it ended; the argument says whether the commit that holds it succeeded.
type Finish = Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send>;

/// A job's closure: run with a connection, or told that there is no room.
type Run = Box<dyn FnOnce(Result<&mut Connection, Full>) -> Ended + Send>;

/// A closure on its way to a thread, with the way back.
pub(super) struct Job {
    /// About what it adds; 0 where it must get through.
    bytes: u64,
    run: Run,
}

/// How a job's closure ended.
enum Ended {
    /// Well: its caller is told after the commit.
    Well(Finish),
    /// Its caller was told already; its savepoint goes.
    Failed {
        /// Whether for want of room.
        no_room: bool,
    },
}

/// What a job returns, and whether it failed for want of room.
pub(super) type Done<T, E> = (Result<T, E>, bool);

impl Job {
    pub(super) fn new<T, E, F>(bytes: u64, job: F, caller: oneshot::Sender<Result<T, E>>) -> Self
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(&mut Connection) -> Done<T, E> + Send + 'static,
    {
        let run = move |connection: Result<&mut Connection, Full>| {
            let connection = match connection {
                Ok(connection) => connection,
                Err(full) => {
                    answer(caller, Err(SqliteError::Full(full).into()));
                    return Ended::Failed { no_room: false };
                }
            };
            match catch_unwind(AssertUnwindSafe(|| job(connection))) {
                Ok((Ok(value), _)) => Ended::Well(Box::new(move |committed| {
                    answer(
                        caller,
                        committed.map(|()| value).map_err(|error| SqliteError::from(error).into()),
                    );
                })),
                Ok((Err(error), no_room)) => {
                    answer(caller, Err(error));
                    Ended::Failed { no_room }
                }
                Err(_) => {
                    answer(caller, Err(SqliteError::Gone.into()));
                    Ended::Failed { no_room: false }
                }
            }
        };
        Self { bytes, run: Box::new(run) }
    }
}

/// A caller that no longer waits is no error: its job stands.
fn answer<T, E>(caller: oneshot::Sender<Result<T, E>>, result: Result<T, E>) {
    if caller.send(result).is_err() {
        tracing::trace!("a caller of the database stopped waiting");
    }
}

/// Threads that take jobs from one bounded queue.
pub(super) struct Worker {
    queue: Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Worker {
    /// One thread that commits in groups of up to `batch`.
    pub(super) fn writer(
        mut connection: Connection,
        mut space: Space,
        queue: usize,
        batch: usize,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        let thread = thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || {
            let mut jobs = Vec::with_capacity(batch);
            loop {
                match receiver.recv_timeout(PERIOD) {
                    Ok(first) => jobs.push(first),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                jobs.extend(receiver.try_iter().take(batch - jobs.len()));
                commit_together(&mut connection, &mut space, &mut jobs);
                space.tick(&connection);
            }
        })?;
        Ok(Self { queue: Mutex::new(Some(sender)), threads: Mutex::new(vec![thread]) })
    }

    /// A thread for each connection; a job runs on whichever is free.
    pub(super) fn readers(connections: Vec<Connection>, queue: usize) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = connections.into_iter().map(|connection| {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name("sqlite-reader".to_owned())
                .spawn(move || read_jobs(connection, &receiver))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Self { queue: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    pub(super) fn send(&self, job: Job) -> Result<(), SqliteError> {
        let queue = self.queue.lock();
        let sender = queue.as_ref().ok_or(SqliteError::Gone)?;
        sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => SqliteError::Overloaded,
            TrySendError::Disconnected(_) => SqliteError::Gone,
        })
    }

    /// Takes no more jobs; the threads end when the queue is empty.
    pub(super) fn close(&self) -> Vec<JoinHandle<()>> {
        self.queue.lock().take();
        std::mem::take(&mut *self.threads.lock())
    }
}

fn read_jobs(mut connection: Connection, receiver: &Mutex<Receiver<Job>>) {
    loop {
        let next = receiver.lock().recv();
        let Ok(job) = next else { return };
        if let Ended::Well(finish) = (job.run)(Ok(&mut connection)) {
            finish(Ok(()));
        }
    }
}

/// Runs every job, in as few transactions as their time and their bytes allow.
fn commit_together(connection: &mut Connection, space: &mut Space, jobs: &mut Vec<Job>) {
    let mut waiting = jobs.drain(..);
    while waiting.len() > 0 {
        if let Err(error) = commit_some(connection, space, &mut waiting) {
            tracing::error!(%error, "a group of writes could not begin");
            // Dropped, their callers hear `Gone`.
            return;
        }
    }
}

/// Runs jobs, commits, and tells the callers. An error is of the beginning: no job was run.
fn commit_some(
    connection: &mut Connection,
    space: &mut Space,
    waiting: &mut Drain<'_, Job>,
) -> Result<(), rusqlite::Error> {
    let first = waiting.as_slice().first().map_or(0, |job| job.bytes);
    let all = waiting.as_slice().iter().map(|job| job.bytes).sum::<u64>();
    space.prepare(connection, all.min(GROUP_BYTES).max(first))?;
    let mut finished: Vec<Finish> = Vec::with_capacity(waiting.len());
    say(connection, "BEGIN IMMEDIATE")?;
    let failure = run_group(connection, space, waiting, &mut finished).err();
    if !connection.is_autocommit()
        && let Err(error) = say(connection, "ROLLBACK")
    {
        tracing::error!(%error, "a group of writes could not be rolled back");
    }
    space.ended();
    if let Some(error) = &failure {
        tracing::error!(%error, "a group of writes could not be committed");
        if is_no_room(error) {
            space.failed();
        }
    }
    for finish in finished {
        finish(failure.as_ref().map_or(Ok(()), |error| Err(copy_of(error))));
    }
    Ok(())
}

/// Transactions and savepoints are said in SQL: rusqlite's own lend the connection to no one who could change it.
fn say(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(drop)
}

/// Runs jobs, each in a savepoint of one transaction, and commits. Those that end well go into `finished`.
fn run_group(
    connection: &mut Connection,
    space: &mut Space,
    waiting: &mut Drain<'_, Job>,
    finished: &mut Vec<Finish>,
) -> rusqlite::Result<()> {
    let until = Instant::now() + GROUP_TIME;
    let mut bytes = 0;
    while let Some(next) = waiting.as_slice().first().map(|job| job.bytes) {
        let room = space.take(next);
        if !finished.is_empty() && (room.is_err() || bytes + next > GROUP_BYTES) {
            // Looked at again with the next group: what this one frees may make the room.
            break;
        }
        let Some(job) = waiting.next() else { break };
        if let Err(full) = room {
            space.refused(full);
            (job.run)(Err(full));
            continue;
        }
        bytes += next;
        say(connection, "SAVEPOINT job")?;
        let ended = (job.run)(Ok(connection));
        if connection.is_autocommit() {
            // SQLite has rolled back everything, as it may where the disk is full: what came before is not
            // written, and what comes next needs a transaction of its own.
            match ended {
                Ended::Well(finish) => finished.push(finish),
                Ended::Failed { no_room: true } => space.failed(),
                Ended::Failed { no_room: false } => {}
            }
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
            return Err(rusqlite::Error::SqliteFailure(code, None));
        }
        match ended {
            Ended::Well(finish) => finished.push(finish),
            Ended::Failed { no_room } => {
                say(connection, "ROLLBACK TO job")?;
                if no_room {
                    space.failed();
                }
            }
        }
        say(connection, "RELEASE job")?;
        if Instant::now() >= until {
            break;
        }
    }
    say(connection, "COMMIT")
}

/// An error as each caller of a failed group gets it.
fn copy_of(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, message) => {
            rusqlite::Error::SqliteFailure(*code, message.clone())
        }
        other => rusqlite::Error::ToSqlConversionFailure(other.to_string().into()),
    }
}
