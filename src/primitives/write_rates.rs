//! `limits:` of a policy: how fast each tenant may write through one process, and what it wrote of late.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::tiers::{Tiers, TiersDocument};
use crate::config::Findings;
use crate::error::ErrorKind;
use crate::fairness::gcra::{Quota, QuotaError, Tat};
use crate::http::Problem;

/// Tenants that are remembered before it is looked which of them have written nothing for so long that they may be forgotten.
const FEW: usize = 1024;

/// How fast each tenant may write through one sidecar; a fleet's bound is the sum of its sidecars'.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "LimitsOf{R}")]
pub struct LimitsDocument<R> {
    /// For the tenants of each tier.
    pub tiers: TiersDocument<R>,
    /// For tenants that have it their own way, by UUID in lower case; instead of their tier's.
    #[serde(default = "BTreeMap::<String, R>::new")]
    pub tenants: BTreeMap<String, R>,
}

/// What is written, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// What a tenant does: `publishes`.
    pub(super) does: &'static str,
    /// What it is that is written: `events`.
    pub(super) things: &'static str,
    /// The kind of policy that has the limits.
    pub(super) policy: &'static str,
}

/// What a burst must have room for, so that every call passes.
pub(super) struct Largest {
    pub(super) things: u64,
    /// Why so many.
    pub(super) since: &'static str,
    pub(super) mebibytes: u64,
}

/// Where a document does not say it.
pub(super) fn default_burst_seconds() -> u64 {
    10
}

/// How fast, as a document says it.
pub(super) struct Speed {
    pub(super) things_per_second: u64,
    pub(super) bytes_per_second: u64,
    pub(super) burst_seconds: u64,
}

/// How fast a tenant may write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rate {
    words: &'static Words,
    things_per_second: u64,
    bytes_per_second: u64,
    things: Quota,
    bytes: Quota,
}

impl Rate {
    fn new(words: &'static Words, speed: &Speed) -> Result<Self, QuotaError> {
        let quota =
            |per_second: u64| Quota::new(per_second, 1000, per_second.saturating_mul(speed.burst_seconds));
        let Speed { things_per_second, bytes_per_second, .. } = *speed;
        let (things, bytes) = (quota(things_per_second)?, quota(bytes_per_second)?);
        Ok(Self { words, things_per_second, bytes_per_second, things, bytes })
    }
}

/// The limits of a document that fits its schema; says what is wrong beyond the schema. None where a rate is.
pub(super) fn limits<R>(
    document: &LimitsDocument<R>,
    words: &'static Words,
    largest: &Largest,
    findings: &mut Findings,
) -> Option<Tiers<Rate>>
where
    for<'r> &'r R: Into<Speed>,
{
    let read =
        |of: &R, pointer: &str, findings: &mut Findings| read(&of.into(), words, largest, pointer, findings);
    Tiers::read(&document.tiers, &document.tenants, "/limits", findings, read)
}

fn read(
    speed: &Speed,
    words: &'static Words,
    largest: &Largest,
    pointer: &str,
    findings: &mut Findings,
) -> Option<Rate> {
    let Words { things: name, .. } = words;
    let things = speed.things_per_second.saturating_mul(speed.burst_seconds);
    let bytes = speed.bytes_per_second.saturating_mul(speed.burst_seconds);
    let Largest { things: largest_things, since, mebibytes } = *largest;
    if things < largest_things {
        let message = format!("a burst of {things} {name} has no room for a call of {largest_things}");
        let right = format!("`{name}_per_second` x `burst_seconds` of {largest_things} at least, {since}");
        findings.add(pointer, message, right);
    }
    let largest_bytes = mebibytes * 1024 * 1024;
    if bytes < largest_bytes {
        let message = format!("a burst of {bytes} bytes has no room for the largest call");
        let right =
            format!("`bytes_per_second` x `burst_seconds` of {largest_bytes} ({mebibytes} MiB) at least");
        findings.add(pointer, message, right);
    }
    let rate = Rate::new(words, speed);
    if rate.is_err() {
        let message = "this burst takes too long to fill to be counted exactly";
        findings.add(pointer, message, "smaller `burst_seconds`, or rates with more zeros at their ends");
    }
    rate.ok()
}

