//! Calls of many callers and tenants, counted in transactions that they share.

use std::sync::Arc;

use jiff::Timestamp;

use super::metrics::UsageMetrics;
use super::{Call, Days, Verdict, count};
use crate::fairness::Bounds;
use crate::policy::Permit;
use crate::store::{GroupCommit, GroupCommitError, Store, Terms};
use crate::tasks::Tasks;

/// Two write: the one's keys wait for the disk while the other's are looked up. A transaction has 16,000 points without metadata
/// where others wait.
const TERMS: Terms = Terms {
    callers_are: "usage",
    max_callers: 256,
    max_cost: 8 * 1024 * 1024,
    max_cost_alone: 16 * 1024 * 1024,
    writers: 2,
    further_at: 1024 * 1024,
    under_way: 4,
    room: Bounds { calls: 8192, bytes: 256 * 1024 * 1024, share: 4 },
};

/// Counts on one store.
pub struct Counter {
    group: Arc<GroupCommit<Call, Verdict>>,
    days: Days,
    metrics: Arc<UsageMetrics>,
}

impl Counter {
    pub(super) fn new(store: Store, metrics: Arc<UsageMetrics>, tasks: Tasks) -> Self {
        let days = Days::new(store.clone());
        let group = GroupCommit::new(
            store,
            |tx, calls| Box::pin(count(tx, calls)),
            TERMS,
            || (),
            metrics.counting.clone(),
            tasks,
        );
        Self { group, days, metrics }
    }

    /// Counts a call and returns once that is durable. A caller that stops waiting does not undo it.
    pub async fn count(&self, permit: Permit, call: Call) -> Result<Verdict, GroupCommitError> {
        let (bytes, late) = (call.bytes(), call.late(Timestamp::now()));
        let ended = match self.days.make(&call).await {
            Ok(()) => self.group.call(permit, call, bytes, bytes).await,
            Err(error) => Err(error.into()),
        };
        self.metrics.ended(&ended, late);
        ended
    }
}
