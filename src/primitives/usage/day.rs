//! UTC days.

use jiff::Timestamp;

const MICROSECONDS: i64 = 86_400_000_000;

/// For how many days keys are kept: of an earlier one no record is taken. On PostgreSQL `outrigger_keep_usage_partitions` has the same.
pub const KEYS_DAYS: i32 = 100;
/// Of how many days ahead records can be kept: `outrigger_make_usage_day` has the same.
pub const KEYS_AHEAD_DAYS: i32 = 10;

/// A UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(i32);

impl Day {
    /// The one that an instant is in.
    #[must_use]
    pub fn of(time: Timestamp) -> Self {
        // jiff's instants are within ten thousand years.
        Self(i32::try_from(time.as_microsecond().div_euclid(MICROSECONDS)).unwrap_or(i32::MAX))
    }

    /// Days since 1970-01-01.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_before_1970_too() {
        for (time, number) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("2026-01-31T23:59:59.999999Z", 20_484),
            ("2026-02-01T01:00:00+01:00", 20_485),
        ] {
            assert_eq!(Day::of(time.parse().unwrap()).number(), number, "{time}");
        }
    }
}
