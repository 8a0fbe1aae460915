//! Clocks that are read in a few nanoseconds and are a few milliseconds behind (Linux's coarse clocks, as the timer
//! interrupt last set them): for bounds of seconds that every request looks at.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds by a clock that is never set.
#[must_use]
pub fn monotonic_ms() -> u64 {
    ms(ClockId::MonotonicCoarse)
}

/// Milliseconds since 1970.
#[must_use]
pub fn since_1970_ms() -> u64 {
    ms(ClockId::RealtimeCoarse)
}

fn ms(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_time_of_day_is_a_few_milliseconds_behind_at_the_most() {
        let exact =
            || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let (before, coarse, after) = (exact(), since_1970_ms(), exact());
        assert!((before - 20..=after).contains(&coarse), "{before} {coarse} {after}");
    }
}
