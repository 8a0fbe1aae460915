//! Group commit: many callers, one transaction.
//!
//! A caller waits in its tenant's line while transactions write; the next one begins when one of them has nothing left to do but to
//! commit, and takes all that wait, of the tenants in turn, up to its bounds. So several commits wait for the disk and the standby
//! side by side, and few transactions do what takes the processor: one, or where much waits as many as there are writers. Nothing waits for a timer: alone, a
//! call's transaction begins at once. Where a transaction is refused, its halves are tried by themselves, so that what is wrong
//! with one caller's call is that caller's alone.
//!
//! On SQLite each call is a transaction to its caller: the writer's thread groups them by itself.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prometheus::Histogram;
use tokio::sync::{Semaphore, oneshot};

use super::sqlite::Full;
use super::{Store, StoreError, Tx};
use crate::error::ErrorKind;
use crate::fairness::{Bounds, Lines, NoRoom, Place, Room};
use crate::policy::Permit;
use crate::tasks::Tasks;

/// Why nothing is known to be kept. Every caller of a transaction gets the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupCommitError {
    /// The store failed; the text is for the log.
    #[error("{text}")]
    Store {
        /// What it means.
        kind: ErrorKind,
        /// Whether the store is full, and in what.
        full: Option<Full>,
        /// What it said.
        text: Arc<str>,
    },
    /// Too many callers wait.
    #[error("too many calls wait for the store")]
    Overloaded,
    /// Too many of its tenant's do.
    #[error("too many calls of the tenant wait for the store")]
    ShareTaken,
    /// A defect: the transaction's task ended without a word.
    #[error("the store's task ended")]
    Gone,
}

impl GroupCommitError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { kind, .. } => *kind,
            Self::Overloaded | Self::ShareTaken => ErrorKind::Overloaded,
            Self::Gone => ErrorKind::OutcomeUnknown,
        }
    }

    /// Whether its tenant has too much under way or in the store.
    #[must_use]
    pub fn is_of_tenant(&self) -> bool {
        matches!(self, Self::ShareTaken | Self::Store { full: Some(Full::Share), .. })
    }
}

impl From<StoreError> for GroupCommitError {
    fn from(error: StoreError) -> Self {
        if error.is_share_taken() {
            return Self::ShareTaken;
        }
        Self::Store { kind: error.kind(), full: error.full(), text: error.to_string().into() }
    }
}

impl From<NoRoom> for GroupCommitError {
    fn from(error: NoRoom) -> Self {
        match error {
            NoRoom::OfTenant => Self::ShareTaken,
            NoRoom::OfAll => Self::Overloaded,
        }
    }
}

/// What is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What the callers are, for the log.
    pub callers_are: &'static str,
    /// Callers in one transaction at the most.
    pub max_callers: usize,
    /// What their calls cost together at the most, where other tenants wait and where none does; one caller's always goes.
    pub max_cost: u64,
    /// See `max_cost`.
    pub max_cost_alone: u64,
    /// Transactions that write at once at the most.
    pub writers: usize,
    /// A further one begins where what waits costs so much: of little each writer would have half, and a transaction costs by itself.
    pub further_at: u64,
    /// Transactions under way at the most: those that do not write commit.
    pub under_way: usize,
    /// Callers that wait, and what they bring.
    pub room: Bounds,
}

/// What a transaction does for its callers: an outcome for each, in their order. It may be run again where nothing was written.
pub type Work<C, O> = for<'t> fn(&'t mut Tx<'_>, &'t [C]) -> BoxFuture<'t, Result<Vec<O>, StoreError>>;

/// What is observed of transactions.
#[derive(Clone)]
pub struct GroupMetrics {
    /// Callers in each.
    pub callers: Histogram,
    /// From a call to its commit.
    pub seconds: Histogram,
}

/// Transactions that callers share.
pub struct GroupCommit<C, O> {
    store: Store,
    work: Work<C, O>,
    terms: Terms,
    queue: Mutex<Queue<C, O>>,
    room: Room,
    under_way: Arc<Semaphore>,
    /// Told of each commit, though its callers stopped waiting.
    on_commit: Box<dyn Fn() + Send + Sync>,
    metrics: GroupMetrics,
    tasks: Tasks,
}

