//! Whether an endpoint is tried: a circuit breaker, and the waits between attempts. Pure: times and chance are given.

/// Failures in a row that open the circuit.
const MAX_FAILURES: u32 = 5;
/// How long it is open the first time, in milliseconds; doubled each time after that up to [`MAX_OPEN_MS`].
const FIRST_OPEN_MS: u64 = 5_000;
/// 5 minutes.
const MAX_OPEN_MS: u64 = 300_000;
/// How long a tenant's events rest whose endpoint is gone (410), or says so by `Retry-After`, at the most: 1 hour.
pub(super) const MAX_PAUSE_MS: u64 = 3_600_000;

/// The circuit of an endpoint, or of one tenant's events there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Circuit {
    state: State,
    /// In a row.
    failures: u32,
    /// Since the last success.
    openings: u32,
    /// When it opened last.
    opened_ms: u64,
    /// Whether the last attempt was a success.
    is_steady: bool,
}

/// What a circuit lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Everything.
    Closed,
    /// Nothing before this time, in milliseconds.
    Open {
        /// The time.
        until_ms: u64,
    },
    /// One attempt at a time: a success closes it, a failure opens it again.
    HalfOpen,
}

impl Default for Circuit {
    fn default() -> Self {
        Self { state: State::Closed, failures: 0, openings: 0, opened_ms: 0, is_steady: false }
    }
}

impl Circuit {
    /// What it lets through now.
    pub(super) fn state(&mut self, now_ms: u64) -> State {
        if matches!(self.state, State::Open { until_ms } if until_ms <= now_ms) {
            self.state = State::HalfOpen;
        }
        self.state
    }

    /// Whether the last attempt was a success: else one at a time is enough to find out.
    #[must_use]
    pub(super) fn is_steady(&self) -> bool {
        self.is_steady
    }

    /// When a tenant whose own events did not fail may be tried though the circuit is open: those that fail may be
    /// all that were tried.
    #[must_use]
    pub(super) fn other_trial_ms(&self) -> u64 {
        self.opened_ms.saturating_add(FIRST_OPEN_MS)
    }

    /// Lets one attempt through before its time.
    pub(super) fn half_open(&mut self) {
        self.state = State::HalfOpen;
    }

    /// An attempt was answered with success. One that began before the circuit opened does not close it.
    pub(super) fn succeeded(&mut self) {
        if !matches!(self.state, State::Open { .. }) {
            *self = Self { is_steady: true, ..Self::default() };
        }
    }

    /// An attempt failed. `chance`, from 0 to 1, keeps circuits that opened together from closing together.
    pub(super) fn failed(&mut self, now_ms: u64, chance: f64) {
        self.failures = self.failures.saturating_add(1);
        self.is_steady = false;
        match self.state {
            State::Open { .. } => return,
            State::Closed if self.failures < MAX_FAILURES => return,
            State::Closed | State::HalfOpen => {}
        }
        let open_ms = grown(FIRST_OPEN_MS, self.openings, MAX_OPEN_MS);
        let open_ms = open_ms / 2 + part(open_ms / 2, chance);
        self.openings = self.openings.saturating_add(1);
        self.opened_ms = now_ms;
        self.state = State::Open { until_ms: now_ms.saturating_add(open_ms) };
    }
}

/// The waits between attempts of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure, in milliseconds; doubled with each further one.
    pub first_ms: u64,
    /// The longest wait of all, in milliseconds.
    pub max_ms: u64,
}

impl Backoff {
    /// How long to wait after the `attempt`th failure, from 1: anything up to the doubled wait, by `chance`, from 0 to
    /// one. That is "full jitter", by which clients that failed together spread best (AWS Architecture Blog,
    /// "Exponential Backoff And Jitter").
    #[must_use]
    pub fn wait_ms(self, attempt: u32, chance: f64) -> u64 {
        part(grown(self.first_ms, attempt.saturating_sub(1), self.max_ms), chance)
    }
}

fn grown(first_ms: u64, times: u32, max_ms: u64) -> u64 {
    first_ms.saturating_mul(1 << times.min(40)).min(max_ms)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a part of at most 12 hours of milliseconds"
)]
fn part(of: u64, chance: f64) -> u64 {
    (of as f64 * chance.clamp(0.0, 1.0)) as u64
}

/// How long `Retry-After` asks to wait, in milliseconds, where it can be read: seconds, or a date (RFC 9110, 10.2.3).
#[must_use]
pub(super) fn retry_after_ms(value: &str, now_ms: u64) -> Option<u64> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp().as_millisecond();
    Some(u64::try_from(date).ok()?.saturating_sub(now_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_opens_after_failures_in_a_row_and_one_success_closes_it() {
        let mut circuit = Circuit::default();
        for _ in 0..4 {
            circuit.failed(0, 1.0);
            assert!(!circuit.is_steady());
        }
        circuit.succeeded();
        assert!(circuit.is_steady());
        for _ in 0..4 {
            circuit.failed(0, 1.0);
            assert_eq!(circuit.state(0), State::Closed);
        }
        circuit.failed(1000, 1.0);
        assert_eq!(circuit.state(1000), State::Open { until_ms: 6000 });
        circuit.succeeded();
        assert_eq!(circuit.state(5999), State::Open { until_ms: 6000 }, "an earlier attempt's success");
        assert_eq!(circuit.state(6000), State::HalfOpen);
        assert!(!circuit.is_steady());
        circuit.succeeded();
        assert_eq!(circuit, Circuit { is_steady: true, ..Circuit::default() });
    }

    #[test]
    fn a_failed_trial_opens_it_for_longer_up_to_a_bound() {
        let mut circuit = Circuit::default();
        for _ in 0..5 {
            circuit.failed(0, 0.0);
        }
        let mut lengths = Vec::new();
        let mut now_ms = 0;
        for _ in 0..9 {
            let State::Open { until_ms } = circuit.state(now_ms) else { panic!("it is open") };
            lengths.push(until_ms - now_ms);
            assert_eq!(circuit.other_trial_ms(), now_ms + 5000, "as after the first time");
            now_ms = until_ms;
            assert_eq!(circuit.state(now_ms), State::HalfOpen);
            circuit.failed(now_ms, 0.0);
        }
        assert_eq!(lengths, [2500, 5000, 10_000, 20_000, 40_000, 80_000, 150_000, 150_000, 150_000]);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread_over_all_of_it() {
        let backoff = Backoff { first_ms: 100, max_ms: 1000 };
        let longest: Vec<_> = (1..=6).map(|attempt| backoff.wait_ms(attempt, 1.0)).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!((backoff.wait_ms(3, 0.0), backoff.wait_ms(3, 0.5)), (0, 200));
        assert_eq!(backoff.wait_ms(u32::MAX, 1.0), 1000);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now_ms = 1_445_412_470_000;
        for (text, expected) in [
            ("0", Some(0)),
            ("120", Some(120_000)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(10_000)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("99999999999999999999", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after_ms(text, now_ms), expected, "{text}");
        }
    }
}
