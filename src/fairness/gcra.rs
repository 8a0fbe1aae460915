//! The generic cell rate algorithm (ITU-T I.371), in integers: no clock, no state, no rounding that adds up.
//!
//! A bucket is one number, its theoretical arrival time (TAT): when its burst is full again. Time is counted
//! in ticks, a quota's own fraction of a microsecond chosen so that one token is a whole number of ticks:
//! 7 requests a minute are 60,000,000 ticks a token at 7 ticks a microsecond. So a rate of 1/3 token a second
//! does not drift, however long it runs.

/// The most ticks a full burst may be worth: with the time of day added it stays below 2^53, up to which the
/// doubles of Redis's Lua are exact.
const MAX_CAPACITY: i64 = 1 << 52;
/// The bound of a share of a quota, which is used in this process only: 100 times finer ticks at the most.
const MAX_SHARE_CAPACITY: i64 = 1 << 60;

/// A sustained rate and a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    burst: u64,
    ticks_per_us: i64,
    ticks_per_token: i64,
    capacity: i64,
}

/// A quota whose burst takes so long to fill that it cannot be counted exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`burst` x `per_ms` is too large for this `requests` to be counted exactly")]
pub struct QuotaError;

/// When a bucket is full again: microseconds since 1970 and a fraction `part / parts` of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tat {
    /// Whole microseconds since 1970.
    pub us: i64,
    /// The fraction's numerator, below `parts`.
    pub part: i64,
    /// The fraction's denominator, at least 1.
    pub parts: i64,
}

/// What a bucket says about one check, as the caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What is left of the burst now.
    pub remaining: u64,
    /// 0, or in how many milliseconds the same cost would pass.
    pub retry_after_ms: u64,
    /// In how many milliseconds the burst is full again.
    pub reset_ms: u64,
    /// Whether this bucket is one that did not have enough.
    pub over: bool,
}

impl Quota {
    /// `requests` in each `per_ms` milliseconds, `burst` at once; each at least 1.
    pub fn new(requests: u64, per_ms: u64, burst: u64) -> Result<Self, QuotaError> {
        Self::exact(u128::from(requests), u128::from(per_ms) * 1000, burst, MAX_CAPACITY)
    }

    /// `percent` of this quota, and one token of burst at the least.
    pub fn share(&self, percent: u64) -> Result<Self, QuotaError> {
        let requests = u128::from(self.ticks_per_us.unsigned_abs()) * u128::from(percent);
        let per_us = u128::from(self.ticks_per_token.unsigned_abs()) * 100;
        let burst = (u128::from(self.burst) * u128::from(percent) / 100).max(1);
        Self::exact(requests, per_us, u64::try_from(burst).map_err(|_| QuotaError)?, MAX_SHARE_CAPACITY)
    }

    fn exact(requests: u128, per_us: u128, burst: u64, most: i64) -> Result<Self, QuotaError> {
        let divisor = greatest_common_divisor(requests, per_us).max(1);
        let ticks = |value: u128| i64::try_from(value / divisor).map_err(|_| QuotaError);
        let (ticks_per_us, ticks_per_token) = (ticks(requests)?.max(1), ticks(per_us)?.max(1));
        let capacity = i64::try_from(burst).ok().and_then(|burst| burst.checked_mul(ticks_per_token));
        match capacity {
            Some(capacity) if capacity <= most => Ok(Self { burst, ticks_per_us, ticks_per_token, capacity }),
            _ => Err(QuotaError),
        }
    }

    /// The most that can be taken at once.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Ticks in a microsecond.
    #[must_use]
    pub fn ticks_per_us(&self) -> i64 {
        self.ticks_per_us
    }

    /// A full burst, in ticks.
    #[must_use]
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// What `cost` tokens are worth, in ticks; a cost above the burst counts as the whole burst.
    #[must_use]
    pub fn ticks(&self, cost: u64) -> i64 {
        i64::try_from(cost)
            .ok()
            .and_then(|cost| cost.checked_mul(self.ticks_per_token))
            .map_or(self.capacity, |ticks| ticks.min(self.capacity))
    }

