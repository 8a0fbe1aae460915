//! Sums read: a page of windows, with those in which nothing was used.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;

use uuid::Uuid;

use super::calendar::zone_name;
use super::{Added, Range, RangeError, Source, Sum, postgres, sqlite, terms};
use crate::store::{StoreError, Tx};

/// Points of one page at the most; a window's are never parted.
const MAX_POINTS: usize = 10_000;
/// Values of a tag by which one reading is grouped at the most: a window's points fit a page.
pub(super) const MAX_GROUPS: usize = MAX_POINTS;

/// Whose sums, and of what.
#[derive(Debug, Clone, Copy)]
pub struct SumOf<'a> {
    /// The tenant.
    pub tenant: Uuid,
    /// The metric's name.
    pub metric: &'a str,
    /// The tag by which it is grouped; empty where it is not.
    pub tag: &'a str,
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where it goes on is no window of it.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A tag has more values than a page has points.
    #[error("`{0}` has more than {MAX_GROUPS} values in this range: ask for a shorter one")]
    TooManyGroups(String),
    /// Days are those of another zone, which this is.
    #[error("the store's days are those of `{0}`")]
    OtherZone(String),
}

/// A page of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Every window of every group that has something in the range, in order of time and group.
    pub points: Vec<ReadPoint>,
    /// Of the whole range.
    pub total: Sum,
    /// The first window of the next page.
    pub next: Option<Timestamp>,
}

/// Reads a range of sums, from this window on.
pub async fn read(
    tx: &mut Tx<'_>,
    of: &SumOf<'_>,
    whole: &Range,
    begin: Option<Timestamp>,
) -> Result<Reading, ReadError> {
    let is_of_days = !of.tag.is_empty() || matches!(whole.source(), Source::Days(..));
    let kept = if is_of_days { terms::kept(tx).await? } else { None };
    if let Some((zone, _)) = kept.filter(|(zone, _)| zone != zone_name(whole.zone())) {
        return Err(ReadError::OtherZone(zone));
    }
    let groups = if of.tag.is_empty() {
        vec![String::new()]
    } else {
        match tx {
            Tx::Postgres(tx) => postgres::groups(tx, of, whole.days()).await?,
            Tx::Sqlite(tx) => sqlite::groups(tx, of, whole.days())?,
        }
    };
    if groups.len() > MAX_GROUPS {
        return Err(ReadError::TooManyGroups(of.tag.to_owned()));
    }
    let page = whole.page(begin, MAX_POINTS / groups.len().max(1))?;
    // One statement, so that the points and the total are of the same moment.
    let read = match tx {
        Tx::Postgres(tx) => postgres::sums(tx, of, &page, whole).await?,
        Tx::Sqlite(tx) => sqlite::sums(tx, of, &page, whole)?,
    };
    let points = fill(&page, groups, read.sums);
    Ok(Reading { points, total: read.total, next: page.next_page(whole) })
}

/// What the store has of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    /// Of its windows, or of parts of them.
    pub(super) sums: Vec<SumRow>,
    /// Of the whole range.
    pub(super) total: Sum,
}

/// Where a sum begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// A UTC hour.
    Hour(Timestamp),
    /// A day of the policy's zone.
    Day(Date),
}

/// A sum of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumRow {
    /// Of what: an hour or a day, or several from this on.
    pub start: Start,
    /// The tag's value; empty where nothing is grouped, and of points without the tag.
    pub group: String,
    /// The first day of the closed month that it adjusts.
    pub adjusts: Option<Date>,
    /// How much, and of how many points.
    pub added: Added,
}

/// A window of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPoint {
    /// Its first instant.
    pub start: Timestamp,
    /// The tag's value.
    pub group: String,
    /// The beginning of the closed month that it adjusts; the window has another point for what adjusts none.
    pub adjusts: Option<Timestamp>,
    /// How much, and of how many points.
    pub added: Added,
}

