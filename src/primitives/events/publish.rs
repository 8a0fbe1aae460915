//! Many callers, one transaction.
//!
//! A publisher's events wait in a queue while a transaction is under way; the next one takes all that wait, of whichever
//! tenants, up to its bounds. Nothing waits for a timer: alone, a call's transaction begins at once. Where a transaction is
//! refused, its halves are tried by themselves, so that what is wrong with one caller's events is that caller's alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::append::{Appended, Batch, append, append_all};
use super::arrivals::Arrivals;
use super::metrics::EventsMetrics;
use super::push::Dispatcher;
use crate::error::ErrorKind;
use crate::policy::Permit;
use crate::store::sqlite::Full;
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;

/// Callers in one transaction at the most.
const MAX_CALLERS: usize = 256;
/// Their events together at the most, in bytes; one caller's always go.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Callers that wait at the most; more are refused.
const MAX_WAITING: usize = 8192;

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
            Self::Overloaded => ErrorKind::Overloaded,
            Self::Gone => ErrorKind::OutcomeUnknown,
        }
    }
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        Self::Store { kind: error.kind(), full: error.full(), text: error.to_string().into() }
    }
}

type Answer = oneshot::Sender<Result<Appended, PublishError>>;

/// A caller's events, and the way back.
struct Job {
    permit: Permit,
    batch: Batch,
    came: Instant,
    answer: Answer,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

/// Publishes into one store.
pub struct Publisher {
    store: Store,
    queue: Mutex<Queue>,
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
        Arc::new(Self { store, queue: Mutex::default(), arrivals, dispatcher, metrics, tasks })
    }

    /// Appends a caller's events and returns once they are durable. A caller that stops waiting does not undo it.
    pub async fn publish(self: &Arc<Self>, permit: Permit, batch: Batch) -> Result<Appended, PublishError> {
        let (topic, tenant) = (permit.name().clone(), *permit.tenant().as_uuid());
        let ended = match &self.store {
            // The writer's thread groups its callers by itself.
            Store::Sqlite(_) => self.alone(permit, batch).await,
            Store::Postgres(_) => self.together(permit, batch).await,
        };
        match &ended {
            Ok(appended) => {
                self.metrics.published(appended);
                self.dispatcher.arrival(&topic, tenant);
            }
            Err(error) => self.metrics.failed(error.kind()),
        }
        ended
    }

    async fn alone(&self, permit: Permit, batch: Batch) -> Result<Appended, PublishError> {
        let (bytes, batch) = (batch.bytes(), Arc::new(batch));
        let appended: Result<Appended, StoreError> = self
            .store
            .run(&permit, bytes, move |tx| {
                let batch = Arc::clone(&batch);
                Box::pin(async move { append(tx, &batch).await })
            })
            .await;
        let appended = appended?;
        self.arrivals.tell();
        Ok(appended)
    }

    async fn together(self: &Arc<Self>, permit: Permit, batch: Batch) -> Result<Appended, PublishError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { permit, batch, came: Instant::now(), answer };
        let starts = {
            let mut queue = self.queue.lock();
            if queue.jobs.len() >= MAX_WAITING {
                return Err(PublishError::Overloaded);
            }
            queue.jobs.push_back(job);
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
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        while let Some(next) = queue.jobs.front() {
            bytes += next.batch.bytes();
            if !jobs.is_empty() && (jobs.len() == MAX_CALLERS || bytes > MAX_BYTES) {
                break;
            }
            jobs.extend(queue.jobs.pop_front());
        }
        if jobs.is_empty() {
            queue.running = false;
        }
        jobs
    }

    /// Runs a transaction for these callers, and where it is refused one for each half of them.
    fn commit(&self, mut jobs: Vec<Job>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let permits: Vec<Permit> = jobs.iter().map(|job| job.permit.clone()).collect();
            let batches: Arc<[Batch]> = jobs.iter().map(|job| job.batch.clone()).collect();
            self.metrics.callers_per_transaction.observe(count(jobs.len()));
            let ended: Result<Vec<Appended>, StoreError> = self
                .store
                .run(&permits[..], 0, move |tx| {
                    let batches = Arc::clone(&batches);
                    Box::pin(async move { append_all(tx, &batches).await })
                })
                .await;
            match ended {
                Ok(appended) => {
                    self.arrivals.tell();
                    for (job, appended) in jobs.into_iter().zip(appended) {
                        self.metrics.accept_seconds.observe(job.came.elapsed().as_secs_f64());
                        answer(job.answer, Ok(appended));
                    }
                }
                Err(error) if error.is_refusal() && jobs.len() > 1 => {
                    tracing::warn!(%error, callers = jobs.len(), "a transaction of several publishers was refused: halved");
                    let others = jobs.split_off(jobs.len() / 2);
                    self.commit(jobs).await;
                    self.commit(others).await;
                }
                Err(error) => {
                    let error = PublishError::from(error);
                    tracing::warn!(%error, callers = jobs.len(), "events were not accepted");
                    for job in jobs {
                        answer(job.answer, Err(error.clone()));
                    }
                }
            }
        })
    }
}

/// The one that runs transactions while somebody waits. Ended otherwise, it lets another begin.
struct Runner(Arc<Publisher>);

impl Runner {
    async fn run(self) {
        loop {
            let jobs = self.0.next();
            if jobs.is_empty() {
                return;
            }
            self.0.commit(jobs).await;
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
