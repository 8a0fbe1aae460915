//! What every call does first, and the calls of a consumer that has receipts.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::state::{Entry, Phase, State};
use super::{Dead, DeadReason, DelayTime, KeyHash, LeaseTime, Outcome, Policy, Receipt, Receipts};
use crate::primitives::events::Position;

impl State {
    /// The events of `receipts` are done.
    pub fn ack(&mut self, now_ms: i64, policy: Policy, receipts: Receipts<'_>) -> Outcome {
        self.settle(now_ms, policy);
        let named = self.named(receipts);
        if named.done > 0 {
            let mut acked = named.entries.into_iter();
            self.outstanding.retain(|_| !acked.next().unwrap_or(false));
        }
        Outcome { done: named.done, stale: named.stale }
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
        self.settle(now_ms, policy);
        let named = self.named(receipts);
        if named.done > 0 {
            let until_ms = now_ms.saturating_add(delay_ms);
            let mut failed = HashSet::new();
            for (entry, nacked) in self.outstanding.iter_mut().zip(named.entries) {
                if nacked {
                    entry.phase = Phase::Delayed { until_ms };
                    if failed.insert(entry.key) {
                        entry.fails(DeadReason::Nacked, policy);
                    }
                } else if matches!(entry.phase, Phase::Leased { .. }) && failed.contains(&entry.key) {
                    entry.phase = Phase::Free;
                }
            }
        }
        Outcome { done: named.done, stale: named.stale }
    }

    /// The leases of `receipts` end `lease` from now, or when they would have, whichever is later.
    pub fn extend(
        &mut self,
        now_ms: i64,
        policy: Policy,
        receipts: Receipts<'_>,
        LeaseTime(lease_ms): LeaseTime,
    ) -> Outcome {
        self.settle(now_ms, policy);
        let (mut done, mut stale) = (0, Vec::new());
        for (place, proved) in self.proved(receipts).into_iter().enumerate() {
            match proved.map(|index| &mut self.outstanding[index].phase) {
                Some(Phase::Leased { until_ms, .. }) => {
                    *until_ms = now_ms.saturating_add(lease_ms).max(*until_ms);
                    done += 1;
                }
                _ => stale.push(place),
            }
        }
        Outcome { done, stale }
    }

    /// Moves the group to just after `position`: what is outstanding is dropped, and every receipt is stale from now
    /// on. Where something is dead it does not move, and says so: that goes to the dead letters first.
    #[must_use]
    pub fn seek(&mut self, now_ms: i64, policy: Policy, position: Position) -> bool {
        self.settle(now_ms, policy);
        if self.dead().next().is_some() {
            return false;
        }
        self.outstanding.clear();
        self.deferred.clear();
        self.new_first = false;
        self.position = position;
        true
    }

    /// What is dead and was not [`Self::bury`]ed, in the order of positions.
    pub fn dead(&self) -> impl Iterator<Item = Dead> {
        self.outstanding.iter().filter_map(|entry| match entry.phase {
            Phase::Dead { reason } => {
                Some(Dead { position: entry.position, reason, attempts: entry.failures })
            }
            Phase::Free | Phase::Leased { .. } | Phase::Delayed { .. } => None,
        })
    }

    /// What is dead, up to `last`, leaves the group: it is among the dead letters, or not kept any more.
    pub fn bury(&mut self, last: Position) {
        self.outstanding.retain(|entry| entry.position > last || !matches!(entry.phase, Phase::Dead { .. }));
    }

    /// Has these events of one key delivered again, in their order, as if they had never been; those that the group has
    /// not looked at come anyway. What is leased or delayed of the key is given back, and its receipts are stale. Where
    /// something is dead it does nothing, and says so: that goes to the dead letters first.
    #[must_use]
    pub fn redeliver(&mut self, now_ms: i64, policy: Policy, key: KeyHash, positions: &[Position]) -> bool {
        self.settle(now_ms, policy);
        if self.dead().next().is_some() {
            return false;
        }
        for entry in self.outstanding.iter_mut().filter(|entry| entry.key == key) {
            entry.phase = Phase::Free;
        }
        for position in positions.iter().copied().filter(|position| *position <= self.position) {
            // Of a group of one tenant.
            let new = Entry { position, key, tenant: Uuid::nil(), failures: 0, phase: Phase::Free };
            match self.outstanding.binary_search_by_key(&position, |entry| entry.position) {
                Ok(index) => self.outstanding[index] = new,
                Err(index) => self.outstanding.insert(index, new),
            }
        }
        true
    }

