//! What every call does first, and the calls of a consumer that has receipts.

use std::collections::{HashMap, HashSet};

use super::state::{Entry, Phase, State};
use super::{Dead, DeadReason, DelayTime, LeaseTime, Outcome, Policy, Receipt, Receipts};
use crate::primitives::events::Position;

impl State {
    /// The events of `receipts` are done.
    pub fn ack(&mut self, now_ms: i64, policy: Policy, receipts: Receipts<'_>) -> Outcome {
        let dead = self.settle(now_ms, policy);
        let named = self.named(receipts);
        if named.done > 0 {
            let mut acked = named.entries.into_iter();
            self.outstanding.retain(|_| !acked.next().unwrap_or(false));
        }
        Outcome { done: named.done, stale: named.stale, dead }
    }

    /// The events of `receipts` failed, and are held back for `delay`, the later events of their keys with them. Of
    /// each key the first that is named counts as the failure; the order in which they are named says nothing.
    pub fn nack(
        &mut self,
        now_ms: i64,
        policy: Policy,
        receipts: Receipts<'_>,
        DelayTime(delay_ms): DelayTime,
    ) -> Outcome {
        let mut dead = self.settle(now_ms, policy);
        let named = self.named(receipts);
        if named.done > 0 {
            let until_ms = now_ms.saturating_add(delay_ms);
            let mut failed = HashSet::new();
            let mut nacked = named.entries.into_iter();
            self.outstanding.retain_mut(|entry| {
                if nacked.next().unwrap_or(false) {
                    entry.phase = Phase::Delayed { until_ms };
                    !failed.insert(entry.key) || entry.fails(DeadReason::Nacked, policy, &mut dead)
                } else {
                    if matches!(entry.phase, Phase::Leased { .. }) && failed.contains(&entry.key) {
                        entry.phase = Phase::Free;
                    }
                    true
                }
            });
            dead.sort_unstable_by_key(|dead| dead.position);
        }
        Outcome { done: named.done, stale: named.stale, dead }
    }

    /// The leases of `receipts` end `lease` from now, or when they would have, whichever is later.
    pub fn extend(
        &mut self,
        now_ms: i64,
        policy: Policy,
        receipts: Receipts<'_>,
        LeaseTime(lease_ms): LeaseTime,
    ) -> Outcome {
        let dead = self.settle(now_ms, policy);
        let (mut done, mut stale) = (0, Vec::new());
        for (place, text) in receipts.0.iter().enumerate() {
            match self.leased(text).map(|index| &mut self.outstanding[index].phase) {
                Some(Phase::Leased { until_ms, .. }) => {
                    *until_ms = now_ms.saturating_add(lease_ms).max(*until_ms);
                    done += 1;
                }
                _ => stale.push(place),
            }
        }
        Outcome { done, stale, dead }
    }

    /// Moves the group to just after `position`: what is outstanding is dropped, and every receipt is stale from now
    /// on. What had its last failure before now still goes to the dead letters.
    pub fn seek(&mut self, now_ms: i64, policy: Policy, position: Position) -> Vec<Dead> {
        let dead = self.settle(now_ms, policy);
        self.outstanding.clear();
        self.position = position;
        dead
    }

    /// When the next lease or delay ends, in milliseconds since 1970: until then only new events, and calls, can make
    /// anything deliverable.
    #[must_use]
    pub fn due_ms(&self) -> Option<i64> {
        let until = |entry: &Entry| match entry.phase {
            Phase::Free => None,
            Phase::Leased { until_ms, .. } | Phase::Delayed { until_ms } => Some(until_ms),
        };
        self.outstanding.iter().filter_map(until).min()
    }

    /// Brings the group to `now_ms`: leases that are over have failed, delays that are over are gone.
    ///
    /// The result is as if it had been called at every millisecond: a lease that is over is void, and has not failed,
    /// where an earlier one of its key failed before it ended, or as it ended.
    pub(super) fn settle(&mut self, now_ms: i64, policy: Policy) -> Vec<Dead> {
        let mut dead = Vec::new();
        // When the first failure was among the events of a key that were gone through.
        let mut failed_ms = HashMap::new();
        self.outstanding.retain_mut(|entry| match entry.phase {
            Phase::Leased { until_ms, .. } => {
                if failed_ms.get(&entry.key).is_some_and(|failed_ms| *failed_ms <= until_ms) {
                    entry.phase = Phase::Free;
                    return true;
                }
                if now_ms < until_ms {
                    return true;
                }
                failed_ms.insert(entry.key, until_ms);
                entry.phase = Phase::Free;
                entry.fails(DeadReason::Expired, policy, &mut dead)
            }
            Phase::Delayed { until_ms } if until_ms <= now_ms => {
                entry.phase = Phase::Free;
                true
            }
            Phase::Delayed { .. } | Phase::Free => true,
        });
        dead
    }

    /// Where the entry is whose lease `text` proves.
    fn leased(&self, text: &str) -> Option<usize> {
        let receipt = Receipt::parse(text).filter(|receipt| receipt.mark == self.mark)?;
        let index = self.outstanding.binary_search_by_key(&receipt.position, |entry| entry.position).ok()?;
        match self.outstanding[index].phase {
            Phase::Leased { epoch, .. } if epoch == receipt.epoch => Some(index),
            Phase::Leased { .. } | Phase::Delayed { .. } | Phase::Free => None,
        }
    }

    /// Which entries `receipts` name, each once.
    fn named(&self, receipts: Receipts<'_>) -> Named {
        let mut named = Named { done: 0, stale: Vec::new(), entries: vec![false; self.outstanding.len()] };
        for (place, text) in receipts.0.iter().enumerate() {
            match self.leased(text) {
                Some(index) if !named.entries[index] => {
                    named.entries[index] = true;
                    named.done += 1;
                }
                _ => named.stale.push(place),
            }
        }
        named
    }
}

/// What a call's receipts name.
struct Named {
    done: usize,
    stale: Vec<usize>,
    /// For each entry whether it is named.
    entries: Vec<bool>,
}

impl Entry {
    /// Counts a failure of its own. Whether it stays in the group.
    fn fails(&mut self, reason: DeadReason, policy: Policy, dead: &mut Vec<Dead>) -> bool {
        self.failures = self.failures.saturating_add(1);
        let stays = self.failures < policy.max_attempts;
        if !stays {
            dead.push(Dead { position: self.position, reason, attempts: self.failures });
        }
        stays
    }
}
