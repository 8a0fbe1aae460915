//! A pull: what may be delivered again first, then new events, and those of tenants that were passed over.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::state::{Deferred, Entry, Phase, State};
use super::{KeyHash, Lease, LeaseTime, MAX_DEFERRED, MaxDeliveries, Policy, Pulled, Receipt};
use crate::error::ErrorKind;
use crate::primitives::events::Position;

/// An event that a group has not looked at: where it is, its key, and whose it is; nil in a group of one tenant.
pub type New = (Position, KeyHash, Uuid);

/// Whose events, of those that were passed over, a pull can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// The tenant.
    pub tenant: Uuid,
    /// Its events after this position, and up to [`Pull::position`].
    pub after: Position,
    /// So many of the first.
    pub max: usize,
}

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
    /// Leases that were made.
    made: u64,
    /// Keys of which an event is held outside of this pull.
    held: HashSet<KeyHash>,
    /// Whether something that is outstanding may be left for the next pull, so that no new event may pass it.
    closed: bool,
    /// Whether there is a tenant that cannot be deferred, since so many are.
    stopped: bool,
    /// What each tenant has outstanding, where they have shares.
    of_tenants: HashMap<Uuid, usize>,
    /// Whose events were looked for in this pull.
    sought: HashSet<Uuid>,
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
            made: 0,
            held: HashSet::with_capacity(outstanding),
            closed: false,
            stopped: false,
            of_tenants: HashMap::new(),
            sought: HashSet::new(),
            pulled,
        };
        pull.redeliver();
        if policy.has_shares {
            for entry in &pull.state.outstanding {
                *pull.of_tenants.entry(entry.tenant).or_default() += 1;
            }
        }
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
        let (epoch, number) = (self.epoch, self.made);
        self.state.epoch = epoch;
        self.made += 1;
        self.pulled.leases.push(Lease {
            position: entry.position,
            receipt: Receipt { mark: self.state.mark, number, epoch },
            attempt: entry.failures.saturating_add(1),
        });
        Entry { phase: Phase::Leased { until_ms: self.until_ms, epoch, number }, ..entry }
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
        if self.closed || self.stopped { 0 } else { self.usable() }
    }

    fn usable(&self) -> usize {
        if self.closed { 0 } else { self.room().min(self.max - self.pulled.leases.len()) }
    }

    /// How many more events of a tenant go in: it has no more outstanding than there is room left beside it.
    fn share(&self, tenant: &Uuid) -> usize {
        if !self.policy.has_shares {
            return self.room();
        }
        let own = self.of_tenants.get(tenant).map_or(0, |outstanding| *outstanding);
        self.room().saturating_sub(own).div_ceil(2)
    }

    /// Tenants whose new events are passed over: they need not be read.
    #[must_use]
    pub fn deferred(&self) -> Vec<Uuid> {
        self.state.deferred.iter().map(|deferred| deferred.tenant).collect()
    }

    /// Whether new events come before those that were passed over: the two take turns.
    #[must_use]
    pub fn begins_with_new(&self) -> bool {
        self.state.new_first || self.state.deferred.is_empty()
    }

    fn room(&self) -> usize {
        self.policy.max_outstanding.saturating_sub(self.state.outstanding.len())
    }

    /// Looks at the first events of the topic after [`Self::position`], in their order, up to [`Self::wanted`]; without
    /// those of [`Self::deferred`] or with them. More than that are left for the next pull. An error is a defect of the store: it
    /// rolls back.
    pub fn take(&mut self, new: &[New]) -> Result<(), OutOfOrder> {
        let in_order = new.is_sorted_by(|a, b| a.0 < b.0);
        if !in_order || new.first().is_some_and(|(first, ..)| *first <= self.state.position) {
            return Err(OutOfOrder);
        }
        for &(position, key, tenant) in new {
            if self.wanted() == 0 {
                break;
            }
            let is_deferred = self.state.deferred.iter().any(|deferred| deferred.tenant == tenant);
            if is_deferred || self.share(&tenant) == 0 {
                if !is_deferred && self.state.deferred.len() == MAX_DEFERRED {
                    self.stopped = true;
                    break;
                }
                if !is_deferred {
                    let before = Position::new(position.number().saturating_sub(1));
                    self.state.deferred.push(Deferred { tenant, position: before });
                }
            } else {
                self.look_at((position, key, tenant));
                self.state.new_first = false;
            }
            self.state.position = position;
        }
        Ok(())
    }

    /// Whose events to look for next, of those that were passed over: of tenants that have less than their share, each once in a
    /// pull.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        let usable = self.usable();
        let behind = |deferred: &Deferred| {
            let max = self.share(&deferred.tenant).min(usable);
            let is_next = max > 0 && !self.sought.contains(&deferred.tenant);
            is_next.then_some(Behind { tenant: deferred.tenant, after: deferred.position, max })
        };
        self.state.deferred.iter().find_map(behind)
    }

    /// Looks at events of [`Self::behind`], in their order. Where they are all that there are up to [`Self::position`], the tenant
    /// is not deferred any more. An error is a defect of the store: it rolls back.
    pub fn take_behind(
        &mut self,
        behind: &Behind,
        events: &[(Position, KeyHash)],
        are_all: bool,
    ) -> Result<(), OutOfOrder> {
        let is_right = events.is_sorted_by(|a, b| a.0 < b.0)
            && events.len() <= behind.max
            && events.first().is_none_or(|(first, _)| *first > behind.after)
            && events.last().is_none_or(|(last, _)| *last <= self.state.position);
        let place = self.state.deferred.iter().position(|deferred| deferred.tenant == behind.tenant);
        let Some(place) = place.filter(|_| is_right) else { return Err(OutOfOrder) };
        self.sought.insert(behind.tenant);
        let deferred = self.state.deferred.remove(place);
        for &(position, key) in events {
            self.look_at((position, key, behind.tenant));
        }
        if !are_all {
            // The others have their turns before it.
            let position = events.last().map_or(deferred.position, |(last, _)| *last);
            self.state.deferred.push(Deferred { position, ..deferred });
        }
        self.state.new_first =
            !self.state.deferred.is_empty() && (self.state.new_first || !events.is_empty());
        Ok(())
    }

    fn look_at(&mut self, (position, key, tenant): New) {
        let entry = Entry { position, key, tenant, failures: 0, phase: Phase::Free };
        let entry = if self.held.contains(&key) { entry } else { self.lease(entry) };
        let outstanding = &mut self.state.outstanding;
        let place = outstanding.partition_point(|entry| entry.position < position);
        outstanding.insert(place, entry);
        *self.of_tenants.entry(tenant).or_default() += 1;
        self.pulled.looked_at_new += 1;
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
        for entry in self.state.outstanding.iter().filter(|entry| set.contains(&entry.position)) {
            if let Some(own) = self.of_tenants.get_mut(&entry.tenant) {
                *own -= 1;
            }
        }
        self.pulled.forgotten += self.state.forget(gone);
    }

    /// Takes back the leases of `first` and of what comes after it, as if they had not been made: for a store whose
    /// reply has no room for them. It is no attempt, and no new event is looked at in this pull any more.
    pub fn put_back(&mut self, first: Position) {
        self.closed = true;
        self.pulled.leases.sort_unstable_by_key(|lease| lease.position);
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
    pub fn finish(mut self) -> Pulled {
        self.pulled.leases.sort_unstable_by_key(|lease| lease.position);
        let full = self.room() == 0 || self.stopped;
        Pulled { full, ..self.pulled }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Receipts;
    use super::*;

    fn event(position: i64, key: u64) -> New {
        (Position::new(position), KeyHash::new(key), Uuid::nil())
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

    #[test]
    fn a_receipt_says_nothing_of_where_its_event_is_in_the_log() {
        let receipt = |position| {
            let mut state = State::new(Position::START, 1);
            let mut pull = pull(&mut state, 1_800_000_000_000, 1);
            pull.take(&[event(position, 1)]).unwrap();
            pull.finish().leases[0].receipt.to_string()
        };
        assert_eq!(receipt(1), receipt(1_234_567));
    }

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    /// As a store does it: what was delivered, with its receipts.
    fn pull_of(state: &mut State, policy: Policy, max: u64, log: &[New]) -> (Vec<i64>, Vec<Box<str>>, bool) {
        let mut pull = state.pull(0, policy, MaxDeliveries::new(max).unwrap(), LeaseTime::new(1000).unwrap());
        let new = |pull: &mut Pull<'_>| {
            let (left_out, position) = (pull.deferred(), pull.position());
            let new: Vec<_> = log
                .iter()
                .filter(|(at, _, tenant)| *at > position && !left_out.contains(tenant))
                .take(pull.wanted())
                .copied()
                .collect();
            pull.take(&new).unwrap();
        };
        let begins_with_new = pull.begins_with_new();
        if begins_with_new {
            new(&mut pull);
        }
        while let Some(behind) = pull.behind() {
            let of = |(at, key, tenant): &New| {
                let is_of = *tenant == behind.tenant && *at > behind.after && *at <= pull.position();
                is_of.then_some((*at, *key))
            };
            let found: Vec<_> = log.iter().filter_map(of).take(behind.max).collect();
            let are_all = found.len() < behind.max;
            pull.take_behind(&behind, &found, are_all).unwrap();
        }
        if !begins_with_new {
            new(&mut pull);
        }
        let pulled = pull.finish();
        let told = pulled.leases.iter().map(|lease| lease.position.number()).collect();
        (told, pulled.leases.iter().map(|lease| lease.receipt.to_string().into()).collect(), pulled.full)
    }

    fn of(position: i64, tenant: Uuid) -> New {
        (Position::new(position), KeyHash::new(position.unsigned_abs()), tenant)
    }

    #[test]
    fn a_tenant_has_no_more_than_there_is_room_beside_it_and_its_turn_comes_with_that_of_new_events() {
        let policy = Policy::new(3, 8).unwrap().with_shares();
        let mut state = State::new(Position::START, 1);
        let mut log: Vec<_> = (1..=8).map(|position| of(position, A)).collect();
        let (told, receipts, full) = pull_of(&mut state, policy, 10, &log);
        assert_eq!((told, state.position(), full), (vec![1, 2, 3, 4], Position::new(8), false));
        log.extend((9..=12).map(|position| of(position, B)));
        assert_eq!(pull_of(&mut state, policy, 1, &log).0, [9], "B's are not held up");
        assert_eq!(pull_of(&mut state, policy, 10, &log).0, [10], "it has two, and two are left");
        let receipts = Receipts::new(&receipts).unwrap();
        assert_eq!(state.ack(0, policy, receipts).done, 4);
        let mut turns = Vec::new();
        for _ in 0..4 {
            let (told, receipts, _) = pull_of(&mut state, policy, 1, &log);
            assert_eq!(state.ack(0, policy, Receipts::new(&receipts).unwrap()).done, 1);
            turns.extend(told);
            state = State::decode(&state.encode()).unwrap();
        }
        turns.sort_unstable();
        assert_eq!(turns, [5, 6, 11, 12], "two of each");
    }

    #[test]
    fn as_many_tenants_as_can_be_are_deferred_and_the_log_waits_for_one_more() {
        let policy = Policy::new(3, 300).unwrap().with_shares();
        let mut state = State::new(Position::START, 1);
        let tenant = |number: i64| Uuid::from_u128(u128::from(number.unsigned_abs()));
        let twice = (1..=299).chain(1..=299).zip(1..);
        let log: Vec<_> = twice.map(|(number, position)| of(position, tenant(number))).collect();
        let first = pull_of(&mut state, policy, 299, &log);
        assert_eq!((first.0.len(), first.2), (299, false));
        let mut seen = 0;
        while state.position() < Position::new(299 + 256) {
            assert!(pull_of(&mut state, policy, 1000, &log).0.is_empty());
            seen += 1;
            assert!(seen < 1000);
        }
        let stopped = pull_of(&mut state, policy, 1000, &log);
        assert_eq!((stopped.0.len(), stopped.2), (0, true));
        assert_eq!((state.position(), state.deferred.len()), (Position::new(299 + 256), MAX_DEFERRED));
        let receipts = Receipts::new(&first.1).unwrap();
        assert_eq!(state.ack(0, policy, receipts).done, 299);
        let (rest, ..) = pull_of(&mut state, policy, 1000, &log);
        assert!(rest.contains(&300) && rest.len() > 100, "{rest:?}");
    }
}