    /// When the next lease or delay ends, in milliseconds since 1970: until then only new events, and calls, can make
    /// anything deliverable.
    #[must_use]
    pub fn due_ms(&self) -> Option<i64> {
        let until = |entry: &Entry| match entry.phase {
            Phase::Free | Phase::Dead { .. } => None,
            Phase::Leased { until_ms, .. } | Phase::Delayed { until_ms } => Some(until_ms),
        };
        self.outstanding.iter().filter_map(until).min()
    }

    /// Brings the group to `now_ms`: leases that are over have failed, delays that are over are gone.
    ///
    /// The result is as if it had been called at every millisecond: a lease that is over is void, and has not failed,
    /// where an earlier one of its key failed before it ended, or as it ended.
    pub(super) fn settle(&mut self, now_ms: i64, policy: Policy) {
        // When the first failure was among the events of a key that were gone through.
        let mut failed_ms = HashMap::new();
        let outstanding = self.outstanding.len();
        for entry in &mut self.outstanding {
            match entry.phase {
                Phase::Leased { until_ms, .. } => {
                    if failed_ms.get(&entry.key).is_some_and(|failed_ms| *failed_ms <= until_ms) {
                        entry.phase = Phase::Free;
                    } else if until_ms <= now_ms {
                        if failed_ms.is_empty() {
                            failed_ms.reserve(outstanding);
                        }
                        failed_ms.insert(entry.key, until_ms);
                        entry.phase = Phase::Free;
                        entry.fails(DeadReason::Expired, policy);
                    }
                }
                Phase::Delayed { until_ms } if until_ms <= now_ms => entry.phase = Phase::Free,
                Phase::Delayed { .. } | Phase::Free | Phase::Dead { .. } => {}
            }
        }
    }

    /// Of each receipt the entry whose lease it proves.
    fn proved(&self, Receipts(texts): Receipts<'_>) -> Vec<Option<usize>> {
        let lease = |text: &str| Receipt::parse(text).filter(|receipt| receipt.mark == self.mark);
        let mut wanted: Vec<_> = texts
            .iter()
            .enumerate()
            .filter_map(|(place, text)| lease(text).map(|of| ((of.epoch, of.number), place)))
            .collect();
        wanted.sort_unstable();
        let mut proved = vec![None; texts.len()];
        for (index, entry) in self.outstanding.iter().enumerate() {
            let Phase::Leased { epoch, number, .. } = entry.phase else { continue };
            let first = wanted.partition_point(|(of, _)| *of < (epoch, number));
            for (_, place) in wanted[first..].iter().take_while(|(of, _)| *of == (epoch, number)) {
                proved[*place] = Some(index);
            }
        }
        proved
    }

