//! The windows of a reading: which there are between two instants, and which sums make them.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan as _};

use super::Start;

const HOUR_US: i64 = 3_600_000_000;
/// The longest range, in days.
const MAX_DAYS: i64 = 3660;

/// By what points are summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// UTC hours.
    Hour,
    /// Days of the policy's time zone.
    Day,
    /// Its months.
    Month,
    /// All of it.
    Total,
}

/// Which sums are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Those of hours, from one and up to before another, in microseconds since 1970.
    Hours(i64, i64),
    /// Those of days, likewise.
    Days(Date, Date),
}

/// How much of the sums of hours or days a window has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// One.
    Each,
    /// Those of a month's days.
    Month,
    /// All.
    All,
}

/// A range between two instants that begin windows.
#[derive(Debug, Clone)]
pub struct Range {
    window: Window,
    from: Timestamp,
    to: Timestamp,
    zone: TimeZone,
}

/// Why there is no such range; the field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct RangeError {
    /// `from`, `to` or `cursor`.
    pub field: &'static str,
    /// What would be right.
    pub detail: String,
}

impl Range {
    /// From an instant and up to before another. Each begins a window, since a part of one has no sum; a total is of whole
    /// days, or of whole hours.
    pub fn new(window: Window, from: Timestamp, to: Timestamp, zone: &TimeZone) -> Result<Self, RangeError> {
        let range = Self { window, from, to, zone: zone.clone() };
        if from >= to {
            return Err(RangeError { field: "to", detail: format!("later than `from`, which is {from}") });
        }
        if to.duration_since(from).as_hours() > MAX_DAYS * 24 {
            return Err(RangeError { field: "to", detail: format!("at most {MAX_DAYS} days after `from`") });
        }
        let is_of_days = range.is_of_days();
        for (field, time) in [("from", from), ("to", to)] {
            if !is_of_days && !range.begins(time) {
                let detail = range.right(time);
                return Err(RangeError { field, detail });
            }
        }
        Ok(range)
    }

    /// Of its days and months.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first instant after the window that `now` is in, as the end of a range from `from` on.
    #[must_use]
    pub fn end(window: Window, from: Timestamp, now: Timestamp, zone: &TimeZone) -> Timestamp {
        let from_on = Self { window, from, to: now, zone: zone.clone() };
        let next_hour = (now.as_microsecond().div_euclid(HOUR_US) + 1) * HOUR_US;
        let of_days = match window {
            Window::Hour => None,
            Window::Total if !from_on.begins_day(from) => None,
            Window::Total | Window::Day => from_on.date(now).tomorrow().ok(),
            Window::Month => from_on.date(now).first_of_month().checked_add(1.month()).ok(),
        };
        let hour = || Timestamp::from_microsecond(next_hour).unwrap_or(now);
        of_days.map_or_else(hour, |day| from_on.begin(day))
    }

    /// The part of it that begins with this window, or with its first, and has so many windows at the most.
    pub fn page(&self, begin: Option<Timestamp>, windows: usize) -> Result<Self, RangeError> {
        let from = begin.unwrap_or(self.from);
        let within = Self { from, ..self.clone() };
        let is_a_window = from == self.from || (from > self.from && from < self.to && self.begins(from));
        if !is_a_window || self.window == Window::Total && from != self.from {
            let detail = "the `next_cursor` of the page before, with all else as it was".to_owned();
            return Err(RangeError { field: "cursor", detail });
        }
        let to = within.starts().nth(windows).unwrap_or(self.to);
        Ok(Self { to, ..within })
    }

    /// Where the windows after it begin, as a part of another; nothing where they end together.
    #[must_use]
    pub fn next_page(&self, whole: &Self) -> Option<Timestamp> {
        (self.to < whole.to).then_some(self.to)
    }

    /// What its windows are sums of.
    #[must_use]
    pub fn step(&self) -> Step {
        match self.window {
            Window::Hour | Window::Day => Step::Each,
            Window::Month => Step::Month,
            Window::Total => Step::All,
        }
    }

    /// The days that it has a part of.
    #[must_use]
    pub fn days(&self) -> (Date, Date) {
        let to = self.date(self.to);
        (self.date(self.from), if self.begins_day(self.to) { to } else { to.tomorrow().unwrap_or(to) })
    }

    /// Which sums it is made of.
    #[must_use]
    pub fn source(&self) -> Source {
        let by_day = matches!(self.window, Window::Day | Window::Month);
        if by_day || self.is_of_days() {
            Source::Days(self.date(self.from), self.date(self.to))
        } else {
            Source::Hours(self.from.as_microsecond(), self.to.as_microsecond())
        }
    }

