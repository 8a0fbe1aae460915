//! The threads behind a database: SQLite blocks, so no async task may call it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::SqliteError;
use super::held::{Change, Held};
use super::queue::{Next, Queue, Taker};
use super::space::{Adds, Full, PERIOD, Space, is_no_room};

/// Callers that share one transaction at the most.
const BATCH: usize = 256;
/// After this time a group is committed with the jobs that it has: small writes do not wait for all the large ones.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// And after so many bytes, so that the write-ahead log, which holds a group whole, stays within the reserve.
const GROUP_BYTES: u64 = 4 * 1024 * 1024;

/// Tells a job's caller how it ended; the argument says whether the commit that holds it succeeded.
type Finish = Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send>;

/// What is known of a job before it is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// In whose line it waits; none where it is nobody's in particular.
    pub(super) owner: Option<Uuid>,
    pub(super) adds: Adds,
    /// Whether it is run though its caller left before its turn.
    pub(super) is_promised: bool,
}

/// A closure on its way to a thread, with the way back.
pub(super) struct Job {
    order: Order,
    work: Box<dyn Work>,
}

/// A job's closure, whatever it returns.
trait Work: Send {
    /// Whether nobody waits for it.
    fn is_left(&self) -> bool;
    /// Run with a connection, or told that there is no room.
    fn run(self: Box<Self>, connection: Result<&mut Connection, Full>) -> Ended;
}

/// How a job's closure ended.
enum Ended {
    /// Well: its caller is told after the commit.
    Well(Finish, Vec<Change>),
    /// Its caller was told already; its savepoint goes.
    Failed {
        /// Whether for want of room.
        no_room: bool,
    },
}

/// What a job returns.
pub(super) struct Done<T, E> {
    pub(super) ended: Result<T, E>,
    /// Whether it failed for want of room.
    pub(super) no_room: bool,
    /// What tenants hold more or less by it.
    pub(super) held: Vec<Change>,
}

struct Call<T, E, F> {
    job: F,
    caller: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> Work for Call<T, E, F>
where
    T: Send + 'static,
    E: From<SqliteError> + Send + 'static,
    F: FnOnce(&mut Connection) -> Done<T, E> + Send + 'static,
{
    fn is_left(&self) -> bool {
        self.caller.is_closed()
    }

    fn run(self: Box<Self>, connection: Result<&mut Connection, Full>) -> Ended {
        let Self { job, caller } = *self;
        let connection = match connection {
            Ok(connection) => connection,
            Err(full) => {
                answer(caller, Err(SqliteError::Full(full).into()));
                return Ended::Failed { no_room: false };
            }
        };
        match catch_unwind(AssertUnwindSafe(|| job(connection))) {
            Ok(Done { ended: Ok(value), held, .. }) => {
                let finish = move |committed: Result<(), rusqlite::Error>| {
                    let committed = committed.map(|()| value);
                    answer(caller, committed.map_err(|error| SqliteError::from(error).into()));
                };
                Ended::Well(Box::new(finish), held)
            }
            Ok(Done { ended: Err(error), no_room, .. }) => {
                answer(caller, Err(error));
                Ended::Failed { no_room }
            }
            Err(_) => {
                answer(caller, Err(SqliteError::Gone.into()));
                Ended::Failed { no_room: false }
            }
        }
    }
}

impl Job {
    pub(super) fn new<T, E, F>(order: Order, job: F, caller: oneshot::Sender<Result<T, E>>) -> Self
    where
        T: Send + 'static,
        E: From<SqliteError> + Send + 'static,
        F: FnOnce(&mut Connection) -> Done<T, E> + Send + 'static,
    {
        Self { order, work: Box::new(Call { job, caller }) }
    }

    pub(super) fn owner(&self) -> Option<Uuid> {
        self.order.owner
    }

    pub(super) fn adds(&self) -> Adds {
        self.order.adds
    }

    /// Whether it is passed over: nobody waits for it, and nobody was promised it.
    pub(super) fn is_left(&self) -> bool {
        !self.order.is_promised && self.work.is_left()
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
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Worker {
    /// One thread that commits in groups.
    pub(super) fn writer(connection: Connection, space: Space, held: Held) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut writer = Writer { connection, space, held, jobs: Taker::of(&queue) };
        let thread = thread::Builder::new().name("sqlite-writer".to_owned()).spawn(move || writer.work())?;
        Ok(Self { queue, threads: Mutex::new(vec![thread]) })
    }

    /// A thread for each connection; a job runs on whichever is free.
    pub(super) fn readers(connections: Vec<Connection>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let threads = connections.into_iter().map(|connection| {
            let jobs = Taker::of(&queue);
            thread::Builder::new()
                .name("sqlite-reader".to_owned())
                .spawn(move || read_jobs(connection, &jobs))
        });
        let threads = threads.collect::<Result<_, _>>()?;
        Ok(Self { queue, threads: Mutex::new(threads) })
    }

    pub(super) fn send(&self, job: Job) -> Result<(), SqliteError> {
        self.queue.push(job)
    }

    /// Takes no more jobs; the threads end when the queue is empty.
    pub(super) fn close(&self) -> Vec<JoinHandle<()>> {
        self.queue.close();
        std::mem::take(&mut *self.threads.lock())
    }
}

fn read_jobs(mut connection: Connection, jobs: &Taker) {
    while let Next::Run(job) = jobs.next(None) {
        if let Ended::Well(finish, _) = job.work.run(Ok(&mut connection)) {
            finish(Ok(()));
        }
    }
}

/// What the writer's thread has.
struct Writer {
    connection: Connection,
    space: Space,
    held: Held,
    jobs: Taker,
}

impl Writer {
    fn work(&mut self) {
        loop {
            match self.jobs.next(Some(PERIOD)) {
                Next::Run(first) => {
                    if let Err(error) = self.commit_some(first) {
                        tracing::error!(%error, "a group of writes could not begin");
                        // Dropped, their callers hear `Gone`: they do not all wait for the same error, one by one.
                        let mut left = BATCH;
                        while left > 0 && self.jobs.next_if(|_| true).is_some() {
                            left -= 1;
                        }
                    }
                }
                Next::Idle => {}
                Next::End => return,
            }
            self.space.tick(&self.connection);
        }
    }

