//! Publishing: events appended with those of others in one transaction, and who waits for them told.

use std::sync::Arc;

use super::append::{Appended, Batch, append_all};
use super::arrivals::Arrivals;
use super::metrics::EventsMetrics;
use super::push::Dispatcher;
use crate::fairness::Bounds;
use crate::policy::Permit;
use crate::store::{GroupCommit, GroupCommitError, Store, Terms};
use crate::tasks::Tasks;

/// One writes and the others commit: with two, 68,000 events/s are accepted in batches instead of 51,000, and consumers beside them
/// come second (decision 052). The keys of a thousand events take up to a quarter of a second where they are not in memory.
const TERMS: Terms = Terms {
    callers_are: "publishers",
    max_callers: 256,
    max_cost: 4 * 1024 * 1024,
    max_cost_alone: 16 * 1024 * 1024,
    writers: 1,
    further_at: 1024 * 1024,
    under_way: 4,
    room: Bounds { calls: 8192, bytes: 256 * 1024 * 1024, share: 4 },
};
/// What an event costs, in bytes, beside its own.
const EVENT_COST: u64 = 4096;

/// Publishes into one store.
pub struct Publisher {
    group: Arc<GroupCommit<Batch, Appended>>,
    is_embedded: bool,
    arrivals: Arc<Arrivals>,
    dispatcher: Dispatcher,
    metrics: Arc<EventsMetrics>,
}

impl Publisher {
    pub(super) fn new(
        store: Store,
        (arrivals, dispatcher): (Arc<Arrivals>, Dispatcher),
        metrics: Arc<EventsMetrics>,
        tasks: Tasks,
    ) -> Arc<Self> {
        let is_embedded = matches!(store, Store::Sqlite(_));
        let told = Arc::clone(&arrivals);
        let group = GroupCommit::new(
            store,
            |tx, batches| Box::pin(append_all(tx, batches)),
            TERMS,
            move || told.look_soon(),
            metrics.publishing.clone(),
            tasks,
        );
        Arc::new(Self { group, is_embedded, arrivals, dispatcher, metrics })
    }

    /// Appends a caller's events and returns once they are durable. A caller that stops waiting does not undo it.
    pub async fn publish(&self, permit: Permit, batch: Batch) -> Result<Appended, GroupCommitError> {
        let (topic, tenant) = (permit.name().clone(), *permit.tenant().as_uuid());
        let bytes = batch.bytes();
        let cost = bytes + EVENT_COST * batch.len() as u64;
        let ended = self.group.call(permit, batch, bytes, cost).await;
        match &ended {
            Ok(appended) => {
                self.metrics.published(appended);
                if self.is_embedded {
                    // There is no other writer, and nothing to wait for.
                    self.arrivals.tell(&topic, tenant);
                }
                self.dispatcher.arrival(&topic, tenant);
            }
            Err(error) if error.is_of_tenant() => self.metrics.share_taken.inc(),
            Err(error) => self.metrics.failed(error.kind()),
        }
        ended
    }
}
