//! A pull: what may be delivered again first, then new events.

use std::collections::HashSet;

use super::state::{Entry, Phase, State};
use super::{KeyHash, Lease, LeaseTime, MaxDeliveries, Policy, Pulled, Receipt};
use crate::error::ErrorKind;
use crate::primitives::events::Position;

/// A store gave new events that are not in the order of the log, or not after the group's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a group was given new events out of order")]
pub struct OutOfOrder;

impl OutOfOrder {
    /// Its kind.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// A pull that is going on; the module's text has its steps. Nothing of it counts before the store committed the
/// group's row.
#[derive(Debug)]
pub struct Pull<'s> {
    state: &'s mut State,
    policy: Policy,
    max: usize,
    until_ms: i64,
    epoch: u64,
    /// Keys of which an event is held outside of this pull.
    held: HashSet<KeyHash>,
    /// Whether something that is outstanding may be left for the next pull, so that no new event may pass it.
    closed: bool,
    pulled: Pulled,
}

impl State {
    /// Begins a pull: leases, for `lease` from now, up to `max` of what is outstanding and may be delivered again.
    pub fn pull(
        &mut self,
        now_ms: i64,
        policy: Policy,
        MaxDeliveries(max): MaxDeliveries,
        LeaseTime(lease_ms): LeaseTime,
    ) -> Pull<'_> {
        self.settle(now_ms, policy);
        // Not below the time: a row from a backup, or on a promoted standby that lost the last commits, has an earlier
        // epoch, and must not give a receipt that another consumer still has.
        let epoch = self.epoch.saturating_add(1).max(u64::try_from(now_ms).unwrap_or(0));
        let outstanding = self.outstanding.len();
        let pulled = Pulled { leases: Vec::new(), looked_at_new: 0, forgotten: 0, full: false };
        let mut pull = Pull {
            state: self,
            policy,
            max,
            until_ms: now_ms.saturating_add(lease_ms),
            epoch,
            held: HashSet::with_capacity(outstanding),
            closed: false,
            pulled,
        };
        pull.redeliver();
        pull
    }

    /// Gives up outstanding events that are not kept any more. How many there were.
    pub fn forget(&mut self, gone: &[Position]) -> usize {
        let gone: HashSet<_> = gone.iter().collect();
        let before = self.outstanding.len();
        self.outstanding.retain(|entry| !gone.contains(&entry.position));
        before - self.outstanding.len()
    }
}