    /// How long an empty bucket takes to be full, in microseconds.
    #[must_use]
    pub fn fill_us(&self) -> u64 {
        self.capacity.unsigned_abs().div_ceil(self.ticks_per_us.unsigned_abs())
    }

    /// What is missing from the burst at `now_us`, in ticks, at most a whole burst: a TAT further ahead comes from
    /// a clock that was set back or from a larger quota, and must not lock the bucket for longer.
    #[must_use]
    pub fn debt(&self, tat: Option<Tat>, now_us: i64) -> i64 {
        let Some(tat) = tat else { return 0 };
        let (mut ahead_us, mut part) = (tat.us.saturating_sub(now_us), tat.part);
        if tat.parts != self.ticks_per_us {
            // Written under another quota: its fraction is rounded up, by less than a microsecond once.
            ahead_us += i64::from(part > 0);
            part = 0;
        }
        ahead_us.saturating_mul(self.ticks_per_us).saturating_add(part).clamp(0, self.capacity)
    }

    /// Whether a bucket with this debt has enough for `cost_ticks`; 0 always passes.
    #[must_use]
    pub fn fits(&self, debt: i64, cost_ticks: i64) -> bool {
        cost_ticks == 0 || debt + cost_ticks <= self.capacity
    }

    /// The TAT of a bucket with this debt at `now_us`.
    #[must_use]
    pub fn tat(&self, debt: i64, now_us: i64) -> Tat {
        Tat {
            us: now_us + debt / self.ticks_per_us,
            part: debt % self.ticks_per_us,
            parts: self.ticks_per_us,
        }
    }

    /// What a bucket with `debt` before the check says about it; `taken` tells whether the whole call passed.
    #[must_use]
    pub fn standing(&self, debt: i64, cost_ticks: i64, taken: bool) -> Standing {
        let over = !self.fits(debt, cost_ticks);
        let after = if taken { debt + cost_ticks } else { debt };
        let missing = if over { debt + cost_ticks - self.capacity } else { 0 };
        let ms = |ticks: i64| ticks.max(0).unsigned_abs().div_ceil(self.ticks_per_us.unsigned_abs() * 1000);
        Standing {
            remaining: ((self.capacity - after).max(0) / self.ticks_per_token).unsigned_abs(),
            retry_after_ms: ms(missing),
            reset_ms: ms(after),
            over,
        }
    }
}

impl Tat {
    /// The first whole microsecond at which the bucket is full.
    #[must_use]
    pub fn full_at_us(&self) -> i64 {
        self.us + i64::from(self.part > 0)
    }
}

