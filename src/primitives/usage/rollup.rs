//! Sums by hour and by day, for all of a metric and for each value of the tags by which it can be grouped.

use std::collections::BTreeMap;

use jiff::civil;
use uuid::Uuid;

use super::{Booked, Point, Sum};

const HOUR_US: i64 = 3_600_000_000;

/// What a sum is of, in the order in which sums are written: two transactions that add to the same ones wait for each other, and
/// never each for the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SumKey<'p> {
    /// Whose.
    pub tenant: Uuid,
    /// Of what.
    pub metric: &'p str,
    /// The tag by which it is grouped; empty of all together.
    pub tag: &'p str,
    /// The tag's value; empty of all together, and of records without the tag.
    pub tag_value: &'p str,
    /// The first day of the closed month that it adjusts.
    pub adjusts: Option<civil::Date>,
}

/// A sum of some points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Added {
    /// Of their values.
    pub value: Sum,
    /// How many.
    pub count: i64,
}

impl Added {
    fn add(&mut self, point: &Point) {
        self.value += point.value;
        self.count += 1;
    }
}

/// What some points add to the sums.
#[derive(Debug, Default)]
pub struct Rollup<'p> {
    /// By UTC hour, in microseconds since 1970.
    pub hourly: BTreeMap<(SumKey<'p>, i64), Added>,
    /// By day of the store's time zone.
    pub daily: BTreeMap<(SumKey<'p>, civil::Date), Added>,
}

impl<'p> Rollup<'p> {
    /// Adds a tenant's point of a metric to the sum of all and to one of each of these tags, where it is booked.
    pub fn add(
        &mut self,
        tenant: Uuid,
        (metric, tags): (&'p str, &'p [String]),
        point: &'p Point,
        booked: &Booked,
    ) {
        let hour = booked.time.as_microsecond().div_euclid(HOUR_US) * HOUR_US;
        let adjusts = booked.adjusts;
        let all = SumKey { tenant, metric, tag: "", tag_value: "", adjusts };
        let groups = tags.iter().map(|tag| {
            let value = point.tags.iter().find(|(name, _)| **name == *tag.as_str());
            SumKey { tag: tag.as_str(), tag_value: value.map_or("", |(_, value)| value), ..all.clone() }
        });
        for key in std::iter::once(all.clone()).chain(groups) {
            self.daily.entry((key.clone(), booked.day)).or_default().add(point);
            self.hourly.entry((key, hour)).or_default().add(point);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::*;
    use crate::primitives::usage::{Amount, Calendar, Day, PointKey};

    const TENANT: Uuid = Uuid::from_u128(1);

    fn point(time: &str, value: &str, tags: &[(&str, &str)]) -> Point {
        let time: Timestamp = time.parse().unwrap();
        Point {
            metric: 0,
            key: PointKey::new(TENANT, "calls", Day::of(time), time.to_string().as_str()),
            fingerprint: 0,
            value: Amount::parse(value).unwrap(),
            time,
            tags: tags.iter().map(|(name, value)| (Box::from(*name), Box::from(*value))).collect(),
            metadata: None,
            corrects: None,
        }
    }

    #[test]
    fn a_point_is_in_the_sum_of_all_and_in_one_of_each_tag_and_days_are_the_zone_s() {
        let tags = ["plan".to_owned(), "region".to_owned()];
        // 18:15 UTC is midnight in Kathmandu.
        let points = [
            point("2026-01-31T18:14:59.999999Z", "1.5", &[("region", "eu"), ("other", "x")]),
            point("2026-01-31T18:15:00Z", "0.25", &[("region", "eu"), ("plan", "pro")]),
            point("2026-01-31T19:00:00Z", "-1", &[("region", "us")]),
        ];
        let calendar = Calendar::new(TimeZone::get("Asia/Kathmandu").unwrap(), None);
        let (mut rollup, books) = (Rollup::default(), calendar.at(Timestamp::UNIX_EPOCH));
        points.iter().for_each(|point| rollup.add(TENANT, ("calls", &tags), point, &books.book(point.time)));
        let shown = |key: &SumKey<'_>, added: &Added| {
            format!("{}={} {} {}", key.tag, key.tag_value, added.value, added.count)
        };
        let days: Vec<String> =
            rollup.daily.iter().map(|((key, day), added)| format!("{day} {}", shown(key, added))).collect();
        assert_eq!(
            days,
            [
                "2026-01-31 = 1.5 1",
                "2026-02-01 = -0.75 2",
                "2026-01-31 plan= 1.5 1",
                "2026-02-01 plan= -1 1",
                "2026-02-01 plan=pro 0.25 1",
                "2026-01-31 region=eu 1.5 1",
                "2026-02-01 region=eu 0.25 1",
                "2026-02-01 region=us -1 1",
            ]
        );
        let hours: Vec<String> = rollup
            .hourly
            .iter()
            .filter(|((key, _), _)| key.tag.is_empty())
            .map(|((key, hour), added)| {
                format!("{} {}", Timestamp::from_microsecond(*hour).unwrap(), shown(key, added))
            })
            .collect();
        assert_eq!(hours, ["2026-01-31T18:00:00Z = 1.75 2", "2026-01-31T19:00:00Z = -1 1"]);
    }
}
