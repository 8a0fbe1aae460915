//! What rate limiting counts.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{Outcome, Source};
use crate::telemetry::{Counter, MetricError, Registry};

/// Upper bounds, in seconds: around the budget of 20 ms.
const BOUNDS: [f64; 10] = [0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.02, 0.05];

/// Every source, in the order of the counters.
const SOURCES: [(Source, &str); 5] = [
    (Source::Backend, "backend"),
    (Source::Recovering, "recovering"),
    (Source::Local, "local"),
    (Source::Open, "open"),
    (Source::Closed, "closed"),
];

/// The metrics.
#[derive(Clone)]
pub(super) struct RateLimitMetrics {
    /// Denied and allowed, for each of [`SOURCES`].
    decisions: [Counter; 10],
    overflows: IntCounter,
    pub(super) backend_seconds: Histogram,
    pub(super) breakers_open: IntGauge,
}

impl RateLimitMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let decisions = registry.calls(
            "outrigger_ratelimit_decisions_total",
            "Calls decided, by outcome and by who decided; only `backend` is exact.",
            ["outcome", "source"],
            std::array::from_fn(|at| [["denied", "allowed"][at % 2], SOURCES[at / 2].1]),
        )?;
        Ok(Self {
            decisions,
            overflows: registry.counter(
                "outrigger_ratelimit_overflows_total",
                "Checks answered by the bucket that new keys share while their tenant has too many.",
            )?,
            backend_seconds: registry.histogram(
                "outrigger_ratelimit_backend_duration_seconds",
                "From a check to Redis's answer, or to giving it up.",
                &BOUNDS,
            )?,
            breakers_open: registry.gauge(
                "outrigger_ratelimit_breakers_open",
                "Groups of tenants, of 64, whose checks do not wait for Redis because it did not answer.",
            )?,
        })
    }

    pub(super) fn count(&self, outcome: &Outcome) {
        let source = match outcome.source {
            Source::Backend => 0,
            Source::Recovering => 1,
            Source::Local => 2,
            Source::Open => 3,
            Source::Closed => 4,
        };
        self.decisions[2 * source + usize::from(outcome.allowed)].inc();
        if outcome.overflowed > 0 {
            self.overflows.inc_by(outcome.overflowed as u64);
        }
    }
}
