//! Sums read: a page of windows, with those in which nothing was used.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;

use uuid::Uuid;

use super::{Added, Range, Sum, postgres, sqlite};
use crate::store::{StoreError, Tx};

/// Sums of hours or days that one reading goes through at the most.
pub(super) const MAX_ROWS: i64 = 200_000;

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
    /// More sums than one reading goes through.
    #[error("this range has more than {MAX_ROWS} sums: ask for a shorter one, or for longer windows")]
    TooMany,
}

/// Reads a range of sums.
pub async fn read(
    tx: &mut Tx<'_>,
    of: &SumOf<'_>,
    range: &Range,
) -> Result<(Vec<ReadPoint>, Sum), ReadError> {
    let sums = match tx {
        Tx::Postgres(tx) => postgres::sums(tx, of, range.source()).await?,
        Tx::Sqlite(tx) => sqlite::sums(tx, of, range.source())?,
    };
    let count = match &sums {
        Sums::Hours(rows) => rows.len(),
        Sums::Days(rows) => rows.len(),
    };
    if i64::try_from(count).is_ok_and(|count| count <= MAX_ROWS) {
        Ok(fill(range, sums))
    } else {
        Err(ReadError::TooMany)
    }
}

/// A sum as the store has it, of one hour or day and one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumRow<S> {
    /// Of what.
    pub start: S,
    /// The tag's value; empty where nothing is grouped, and of points without the tag.
    pub group: String,
    /// How much, and of how many points.
    pub added: Added,
}

/// Sums, by hours or by days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sums {
    /// By UTC hours.
    Hours(Vec<SumRow<Timestamp>>),
    /// By days of the policy's zone.
    Days(Vec<SumRow<Date>>),
}

/// A window of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPoint {
    /// Its first instant.
    pub start: Timestamp,
    /// The tag's value.
    pub group: String,
    /// How much, and of how many points.
    pub added: Added,
}

/// What a range holds: every window of every group that has something in it, in order of time and group, and the sum of
/// all.
#[must_use]
pub fn fill(range: &Range, sums: Sums) -> (Vec<ReadPoint>, Sum) {
    let mut windows: BTreeMap<(Timestamp, String), Added> = BTreeMap::new();
    let mut total = Sum::default();
    let mut add = |start: Timestamp, group: String, added: Added| {
        total += added.value;
        let window = windows.entry((start, group)).or_default();
        window.value += added.value;
        window.count += added.count;
    };
    match sums {
        Sums::Hours(rows) => {
            rows.into_iter().for_each(|row| add(range.start_of_hour(row.start), row.group, row.added));
        }
        Sums::Days(rows) => {
            rows.into_iter().for_each(|row| add(range.start_of_day(row.start), row.group, row.added));
        }
    }
    let mut groups: BTreeSet<String> = windows.keys().map(|(_, group)| group.clone()).collect();
    if groups.is_empty() {
        groups.insert(String::new());
    }
    let mut points = Vec::with_capacity(windows.len());
    for start in range.starts() {
        for group in &groups {
            let added = windows.remove(&(start, group.clone())).unwrap_or_default();
            points.push(ReadPoint { start, group: group.clone(), added });
        }
    }
    (points, total)
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

    #[test]
    fn windows_without_usage_are_there_and_months_are_sums_of_their_days() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let range =
            Range::new(Window::Month, at("2025-12-31T23:00:00Z"), at("2026-03-31T22:00:00Z"), &zone).unwrap();
        let row = |day: &str, group: &str, value: &str| SumRow {
            start: day.parse::<Date>().unwrap(),
            group: group.to_owned(),
            added: added(value, 1),
        };
        let days = vec![
            row("2026-01-01", "eu", "0.1"),
            row("2026-01-31", "eu", "0.2"),
            row("2026-03-31", "us", "-1"),
        ];
        let (points, total) = fill(&range, Sums::Days(days));
        assert_eq!(
            shown(&points),
            [
                "2025-12-31T23:00:00Z \"eu\" 0.3 2",
                "2025-12-31T23:00:00Z \"us\" 0 0",
                "2026-01-31T23:00:00Z \"eu\" 0 0",
                "2026-01-31T23:00:00Z \"us\" 0 0",
                "2026-02-28T23:00:00Z \"eu\" 0 0",
                "2026-02-28T23:00:00Z \"us\" -1 1",
            ]
        );
        assert_eq!(total.to_string(), "-0.7");
    }

    #[test]
    fn what_was_never_used_is_nothing_in_every_window() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let range = |window, to: &str| {
            Range::new(window, at("2026-01-01T00:00:00Z"), at(to), &TimeZone::UTC).unwrap()
        };
        let (hours, total) = fill(&range(Window::Hour, "2026-01-01T03:00:00Z"), Sums::Hours(Vec::new()));
        assert_eq!(hours.len(), 3);
        assert_eq!(total.to_string(), "0");
        let sums = vec![
            SumRow { start: at("2026-01-01T00:00:00Z"), group: String::new(), added: added("1", 1) },
            SumRow { start: at("2026-01-01T02:00:00Z"), group: String::new(), added: added("2.5", 3) },
        ];
        let (all, total) = fill(&range(Window::Total, "2026-01-01T03:00:00Z"), Sums::Hours(sums));
        assert_eq!(shown(&all), ["2026-01-01T00:00:00Z \"\" 3.5 4"]);
        assert_eq!(total.to_string(), "3.5");
    }
}
