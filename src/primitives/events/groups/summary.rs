//! What metrics tell of a group.

use std::collections::{HashMap, HashSet};

use super::Policy;
use super::state::{Phase, State};
use crate::primitives::events::Position;

/// A group's outstanding events, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Consumers have them.
    pub leased: usize,
    /// They were nacked, and their time is not over.
    pub delayed: usize,
    /// The next pull delivers them.
    pub ready: usize,
    /// They wait behind an earlier event of their key.
    pub waiting: usize,
    /// They are given up, and not among the dead letters yet; counted here alone.
    pub dead: usize,
    /// How many are of the key that has most: near the bound, one key holds the group up.
    pub most_of_one_key: usize,
    /// The first of them: how far behind the group is with what it began.
    pub oldest: Option<Position>,
    /// Tenants whose events were passed over.
    pub deferred: usize,
}

impl State {
    /// Counts what is outstanding at `now_ms`, whenever the last call was. It changes nothing.
    #[must_use]
    pub fn summary(&self, now_ms: i64) -> Summary {
        let mut settled = self.clone();
        // Nobody dies of being counted.
        settled.settle(now_ms, Policy { max_attempts: u16::MAX, max_outstanding: 0, has_shares: false });
        let (dead, deferred) = (settled.dead().count(), self.deferred.len());
        let mut summary = Summary { dead, deferred, ..Summary::default() };
        settled.bury(settled.position);
        summary.oldest = settled.outstanding.first().map(|entry| entry.position);
        let (mut held, mut of_key) = (HashSet::new(), HashMap::new());
        for entry in &settled.outstanding {
            match entry.phase {
                Phase::Free if held.contains(&entry.key) => summary.waiting += 1,
                Phase::Free => summary.ready += 1,
                Phase::Leased { .. } => summary.leased += 1,
                Phase::Delayed { .. } => summary.delayed += 1,
                // None is left.
                Phase::Dead { .. } => {}
            }
            if entry.phase != Phase::Free {
                held.insert(entry.key);
            }
            *of_key.entry(entry.key).or_default() += 1;
        }
        summary.most_of_one_key = of_key.into_values().max().unwrap_or(0);
        summary
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::{KeyHash, LeaseTime, MaxDeliveries};
    use super::*;

    #[test]
    fn a_summary_counts_by_phase_as_of_its_time() {
        let policy = Policy::new(5, 100).unwrap();
        let mut state = State::new(Position::START, 1);
        let one_second = LeaseTime::new(1000).unwrap();
        let event = |position, key| (Position::new(position), KeyHash::new(key), Uuid::nil());
        let mut pull = state.pull(0, policy, MaxDeliveries::new(2).unwrap(), one_second);
        pull.take(&[event(3, 1), event(5, 1)]).unwrap();
        assert_eq!(pull.finish().leases.len(), 2);
        let mut pull = state.pull(500, policy, MaxDeliveries::new(3).unwrap(), one_second);
        pull.take(&[event(6, 1), event(7, 2), event(8, 1)]).unwrap();
        assert_eq!(pull.finish().leases.len(), 1);

        let oldest = Some(Position::new(3));
        let running = Summary { leased: 3, waiting: 2, most_of_one_key: 4, oldest, ..Summary::default() };
        assert_eq!(state.summary(999), running);
        let expired = Summary { leased: 1, ready: 4, most_of_one_key: 4, oldest, ..Summary::default() };
        assert_eq!(state.summary(1000), expired);
        assert_eq!(state.due_ms(), Some(1000));
    }
}