/// A tenant writes faster than it may; nothing was kept, and nothing counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this tenant {} faster than {per_second} {what} a second, its limit in each sidecar (`limits` of the {} policy): \
     nothing was kept; the same call passes in {retry_after_ms} ms", words.does, words.policy
)]
pub(super) struct TooFast {
    words: &'static Words,
    /// The things, or `bytes`.
    what: &'static str,
    per_second: u64,
    retry_after_ms: u64,
}

impl From<TooFast> for Problem {
    fn from(error: TooFast) -> Self {
        Self::new(ErrorKind::RateLimited, error.to_string()).retry_after_ms(error.retry_after_ms)
    }
}

/// Every tenant's buckets. One that is full is forgotten: so many tenants are known as wrote within a burst's time, 60 s at
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

#[derive(Clone, Copy)]
struct Buckets {
    things: Option<Tat>,
    bytes: Option<Tat>,
}

impl Buckets {
    /// Of a tenant that has written nothing of late.
    const FULL: Self = Self { things: None, bytes: None };

    fn are_full(&self, now_us: i64) -> bool {
        [self.things, self.bytes].into_iter().flatten().all(|tat| tat.full_at_us() <= now_us)
    }
}

impl Rates {
    pub(super) fn new() -> Self {
        let tenants = Tenants { buckets: HashMap::new(), sweep_at: FEW };
        Self { started: Instant::now(), tenants: Mutex::new(tenants) }
    }

    /// Takes what a call brings from both of its tenant's buckets, or from neither.
    pub(super) fn take(&self, tenant: Uuid, rate: &Rate, things: u64, bytes: u64) -> Result<(), TooFast> {
        let now_us = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.take_at(now_us, tenant, rate, (things, bytes))
    }

    fn take_at(
        &self,
        now_us: i64,
        tenant: Uuid,
        rate: &Rate,
        (things, bytes): (u64, u64),
    ) -> Result<(), TooFast> {
        let mut tenants = self.tenants.lock();
        let held = tenants.buckets.get(&tenant).map_or(Buckets::FULL, |buckets| *buckets);
        let take = |quota: &Quota, tat: Option<Tat>, cost: u64, what: &'static str, per_second: u64| {
            let (debt, ticks) = (quota.debt(tat, now_us), quota.ticks(cost));
            if quota.fits(debt, ticks) {
                return Ok(Some(quota.tat(debt + ticks, now_us)));
            }
            let retry_after_ms = quota.standing(debt, ticks, false).retry_after_ms;
            Err(TooFast { words: rate.words, what, per_second, retry_after_ms })
        };
        let taken = Buckets {
            things: take(&rate.things, held.things, things, rate.words.things, rate.things_per_second)?,
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

    const WORDS: Words = Words { does: "publishes", things: "events", policy: "events" };

    fn per_second(things_per_second: u64, bytes_per_second: u64) -> Rate {
        Rate::new(&WORDS, &Speed { things_per_second, bytes_per_second, burst_seconds: 10 }).unwrap()
    }

    #[test]
    fn a_tenant_gets_its_burst_and_then_its_rate_and_is_told_when() {
        let (rates, rate) = (Rates::new(), per_second(100, 1_000_000));
        for _ in 0..10 {
            assert_eq!(rates.take_at(0, A, &rate, (100, 1)), Ok(()));
        }
        let refused = rates.take_at(0, A, &rate, (50, 1)).unwrap_err();
        let expected = TooFast { words: &WORDS, what: "events", per_second: 100, retry_after_ms: 500 };
        assert_eq!(refused, expected);
        let words = "this tenant publishes faster than 100 events a second, its limit in each sidecar (`limits` of the events policy)";
        assert!(refused.to_string().starts_with(words), "{refused}");
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
