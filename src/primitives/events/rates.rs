//! What each tenant published of late through this process, against its limit.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use super::limits::Rate;
use crate::error::ErrorKind;
use crate::fairness::gcra::{Quota, Tat};

/// Tenants that are remembered before it is looked which of them have published nothing for so long that they may be forgotten.
const FEW: usize = 1024;

/// A tenant publishes faster than it may; nothing was kept, and nothing counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this tenant publishes faster than {per_second} {what} a second, its limit in each sidecar (`limits` of the events policy): \
     nothing was kept; the same call passes in {retry_after_ms} ms"
)]
pub(super) struct TooFast {
    /// `events` or `bytes`.
    pub(super) what: &'static str,
    pub(super) per_second: u64,
    pub(super) retry_after_ms: u64,
}

impl TooFast {
    pub(super) fn kind(self) -> ErrorKind {
        ErrorKind::RateLimited
    }
}

/// Every tenant's buckets. One that is full is forgotten: so many tenants are known as published within a burst's time, 60 s at
/// the most.
pub(super) struct Rates {
    started: Instant,
    tenants: Mutex<Tenants>,
}

struct Tenants {
    buckets: HashMap<Uuid, Buckets>,
    /// With so many it is looked whose are full.
    sweep_at: usize,
}

#[derive(Default, Clone, Copy)]
struct Buckets {
    events: Option<Tat>,
    bytes: Option<Tat>,
}

impl Buckets {
    fn are_full(&self, now_us: i64) -> bool {
        [self.events, self.bytes].into_iter().flatten().all(|tat| tat.full_at_us() <= now_us)
    }
}

impl Rates {
    pub(super) fn new() -> Self {
        let tenants = Tenants { buckets: HashMap::new(), sweep_at: FEW };
        Self { started: Instant::now(), tenants: Mutex::new(tenants) }
    }

    /// Takes what a call brings from both of its tenant's buckets, or from neither.
    pub(super) fn take(&self, tenant: Uuid, rate: &Rate, events: u64, bytes: u64) -> Result<(), TooFast> {
        let now_us = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.take_at(now_us, tenant, rate, (events, bytes))
    }

    fn take_at(
        &self,
        now_us: i64,
        tenant: Uuid,
        rate: &Rate,
        (events, bytes): (u64, u64),
    ) -> Result<(), TooFast> {
        let mut tenants = self.tenants.lock();
        let held = tenants.buckets.get(&tenant).copied().unwrap_or_default();
        let take = |quota: &Quota, tat: Option<Tat>, cost: u64, what: &'static str, per_second: u64| {
            let (debt, ticks) = (quota.debt(tat, now_us), quota.ticks(cost));
            if quota.fits(debt, ticks) {
                return Ok(Some(quota.tat(debt + ticks, now_us)));
            }
            let retry_after_ms = quota.standing(debt, ticks, false).retry_after_ms;
            Err(TooFast { what, per_second, retry_after_ms })
        };
        let taken = Buckets {
            events: take(&rate.events, held.events, events, "events", rate.events_per_second)?,
            bytes: take(&rate.bytes, held.bytes, bytes, "bytes", rate.bytes_per_second)?,
        };
        tenants.buckets.insert(tenant, taken);
        if tenants.buckets.len() >= tenants.sweep_at {
            tenants.buckets.retain(|_, buckets| !buckets.are_full(now_us));
            tenants.sweep_at = FEW.max(2 * tenants.buckets.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn per_second(events: u64, bytes: u64) -> Rate {
        Rate::new(events, bytes, 10).unwrap()
    }

    #[test]
    fn a_tenant_gets_its_burst_and_then_its_rate_and_is_told_when() {
        let (rates, rate) = (Rates::new(), per_second(100, 1_000_000));
        for _ in 0..10 {
            assert_eq!(rates.take_at(0, A, &rate, (100, 1)), Ok(()));
        }
        let refused = rates.take_at(0, A, &rate, (50, 1)).unwrap_err();
        assert_eq!(refused, TooFast { what: "events", per_second: 100, retry_after_ms: 500 });
        assert_eq!(refused.kind(), ErrorKind::RateLimited);
        assert_eq!(rates.take_at(0, B, &rate, (1000, 1)), Ok(()), "another has its own");
        assert!(rates.take_at(499_000, A, &rate, (50, 1)).is_err());
        assert_eq!(rates.take_at(500_000, A, &rate, (50, 1)), Ok(()));
        assert!(rates.take_at(500_000, A, &rate, (1, 1)).is_err());
    }

    #[test]
    fn a_call_takes_from_both_or_from_neither() {
        let (rates, rate) = (Rates::new(), per_second(100, 1_000_000));
        assert_eq!(rates.take_at(0, A, &rate, (1, 10_000_000)), Ok(()));
        for _ in 0..100 {
            let refused = rates.take_at(0, A, &rate, (999, 1)).unwrap_err();
            assert_eq!((refused.what, refused.per_second), ("bytes", 1_000_000));
        }
        assert_eq!(rates.take_at(1, A, &rate, (999, 1)), Ok(()), "the refused took no events");
    }

    #[test]
    fn a_call_that_is_larger_than_a_burst_waits_for_all_of_it() {
        let (rates, rate) = (Rates::new(), per_second(1, 1));
        assert_eq!(rates.take_at(0, A, &rate, (1_000, 1_000)), Ok(()));
        assert_eq!(rates.take_at(9_999_000, A, &rate, (1_000, 1)).unwrap_err().retry_after_ms, 1);
        assert_eq!(rates.take_at(10_000_000, A, &rate, (1_000, 1)), Ok(()));
    }

    #[test]
    fn tenants_whose_buckets_are_full_again_are_forgotten() {
        let (rates, rate) = (Rates::new(), per_second(100, 1_000_000));
        for second in 0..10 {
            for tenant in 0..1000 {
                let tenant = Uuid::from_u128(second * 1000 + tenant);
                let now_us = i64::try_from(second).unwrap() * 1_000_000;
                assert_eq!(rates.take_at(now_us, tenant, &rate, (1, 1)), Ok(()));
            }
        }
        let known = rates.tenants.lock().buckets.len();
        assert!(known <= 2 * 1000, "{known} of 10,000 tenants");
    }
}