    /// The windows' beginnings, in order.
    pub fn starts(&self) -> impl Iterator<Item = Timestamp> + '_ {
        let mut next = Some(self.from);
        std::iter::from_fn(move || {
            let start = next.filter(|start| *start < self.to)?;
            next = self.after(start);
            Some(start)
        })
    }

    /// The window that a sum is in.
    #[must_use]
    pub fn start(&self, of: Start) -> Timestamp {
        match of {
            Start::Hour(hour) => self.start_of_hour(hour),
            Start::Day(day) => self.start_of_day(day),
        }
    }

    /// The window that a day's sum is in.
    #[must_use]
    pub fn start_of_day(&self, day: Date) -> Timestamp {
        match self.window {
            Window::Total => self.from,
            Window::Month => self.begin(day.first_of_month()),
            Window::Hour | Window::Day => self.begin(day),
        }
    }

    /// The window that an hour's sum is in.
    #[must_use]
    pub fn start_of_hour(&self, hour: Timestamp) -> Timestamp {
        match self.window {
            Window::Hour => hour,
            Window::Total => self.from,
            Window::Day | Window::Month => self.start_of_day(self.date(hour)),
        }
    }

    /// The beginning of the window after the one that begins here; none after the last instant that there is.
    fn after(&self, start: Timestamp) -> Option<Timestamp> {
        let days = |span: Span| Some(self.begin(self.date(start).checked_add(span).ok()?));
        match self.window {
            Window::Hour => start.checked_add(1.hour()).ok(),
            Window::Day => days(1.day()),
            Window::Month => days(1.month()),
            Window::Total => None,
        }
    }

    fn begins(&self, time: Timestamp) -> bool {
        match self.window {
            Window::Hour => begins_hour(time),
            Window::Day => self.begins_day(time),
            Window::Month => self.begins_day(time) && self.date(time).day() == 1,
            Window::Total => begins_hour(time),
        }
    }

    /// Whether it is a total of whole days.
    fn is_of_days(&self) -> bool {
        self.window == Window::Total && self.begins_day(self.from) && self.begins_day(self.to)
    }

    /// In words, with the window's beginning before the instant.
    fn right(&self, time: Timestamp) -> String {
        let (what, near) = match self.window {
            Window::Hour | Window::Total => {
                let hour = time.as_microsecond().div_euclid(HOUR_US) * HOUR_US;
                ("an hour", Timestamp::from_microsecond(hour).unwrap_or(time))
            }
            Window::Day => ("a day", self.begin(self.date(time))),
            Window::Month => ("a month", self.begin(self.date(time).first_of_month())),
        };
        let zone = match self.window {
            Window::Hour | Window::Total => "UTC",
            Window::Day | Window::Month => self.zone.iana_name().unwrap_or("the policy's time zone"),
        };
        format!("the beginning of {what} in {zone}, such as {near}")
    }

    fn begins_day(&self, time: Timestamp) -> bool {
        self.begin(self.date(time)) == time
    }

    fn date(&self, time: Timestamp) -> Date {
        self.zone.to_datetime(time).date()
    }

    /// The first instant of a day; it is not always midnight.
    #[must_use]
    pub fn begin(&self, day: Date) -> Timestamp {
        let begins = day.to_zoned_datetime(self.zone.clone()).and_then(|zoned| zoned.start_of_day());
        // Every day here is one of an instant, or of the month of one.
        begins.map_or(self.from, |zoned| zoned.timestamp())
    }
}