    /// Which entries `receipts` name, each once.
    fn named(&self, receipts: Receipts<'_>) -> Named {
        let mut named = Named { done: 0, stale: Vec::new(), entries: vec![false; self.outstanding.len()] };
        for (place, proved) in self.proved(receipts).into_iter().enumerate() {
            match proved {
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
    /// Counts a failure of its own, which may be its last.
    fn fails(&mut self, reason: DeadReason, policy: Policy) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= policy.max_attempts {
            self.phase = Phase::Dead { reason };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MaxDeliveries;
    use super::*;

    /// A group of a policy of two attempts, at a time.
    struct Group {
        state: State,
        now_ms: i64,
    }

    /// An answer: how many were done, which were stale, and what is dead.
    type Answer = (usize, Vec<usize>, Vec<(i64, &'static str)>);

    impl Group {
        fn policy() -> Policy {
            Policy::new(2, 100).unwrap()
        }

        /// Pulls for ten seconds, with new events of these positions and keys. What was delivered: position, attempt
        /// and receipt.
        fn pull(&mut self, new: &[(i64, u64)]) -> Vec<(i64, u16, Box<str>)> {
            let ask = (MaxDeliveries::new(100).unwrap(), LeaseTime::new(10_000).unwrap());
            let mut pull = self.state.pull(self.now_ms, Self::policy(), ask.0, ask.1);
            let event =
                |&(position, key): &(i64, u64)| (Position::new(position), KeyHash::new(key), Uuid::nil());
            pull.take(&new.iter().map(event).collect::<Vec<_>>()).unwrap();
            let leases = pull.finish().leases;
            let told = |lease: super::super::Lease| {
                (lease.position.number(), lease.attempt, lease.receipt.to_string().into())
            };
            leases.into_iter().map(told).collect()
        }

        fn ack(&mut self, receipts: &[&(i64, u16, Box<str>)]) -> Answer {
            let receipts: Vec<_> = receipts.iter().map(|told| told.2.clone()).collect();
            let outcome = self.state.ack(self.now_ms, Self::policy(), Receipts::new(&receipts).unwrap());
            self.answer(outcome)
        }

        fn nack(&mut self, receipts: &[&(i64, u16, Box<str>)], delay_ms: u64) -> Answer {
            let receipts: Vec<_> = receipts.iter().map(|told| told.2.clone()).collect();
            let (receipts, delay) = (Receipts::new(&receipts).unwrap(), DelayTime::new(delay_ms).unwrap());
            let outcome = self.state.nack(self.now_ms, Self::policy(), receipts, delay);
            self.answer(outcome)
        }

        fn extend(&mut self, receipts: &[&(i64, u16, Box<str>)], lease_ms: u64) -> Answer {
            let receipts: Vec<_> = receipts.iter().map(|told| told.2.clone()).collect();
            let (receipts, lease) = (Receipts::new(&receipts).unwrap(), LeaseTime::new(lease_ms).unwrap());
            let outcome = self.state.extend(self.now_ms, Self::policy(), receipts, lease);
            self.answer(outcome)
        }

        /// What is dead is buried at once.
        fn answer(&mut self, outcome: Outcome) -> Answer {
            let dead = self.state.dead().map(|dead| (dead.position.number(), dead.reason.as_str())).collect();
            self.state.bury(Position::new(i64::MAX));
            (outcome.done, outcome.stale, dead)
        }
    }

    fn group() -> Group {
        Group { state: State::new(Position::START, 1), now_ms: 1_800_000_000_000 }
    }

    fn attempts(told: &[(i64, u16, Box<str>)]) -> Vec<(i64, u16)> {
        told.iter().map(|told| (told.0, told.1)).collect()
    }

    #[test]
    fn an_event_acked_out_of_order_stays_done_when_an_earlier_one_of_its_key_fails() {
        let mut group = group();
        let told = group.pull(&[(1, 7), (2, 7), (3, 7)]);
        assert_eq!(group.ack(&[&told[1]]), (1, vec![], vec![]));
        assert_eq!(group.nack(&[&told[0]], 0), (1, vec![], vec![]));
        assert_eq!(group.ack(&[&told[2]]), (0, vec![0], vec![]), "it is void");
        assert_eq!(attempts(&group.pull(&[])), [(1, 2), (3, 1)]);
    }

    #[test]
    fn an_expired_receipt_is_stale_before_anything_else_happened() {
        let mut group = group();
        let told = group.pull(&[(1, 7)]);
        group.now_ms += 9_999;
        assert_eq!(group.extend(&[&told[0]], 1000), (1, vec![], vec![]));
        group.now_ms += 1_000;
        assert_eq!(group.ack(&[&told[0]]), (0, vec![0], vec![]));
    }

    #[test]
    fn a_consumer_that_dies_with_many_of_a_key_costs_only_the_first_an_attempt() {
        let mut group = group();
        group.pull(&[(1, 7), (2, 7), (3, 8)]);
        group.now_ms += 10_000;
        let told = group.pull(&[]);
        assert_eq!(attempts(&told), [(1, 2), (2, 1), (3, 2)]);
        group.now_ms += 10_000;
        assert_eq!(group.extend(&[&told[1]], 1000), (0, vec![0], vec![(1, "expired"), (3, "expired")]));
        assert_eq!(attempts(&group.pull(&[])), [(2, 1)], "the key goes on");
    }

    #[test]
    fn nacking_all_of_a_key_is_one_failure_and_all_are_held_back() {
        let mut group = group();
        for attempt in 1..=2 {
            let told = group.pull(if attempt == 1 { &[(1, 7), (2, 7)] } else { &[] });
            assert_eq!(attempts(&told), [(1, attempt), (2, 1)]);
            let dead = if attempt == 1 { vec![] } else { vec![(1, "nacked")] };
            assert_eq!(group.nack(&[&told[1], &told[0]], 5_000), (2, vec![], dead), "in any order");
            group.now_ms += 4_999;
            assert_eq!(attempts(&group.pull(&[])), []);
            group.now_ms += 1;
        }
        assert_eq!(attempts(&group.pull(&[])), [(2, 1)]);
    }

    #[test]
    fn extending_a_later_event_does_not_keep_it_from_its_first_one_s_failure() {
        let mut group = group();
        let told = group.pull(&[(1, 7), (2, 7)]);
        assert_eq!(group.extend(&[&told[1]], 60_000), (1, vec![], vec![]));
        group.now_ms += 10_000;
        assert_eq!(group.ack(&[&told[1]]), (0, vec![0], vec![]));
    }

    #[test]
    fn a_lease_that_ended_before_its_key_s_first_one_failed_by_itself() {
        let mut group = group();
        let told = group.pull(&[(1, 7), (2, 7)]);
        assert_eq!(group.extend(&[&told[0]], 20_000), (1, vec![], vec![]));
        group.now_ms += 20_000;
        assert_eq!(attempts(&group.pull(&[])), [(1, 2), (2, 2)]);
    }

    #[test]
    fn what_is_dead_waits_for_its_burial_and_its_key_does_not_wait_for_it() {
        let mut group = group();
        for _ in 0..2 {
            let new: &[_] = if group.state.outstanding() == 0 { &[(1, 7), (2, 8), (3, 9)] } else { &[] };
            assert_eq!(group.pull(new).len(), 3);
            group.now_ms += 10_000;
        }
        assert_eq!(attempts(&group.pull(&[(4, 7)])), [(4, 1)]);
        let dead = |group: &Group| group.state.dead().map(|dead| dead.position.number()).collect::<Vec<_>>();
        assert_eq!((dead(&group), group.state.outstanding()), (vec![1, 2, 3], 4));
        assert_eq!(group.state.due_ms(), Some(group.now_ms + 10_000), "it is nothing to wait for");
        group.state.bury(Position::new(2));
        group.state = State::decode(&group.state.encode()).unwrap();
        assert_eq!((dead(&group), group.state.outstanding()), (vec![3], 2));
        group.state.bury(Position::new(100));
        assert_eq!((dead(&group), group.state.outstanding()), (vec![], 1), "what lives stays");
    }

    #[test]
    fn after_a_seek_every_receipt_is_stale_and_what_had_failed_is_still_told() {
        let mut group = group();
        let told = group.pull(&[(1, 7)]);
        assert_eq!(group.nack(&[&told[0]], 0).0, 1);
        let told = group.pull(&[(2, 8)]);
        group.now_ms += 10_000;
        assert!(!group.state.seek(group.now_ms, Group::policy(), Position::START), "something is dead");
        assert_eq!(group.state.dead().map(|dead| dead.position.number()).collect::<Vec<_>>(), [1]);
        group.state.bury(Position::new(1));
        assert!(group.state.seek(group.now_ms, Group::policy(), Position::START));
        let again = group.pull(&[(1, 7), (2, 8)]);
        assert_eq!(attempts(&again), [(1, 1), (2, 1)]);
        assert_eq!(group.ack(&[&told[0], &told[1]]), (0, vec![0, 1], vec![]));
        assert_eq!(group.ack(&[&again[0], &again[0]]), (1, vec![1], vec![]));
    }

    #[test]
    fn a_key_that_is_delivered_again_comes_from_its_first_event_on_and_other_keys_go_on() {
        let mut group = group();
        let told = group.pull(&[(1, 7), (2, 8), (3, 7), (4, 7)]);
        assert_eq!(group.ack(&[&told[0]]).0, 1);
        let positions = [1, 3, 4, 9].map(Position::new);
        assert!(group.state.redeliver(group.now_ms, Group::policy(), KeyHash::new(7), &positions));
        assert_eq!(group.ack(&[&told[1], &told[2]]), (1, vec![1], vec![]), "its receipts are stale");
        assert_eq!(attempts(&group.pull(&[])), [(1, 1), (3, 1), (4, 1)]);
    }
}
