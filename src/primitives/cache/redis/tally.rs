//! What each tenant keeps, counted over the fleet.
//!
//! Each process adds up what its own writes and deletes change, and every half second puts that into the
//! tenant's hash in Redis, by the second at which the bytes end; the answer is the fleet's sum. So a sum is
//! up to a second old, and an entry that Redis evicts counts until its time is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::values::integer;
use super::{Shared, keys};
use crate::pools::redis::{RedisFailure, Slot};
use crate::primitives::cache::key::Scope;
use crate::primitives::cache::now_ms;

/// Between two exchanges with Redis.
const PERIOD: Duration = Duration::from_millis(500);
/// Tenants that are counted at once at the most; of one more only the writes are counted that follow.
const MAX_TENANTS: usize = 16_384;
/// Exchanges without a write after which a tenant is forgotten.
const IDLE: u32 = 20;
/// How long a tenant's hash lives without a write: the longest time to live and a day, in seconds.
const HASH_LIFE_S: &str = "2764800";

/// The second at which bytes end, rounded up by a sixteenth of their time, so that a tenant has few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ending(u64);

impl Ending {
    pub(super) fn of(written_at_ms: u64, kept_ms: u64) -> Self {
        let step = (kept_ms / 16_000).max(1).next_power_of_two();
        let end = written_at_ms.saturating_add(kept_ms).div_ceil(1000);
        Self(end.div_ceil(step).saturating_mul(step))
    }
}

/// The tenants that wrote lately.
#[derive(Default)]
pub(super) struct Tally(Mutex<HashMap<Uuid, Counted>>);

#[derive(Default)]
struct Counted {
    /// The fleet's sum as Redis last said it; `None` until it did.
    known: Option<i64>,
    /// What this process changed since.
    pending: HashMap<Ending, i64>,
    idle: u32,
}

impl Counted {
    /// Keeps for the next exchange what the last did not take, or may not have taken: then only what was added,
    /// because bytes that are given back twice would be room that nobody has.
    fn put_back(&mut self, pending: HashMap<Ending, i64>, failure: &RedisFailure) {
        let is_certain = !matches!(failure, RedisFailure::Unknown(_));
        for (ending, bytes) in pending.into_iter().filter(|(_, bytes)| is_certain || *bytes > 0) {
            *self.pending.entry(ending).or_default() += bytes;
        }
    }

    fn sum(&self) -> i64 {
        self.known.unwrap_or_default().saturating_add(self.pending.values().sum())
    }
}

impl Tally {
    fn knows(&self, scope: &Scope) -> bool {
        self.0.lock().get(scope.tenant()).is_some_and(|counted| counted.known.is_some())
    }

    /// What the tenant has left of `max_bytes`; below 0 where it is over.
    pub(super) fn room(&self, scope: &Scope, max_bytes: u64) -> i64 {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let mut tenants = self.0.lock();
        let Some(counted) = entry(&mut tenants, *scope.tenant()) else { return max_bytes };
        counted.idle = 0;
        max_bytes.saturating_sub(counted.sum())
    }

    pub(super) fn add(&self, scope: &Scope, ending: Ending, bytes: u64) {
        self.change(scope, ending, i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn subtract(&self, scope: &Scope, ending: Ending, bytes: u64) {
        // What has ended is no longer in the sum.
        if ending.0.saturating_mul(1000) > now_ms() {
            self.change(scope, ending, i64::try_from(bytes).map_or(i64::MIN, |bytes| -bytes));
        }
    }

    fn change(&self, scope: &Scope, ending: Ending, bytes: i64) {
        if let Some(counted) = entry(&mut self.0.lock(), *scope.tenant()) {
            counted.idle = 0;
            *counted.pending.entry(ending).or_default() += bytes;
        }
    }
}

fn entry(tenants: &mut HashMap<Uuid, Counted>, tenant: Uuid) -> Option<&mut Counted> {
    if tenants.len() >= MAX_TENANTS && !tenants.contains_key(&tenant) {
        return None;
    }
    Some(tenants.entry(tenant).or_default())
}

/// Starts the exchange.
pub(super) fn start(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    tasks.spawn("cache bytes", async move {
        let stopping = shared.tasks.stopping().clone();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopping.cancelled() => {
                    shared.exchange().await;
                    return;
                }
                _ = period.tick() => shared.exchange().await,
            }
        }
    });
}

