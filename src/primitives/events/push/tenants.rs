//! What each tenant of an endpoint may: whether its events rest, and how many requests it may have at once. One whose
//! events the endpoint fails on keeps no other's waiting. Pure: times and chance are given.

use std::collections::HashMap;

use uuid::Uuid;

use super::circuit::{Circuit, State};

/// Tenants of an endpoint that are kept in mind. What is not known of more of them: each failure counts as the endpoint's.
const MAX_KNOWN: usize = 1_000;
/// How long a tenant holds no more than half of the places after an attempt that failed, or took long.
const TROUBLE_MS: u64 = 600_000;

/// What is known of a tenant.
#[derive(Debug, Default)]
struct Tenant {
    /// Whether its last event was not taken.
    is_failing: bool,
    circuit: Circuit,
    /// The endpoint asked to be spared of its events until then.
    pause_until_ms: u64,
    /// Whether its last attempt took long.
    is_slow: bool,
    /// Until when it is held to half of the places.
    trouble_until_ms: u64,
}

impl Tenant {
    fn rests_until_ms(&mut self, now_ms: u64) -> Option<u64> {
        let open_until_ms = match self.circuit.state(now_ms) {
            State::Open { until_ms } => until_ms,
            State::Closed | State::HalfOpen => 0,
        };
        Some(open_until_ms.max(self.pause_until_ms)).filter(|until_ms| *until_ms > now_ms)
    }

    fn attempted(&mut self, now_ms: u64, is_slow: bool, is_failing: bool) {
        (self.is_slow, self.is_failing) = (is_slow, is_failing);
        if is_slow || is_failing {
            self.trouble_until_ms = now_ms.saturating_add(TROUBLE_MS);
        }
    }
}

/// The tenants of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    known: HashMap<Uuid, Tenant>,
    /// Requests that go on or may begin.
    held: HashMap<Uuid, usize>,
}

/// What an endpoint takes at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Requests, as policy says.
    pub(super) concurrency: usize,
    /// Whether its last attempt that tells of it was a success.
    pub(super) is_steady: bool,
    /// Whether other tenants wait.
    pub(super) others_wait: bool,
}

impl Tenants {
    /// Requests of all.
    pub(super) fn busy(&self) -> usize {
        self.held.values().sum()
    }

    /// More requests of a tenant go on.
    pub(super) fn take(&mut self, tenant: Uuid, count: usize) {
        *self.held.entry(tenant).or_default() += count;
    }

