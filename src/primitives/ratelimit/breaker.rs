//! Breakers: after a few checks in a row without an answer, later ones do not wait for one.
//!
//! Tenants are spread over the primaries of a cluster, so there is a breaker for each of 64 groups of tenants:
//! one lost primary does not take the others' tenants with it. An open breaker is closed by background probes
//! alone, so no caller's check is the trial. It takes two good probes in a row, an interval apart: a primary that was
//! stopped and goes on answers for a moment, before it hears that a replica has taken its place.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Notify;
use uuid::Uuid;

const GROUPS: usize = 64;
const GOOD_PROBES: u32 = 2;

/// A breaker for each group of tenants.
pub(super) struct Breakers {
    groups: Box<[Breaker]>,
    most_failures: u32,
    began: Instant,
    open: IntGauge,
    /// Told when a breaker opens.
    pub(super) opened: Notify,
}

#[derive(Default)]
struct Breaker {
    open: AtomicBool,
    failures: AtomicU32,
    /// Microseconds since the breakers began.
    last_failure_us: AtomicU64,
    good_probes: AtomicU32,
    /// The tenant whose part of the backend is probed.
    tenant: Mutex<Uuid>,
}

impl Breakers {
    /// Closed ones that open after `most_failures` in a row.
    pub(super) fn new(most_failures: u32, open: IntGauge) -> Self {
        let groups = std::iter::repeat_with(Breaker::default).take(GROUPS).collect();
        Self { groups, most_failures, began: Instant::now(), open, opened: Notify::new() }
    }

    fn of(&self, tenant: Uuid) -> &Breaker {
        let bits = tenant.as_u128();
        &self.groups[(bits ^ (bits >> 64)) as usize % GROUPS]
    }

    /// Whether this tenant's checks should not wait.
    pub(super) fn is_open(&self, tenant: Uuid) -> bool {
        self.of(tenant).open.load(Relaxed)
    }

    fn us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    /// An answer came.
    pub(super) fn succeeded(&self, tenant: Uuid) {
        let breaker = self.of(tenant);
        if breaker.failures.load(Relaxed) != 0 {
            breaker.failures.store(0, Relaxed);
        }
    }

    /// No answer came to a check of `sent`. Checks that waited at the same time are one failure: a short stall of
    /// a busy process is no outage.
    pub(super) fn failed(&self, tenant: Uuid, sent: Instant) {
        let breaker = self.of(tenant);
        if self.us(sent) < breaker.last_failure_us.load(Relaxed) {
            return;
        }
        breaker.last_failure_us.store(self.us(Instant::now()), Relaxed);
        if breaker.failures.fetch_add(1, Relaxed) + 1 < self.most_failures {
            return;
        }
        *breaker.tenant.lock() = tenant;
        breaker.good_probes.store(0, Relaxed);
        if !breaker.open.swap(true, Relaxed) {
            self.open.inc();
            self.opened.notify_one();
        }
    }

    /// A tenant of each group whose breaker is open.
    pub(super) fn to_probe(&self) -> Vec<Uuid> {
        let open = self.groups.iter().filter(|breaker| breaker.open.load(Relaxed));
        open.map(|breaker| *breaker.tenant.lock()).collect()
    }

    /// A probe was answered, or was not.
    pub(super) fn probed(&self, tenant: Uuid, answered: bool) {
        let breaker = self.of(tenant);
        if !answered {
            breaker.good_probes.store(0, Relaxed);
        } else if breaker.good_probes.fetch_add(1, Relaxed) + 1 >= GOOD_PROBES {
            breaker.failures.store(0, Relaxed);
            if breaker.open.swap(false, Relaxed) {
                self.open.dec();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_two_good_probes() {
        let breakers = Breakers::new(3, IntGauge::new("open", "open").unwrap());
        let (tenant, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        breakers.failed(tenant, Instant::now());
        breakers.failed(tenant, Instant::now());
        breakers.succeeded(tenant);
        breakers.failed(tenant, Instant::now());
        breakers.failed(tenant, Instant::now());
        assert!(!breakers.is_open(tenant));
        breakers.failed(tenant, Instant::now());
        assert!(breakers.is_open(tenant) && !breakers.is_open(other));
        assert_eq!(breakers.to_probe(), [tenant]);
        breakers.probed(tenant, true);
        breakers.probed(tenant, false);
        breakers.probed(tenant, true);
        assert!(breakers.is_open(tenant));
        breakers.probed(tenant, true);
        assert!(!breakers.is_open(tenant));
        assert_eq!(breakers.open.get(), 0);
    }

    #[test]
    fn checks_that_waited_together_are_one_failure() {
        let breakers = Breakers::new(2, IntGauge::new("open", "open").unwrap());
        let (tenant, sent) = (Uuid::from_u128(1), Instant::now());
        for _ in 0..100 {
            breakers.failed(tenant, sent);
        }
        assert!(!breakers.is_open(tenant));
        breakers.failed(tenant, Instant::now());
        assert!(breakers.is_open(tenant));
    }
}