/// What a range holds: every window of these groups and of those that the sums are of.
fn fill(range: &Range, groups: Vec<String>, sums: Vec<SumRow>) -> Vec<ReadPoint> {
    let mut groups: BTreeSet<String> = groups.into_iter().collect();
    let mut windows: BTreeMap<(Timestamp, String, Option<Date>), Added> = BTreeMap::new();
    for row in sums {
        let start = range.start(row.start);
        if row.adjusts.is_none() && !groups.contains(&row.group) {
            groups.insert(row.group.clone());
        }
        let window = windows.entry((start, row.group, row.adjusts)).or_default();
        window.value += row.added.value;
        window.count += row.added.count;
    }
    for start in range.starts() {
        for group in &groups {
            windows.entry((start, group.clone(), None)).or_default();
        }
    }
    let point = |((start, group, adjusts), added): ((Timestamp, String, Option<Date>), Added)| {
        let adjusts = adjusts.map(|month| range.begin(month));
        ReadPoint { start, group, adjusts, added }
    };
    windows.into_iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::primitives::usage::{Amount, Window};

    fn added(value: &str, count: i64) -> Added {
        Added { value: Sum::from(Amount::parse(value).unwrap()), count }
    }

    fn shown(points: &[ReadPoint]) -> Vec<String> {
        points
            .iter()
            .map(|point| {
                format!("{} {:?} {} {}", point.start, point.group, point.added.value, point.added.count)
            })
            .collect()
    }

    fn day(day: &str, group: &str, value: &str) -> SumRow {
        SumRow {
            start: Start::Day(day.parse().unwrap()),
            group: group.to_owned(),
            adjusts: None,
            added: added(value, 1),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn windows_without_usage_are_there_and_months_are_sums_of_their_days() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let range =
            Range::new(Window::Month, at("2025-12-31T23:00:00Z"), at("2026-03-31T22:00:00Z"), &zone).unwrap();
        let days = vec![
            day("2026-01-01", "eu", "0.1"),
            day("2026-01-31", "eu", "0.2"),
            day("2026-03-31", "us", "-1"),
        ];
        assert_eq!(
            shown(&fill(&range, vec!["eu".to_owned()], days)),
            [
                "2025-12-31T23:00:00Z \"eu\" 0.3 2",
                "2025-12-31T23:00:00Z \"us\" 0 0",
                "2026-01-31T23:00:00Z \"eu\" 0 0",
                "2026-01-31T23:00:00Z \"us\" 0 0",
                "2026-02-28T23:00:00Z \"eu\" 0 0",
                "2026-02-28T23:00:00Z \"us\" -1 1",
            ]
        );
    }

    #[test]
    fn an_adjustment_is_a_point_of_its_own_behind_the_window_in_which_it_was_booked() {
        let range =
            Range::new(Window::Month, at("2026-12-01T00:00:00Z"), at("2027-01-01T00:00:00Z"), &TimeZone::UTC);
        let adjusts = |month: &str| Some(month.parse::<Date>().unwrap());
        let adjustment = SumRow { adjusts: adjusts("2026-11-01"), ..day("2026-12-05", "", "-2") };
        let earlier = SumRow { adjusts: adjusts("2026-10-01"), ..day("2026-12-06", "", "4") };
        let again = SumRow { adjusts: adjusts("2026-11-01"), ..day("2026-12-07", "", "-1") };
        let sums = vec![adjustment, earlier, day("2026-12-07", "", "10"), again];
        let points = fill(&range.unwrap(), vec![String::new()], sums);
        let shown: Vec<_> = points
            .iter()
            .map(|point| (point.adjusts, point.added.value.to_string(), point.added.count))
            .collect();
        let (october, november) = (at("2026-10-01T00:00:00Z"), at("2026-11-01T00:00:00Z"));
        let expected = [(None, "10", 1), (Some(october), "4", 1), (Some(november), "-3", 2)]
            .map(|(of, v, n)| (of, v.to_owned(), n));
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_was_never_used_is_nothing_in_every_window() {
        let range = |window, to: &str| {
            Range::new(window, at("2026-01-01T00:00:00Z"), at(to), &TimeZone::UTC).unwrap()
        };
        let all = vec![String::new()];
        let hours = fill(&range(Window::Hour, "2026-01-01T03:00:00Z"), all.clone(), Vec::new());
        assert_eq!(hours.len(), 3);
        let hour = |text: &str, value: &str, count| SumRow {
            start: Start::Hour(at(text)),
            group: String::new(),
            adjusts: None,
            added: added(value, count),
        };
        let sums = vec![hour("2026-01-01T00:00:00Z", "1", 1), hour("2026-01-01T02:00:00Z", "2.5", 3)];
        let total = fill(&range(Window::Total, "2026-01-01T03:00:00Z"), all, sums);
        assert_eq!(shown(&total), ["2026-01-01T00:00:00Z \"\" 3.5 4"]);
        assert!(fill(&range(Window::Total, "2026-01-01T03:00:00Z"), Vec::new(), Vec::new()).is_empty());
    }
}