impl Pull<'_> {
    fn redeliver(&mut self) {
        for index in 0..self.state.outstanding.len() {
            if self.pulled.leases.len() == self.max {
                break;
            }
            let entry = self.state.outstanding[index];
            match entry.phase {
                Phase::Free if !self.held.contains(&entry.key) => {
                    self.state.outstanding[index] = self.lease(entry);
                }
                Phase::Free | Phase::Dead { .. } => {}
                Phase::Leased { .. } | Phase::Delayed { .. } => {
                    self.held.insert(entry.key);
                }
            }
        }
        self.closed = self.pulled.leases.len() == self.max;
    }

    /// `entry`, leased by this pull.
    fn lease(&mut self, entry: Entry) -> Entry {
        let epoch = self.epoch;
        self.state.epoch = epoch;
        self.pulled.leases.push(Lease {
            position: entry.position,
            receipt: Receipt { mark: self.state.mark, position: entry.position, epoch },
            attempt: entry.failures.saturating_add(1),
        });
        Entry { phase: Phase::Leased { until_ms: self.until_ms, epoch }, ..entry }
    }

    /// What is delivered so far; before [`Self::take`], what is delivered again.
    #[must_use]
    pub fn leases(&self) -> &[Lease] {
        &self.pulled.leases
    }

    /// New events are those of the topic after this position.
    #[must_use]
    pub fn position(&self) -> Position {
        self.state.position
    }

    /// How many new events can be used: no more need be read.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.closed { 0 } else { self.room().min(self.max - self.pulled.leases.len()) }
    }

    fn room(&self) -> usize {
        self.policy.max_outstanding.saturating_sub(self.state.outstanding.len())
    }

    /// Looks at the first events of the topic after [`Self::position`], in their order, up to [`Self::wanted`].
    /// More than that are left for the next pull. An error is a defect of the store: it rolls back.
    pub fn take(&mut self, new: &[(Position, KeyHash)]) -> Result<(), OutOfOrder> {
        let in_order = new.is_sorted_by(|a, b| a.0 < b.0);
        if !in_order || new.first().is_some_and(|(first, _)| *first <= self.state.position) {
            return Err(OutOfOrder);
        }
        for &(position, key) in new {
            if self.wanted() == 0 {
                break;
            }
            let entry = Entry { position, key, failures: 0, phase: Phase::Free };
            let entry = if self.held.contains(&key) { entry } else { self.lease(entry) };
            self.state.outstanding.push(entry);
            self.state.position = position;
            self.pulled.looked_at_new += 1;
        }
        Ok(())
    }

    /// Says that up to this position there is no other new event than those of [`Self::take`]: the next pull looks after it.
    pub fn pass(&mut self, to: Position) {
        self.state.position = self.state.position.max(to);
    }

    /// Gives up events that are to be delivered again and that are not kept any more. New events do not
    /// take the place of what this pull left behind, so it may end with fewer than there are: then the store begins
    /// another.
    pub fn forget(&mut self, gone: &[Position]) {
        let set: HashSet<_> = gone.iter().copied().collect();
        self.pulled.leases.retain(|lease| !set.contains(&lease.position));
        self.pulled.forgotten += self.state.forget(gone);
    }

    /// Takes back the leases of `first` and of what comes after it, as if they had not been made: for a store whose
    /// reply has no room for them. It is no attempt, and no new event is looked at in this pull any more.
    pub fn put_back(&mut self, first: Position) {
        self.closed = true;
        let kept = self.pulled.leases.partition_point(|lease| lease.position < first);
        for lease in self.pulled.leases.drain(kept..) {
            let found = self.state.outstanding.binary_search_by_key(&lease.position, |entry| entry.position);
            if let Ok(index) = found {
                self.state.outstanding[index].phase = Phase::Free;
            }
        }
    }

    /// Ends it.
    #[must_use]
    pub fn finish(self) -> Pulled {
        let full = self.room() == 0;
        Pulled { full, ..self.pulled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, key: u64) -> (Position, KeyHash) {
        (Position::new(position), KeyHash::new(key))
    }

    fn pull(state: &mut State, now_ms: i64, max: u64) -> Pull<'_> {
        let policy = Policy::new(3, 4).unwrap();
        state.pull(now_ms, policy, MaxDeliveries::new(max).unwrap(), LeaseTime::new(1000).unwrap())
    }

    #[test]
    fn new_events_out_of_order_are_refused() {
        let mut state = State::new(Position::new(5), 1);
        for wrong in [vec![event(5, 1)], vec![event(7, 1), event(6, 1)], vec![event(6, 1), event(6, 2)]] {
            assert_eq!(pull(&mut state, 0, 10).take(&wrong), Err(OutOfOrder), "{wrong:?}");
        }
        assert_eq!(state, State::new(Position::new(5), 1));
    }

    #[test]
    fn a_pull_that_finds_nothing_changes_nothing() {
        let mut state = State::new(Position::new(5), 1);
        let mut first = pull(&mut state, 1, 10);
        first.take(&[event(6, 1)]).unwrap();
        assert_eq!(first.finish().leases.len(), 1);
        let before = state.encode();
        let nothing = pull(&mut state, 2, 10).finish();
        assert_eq!(nothing, Pulled { leases: vec![], looked_at_new: 0, forgotten: 0, full: false });
        assert_eq!(state.encode(), before);
    }

    #[test]
    fn at_the_bound_no_new_event_is_looked_at_and_the_others_go_on() {
        let mut state = State::new(Position::START, 1);
        let mut first = pull(&mut state, 0, 10);
        assert_eq!(first.wanted(), 4);
        first.take(&[event(1, 1), event(2, 2)]).unwrap();
        assert_eq!(first.finish().leases.len(), 2);
        // Two of the poisoned key wait, and the group is full.
        let mut second = pull(&mut state, 1, 10);
        second.take(&[event(3, 1), event(4, 1), event(5, 3)]).unwrap();
        assert_eq!((second.position(), second.wanted()), (Position::new(4), 0));
        let second = second.finish();
        assert_eq!((second.leases.len(), second.looked_at_new, second.full), (0, 2, true));
        // What is outstanding is still delivered again.
        let again: Vec<_> =
            pull(&mut state, 1000, 2).finish().leases.iter().map(|l| l.position.number()).collect();
        assert_eq!(again, [1, 2]);
    }

    #[test]
    fn an_epoch_is_never_below_the_time_so_that_a_row_from_a_backup_gives_no_receipt_twice() {
        let backup = State::new(Position::START, 1);
        let receipt = |now_ms| {
            let mut state = backup.clone();
            let mut pull = pull(&mut state, now_ms, 1);
            pull.take(&[event(1, 1)]).unwrap();
            pull.finish().leases[0].receipt
        };
        assert_ne!(receipt(1_800_000_000_000), receipt(1_800_000_000_001));
    }
}