/// Euclid's.
#[must_use]
pub fn greatest_common_divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bucket over time, as a backend keeps it.
    struct Bucket {
        quota: Quota,
        tat: Option<Tat>,
    }

    impl Bucket {
        fn take(&mut self, now_us: i64, cost: u64) -> bool {
            let debt = self.quota.debt(self.tat, now_us);
            let ticks = self.quota.ticks(cost);
            let fits = self.quota.fits(debt, ticks);
            if fits {
                self.tat = Some(self.quota.tat(debt + ticks, now_us));
            }
            fits
        }
    }

    #[test]
    fn the_contract_s_example_counts_as_it_says() {
        let api = Quota::new(100, 60_000, 20).unwrap();
        let one = api.ticks(1);
        assert_eq!(
            api.standing(0, one, true),
            Standing { remaining: 19, retry_after_ms: 0, reset_ms: 600, over: false }
        );
        assert_eq!(
            api.standing(api.capacity(), one, false),
            Standing { remaining: 0, retry_after_ms: 600, reset_ms: 12_000, over: true }
        );
        assert_eq!(api.fill_us(), 12_000_000);
    }

    #[test]
    fn what_cannot_be_counted_exactly_is_refused() {
        let day_ms = 86_400_000;
        assert!(Quota::new(1_000_000, day_ms, 1_000_000).is_ok());
        assert!(Quota::new(1_000_000_000, 1, 1_000_000_000).is_ok());
        assert_eq!(Quota::new(999_999_937, day_ms, 1_000_000), Err(QuotaError));
    }

    #[test]
    fn a_share_has_a_token_at_least_and_keeps_the_rate_exact() {
        let share = Quota::new(10, 60_000, 2).unwrap().share(25).unwrap();
        assert_eq!((share.burst(), share.fill_us()), (1, 24_000_000));
    }

    #[test]
    fn a_tat_too_far_ahead_locks_for_one_burst_at_most() {
        let quota = Quota::new(100, 60_000, 20).unwrap();
        let tat = Tat { us: i64::MAX, part: 0, parts: 1 };
        assert_eq!(quota.debt(Some(tat), 1_800_000_000_000_000), quota.capacity());
    }

    #[test]
    fn another_quota_s_fraction_is_rounded_up() {
        let quota = Quota::new(1, 1000, 5).unwrap();
        assert_eq!(quota.debt(Some(Tat { us: 10, part: 1, parts: 7 }), 0), 11);
        assert_eq!(quota.debt(Some(Tat { us: 10, part: 0, parts: 7 }), 0), 10);
    }

    fn quotas() -> impl Strategy<Value = (u64, u64, u64)> {
        (1_u64..5000, 1_u64..120_000, 1_u64..200)
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_burst_and_rate(
            (requests, per_ms, burst) in quotas(),
            calls in prop::collection::vec((0_i64..3_000_000, 0_u64..8), 1..120),
        ) {
            let mut bucket = Bucket { quota: Quota::new(requests, per_ms, burst).unwrap(), tat: None };
            let mut now = 1_800_000_000_000_000_i64;
            let mut admitted: Vec<(i64, u64)> = Vec::new();
            for (wait, cost) in calls {
                now += wait;
                if cost <= burst && bucket.take(now, cost) {
                    admitted.push((now, cost));
                }
            }
            for (first, (from, _)) in admitted.iter().enumerate() {
                let mut sum = 0_u128;
                for (until, cost) in &admitted[first..] {
                    sum += u128::from(*cost);
                    let window_us = u128::from((until - from).unsigned_abs());
                    let rate = u128::from(requests) * window_us / (u128::from(per_ms) * 1000);
                    prop_assert!(sum <= u128::from(burst) + rate, "{sum} in {window_us} us");
                }
            }
        }

        #[test]
        fn a_caller_that_always_asks_gets_all_of_its_rate(
            (requests, per_ms, burst) in (1_u64..5000, 1_u64..120_000, 2_u64..200),
            steps in prop::collection::vec(1_i64..2_000_000, 1..200),
        ) {
            let quota = Quota::new(requests, per_ms, burst).unwrap();
            let mut bucket = Bucket { quota, tat: None };
            let begin = 1_800_000_000_000_000_i64;
            let (mut now, mut admitted) = (begin, 0_u128);
            let longest = i64::try_from(quota.fill_us() / 2).unwrap().max(1);
            for step in steps {
                while bucket.take(now, 1) {
                    admitted += 1;
                }
                now += step.min(longest);
            }
            while bucket.take(now, 1) {
                admitted += 1;
            }
            let elapsed_us = u128::from((now - begin).unsigned_abs());
            let earned = u128::from(burst) + u128::from(requests) * elapsed_us / (u128::from(per_ms) * 1000);
            prop_assert_eq!(admitted, earned);
        }

        #[test]
        fn after_retry_after_the_same_cost_passes_and_not_a_millisecond_earlier(
            (requests, per_ms, burst) in quotas(),
            wait in 0_i64..1_000_000,
            cost in 1_u64..50,
        ) {
            let quota = Quota::new(requests, per_ms, burst).unwrap();
            let cost = cost.min(burst);
            let now = 1_800_000_000_000_000_i64;
            let mut bucket = Bucket { quota, tat: None };
            while bucket.take(now, 1) {}
            let at = now + wait;
            let debt = quota.debt(bucket.tat, at);
            let standing = quota.standing(debt, quota.ticks(cost), false);
            let after = i64::try_from(standing.retry_after_ms).unwrap() * 1000;
            prop_assert!(quota.fits(quota.debt(bucket.tat, at + after), quota.ticks(cost)));
            if after > 0 {
                prop_assert!(!quota.fits(quota.debt(bucket.tat, at + after - 1000), quota.ticks(cost)));
            }
        }
    }
}
