//! Calls of many callers and tenants, counted in transactions that they share.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use uuid::Uuid;

use super::metrics::UsageMetrics;
use super::{Call, Day, Days, Seen, Verdict, count, terms};
use crate::error::ErrorKind;
use crate::fairness::Bounds;
use crate::policy::Permit;
use crate::store::{GroupCommit, GroupCommitError, Store, StoreError, Terms};
use crate::tasks::Tasks;

/// Two write: the one's keys wait for the disk while the other's are looked up. A transaction has about 7,000 points where others
/// wait.
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
/// For how long a tenant's keys are looked up first, once some were counted already.
const SUSPECTED: Duration = Duration::from_secs(60);
/// Tenants that are remembered before it is looked which of them are no longer suspected.
const FEW: usize = 1024;

/// Counts on one store.
pub struct Counter {
    store: Store,
    group: Arc<GroupCommit<Call, Verdict>>,
    days: Days,
    seen: Arc<Seen>,
    /// Tenants that sent what was counted, and until when they are expected to do it again: what is inserted and found to be
    /// there is undone for all that share the transaction.
    repeating: Mutex<HashMap<Uuid, Instant>>,
    metrics: Arc<UsageMetrics>,
}

impl Counter {
    pub(super) fn new(store: Store, metrics: Arc<UsageMetrics>, tasks: Tasks) -> Self {
        let days = Days::new(store.clone());
        let group = GroupCommit::new(
            store.clone(),
            |tx, calls| Box::pin(count(tx, calls)),
            TERMS,
            || (),
            metrics.counting.clone(),
            tasks,
        );
        Self { store, group, days, seen: Arc::default(), repeating: Mutex::default(), metrics }
    }

    /// Counts a call and returns once that is durable. A caller that stops waiting does not undo it.
    pub async fn count(&self, permit: Permit, call: Call) -> Result<Verdict, GroupCommitError> {
        let (bytes, cost, late) = (call.bytes(), call.cost(), call.of_hours_before(Timestamp::now()));
        let (tenant, days) = (call.tenant(), call.days());
        let ended = match self.prepare(&permit, &call, &days).await {
            Ok(()) => {
                let call = call.looking_first(self.repeats(tenant)).having_seen(&self.seen);
                self.group.call(permit, call, bytes, cost).await
            }
            Err(error) => Err(error.into()),
        };
        match &ended {
            Ok(Verdict::Counted { duplicates: 0, .. } | Verdict::OtherZone(_)) => {}
            Ok(_) => self.repeated(tenant),
            Err(error) if error.kind() == ErrorKind::Internal => self.days.forget(&days),
            Err(_) => {}
        }
        self.metrics.ended(&ended, late);
        ended
    }

    /// Makes what would keep others from counting, in transactions that count nothing.
    async fn prepare(&self, permit: &Permit, call: &Call, days: &BTreeSet<Day>) -> Result<(), StoreError> {
        self.days.make(days.clone()).await?;
        terms::prepare(&self.store, permit, call, &self.seen).await
    }

    fn repeats(&self, tenant: Uuid) -> bool {
        self.repeating.lock().get(&tenant).is_some_and(|until| *until > Instant::now())
    }

    fn repeated(&self, tenant: Uuid) {
        let (mut repeating, now) = (self.repeating.lock(), Instant::now());
        if repeating.len() >= FEW {
            repeating.retain(|_, until| *until > now);
        }
        repeating.insert(tenant, now + SUSPECTED);
    }
}
