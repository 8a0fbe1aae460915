//! Many callers, one transaction.
//!
//! A publisher's events wait in its tenant's line while a transaction writes; the next one begins when that has nothing left
//! to do but to commit, and takes all that wait, of the tenants in turn, up to its bounds. So several commits wait for the disk and
//! the standby side by side, and one transaction at a time does what takes the processor. Nothing waits for a timer: alone,
//! a call's transaction begins at once. Where a transaction is refused, its halves are tried by themselves, so that what is
//! wrong with one caller's events is that caller's alone.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::append::{Appended, Batch, append, append_all};
use super::arrivals::Arrivals;
use super::metrics::EventsMetrics;
use super::push::Dispatcher;
use crate::error::ErrorKind;
use crate::fairness::{Bounds, Lines, NoRoom, Place, Room};
use crate::policy::Permit;
use crate::store::sqlite::Full;
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;

/// Callers in one transaction at the most.
const MAX_CALLERS: usize = 256;
/// What their events cost together at the most, where other tenants wait and where none does; one caller's always go. The keys of
/// a thousand take up to a quarter of a second where they are not in memory.
const MAX_COST: u64 = 4 * 1024 * 1024;
const MAX_COST_ALONE: u64 = 16 * 1024 * 1024;
/// What an event costs, in bytes, beside its own.
const EVENT_COST: u64 = 4096;
/// Callers that wait, and their events.
const ROOM: Bounds = Bounds { calls: 8192, bytes: 256 * 1024 * 1024, share: 4 };
/// Transactions under way at the most, of which one writes and the others commit.
const MAX_UNDER_WAY: usize = 4;

/// Why nothing is known to be kept. Every caller of a transaction gets the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
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
    #[error("too many calls wait for the event store")]
    Overloaded,
    /// Too many of its tenant's do; the others have room.
    #[error("too many calls of the tenant wait for the event store")]
    ShareTaken,
    /// A defect: the transaction's task ended without a word.
    #[error("the event store's task ended")]
    Gone,
}

impl PublishError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { kind, .. } => *kind,
            Self::Overloaded | Self::ShareTaken => ErrorKind::Overloaded,
            Self::Gone => ErrorKind::OutcomeUnknown,
        }
    }
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        if error.is_share_taken() {
            return Self::ShareTaken;
        }
        Self::Store { kind: error.kind(), full: error.full(), text: error.to_string().into() }
    }
}

impl From<NoRoom> for PublishError {
    fn from(error: NoRoom) -> Self {
        match error {
            NoRoom::OfTenant => Self::ShareTaken,
            NoRoom::OfAll => Self::Overloaded,
        }
    }
}

type Answer = oneshot::Sender<Result<Appended, PublishError>>;

/// A caller's events, and the way back.
struct Job {
    batch: Batch,
    caller: Caller,
}

/// One who waits for its events to be durable.
struct Caller {
    permit: Permit,
    came: Instant,
    answer: Answer,
    /// Kept until it is answered: one that stops waiting has its events here all the same.
    _place: Place,
}

#[derive(Default)]
struct Queue {
    jobs: Lines<Job>,
    running: bool,
}

/// Publishes into one store.
pub struct Publisher {
    store: Store,
    queue: Mutex<Queue>,
    room: Room,
    under_way: Arc<Semaphore>,
    arrivals: Arc<Arrivals>,
    dispatcher: Dispatcher,
    metrics: Arc<EventsMetrics>,
    tasks: Tasks,
}

impl Publisher {
    pub(super) fn new(
        store: Store,
        (arrivals, dispatcher): (Arc<Arrivals>, Dispatcher),
        metrics: Arc<EventsMetrics>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let under_way = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        Arc::new(Self {
            store,
            queue: Mutex::default(),
            room: Room::new(ROOM),
            under_way,
            arrivals,
            dispatcher,
            metrics,
            tasks,
        })
    }

    /// Appends a caller's events and returns once they are durable. A caller that stops waiting does not undo it.
    pub async fn publish(self: &Arc<Self>, permit: Permit, batch: Batch) -> Result<Appended, PublishError> {
        let (topic, tenant) = (permit.name().clone(), *permit.tenant().as_uuid());
        let bytes = batch.bytes();
        let ended = match (self.room.enter(tenant, bytes), &self.store) {
            (Err(no_room), _) => Err(no_room.into()),
            // The writer's thread groups its callers by itself.
            (Ok(place), Store::Sqlite(_)) => self.alone(permit, batch, place).await,
            (Ok(place), Store::Postgres(_)) => self.together(permit, batch, place).await,
        };
        match &ended {
            Ok(appended) => {
                self.metrics.published(appended);
                self.dispatcher.arrival(&topic, tenant);
            }
            Err(PublishError::ShareTaken | PublishError::Store { full: Some(Full::Share), .. }) => {
                self.metrics.share_taken.inc();
            }
            Err(error) => self.metrics.failed(error.kind()),
        }
        ended
    }

