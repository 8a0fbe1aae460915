//! Buckets in memory. All of a tenant's are under one lock, so that a call takes from several or from none.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use smallvec::SmallVec;
use uuid::Uuid;

use super::{Ask, Asks, Outcome, Quota, Source, Standing, Tat};

const SHARDS: usize = 64;
/// Expired keys that a new key removes; more than one, so that they become fewer.
const PURGE_FOR_A_NEW_KEY: usize = 2;
/// Expired keys that are looked for where there is no room; a bound for one call's time under the lock.
const PURGE_WHEN_FULL: usize = 32;

/// Removed keys of a shard that are remembered while they cannot be saved: a full disk must not fill memory.
const MAX_UNSAVED_REMOVALS: usize = 4096;

/// Microseconds since 1970 by the time of day at the start and a clock that is never set: a step of the time of
/// day neither fills nor locks a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    started_us: i64,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_us: i64::try_from(since_1970.as_micros()).unwrap_or(0) }
    }

    pub(super) fn now_us(&self) -> i64 {
        self.started_us.saturating_add(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

/// Every tenant's buckets.
pub(super) struct Memory {
    shards: Box<[Mutex<Shard>]>,
    clock: Clock,
    keys: AtomicUsize,
    max_keys: usize,
    remember_changes: bool,
}

#[derive(Default)]
struct Shard {
    tenants: HashMap<Uuid, Tenant>,
    changes: Changes,
}

/// What was changed since it was last saved.
#[derive(Default)]
pub(super) struct Changes {
    /// Keys that are gone.
    pub(super) removed: Vec<(Uuid, Arc<str>)>,
    /// Keys that were taken from; each once.
    pub(super) taken: Vec<(Uuid, Arc<str>)>,
}

#[derive(Default)]
struct Tenant {
    buckets: HashMap<Arc<str>, Held>,
    /// Each bucket once, by when it was full when it was last looked at: never later than it is.
    expiries: BinaryHeap<Reverse<(i64, Arc<str>)>>,
}

struct Held {
    tat: Tat,
    /// Whether it is in the shard's `changes.taken`.
    changed: bool,
}

/// One ask against its bucket.
struct Weighed<'q> {
    quota: &'q Quota,
    ticks: i64,
    debt: i64,
    /// The shared bucket's id, where the tenant has no room for a bucket of its own.
    overflow: Option<String>,
}

impl Memory {
    /// At most about `max_keys` keys of all tenants together.
    pub(super) fn new(max_keys: usize, remember_changes: bool) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            clock: Clock::start(),
            keys: AtomicUsize::new(0),
            max_keys,
            remember_changes,
        }
    }

    fn shard(&self, tenant: Uuid) -> &Mutex<Shard> {
        let bits = tenant.as_u128();
        let index = (bits ^ (bits >> 64)) as usize % SHARDS;
        &self.shards[index]
    }

    pub(super) fn now_us(&self) -> i64 {
        self.clock.now_us()
    }

    /// Takes what `asks` ask by the quota that `quota` chooses; an ask for which it chooses none passes, with its
    /// burst untouched.
    pub(super) fn take<'q>(
        &self,
        asks: &'q Asks,
        source: Source,
        quota: impl Fn(&'q Ask) -> Option<&'q Quota>,
    ) -> Outcome {
        let now_us = self.clock.now_us();
        let mut guard = self.shard(asks.tenant()).lock();
        let Shard { tenants, changes } = &mut *guard;
        let tenant = tenants.entry(asks.tenant()).or_default();
        let mut weighed: SmallVec<[Option<Weighed<'q>>; 1]> = SmallVec::new();
        let (mut new_keys, mut allowed, mut overflowed) = (0, true, 0);
        for ask in asks.as_slice() {
            let one = quota(ask).map(|quota| {
                let held = tenant.buckets.get(ask.bucket().id()).map(|held| held.tat);
                let room = held.is_some()
                    || self.has_room(asks.tenant(), tenant, changes, asks.max_keys(), new_keys, now_us);
                let overflow = (!room).then(|| ask.overflow_id());
                let (tat, earlier) = match &overflow {
                    None => (held, 0),
                    Some(id) => {
                        (tenant.buckets.get(id.as_str()).map(|held| held.tat), ticks_asked(&weighed, id))
                    }
                };
                new_keys += usize::from(held.is_none() && room);
                overflowed += usize::from(!room);
                let debt = quota.debt(tat, now_us).saturating_add(earlier);
                Weighed { quota, ticks: quota.ticks(ask.cost()), debt, overflow }
            });
            allowed &= one.as_ref().is_none_or(|one| one.quota.fits(one.debt, one.ticks));
            weighed.push(one);
        }
        if allowed {
            for (ask, one) in asks.as_slice().iter().zip(&weighed) {
                let Some(one) = one.as_ref().filter(|one| one.ticks > 0) else { continue };
                let id = one.overflow.as_deref().unwrap_or(ask.bucket().id());
                let tat = one.quota.tat(one.debt + one.ticks, now_us);
                self.put(asks.tenant(), tenant, changes, id, tat);
            }
        }
        let standings = asks.as_slice().iter().zip(&weighed).map(|(ask, one)| match one {
            Some(one) => one.quota.standing(one.debt, one.ticks, allowed),
            None => {
                Standing { remaining: ask.rule().quota.burst(), retry_after_ms: 0, reset_ms: 0, over: false }
            }
        });
        Outcome { allowed, source, standings: standings.collect(), overflowed }
    }

    fn has_room(
        &self,
        id: Uuid,
        tenant: &mut Tenant,
        changes: &mut Changes,
        max_keys: usize,
        new_keys: usize,
        now_us: i64,
    ) -> bool {
        let full = |tenant: &Tenant| {
            tenant.buckets.len() + new_keys >= max_keys || self.keys.load(Relaxed) + new_keys >= self.max_keys
        };
        let look_at = if full(tenant) { PURGE_WHEN_FULL } else { PURGE_FOR_A_NEW_KEY };
        self.purge(id, tenant, changes, now_us, look_at);
        !full(tenant)
    }

    fn put(&self, id: Uuid, tenant: &mut Tenant, changes: &mut Changes, bucket: &str, tat: Tat) {
        match tenant.buckets.get_mut(bucket) {
            Some(held) if held.changed || !self.remember_changes => {
                held.tat = tat;
                return;
            }
            Some(_) | None => {}
        }
        let known = tenant.buckets.get_key_value(bucket).map(|(name, _)| Arc::clone(name));
        let name = known.unwrap_or_else(|| {
            let name: Arc<str> = Arc::from(bucket);
            self.keys.fetch_add(1, Relaxed);
            tenant.expiries.push(Reverse((tat.full_at_us(), Arc::clone(&name))));
            name
        });
        if self.remember_changes {
            changes.taken.push((id, Arc::clone(&name)));
        }
        tenant.buckets.insert(name, Held { tat, changed: self.remember_changes });
    }

    /// Removes expired keys, looking at `most` at the most.
    fn purge(&self, id: Uuid, tenant: &mut Tenant, changes: &mut Changes, now_us: i64, most: usize) {
        for _ in 0..most {
            if tenant.expiries.peek().is_none_or(|Reverse((full_at_us, _))| *full_at_us > now_us) {
                return;
            }
            let Some(Reverse((_, name))) = tenant.expiries.pop() else { return };
            let full_at_us = tenant.buckets.get(&name).map_or(0, |held| held.tat.full_at_us());
            if full_at_us > now_us {
                tenant.expiries.push(Reverse((full_at_us, name)));
            } else if tenant.buckets.remove(&name).is_some() {
                self.keys.fetch_sub(1, Relaxed);
                if self.remember_changes {
                    changes.removed.push((id, name));
                }
            }
        }
    }

    /// Removes expired keys and the tenants that have no others; for a background task.
    pub(super) fn sweep(&self) {
        let now_us = self.clock.now_us();
        for shard in &self.shards {
            let mut guard = shard.lock();
            let Shard { tenants, changes } = &mut *guard;
            tenants.retain(|id, tenant| {
                self.purge(*id, tenant, changes, now_us, 1024);
                !tenant.buckets.is_empty()
            });
        }
    }

    /// What was changed since the last call, shard by shard, with the buckets as they are now.
    pub(super) fn drain_changes(
        &self,
        mut save: impl FnMut(Vec<(Uuid, Arc<str>)>, Vec<(Uuid, Arc<str>, Tat)>),
    ) {
        for shard in &self.shards {
            let mut guard = shard.lock();
            let Changes { removed, taken } = std::mem::take(&mut guard.changes);
            let now = taken.into_iter().filter_map(|(id, name)| {
                let held = guard.tenants.get_mut(&id)?.buckets.get_mut(&name)?;
                held.changed = false;
                let tat = held.tat;
                Some((id, name, tat))
            });
            let now: Vec<_> = now.collect();
            drop(guard);
            if !(removed.is_empty() && now.is_empty()) {
                save(removed, now);
            }
        }
    }

    /// Puts back what could not be saved.
    pub(super) fn changed_still(&self, removed: &[(Uuid, Arc<str>)], taken: &[(Uuid, Arc<str>, Tat)]) {
        for (id, name) in removed {
            let mut guard = self.shard(*id).lock();
            // A row that stays is one of a full bucket: it is not loaded again, and goes at the next start.
            if guard.changes.removed.len() < MAX_UNSAVED_REMOVALS {
                guard.changes.removed.push((*id, Arc::clone(name)));
            }
        }
        for (id, name, _) in taken {
            let mut guard = self.shard(*id).lock();
            let Shard { tenants, changes } = &mut *guard;
            let held = tenants.get_mut(id).and_then(|tenant| tenant.buckets.get_mut(name));
            if let Some(held) = held.filter(|held| !held.changed) {
                held.changed = true;
                changes.taken.push((*id, Arc::clone(name)));
            }
        }
    }

    /// Puts a saved bucket back.
    pub(super) fn restore(&self, id: Uuid, bucket: &str, tat: Tat) {
        let mut guard = self.shard(id).lock();
        let tenant = guard.tenants.entry(id).or_default();
        let name: Arc<str> = Arc::from(bucket);
        if tenant.buckets.insert(Arc::clone(&name), Held { tat, changed: false }).is_none() {
            self.keys.fetch_add(1, Relaxed);
            tenant.expiries.push(Reverse((tat.full_at_us(), name)));
        }
    }
}

