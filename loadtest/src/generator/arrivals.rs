//! The open loop's timetable: call `i` is meant to start at `i / rate`, whatever the server does.
//!
//! Latency counts from that moment, so a stall shows in every call that it delayed (no coordinated omission).

use std::time::{Duration, Instant};

/// A constant arrival rate.
#[derive(Debug)]
pub(crate) struct Arrivals {
    begin: Instant,
    interval_ns: f64,
    until: Duration,
    issued: u64,
}

impl Arrivals {
    /// `per_second` calls a second from `begin` on, for the time `until`.
    pub(crate) fn new(begin: Instant, per_second: f64, until: Duration) -> Self {
        Self { begin, interval_ns: 1e9 / per_second, until, issued: 0 }
    }

    /// When the next call is meant to start; `None` once the timetable is over.
    pub(crate) fn next_start(&self) -> Option<Instant> {
        let offset = Duration::from_nanos((self.issued as f64 * self.interval_ns) as u64);
        (offset < self.until).then(|| self.begin + offset)
    }

    /// Takes the next call if it is due at `now`, and says when it was meant to start.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let start = self.next_start().filter(|start| *start <= now)?;
        self.issued += 1;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_does_not_move_the_intended_starts() {
        let begin = Instant::now();
        let mut arrivals = Arrivals::new(begin, 1000.0, Duration::from_secs(1));
        assert_eq!(arrivals.take_due(begin), Some(begin));
        assert_eq!(arrivals.take_due(begin), None);
        let after_stall = begin + Duration::from_millis(5);
        let taken: Vec<Duration> =
            std::iter::from_fn(|| arrivals.take_due(after_stall)).map(|start| after_stall - start).collect();
        assert_eq!(taken, [4, 3, 2, 1, 0].map(Duration::from_millis));
    }

    #[test]
    fn the_timetable_holds_rate_times_time_calls() {
        let begin = Instant::now();
        let mut arrivals = Arrivals::new(begin, 300.0, Duration::from_secs(2));
        let late = begin + Duration::from_secs(60);
        assert_eq!(std::iter::from_fn(|| arrivals.take_due(late)).count(), 600);
        assert_eq!(arrivals.next_start(), None);
    }
}