/// A caller's call, and the way back.
struct Job<C, O> {
    call: C,
    caller: Caller<O>,
}

/// One who waits for its call to be durable.
struct Caller<O> {
    permit: Permit,
    came: Instant,
    answer: oneshot::Sender<Result<O, GroupCommitError>>,
    /// Kept until it is answered: one that stops waiting has its call here all the same.
    _place: Place,
}

struct Queue<C, O> {
    jobs: Lines<Job<C, O>>,
    /// Writers at work.
    running: usize,
}

impl<C: Send + Sync + 'static, O: Send + 'static> GroupCommit<C, O> {
    /// Of calls on this store.
    pub fn new(
        store: Store,
        work: Work<C, O>,
        terms: Terms,
        on_commit: impl Fn() + Send + Sync + 'static,
        metrics: GroupMetrics,
        tasks: Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            work,
            terms,
            queue: Mutex::new(Queue { jobs: Lines::default(), running: 0 }),
            room: Room::new(terms.room),
            under_way: Arc::new(Semaphore::new(terms.under_way)),
            on_commit: Box::new(on_commit),
            metrics,
            tasks,
        })
    }

    /// Does a caller's call and returns once it is durable. A caller that stops waiting does not undo it. It brings so many bytes, and
    /// counts in its transaction for what it costs.
    pub async fn call(
        self: &Arc<Self>,
        permit: Permit,
        call: C,
        bytes: u64,
        cost: u64,
    ) -> Result<O, GroupCommitError> {
        let place = self.room.enter(*permit.tenant().as_uuid(), bytes)?;
        match &self.store {
            Store::Sqlite(_) => self.alone(permit, call, place).await,
            Store::Postgres(_) => self.together(permit, call, place, cost).await,
        }
    }

    async fn alone(&self, permit: Permit, call: C, place: Place) -> Result<O, GroupCommitError> {
        let (work, bytes) = (self.work, place.bytes());
        // The place goes with the call, which is done though its caller stops waiting.
        let call = Arc::new((call, place));
        let ended: Result<O, StoreError> = self
            .store
            .run_promised(&permit, bytes, move |tx| {
                let call = Arc::clone(&call);
                Box::pin(async move {
                    let mut outcomes = work(tx, std::slice::from_ref(&call.0)).await?;
                    outcomes.pop().ok_or_else(|| unanswered(1))
                })
            })
            .await;
        Ok(ended?)
    }

    async fn together(
        self: &Arc<Self>,
        permit: Permit,
        call: C,
        place: Place,
        cost: u64,
    ) -> Result<O, GroupCommitError> {
        let (answer, answered) = oneshot::channel();
        let tenant = *permit.tenant().as_uuid();
        let job = Job { call, caller: Caller { permit, came: Instant::now(), answer, _place: place } };
        let starts = {
            let mut queue = self.queue.lock();
            queue.jobs.push(tenant, cost, job);
            let starts = match queue.running {
                0 => true,
                running => running < self.terms.writers && queue.jobs.bytes() >= self.terms.further_at,
            };
            queue.running += usize::from(starts);
            starts
        };
        if starts {
            let writer = Writer(Arc::clone(self));
            self.tasks.spawn(self.terms.callers_are, async move { writer.run().await });
        }
        answered.await.map_err(|_| GroupCommitError::Gone)?
    }

    /// What the next transaction takes; nothing where this writer ends, since nobody waits or others are enough.
    fn next(&self) -> Vec<Job<C, O>> {
        let mut queue = self.queue.lock();
        if queue.running > 1 && queue.jobs.bytes() < self.terms.further_at {
            queue.running -= 1;
            return Vec::new();
        }
        let others_wait = queue.jobs.tenants() > 1;
        let max_cost = if others_wait { self.terms.max_cost } else { self.terms.max_cost_alone };
        let jobs = queue.jobs.take(self.terms.max_callers, max_cost);
        if jobs.is_empty() {
            queue.running -= 1;
        }
        jobs
    }

    /// Runs a transaction for these callers, and where it is refused one for each half of them. Says when there is no more
    /// to write.
    ///
    /// The calls are all that were taken together; the callers' own begin at `from`.
    fn commit(
        &self,
        mut callers: Vec<Caller<O>>,
        calls: Arc<[C]>,
        from: usize,
        written: Written,
    ) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let permits: Vec<Permit> = callers.iter().map(|caller| caller.permit.clone()).collect();
            self.metrics.callers.observe(count(callers.len()));
            let (all, own, of_this) = (Arc::clone(&calls), from..from + callers.len(), written.clone());
            let work = self.work;
            let ended: Result<Vec<O>, StoreError> = self
                .store
                .run(&permits[..], 0, move |tx| {
                    let (all, own, written) = (Arc::clone(&all), own.clone(), of_this.clone());
                    Box::pin(async move {
                        let wanted = own.len();
                        let outcomes = work(tx, all.get(own).unwrap_or_default()).await?;
                        written.say();
                        if outcomes.len() == wanted { Ok(outcomes) } else { Err(unanswered(wanted)) }
                    })
                })
                .await;
            match ended {
                Ok(outcomes) => {
                    (self.on_commit)();
                    for (caller, outcome) in callers.into_iter().zip(outcomes) {
                        self.metrics.seconds.observe(caller.came.elapsed().as_secs_f64());
                        caller.answer(Ok(outcome));
                    }
                }
                Err(error) if error.may_be_of_one() && callers.len() > 1 => {
                    let (count, what) = (callers.len(), self.terms.callers_are);
                    tracing::warn!(%error, callers = count, what, "a transaction of several callers failed for one of them: halved");
                    let others = callers.split_off(callers.len() / 2);
                    let of_others = from + callers.len();
                    self.commit(callers, Arc::clone(&calls), from, written.clone()).await;
                    self.commit(others, calls, of_others, written).await;
                }
                Err(error) => {
                    let error = GroupCommitError::from(error);
                    let (count, what) = (callers.len(), self.terms.callers_are);
                    tracing::warn!(%error, callers = count, what, "a transaction was not committed");
                    callers.into_iter().for_each(|caller| caller.answer(Err(error.clone())));
                }
            }
        })
    }
}

