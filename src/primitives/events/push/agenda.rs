//! Which tenants of a subscription are looked at next: those that may have something, in turn, and those that may later.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use uuid::Uuid;

/// Tenants in turn, each once, and each with one time at the most.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    ready: VecDeque<Uuid>,
    is_ready: HashSet<Uuid>,
    by_time: BTreeSet<(u64, Uuid)>,
    times: HashMap<Uuid, u64>,
}

impl Agenda {
    /// A tenant may have something now.
    pub(super) fn now(&mut self, tenant: Uuid) {
        if self.is_ready.insert(tenant) {
            self.ready.push_back(tenant);
        }
    }

    /// A tenant may have something at this time, in milliseconds; the earliest that was told counts.
    pub(super) fn later(&mut self, tenant: Uuid, at_ms: u64) {
        match self.times.get(&tenant) {
            Some(earlier) if *earlier <= at_ms => return,
            Some(later) => {
                self.by_time.remove(&(*later, tenant));
            }
            None => {}
        }
        self.times.insert(tenant, at_ms);
        self.by_time.insert((at_ms, tenant));
    }

    /// Makes those ready whose time has come.
    pub(super) fn wake(&mut self, now_ms: u64) {
        while let Some((_, tenant)) = self.by_time.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms) {
            self.by_time.pop_first();
            self.times.remove(&tenant);
            self.now(tenant);
        }
    }

    /// When the next one's time comes.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.by_time.first().map(|(at_ms, _)| *at_ms)
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Uuid> {
        let tenant = self.ready.pop_front()?;
        self.is_ready.remove(&tenant);
        Some(tenant)
    }

    /// How many wait for their turn.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_come_back_at_the_earliest_time() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut agenda = Agenda::default();
        for tenant in [a, b, a] {
            agenda.now(tenant);
        }
        assert_eq!((agenda.ready(), agenda.pop(), agenda.pop(), agenda.pop()), (2, Some(a), Some(b), None));
        agenda.later(a, 30);
        agenda.later(a, 10);
        agenda.later(a, 20);
        agenda.later(b, 15);
        assert_eq!(agenda.next_ms(), Some(10));
        agenda.wake(9);
        assert_eq!(agenda.ready(), 0);
        agenda.wake(15);
        assert_eq!((agenda.pop(), agenda.pop(), agenda.next_ms()), (Some(a), Some(b), None));
    }
}