impl Shared {
    /// One exchange for every tenant that wrote lately; one after the other, since a second is enough time.
    pub(super) async fn exchange(&self) {
        let tenants: Vec<Uuid> = self.tally.0.lock().keys().copied().collect();
        for tenant in tenants {
            let pending = {
                let mut counted = self.tally.0.lock();
                let Some(counted) = counted.get_mut(&tenant) else { continue };
                counted.idle += 1;
                std::mem::take(&mut counted.pending)
            };
            let sum = self.exchange_one(&tenant, &pending).await;
            let mut tenants = self.tally.0.lock();
            let Some(counted) = tenants.get_mut(&tenant) else { continue };
            match sum {
                Ok(sum) => counted.known = Some(sum),
                Err(failure) => counted.put_back(pending, &failure),
            }
            if counted.idle > IDLE && counted.pending.is_empty() {
                tenants.remove(&tenant);
            }
        }
    }

    /// Asks what a tenant keeps that has not written here lately: otherwise each pause, and each process, would give
    /// it all of its room anew. A write goes on where that has no answer.
    pub(super) async fn learn_bytes(&self, scope: &Scope, budget: Duration) {
        if self.tally.knows(scope) {
            return;
        }
        let nothing = HashMap::new();
        let asked = self.exchange_one(scope.tenant(), &nothing);
        let Ok(Ok(sum)) = tokio::time::timeout(budget, asked).await else { return };
        if let Some(counted) = entry(&mut self.tally.0.lock(), *scope.tenant()) {
            counted.known.get_or_insert(sum);
        }
    }

    async fn exchange_one(&self, tenant: &Uuid, pending: &HashMap<Ending, i64>) -> Result<i64, RedisFailure> {
        let key = keys::tenant_bytes(tenant);
        let mut arguments = vec![(now_ms() / 1000).to_string(), HASH_LIFE_S.to_owned()];
        for (ending, bytes) in pending.iter().filter(|(_, bytes)| **bytes != 0) {
            arguments.extend([ending.0.to_string(), bytes.to_string()]);
        }
        let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        let (slot, budget) = (Slot::of(key.as_bytes()), self.pool.command_timeout());
        let answer = self.pool.script(slot, &self.scripts.bytes, &[key.as_bytes()], &arguments, budget).await;
        answer
            .and_then(|sum| {
                integer(sum).ok_or_else(|| RedisFailure::Refused("the sum is no integer".to_owned()))
            })
            .inspect_err(|failure| {
                tracing::debug!(%failure, "a tenant's cache bytes could not be exchanged");
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_end_not_before_their_time_and_little_after_it() {
        for kept_ms in [1, 999, 60_000, 86_400_000, 2_592_000_000] {
            for written_at_ms in [1_700_000_000_000_u64, 1_700_000_000_999, 1_700_000_123_456] {
                let (end_ms, ending) = (written_at_ms + kept_ms, Ending::of(written_at_ms, kept_ms).0 * 1000);
                assert!(ending >= end_ms, "{written_at_ms} {kept_ms}");
                assert!(ending - end_ms <= 1000 + kept_ms / 8, "{written_at_ms} {kept_ms}");
            }
        }
    }

    #[test]
    fn the_room_is_what_is_known_and_what_is_pending() {
        let (tally, scope) = (Tally::default(), Scope::for_test(1, "n"));
        let ending = Ending::of(now_ms(), 60_000);
        assert_eq!(tally.room(&scope, 100), 100);
        tally.add(&scope, ending, 60);
        assert_eq!((tally.room(&scope, 100), tally.room(&scope, 50)), (40, -10));
        tally.subtract(&scope, ending, 60);
        assert_eq!(tally.room(&scope, 100), 100);
        tally.add(&scope, ending, 60);
        assert_eq!(tally.room(&Scope::for_test(2, "n"), 100), 100);
    }

    #[test]
    fn bytes_that_may_have_been_given_back_are_not_given_back_again() {
        let now = now_ms();
        let (soon, later) = (Ending::of(now, 60_000), Ending::of(now, 600_000));
        for (failure, sum) in
            [(RedisFailure::Unavailable(String::new()), -20), (RedisFailure::Unknown(String::new()), 30)]
        {
            let mut counted = Counted::default();
            counted.put_back(HashMap::from([(soon, 30), (later, -50)]), &failure);
            assert_eq!(counted.sum(), sum, "{failure}");
        }
    }
}