    async fn alone(&self, permit: Permit, batch: Batch, place: Place) -> Result<Appended, PublishError> {
        let (topic, tenant) = (permit.name().clone(), *permit.tenant().as_uuid());
        // The place goes with the job, which is done though its caller stops waiting.
        let (bytes, batch) = (place.bytes(), Arc::new((batch, place)));
        let appended: Result<Appended, StoreError> = self
            .store
            .run_promised(&permit, bytes, move |tx| {
                let batch = Arc::clone(&batch);
                Box::pin(async move { append(tx, &batch.0).await })
            })
            .await;
        let appended = appended?;
        self.arrivals.tell(&topic, tenant);
        Ok(appended)
    }

    async fn together(
        self: &Arc<Self>,
        permit: Permit,
        batch: Batch,
        place: Place,
    ) -> Result<Appended, PublishError> {
        let (answer, answered) = oneshot::channel();
        let tenant = *permit.tenant().as_uuid();
        let cost = place.bytes() + EVENT_COST * batch.len() as u64;
        let job = Job { batch, caller: Caller { permit, came: Instant::now(), answer, _place: place } };
        let starts = {
            let mut queue = self.queue.lock();
            queue.jobs.push(tenant, cost, job);
            !std::mem::replace(&mut queue.running, true)
        };
        if starts {
            let runner = Runner(Arc::clone(self));
            self.tasks.spawn("publish", async move { runner.run().await });
        }
        answered.await.map_err(|_| PublishError::Gone)?
    }

    /// What the next transaction takes; nothing where nobody waits, and then nobody runs.
    fn next(&self) -> Vec<Job> {
        let mut queue = self.queue.lock();
        let max_cost = if queue.jobs.tenants() > 1 { MAX_COST } else { MAX_COST_ALONE };
        let jobs = queue.jobs.take(MAX_CALLERS, max_cost);
        if jobs.is_empty() {
            queue.running = false;
        }
        jobs
    }

    /// Runs a transaction for these callers, and where it is refused one for each half of them. Says when there is no more
    /// to write.
    ///
    /// The batches are all that were taken together; the callers' own begin at `from`.
    fn commit(
        &self,
        mut callers: Vec<Caller>,
        batches: Arc<[Batch]>,
        from: usize,
        written: Written,
    ) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let permits: Vec<Permit> = callers.iter().map(|caller| caller.permit.clone()).collect();
            self.metrics.callers_per_transaction.observe(count(callers.len()));
            let (all, own, of_this) = (Arc::clone(&batches), from..from + callers.len(), written.clone());
            let ended: Result<Vec<Appended>, StoreError> = self
                .store
                .run(&permits[..], 0, move |tx| {
                    let (all, own, written) = (Arc::clone(&all), own.clone(), of_this.clone());
                    Box::pin(async move {
                        let appended = append_all(tx, all.get(own).unwrap_or_default()).await?;
                        written.say();
                        Ok(appended)
                    })
                })
                .await;
            match ended {
                Ok(appended) => {
                    self.arrivals.look_soon();
                    for (caller, appended) in callers.into_iter().zip(appended) {
                        self.metrics.accept_seconds.observe(caller.came.elapsed().as_secs_f64());
                        answer(caller.answer, Ok(appended));
                    }
                }
                Err(error) if error.is_refusal() && callers.len() > 1 => {
                    tracing::warn!(%error, callers = callers.len(), "a transaction of several publishers was refused: halved");
                    let others = callers.split_off(callers.len() / 2);
                    let of_others = from + callers.len();
                    self.commit(callers, Arc::clone(&batches), from, written.clone()).await;
                    self.commit(others, batches, of_others, written).await;
                }
                Err(error) => {
                    let error = PublishError::from(error);
                    tracing::warn!(%error, callers = callers.len(), "events were not accepted");
                    for caller in callers {
                        answer(caller.answer, Err(error.clone()));
                    }
                }
            }
        })
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
            // Nobody listens where the runner is gone: its process stops.
            says.send(()).ok();
        }
    }
}

/// The one that runs transactions while somebody waits. Ended otherwise, it lets another begin.
struct Runner(Arc<Publisher>);

impl Runner {
    async fn run(self) {
        let publisher = &self.0;
        loop {
            // Before the callers are taken: those that come while it waits go with them.
            let Ok(under_way) = Arc::clone(&publisher.under_way).acquire_owned().await else { return };
            let jobs = publisher.next();
            if jobs.is_empty() {
                return;
            }
            let (batches, callers): (Vec<Batch>, Vec<Caller>) =
                jobs.into_iter().map(|job| (job.batch, job.caller)).unzip();
            let (written, said) = Written::new();
            let committing = Arc::clone(publisher);
            publisher.tasks.spawn("publish", async move {
                committing.commit(callers, batches.into(), 0, written).await;
                drop(under_way);
            });
            // Said, or dropped at a transaction's end: either way the next one may begin.
            said.await.ok();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().running = false;
        }
    }
}

/// A caller that no longer waits is no error: its events are kept.
fn answer(caller: Answer, result: Result<Appended, PublishError>) {
    if caller.send(result).is_err() {
        tracing::trace!("a publisher stopped waiting");
    }
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred at the most")]
fn count(number: usize) -> f64 {
    number as f64
}
