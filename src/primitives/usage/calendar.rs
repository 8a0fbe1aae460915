//! Days and months of a policy's time zone, and which months are closed.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// How a policy counts days, and when it closes months.
#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
    /// How long after its end a month closes, in microseconds.
    close_after_us: Option<i64>,
}

/// A calendar at some instant: where what is counted then is booked.
#[derive(Debug, Clone)]
pub struct Books<'c> {
    calendar: &'c Calendar,
    now: Timestamp,
    /// The first day that is open, where some are closed.
    open_from: Option<Date>,
}

/// Where a point is booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booked {
    /// In the hour of this instant.
    pub time: Timestamp,
    /// And on this day.
    pub day: Date,
    /// The first day of the closed month that it would be in: it is an adjustment.
    pub adjusts: Option<Date>,
}

impl Calendar {
    /// Of this zone; a month closes so long after its end, in milliseconds, or never.
    #[must_use]
    pub fn new(zone: TimeZone, close_after_ms: Option<u64>) -> Self {
        let close_after_us =
            close_after_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000));
        Self { zone, close_after_us }
    }

    /// In which days and months begin.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Its zone as IANA names it.
    #[must_use]
    pub fn zone_name(&self) -> &str {
        zone_name(&self.zone)
    }

    /// How long after its end a month closes, in milliseconds, or never.
    #[must_use]
    pub fn close_after_ms(&self) -> Option<u64> {
        self.close_after_us.and_then(|us| u64::try_from(us / 1000).ok())
    }

    /// Whether it ever closes a month.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.close_after_us.is_some()
    }

    /// Its books at an instant.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Books<'_> {
        let open_from = self.close_after_us.map(|close_after_us| {
            let closes_at = |next: Date| self.begin(next)?.as_microsecond().checked_add(close_after_us);
            let mut month = self.day(now).first_of_month();
            // The longest time is 90 days, and the first instants of a calendar are long over.
            while let Ok(before) = month.checked_sub(1.month())
                && closes_at(month).is_none_or(|closes_at| closes_at > now.as_microsecond())
            {
                month = before;
            }
            month
        });
        Books { calendar: self, now, open_from }
    }

    /// The days that begin between two instants and end before the end of a time: from one and up to before another; none where
    /// there is none.
    #[must_use]
    pub fn days_within(
        &self,
        (begin, end): (Timestamp, Timestamp),
        (from, to): (Timestamp, Timestamp),
    ) -> Option<(Date, Date)> {
        let first_from = |time: Timestamp| {
            let day = self.day(time);
            if self.begin(day)? < time { day.tomorrow().ok() } else { Some(day) }
        };
        let (first, mut last) = (first_from(begin.max(from))?, first_from(end)?);
        while last > first && self.begin(last)? > to {
            last = last.yesterday().ok()?;
        }
        (first < last).then_some((first, last))
    }

    /// The day that an instant is on.
    #[must_use]
    pub fn day(&self, time: Timestamp) -> Date {
        self.zone.to_datetime(time).date()
    }

    /// The first instant of a day; none after the last day that there is.
    #[must_use]
    pub fn begin(&self, day: Date) -> Option<Timestamp> {
        let zoned = day.to_zoned_datetime(self.zone.clone()).and_then(|zoned| zoned.start_of_day());
        zoned.ok().map(|zoned| zoned.timestamp())
    }
}

/// A zone as IANA names it: each was found by its name.
pub(super) fn zone_name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or("UTC")
}

impl Books<'_> {
    /// Where what was used at an instant is booked.
    #[must_use]
    pub fn book(&self, time: Timestamp) -> Booked {
        let day = self.calendar.day(time);
        match self.open_from {
            Some(open_from) if day < open_from => Booked {
                time: self.now,
                day: self.calendar.day(self.now),
                adjusts: Some(day.first_of_month()),
            },
            _ => Booked { time, day, adjusts: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn calendar(close_after_days: Option<u64>) -> Calendar {
        let zone = TimeZone::get("Asia/Kathmandu").unwrap();
        Calendar::new(zone, close_after_days.map(|days| days * 86_400_000))
    }

    #[test]
    fn what_is_of_a_closed_month_is_booked_now_and_says_which_month_it_adjusts() {
        // November ended in Kathmandu at 18:15 UTC, and closes three days later.
        let closes = "2026-12-03T18:15:00Z";
        let calendar = calendar(Some(3));
        let late = at("2026-11-30T18:14:59Z");
        let before = calendar.at(at(closes) - 1.microsecond());
        let open = Booked { time: late, day: "2026-11-30".parse().unwrap(), adjusts: None };
        assert_eq!(before.book(late), open);
        let adjusts = |text: &str| Some(text.parse::<Date>().unwrap());
        assert_eq!(before.book(at("2026-10-31T12:00:00Z")).adjusts, adjusts("2026-10-01"));
        let closed =
            Booked { time: at(closes), day: "2026-12-04".parse().unwrap(), adjusts: adjusts("2026-11-01") };
        assert_eq!(calendar.at(at(closes)).book(late), closed);
        assert_eq!(calendar.at(at(closes)).book(late + 1.second()).adjusts, None, "December's first instant");
    }

    #[test]
    fn days_are_within_a_time_from_their_first_instant_to_their_last() {
        let (calendar, utc) = (calendar(None), Calendar::new(TimeZone::UTC, None));
        let (from, to) = (at("2026-01-01T00:00:00Z"), at("2026-01-04T00:00:00Z"));
        let days = |calendar: &Calendar, begin, end| {
            let days = calendar.days_within((at(begin), at(end)), (from, to));
            days.map(|(first, last)| format!("{first} {last}"))
        };
        let (one, two, three) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z");
        assert_eq!(days(&utc, one, two).as_deref(), Some("2026-01-01 2026-01-02"));
        // Days of Kathmandu begin at 18:15 UTC: the first is begun before, and the last ends after.
        assert_eq!(days(&calendar, one, two).as_deref(), Some("2026-01-02 2026-01-03"));
        assert_eq!(days(&calendar, two, three).as_deref(), Some("2026-01-03 2026-01-04"));
        assert_eq!(days(&calendar, three, "2026-01-04T00:00:00Z"), None);
        assert_eq!(days(&calendar, one, "2026-01-04T00:00:00Z").as_deref(), Some("2026-01-02 2026-01-04"));
    }

    #[test]
    fn several_months_may_be_open_and_without_a_time_none_is_ever_closed() {
        let calendar_90 = calendar(Some(90));
        let now = at("2026-12-15T00:00:00Z");
        let adjusts = |text: &str| calendar_90.at(now).book(at(text)).adjusts;
        assert_eq!(adjusts("2026-09-15T00:00:00Z"), None);
        assert!(adjusts("2026-08-15T00:00:00Z").is_some());
        assert_eq!(calendar(None).at(now).book(at("2020-01-01T00:00:00Z")).adjusts, None);
    }
}
