//! Waits that grow, up to a cap, and that differ from process to process.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const CAP: Duration = Duration::from_millis(500);

/// The waits between attempts to reach a server: 20 ms, doubled up to half a second, each shortened by up to half.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// How long to wait before the next attempt.
    #[allow(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.0.min(10)).min(CAP);
        self.0 = self.0.saturating_add(1);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// An attempt succeeded.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}

/// `period`, a quarter shorter or longer at most.
#[must_use]
pub fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.75 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        assert!(backoff.next() <= FIRST);
        for _ in 0..100 {
            assert!(backoff.next() <= CAP);
        }
        assert!(backoff.next() >= CAP / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