fn begins_hour(time: Timestamp) -> bool {
    time.as_nanosecond().rem_euclid(i128::from(HOUR_US) * 1000) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn range(window: Window, from: &str, to: &str, zone: &str) -> Result<Range, RangeError> {
        Range::new(window, at(from), at(to), &TimeZone::get(zone).unwrap())
    }

    fn starts(window: Window, from: &str, to: &str, zone: &str) -> Vec<String> {
        range(window, from, to, zone).unwrap().starts().map(|start| start.to_string()).collect()
    }

    #[test]
    fn without_an_end_a_range_ends_with_the_window_of_now() {
        let zone = TimeZone::get("Asia/Kathmandu").unwrap();
        let (day, now) = (at("2026-01-30T18:15:00Z"), at("2026-01-31T20:30:00Z"));
        for (window, from, end) in [
            (Window::Hour, day, "2026-01-31T21:00:00Z"),
            (Window::Day, day, "2026-02-01T18:15:00Z"),
            (Window::Month, day, "2026-02-28T18:15:00Z"),
            (Window::Total, day, "2026-02-01T18:15:00Z"),
            (Window::Total, at("2026-01-30T19:00:00Z"), "2026-01-31T21:00:00Z"),
        ] {
            assert_eq!(Range::end(window, from, now, &zone), at(end), "{window:?} from {from}");
        }
    }

    #[test]
    fn pages_begin_with_windows_and_are_the_whole_together() {
        let range =
            Range::new(Window::Day, at("2026-01-30T00:00:00Z"), at("2026-02-04T00:00:00Z"), &TimeZone::UTC);
        let whole = range.unwrap();
        let (mut next, mut starts) = (None, Vec::new());
        loop {
            let page = whole.page(next, 2).unwrap();
            starts.extend(page.starts());
            next = page.next_page(&whole);
            if next.is_none() {
                break;
            }
        }
        assert_eq!(starts, whole.starts().collect::<Vec<_>>());
        for text in ["2026-01-29T00:00:00Z", "2026-01-31T01:00:00Z", "2026-02-04T00:00:00Z"] {
            assert_eq!(whole.page(Some(at(text)), 2).unwrap_err().field, "cursor", "{text}");
        }
    }

    #[test]
    fn days_and_months_begin_in_the_zone_when_its_clocks_change_too() {
        assert_eq!(
            starts(Window::Day, "2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z", "Europe/Berlin"),
            ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"],
            "the 29th has 23 hours"
        );
        assert_eq!(
            starts(Window::Month, "2026-01-31T18:15:00Z", "2026-04-30T18:15:00Z", "Asia/Kathmandu"),
            ["2026-01-31T18:15:00Z", "2026-02-28T18:15:00Z", "2026-03-31T18:15:00Z"]
        );
        // There clocks go forward at midnight: the day begins at one.
        assert_eq!(
            starts(Window::Day, "2026-09-05T04:00:00Z", "2026-09-07T03:00:00Z", "America/Santiago"),
            ["2026-09-05T04:00:00Z", "2026-09-06T04:00:00Z"]
        );
        assert_eq!(
            starts(Window::Hour, "2026-01-31T22:00:00Z", "2026-02-01T01:00:00Z", "Asia/Kathmandu").len(),
            3
        );
        assert_eq!(starts(Window::Total, "2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "UTC").len(), 1);
    }

    #[test]
    fn an_instant_within_a_window_is_refused_with_the_beginning_before_it() {
        for (window, from, to, zone, field, words) in [
            (
                Window::Hour,
                "2026-01-31T00:30:00Z",
                "2026-02-01T00:00:00Z",
                "UTC",
                "from",
                "an hour in UTC, such as 2026-01-31T00:00:00Z",
            ),
            (
                Window::Day,
                "2026-01-31T23:00:00Z",
                "2026-02-02T00:00:00Z",
                "Europe/Berlin",
                "to",
                "a day in Europe/Berlin, such as 2026-02-01T23:00:00Z",
            ),
            (
                Window::Month,
                "2026-01-31T23:00:00Z",
                "2026-03-01T23:00:00Z",
                "Europe/Berlin",
                "to",
                "a month in Europe/Berlin, such as 2026-02-28T23:00:00Z",
            ),
            (
                Window::Total,
                "2026-01-31T18:15:00Z",
                "2026-02-01T00:00:00Z",
                "Asia/Kathmandu",
                "from",
                "an hour in UTC, such as 2026-01-31T18:00:00Z",
            ),
            (Window::Hour, "2026-01-31T00:00:00Z", "2026-01-31T00:00:00Z", "UTC", "to", "later than `from`"),
            (Window::Day, "2026-01-01T00:00:00Z", "2036-02-01T00:00:00Z", "UTC", "to", "at most 3660 days"),
        ] {
            let error = range(window, from, to, zone).unwrap_err();
            assert!(error.field == field && error.detail.contains(words), "{from} {to}: {error:?}");
        }
    }

    #[test]
    fn a_total_is_of_days_where_it_can_be_and_else_of_hours() {
        let source = |from, to, zone| range(Window::Total, from, to, zone).unwrap().source();
        let date = |text: &str| text.parse::<Date>().unwrap();
        assert_eq!(
            source("2026-01-31T18:15:00Z", "2026-02-28T18:15:00Z", "Asia/Kathmandu"),
            Source::Days(date("2026-02-01"), date("2026-03-01"))
        );
        let (from, to) = ("2026-01-31T18:00:00Z", "2026-02-28T19:00:00Z");
        let hours = Source::Hours(at(from).as_microsecond(), at(to).as_microsecond());
        assert_eq!(source(from, to, "Asia/Kathmandu"), hours);
    }

    #[test]
    fn every_sum_is_in_the_window_that_it_is_made_of() {
        for zone in ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/Santiago"] {
            let tz = TimeZone::get(zone).unwrap();
            let begin = |text: &str| {
                let date: Date = text.parse().unwrap();
                date.to_zoned_datetime(tz.clone()).unwrap().start_of_day().unwrap().timestamp()
            };
            for window in [Window::Day, Window::Month] {
                let range = Range::new(window, begin("2026-01-01"), begin("2027-01-01"), &tz).unwrap();
                let starts: Vec<Timestamp> = range.starts().collect();
                assert_eq!(starts.len(), if window == Window::Day { 365 } else { 12 }, "{zone}");
                let Source::Days(mut day, end) = range.source() else { panic!("{zone}: of hours") };
                let mut seen = Vec::new();
                while day < end {
                    seen.push(range.start_of_day(day));
                    day = day.tomorrow().unwrap();
                }
                seen.dedup();
                assert_eq!(seen, starts, "{zone}");
            }
        }
    }
}
