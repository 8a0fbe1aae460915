//! What names a point, and what tells it from another one under the same name.

use uuid::Uuid;

use super::{Amount, Day};
use crate::digest::{first, of_parts};
use crate::key_order::place;

/// What is unique: a key of a tenant's metric on a UTC day.
///
/// It is kept as 24 bytes, in its client's order where its text shows one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PointKey {
    /// Of the point's time.
    pub day: Day,
    /// Orders it among those of its day; says nothing of what it is.
    pub place: i64,
    /// The first half of SHA-256 over tenant, metric, day and text.
    pub hash: Uuid,
}

impl PointKey {
    /// Of the text that a client gave. Every sidecar of a fleet must make the same of it: a change of this function is a change of the
    /// schema.
    #[must_use]
    pub fn new(tenant: Uuid, metric: &str, day: Day, text: &str) -> Self {
        let day_bytes = day.number().to_be_bytes();
        let digest = of_parts([tenant.as_bytes(), metric.as_bytes(), &day_bytes, text.as_bytes()]);
        Self { day, place: ordered(place(text)), hash: Uuid::from_bytes(first(digest.as_ref())) }
    }
}

/// What a point says, in 8 bytes: another one under the same key is a conflict.
#[must_use]
pub fn fingerprint(value: Amount, time_us: i64, tags: &str, metadata: &str) -> i64 {
    let number = [value.to_be_bytes().as_slice(), &time_us.to_be_bytes()].concat();
    i64::from_be_bytes(first(of_parts([&number, tags.as_bytes(), metadata.as_bytes()]).as_ref()))
}

/// As a signed number of the same order.
fn ordered(place: u64) -> i64 {
    (place ^ (1 << 63)).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Day {
        Day::of("2026-01-31T09:30:00Z".parse().unwrap())
    }

    /// Written down once: rows of earlier releases hold these.
    #[test]
    fn a_key_and_a_fingerprint_never_change() {
        let key = PointKey::new(Uuid::from_u128(1), "api_calls", day(), "req-000042");
        assert_eq!(key.hash.as_u128(), 0x0eb0_7b1f_7e56_6ab7_5000_d416_bf9e_a74c);
        assert_eq!(key.place, -3_723_632_466_905_268_182);
        let print = fingerprint(Amount::parse("1.5").unwrap(), 1_769_851_800_000_000, "{}", "");
        assert_eq!(print, -5_175_506_363_360_943_562);
    }

    #[test]
    fn other_tenants_metrics_days_and_texts_are_other_keys() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let other_day = Day::of("2026-02-01T00:00:00Z".parse().unwrap());
        let hashes = [
            PointKey::new(one, "ab", day(), "c"),
            PointKey::new(two, "ab", day(), "c"),
            PointKey::new(one, "a", day(), "bc"),
            PointKey::new(one, "ab", other_day, "c"),
            PointKey::new(one, "ab", day(), "d"),
        ]
        .map(|key| key.hash);
        let different: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(different.len(), hashes.len());
    }

    #[test]
    fn another_value_time_tag_or_metadata_is_another_point() {
        let (one, two) = (Amount::parse("1").unwrap(), Amount::parse("2").unwrap());
        let prints = [
            fingerprint(one, 1, "", ""),
            fingerprint(two, 1, "", ""),
            fingerprint(one, 2, "", ""),
            fingerprint(one, 1, "{}", ""),
            fingerprint(one, 1, "", "{}"),
        ];
        let different: std::collections::BTreeSet<_> = prints.iter().collect();
        assert_eq!(different.len(), prints.len());
    }
}
