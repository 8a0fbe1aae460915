//! What a generator thread counted.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use super::wire::Reply;

const LONGEST_NS: u64 = 120_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Counts and latencies of one or several slices.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Latencies in nanoseconds; in an open loop they start at the intended moment.
    pub(crate) latency_ns: Histogram<u64>,
    /// Calls answered inside the measured window.
    pub(crate) completed: u64,
    /// Calls lost with their connection.
    pub(crate) errors: u64,
    /// Text of the first of those errors.
    pub(crate) first_error: Option<String>,
    /// Calls of an open loop that had no answer when waiting ended; their wait so far is in the latencies.
    pub(crate) unfinished: u64,
    /// CPU time of the generator's threads inside the window.
    pub(crate) generator_cpu: Duration,
    /// The measured part, as planned.
    pub(crate) measured: Duration,
    /// Sizes in the last reply.
    pub(crate) reply: Option<Reply>,
    /// Replies whose `Outrigger-Cache` header was looked at, and how many of them said `l1`.
    pub(crate) cache_samples: (u64, u64),
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latency_ns: empty_histogram(),
            completed: 0,
            errors: 0,
            first_error: None,
            unfinished: 0,
            generator_cpu: Duration::ZERO,
            measured: Duration::ZERO,
            reply: None,
            cache_samples: (0, 0),
        }
    }
}

impl Tally {
    /// Takes one latency; anything above two minutes counts as two minutes.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns.saturating_record(nanoseconds.max(1));
    }

    /// Adds another thread's counts of the same slice.
    pub(crate) fn add(&mut self, other: Self) -> Result<()> {
        self.latency_ns.add(&other.latency_ns)?;
        self.completed += other.completed;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.unfinished += other.unfinished;
        self.generator_cpu += other.generator_cpu;
        self.measured = self.measured.max(other.measured);
        self.reply = other.reply.or(self.reply);
        self.cache_samples.0 += other.cache_samples.0;
        self.cache_samples.1 += other.cache_samples.1;
        Ok(())
    }

    /// Calls answered per second of the window.
    pub(crate) fn requests_per_s(&self) -> f64 {
        let seconds = self.measured.as_secs_f64();
        if seconds > 0.0 { self.completed as f64 / seconds } else { 0.0 }
    }
}

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS).expect("constant bounds")
}
