//! The threads behind a database: SQLite blocks, so no async task may call it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::vec::Drain;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::StoreError;

/// After this time a group is committed with the jobs that it has: small writes do not wait for all the large ones.
const GROUP_TIME: Duration = Duration::from_millis(20);

/// Tells a job's caller how it ended; the argument says whether the commit that holds it succeeded.
type Finish = Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send>;

/// A closure on its way to a thread, with the way back.
pub(super) struct Job(Box<dyn FnOnce(&Connection) -> Ended + Send>);

/// How a job's closure ended.
enum Ended {
    /// Well: its caller is told after the commit.
    Well(Finish),
    /// Its caller was told already; its savepoint goes.
    Failed,
}

impl Job {
    pub(super) fn new<T, F>(job: F, caller: oneshot::Sender<Result<T, StoreError>>) -> Self
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        Self(Box::new(move |connection| match catch_unwind(AssertUnwindSafe(|| job(connection))) {
            Ok(Ok(value)) => Ended::Well(Box::new(move |committed| {
                answer(caller, committed.map(|()| value).map_err(StoreError::from));
            })),
            Ok(Err(error)) => {
                answer(caller, Err(error.into()));
                Ended::Failed
            }
            Err(_) => {
                answer(caller, Err(StoreError::Gone));
                Ended::Failed
            }
        }))
    }
}

/// A caller that no longer waits is no error: its job stands.
fn answer<T>(caller: oneshot::Sender<Result<T, StoreError>>, result: Result<T, StoreError>) {
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
    pub(super) fn writer(mut connection: Connection, queue: usize, batch: usize) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(queue);
        let thread = thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || {
            let mut jobs = Vec::with_capacity(batch);
            while let Ok(first) = receiver.recv() {
                jobs.push(first);
                jobs.extend(receiver.try_iter().take(batch - 1));
                commit_together(&mut connection, &mut jobs);
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
                .spawn(move || read_jobs(&connection, &receiver))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Self { queue: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    pub(super) fn send(&self, job: Job) -> Result<(), StoreError> {
        let queue = self.queue.lock();
        let sender = queue.as_ref().ok_or(StoreError::Gone)?;
        sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Overloaded,
            TrySendError::Disconnected(_) => StoreError::Gone,
        })
    }

    /// Takes no more jobs; the threads end when the queue is empty.
    pub(super) fn close(&self) -> Vec<JoinHandle<()>> {
        self.queue.lock().take();
        std::mem::take(&mut *self.threads.lock())
    }
}

fn read_jobs(connection: &Connection, receiver: &Mutex<Receiver<Job>>) {
    loop {
        let next = receiver.lock().recv();
        let Ok(job) = next else { return };
        if let Ended::Well(finish) = (job.0)(connection) {
            finish(Ok(()));
        }
    }
}

/// Runs every job, in as few transactions as their time allows.
fn commit_together(connection: &mut Connection, jobs: &mut Vec<Job>) {
    let mut waiting = jobs.drain(..);
    while waiting.len() > 0 {
        if let Err(error) = commit_some(connection, &mut waiting) {
            tracing::error!(%error, "a group of writes could not begin");
            // Dropped, their callers hear `Gone`.
            return;
        }
    }
}

/// Runs jobs, each in a savepoint of one transaction, commits, and tells the callers. An error is of the beginning:
/// no job was run.
fn commit_some(connection: &mut Connection, waiting: &mut Drain<'_, Job>) -> Result<(), rusqlite::Error> {
    let mut finished: Vec<Finish> = Vec::with_capacity(waiting.len());
    let mut transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let committed = (|| {
        let until = Instant::now() + GROUP_TIME;
        for job in waiting.by_ref() {
            let savepoint = transaction.savepoint()?;
            match (job.0)(&savepoint) {
                Ended::Well(finish) => {
                    savepoint.commit()?;
                    finished.push(finish);
                }
                // A savepoint rolls back when it is dropped.
                Ended::Failed => drop(savepoint),
            }
            if transaction.is_autocommit() {
                // SQLite has rolled back everything, as it may where the disk is full: what came before is not
                // written, and what comes next needs a transaction of its own.
                let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
                return Err(rusqlite::Error::SqliteFailure(code, None));
            }
            if Instant::now() >= until {
                break;
            }
        }
        transaction.commit()
    })();
    let failure = committed.err().map(|error| {
        tracing::error!(%error, "a group of writes could not be committed");
        error
    });
    for finish in finished {
        finish(failure.as_ref().map_or(Ok(()), |error| Err(copy_of(error))));
    }
    Ok(())
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