/// What earlier asks of the same call asked of this shared bucket.
fn ticks_asked(weighed: &[Option<Weighed<'_>>], overflow: &str) -> i64 {
    weighed
        .iter()
        .flatten()
        .filter(|one| one.overflow.as_deref() == Some(overflow))
        .map(|one| one.ticks)
        .sum()
}

#[cfg(test)]
impl Memory {
    /// Whether no key and no tenant is held.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.load(Relaxed) == 0 && self.shards.iter().all(|shard| shard.lock().tenants.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{asks, rule};
    use super::*;

    #[test]
    fn keys_of_all_tenants_together_are_bounded() {
        let (memory, slow) = (Memory::new(50, false), rule("slow", 1, 60_000, 10));
        let mut overflowed = 0;
        for key in 0..500 {
            let (tenant, key) = (Uuid::new_v4(), key.to_string());
            let asks = asks(tenant, 100, &[(&slow, &key, 1)]);
            overflowed += memory.take(&asks, Source::Backend, |ask| Some(&ask.rule().quota)).overflowed;
        }
        assert_eq!(overflowed, 450);
    }

    #[test]
    fn what_could_not_be_saved_is_saved_with_the_next() {
        let (memory, slow) = (Memory::new(50, true), rule("slow", 1, 60_000, 10));
        let asks = asks(Uuid::new_v4(), 100, &[(&slow, "k", 1)]);
        let drain = || {
            let mut rows = Vec::new();
            memory.drain_changes(|removed, taken| rows.push((removed, taken)));
            rows
        };
        for _ in 0..3 {
            memory.take(&asks, Source::Backend, |ask| Some(&ask.rule().quota));
        }
        let rows = drain();
        assert_eq!((rows.len(), rows[0].1.len()), (1, 1), "three takes are one row");
        assert!(drain().is_empty());
        memory.changed_still(&rows[0].0, &rows[0].1);
        assert_eq!(drain()[0].1.len(), 1);
    }

    #[test]
    fn removed_keys_that_cannot_be_saved_do_not_fill_memory() {
        let (memory, brief) = (Memory::new(1000, true), rule("brief", 1000, 1, 1));
        let tenant = Uuid::new_v4();
        let mut most = 0;
        for round in 0..200 {
            for key in 0..100 {
                let asks = asks(tenant, 1000, &[(&brief, &format!("{round}-{key}"), 1)]);
                memory.take(&asks, Source::Backend, |ask| Some(&ask.rule().quota));
            }
            let mut failed = Vec::new();
            memory.drain_changes(|removed, taken| failed.push((removed, taken)));
            for (removed, taken) in failed {
                most = most.max(removed.len());
                memory.changed_still(&removed, &taken);
            }
        }
        assert!(most > MAX_UNSAVED_REMOVALS && most <= MAX_UNSAVED_REMOVALS + 1000, "{most}");
    }
}