impl<O> Caller<O> {
    /// That it no longer waits is no error: its call is kept.
    fn answer(self, result: Result<O, GroupCommitError>) {
        if self.answer.send(result).is_err() {
            tracing::trace!("a caller stopped waiting");
        }
    }
}

/// Says once that a transaction has nothing left to write. Dropped everywhere, it has ended in another way.
#[derive(Clone)]
struct Written(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Written {
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (says, said) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(says)))), said)
    }

    fn say(&self) {
        if let Some(says) = self.0.lock().take() {
            // Nobody listens where the writer is gone: its process stops.
            says.send(()).ok();
        }
    }
}

/// One that runs transactions while somebody waits. Ended otherwise, it lets another begin.
struct Writer<C, O>(Arc<GroupCommit<C, O>>);

impl<C: Send + Sync + 'static, O: Send + 'static> Writer<C, O> {
    async fn run(self) {
        let group = &self.0;
        loop {
            // Before the callers are taken: those that come while it waits go with them.
            let Ok(under_way) = Arc::clone(&group.under_way).acquire_owned().await else { return };
            let jobs = group.next();
            if jobs.is_empty() {
                return;
            }
            let (calls, callers): (Vec<C>, Vec<Caller<O>>) =
                jobs.into_iter().map(|job| (job.call, job.caller)).unzip();
            let (written, said) = Written::new();
            let committing = Arc::clone(group);
            group.tasks.spawn(group.terms.callers_are, async move {
                committing.commit(callers, calls.into(), 0, written).await;
                drop(under_way);
            });
            // Said, or dropped at a transaction's end: either way the next one may begin.
            said.await.ok();
        }
    }
}

impl<C, O> Drop for Writer<C, O> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().running -= 1;
        }
    }
}

fn unanswered(calls: usize) -> StoreError {
    StoreError::Corrupt(format!("a defect: not all of {calls} calls of a transaction were answered"))
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
fn count(number: usize) -> f64 {
    number as f64
}
