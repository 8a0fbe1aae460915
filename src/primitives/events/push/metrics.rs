//! What push counts.

use std::time::Duration;

use prometheus::IntGauge;

use super::Outcome;
use crate::telemetry::{Counter, Histogram, MetricError, Registry};

/// Upper bounds of an attempt's time, in seconds; the longest timeout is 60 s.
const ATTEMPT_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0];
/// Upper bounds of an event's age when it is delivered, in seconds, up to a day.
const AGE_SECONDS: [f64; 10] = [0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 300.0, 3600.0, 21_600.0, 86_400.0];

/// What push counts. No label is a subscription, an endpoint or a tenant.
#[derive(Clone)]
pub struct PushMetrics {
    /// By `Outcome as usize`.
    attempts: [Counter; Outcome::ALL.len()],
    pub(super) in_flight: IntGauge,
    pub(super) circuits_open: IntGauge,
    duration: Histogram,
    age: Histogram,
}

impl PushMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let one = |name, help, bounds: &[f64]| {
            let histograms = registry.call_durations(name, help, [], &[[]], bounds)?;
            histograms.into_iter().next().ok_or_else(|| {
                MetricError::from(prometheus::Error::Msg("a family without a member".to_owned()))
            })
        };
        Ok(Self {
            attempts: registry.calls(
                "outrigger_events_push_attempts_total",
                "Attempts to send an event to a subscription's endpoint, by how they ended.",
                ["outcome"],
                Outcome::ALL.map(|outcome| [outcome.label()]),
            )?,
            in_flight: registry.gauge(
                "outrigger_events_push_in_flight_count",
                "Events that are being sent to endpoints now.",
            )?,
            circuits_open: registry.gauge(
                "outrigger_events_push_circuits_open_count",
                "Endpoints to which nothing is sent now, since they failed.",
            )?,
            duration: one(
                "outrigger_events_push_attempt_seconds",
                "How long attempts took, whatever their outcome.",
                &ATTEMPT_SECONDS,
            )?,
            age: one(
                "outrigger_events_push_age_seconds",
                "How old events were when their endpoint took them, from their acceptance on.",
                &AGE_SECONDS,
            )?,
        })
    }

    pub(super) fn attempted(&self, outcome: Outcome, duration: Duration) {
        if let Some(counter) = self.attempts.get(outcome as usize) {
            counter.inc();
        }
        self.duration.observe(duration);
    }

    pub(super) fn delivered(&self, age: Duration) {
        self.age.observe(age);
    }

    /// Attempts that ended so.
    #[must_use]
    pub fn attempts(&self, outcome: Outcome) -> u64 {
        self.attempts.get(outcome as usize).map_or(0, Counter::get)
    }
}

/// One more of a gauge, for as long as it is kept.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