    /// Runs this job and others that wait, as many as their time and their bytes allow; commits, and tells the callers. An error
    /// is of the beginning: no job was run.
    fn commit_some(&mut self, first: Job) -> Result<(), rusqlite::Error> {
        let (waiting, bytes) = self.jobs.waiting();
        let of_first = first.adds().entry_bytes();
        self.space
            .prepare(&self.connection, bytes.saturating_add(of_first).min(GROUP_BYTES).max(of_first))?;
        let mut finished: Vec<Finish> = Vec::with_capacity((waiting + 1).min(BATCH));
        say(&self.connection, "BEGIN IMMEDIATE")?;
        let failure = self.run_group(first, waiting, &mut finished).err();
        if !self.connection.is_autocommit()
            && let Err(error) = say(&self.connection, "ROLLBACK")
        {
            tracing::error!(%error, "a group of writes could not be rolled back");
        }
        self.space.ended();
        self.held.ended(failure.is_none());
        if let Some(error) = &failure {
            tracing::error!(%error, "a group of writes could not be committed");
            if is_no_room(error) {
                self.space.failed();
            }
        }
        for finish in finished {
            finish(failure.as_ref().map_or(Ok(()), |error| Err(copy_of(error))));
        }
        Ok(())
    }

    /// Runs jobs, each in a savepoint of one transaction, and commits. Those that end well go into `finished`.
    ///
    /// They are taken one by one, by turns: who comes meanwhile goes before the second of another tenant's. There are no more
    /// than waited at the beginning, so that a group ends though others come.
    fn run_group(
        &mut self,
        first: Job,
        mut waiting: usize,
        finished: &mut Vec<Finish>,
    ) -> rusqlite::Result<()> {
        let until = Instant::now() + GROUP_TIME;
        waiting = waiting.min(BATCH - 1);
        let mut bytes = first.adds().entry_bytes();
        let mut next = Some((self.room(first.order), first));
        while let Some((room, job)) = next.take() {
            match room {
                Ok(()) => self.run_one(job, finished)?,
                Err(full) => {
                    self.space.refused(full);
                    job.work.run(Err(full));
                }
            }
            if waiting == 0 || Instant::now() >= until {
                break;
            }
            waiting -= 1;
            let (space, held, is_empty) = (&mut self.space, &self.held, finished.is_empty());
            let mut room = Ok(());
            let job = self.jobs.next_if(|job| {
                room = held.take(job.order.owner, job.adds(), space.promised());
                let of_next = job.adds().entry_bytes();
                if room.is_err() {
                    // Its tenant's part is full, whatever this group frees of the file.
                    return true;
                }
                if !is_empty && bytes + of_next > GROUP_BYTES {
                    return false;
                }
                room = space.take(job.adds());
                // Looked at again with the next group: what this one frees may make the room.
                let goes = is_empty || room.is_ok();
                bytes += if goes { of_next } else { 0 };
                goes
            });
            next = job.map(|job| (room, job));
        }
        self.held.write(&self.connection)?;
        say(&self.connection, "COMMIT")
    }

    fn room(&mut self, order: Order) -> Result<(), Full> {
        self.held.take(order.owner, order.adds, self.space.promised())?;
        self.space.take(order.adds)
    }

    /// Runs a job in a savepoint. An error ends the group.
    fn run_one(&mut self, job: Job, finished: &mut Vec<Finish>) -> rusqlite::Result<()> {
        say(&self.connection, "SAVEPOINT job")?;
        let ended = job.work.run(Ok(&mut self.connection));
        if self.connection.is_autocommit() {
            // SQLite has rolled back everything, as it may where the disk is full: what came before is not
            // written, and what comes next needs a transaction of its own.
            match ended {
                Ended::Well(finish, _) => finished.push(finish),
                Ended::Failed { no_room: true } => self.space.failed(),
                Ended::Failed { no_room: false } => {}
            }
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
            return Err(rusqlite::Error::SqliteFailure(code, None));
        }
        match ended {
            Ended::Well(finish, held) => {
                finished.push(finish);
                self.held.note(held);
            }
            Ended::Failed { no_room } => {
                say(&self.connection, "ROLLBACK TO job")?;
                if no_room {
                    self.space.failed();
                }
            }
        }
        say(&self.connection, "RELEASE job")
    }
}

/// Transactions and savepoints are said in SQL: rusqlite's own lend the connection to no one who could change it.
fn say(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(drop)
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