    /// So many of them do no more.
    pub(super) fn give(&mut self, tenant: Uuid, count: usize) {
        if let Some(held) = self.held.get_mut(&tenant) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                self.held.remove(&tenant);
            }
        }
    }

    /// How many more requests of a tenant may begin. One whose last event was taken may have all places, or half of them
    /// while another tenant waits, or where some of its own took long or failed lately and there are others; any other may
    /// have one. Those that fail may have half of the places together, and so may the rest while the endpoint took nothing.
    pub(super) fn room(&self, tenant: Uuid, now_ms: u64, room: Room) -> usize {
        let (all, half) = (room.concurrency, room.concurrency.div_ceil(2));
        let is_failing = self.is_failing(tenant);
        let held_by_kind: usize =
            self.held.iter().fold(
                0,
                |sum, (other, held)| {
                    if self.is_failing(*other) == is_failing { sum + held } else { sum }
                },
            );
        let kind = if is_failing || !room.is_steady { half } else { all };
        let own = match self.known.get(&tenant) {
            Some(known) if !known.is_failing && room.is_steady => {
                let is_troubled = known.trouble_until_ms > now_ms && self.known.len() > 1;
                if room.others_wait || is_troubled { half } else { all }
            }
            Some(_) | None => 1,
        };
        let held = self.held.get(&tenant).copied().unwrap_or_default();
        let left = all.saturating_sub(self.busy());
        left.min(kind.saturating_sub(held_by_kind)).min(own.saturating_sub(held))
    }

    /// Whether its last event was not taken.
    pub(super) fn is_failing(&self, tenant: Uuid) -> bool {
        self.known.get(&tenant).is_some_and(|known| known.is_failing)
    }

    /// Whether its last attempt took long, where it is known.
    pub(super) fn is_slow(&self, tenant: Uuid) -> Option<bool> {
        self.known.get(&tenant).map(|known| known.is_slow)
    }

    /// Until when nothing of the tenant's is sent; none where it may be.
    pub(super) fn rests_until_ms(&mut self, tenant: Uuid, now_ms: u64) -> Option<u64> {
        self.known.get_mut(&tenant)?.rests_until_ms(now_ms)
    }

    /// When the first of those that rest after failures is tried again.
    pub(super) fn next_trial_ms(&mut self, now_ms: u64) -> Option<u64> {
        let open = self.known.values_mut().filter_map(|known| match known.circuit.state(now_ms) {
            State::Open { until_ms } => Some(until_ms),
            State::Closed | State::HalfOpen => None,
        });
        open.min()
    }

    /// An event of the tenant's was not taken; for so long the endpoint asked to be spared of more. Whether it is the first
    /// since one was taken: the later ones say nothing new of the endpoint. `chance` is as a [`Circuit`] takes it.
    pub(super) fn failed(
        &mut self,
        tenant: Uuid,
        now_ms: u64,
        pause_ms: Option<u64>,
        is_slow: bool,
        chance: f64,
    ) -> bool {
        let Some(known) = self.known(tenant, now_ms) else { return true };
        let is_first = !known.is_failing;
        known.attempted(now_ms, is_slow, true);
        match pause_ms {
            Some(pause_ms) => {
                known.pause_until_ms = known.pause_until_ms.max(now_ms.saturating_add(pause_ms));
            }
            None => known.circuit.failed(now_ms, chance),
        }
        is_first
    }

    /// An event of the tenant's was taken, or refused for itself. What began before its rest does not end it.
    pub(super) fn succeeded(&mut self, tenant: Uuid, now_ms: u64, is_slow: bool) {
        let Some(known) = self.known(tenant, now_ms) else { return };
        if known.rests_until_ms(now_ms).is_none() {
            known.circuit.succeeded();
            known.attempted(now_ms, is_slow, false);
        }
    }

    /// What is known of a tenant from now on; none where there is no place for it.
    fn known(&mut self, tenant: Uuid, now_ms: u64) -> Option<&mut Tenant> {
        if !self.known.contains_key(&tenant) && self.known.len() >= MAX_KNOWN {
            self.known.retain(|_, known| known.trouble_until_ms > now_ms);
            if self.known.len() >= MAX_KNOWN {
                self.known.retain(|_, known| known.rests_until_ms(now_ms).is_some());
            }
            if self.known.len() >= MAX_KNOWN {
                return None;
            }
        }
        Some(self.known.entry(tenant).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);
    const C: Uuid = Uuid::from_u128(3);
    const D: Uuid = Uuid::from_u128(4);
    const STEADY: Room = Room { concurrency: 5, is_steady: true, others_wait: false };

    /// Those of whom an event was taken.
    fn well(tenants: &[Uuid]) -> Tenants {
        let mut all = Tenants::default();
        tenants.iter().for_each(|tenant| all.succeeded(*tenant, 0, false));
        all
    }

    #[test]
    fn a_pause_is_one_tenant_s_and_ends_by_its_time_alone() {
        let mut tenants = Tenants::default();
        assert!(tenants.failed(A, 0, Some(10_000), false, 1.0));
        assert!(!tenants.failed(A, 0, Some(5_000), false, 1.0), "a second answer of the same kind");
        let until = [(A, 9_999), (B, 0)].map(|(tenant, now_ms)| tenants.rests_until_ms(tenant, now_ms));
        assert_eq!(until, [Some(10_000), None]);
        tenants.succeeded(A, 100, false);
        assert_eq!(tenants.rests_until_ms(A, 101), Some(10_000), "what was sent before");
        assert_eq!(tenants.rests_until_ms(A, 10_000), None);
        assert!(!tenants.failed(A, 10_000, Some(1_000), false, 1.0), "it never succeeded");
        tenants.succeeded(A, 11_000, false);
        assert!(tenants.failed(A, 11_000, Some(1_000), false, 1.0));
        assert_eq!(tenants.next_trial_ms(11_000), None, "a pause is no failure of the circuit");
    }

    #[test]
    fn a_tenant_that_failed_five_times_rests_alone() {
        let mut tenants = Tenants::default();
        for number in 0..5 {
            assert_eq!(tenants.rests_until_ms(A, 0), None);
            assert_eq!(tenants.failed(A, 0, None, false, 1.0), number == 0);
        }
        assert_eq!((tenants.rests_until_ms(A, 0), tenants.rests_until_ms(B, 0)), (Some(5_000), None));
        assert_eq!((tenants.next_trial_ms(0), tenants.next_trial_ms(5_000)), (Some(5_000), None));
        tenants.succeeded(A, 5_000, false);
        assert!(!tenants.is_failing(A));
        assert!(tenants.failed(A, 5_000, None, false, 1.0));
        assert_eq!(tenants.rests_until_ms(A, 5_000), None, "it begins at one again");
    }

    #[test]
    fn a_tenant_holds_half_of_the_places_while_another_waits_and_one_that_fails_holds_one() {
        let mut tenants = well(&[A, B]);
        let waited_for = Room { others_wait: true, ..STEADY };
        assert_eq!((tenants.room(A, 0, STEADY), tenants.room(A, 0, waited_for)), (5, 3));
        assert_eq!(tenants.room(C, 0, STEADY), 1, "nobody knows how it goes");
        tenants.take(A, 2);
        assert_eq!((tenants.room(A, 0, waited_for), tenants.room(B, 0, waited_for)), (1, 3));
        tenants.take(B, 3);
        assert_eq!((tenants.busy(), tenants.room(A, 0, STEADY), tenants.room(C, 0, STEADY)), (5, 0, 0));
        tenants.give(B, 3);
        tenants.failed(A, 0, None, true, 1.0);
        assert_eq!((tenants.room(A, 0, STEADY), tenants.room(B, 0, STEADY)), (0, 3));
        tenants.give(A, 1);
        for tenant in [C, D] {
            tenants.failed(tenant, 0, None, true, 1.0);
            assert_eq!(tenants.room(tenant, 0, STEADY), 1);
            tenants.take(tenant, 1);
        }
        tenants.failed(Uuid::from_u128(5), 0, None, true, 1.0);
        assert_eq!(tenants.room(Uuid::from_u128(5), 0, STEADY), 0, "three that fail hold half of the places");
        assert_eq!(tenants.room(B, 0, STEADY), 2, "the others' are free");
    }

    #[test]
    fn a_tenant_whose_requests_took_long_holds_half_of_the_places_where_there_are_others() {
        let mut tenants = well(&[A]);
        tenants.succeeded(A, 0, true);
        assert_eq!(tenants.room(A, 1, STEADY), 5, "alone");
        tenants.succeeded(B, 0, false);
        assert_eq!((tenants.room(A, 1, STEADY), tenants.room(B, 1, STEADY)), (3, 5));
        tenants.failed(B, 1, None, false, 1.0);
        tenants.succeeded(B, 2, false);
        assert_eq!((tenants.room(A, TROUBLE_MS, STEADY), tenants.room(B, TROUBLE_MS, STEADY)), (5, 3));
    }

    #[test]
    fn an_endpoint_that_took_nothing_yet_gets_one_request_of_a_tenant() {
        let mut tenants = well(&[A]);
        let unsteady = Room { is_steady: false, ..STEADY };
        for tenant in [A, B, C] {
            assert_eq!(tenants.room(tenant, 0, unsteady), 1);
            tenants.take(tenant, 1);
            assert_eq!(tenants.room(tenant, 0, unsteady), 0);
        }
        assert_eq!(tenants.room(D, 0, unsteady), 0);
        let one = Room { concurrency: 1, is_steady: false, others_wait: true };
        assert_eq!(Tenants::default().room(A, 0, one), 1);
    }

    #[test]
    fn of_more_tenants_than_are_kept_in_mind_failures_count_as_the_endpoint_s() {
        let number = |number: usize| Uuid::from_u128(number as u128);
        let mut tenants = Tenants::default();
        for at in 0..MAX_KNOWN {
            assert!(tenants.failed(number(at), 0, Some(1_000), false, 1.0));
        }
        let late = number(MAX_KNOWN);
        assert!(tenants.failed(late, 999, None, false, 1.0) && tenants.failed(late, 999, None, false, 1.0));
        assert!(!tenants.is_failing(late));
        assert!(tenants.failed(late, 1_000, None, false, 1.0) && tenants.is_failing(late));
        assert_eq!(tenants.known.len(), 1);
    }
}
