//! What is counted about events.

use prometheus::{Histogram, IntCounter};

use super::{Appended, GivenUp, groups};
use crate::error::ErrorKind;
use crate::store::GroupMetrics;
use crate::telemetry::{MetricError, Registry};

/// Upper bounds of waits, in seconds.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];
/// Upper bounds of how old an event is when it is first delivered, in seconds.
const AGES: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

/// The metrics.
pub(super) struct EventsMetrics {
    accepted: IntCounter,
    duplicates: IntCounter,
    conflicting: IntCounter,
    unavailable: IntCounter,
    unknown: IntCounter,
    defects: IntCounter,
    pub(super) share_taken: IntCounter,
    pub(super) rate_limited: IntCounter,
    pub(super) publishing: GroupMetrics,
    pub(super) delivery_age_seconds: Histogram,
    delivered: IntCounter,
    redelivered: IntCounter,
    acked: IntCounter,
    nacked: IntCounter,
    extended: IntCounter,
    stale: IntCounter,
    pub(super) full_groups: IntCounter,
    pub(super) read: IntCounter,
    pub(super) refused_pulls: IntCounter,
}

/// What is counted of what groups gave up.
#[derive(Clone)]
pub(super) struct GivenUpMetrics {
    letters: IntCounter,
    ended: IntCounter,
}

impl GivenUpMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        Ok(Self {
            letters: registry.counter(
                "outrigger_events_dead_letters_total",
                "Events that groups gave up after the policy's attempts.",
            )?,
            ended: registry.counter(
                "outrigger_events_dead_letters_given_up_total",
                "Dead letters that their own readers gave up after the policy's attempts: they stay where they are.",
            )?,
        })
    }

    pub(super) fn count(&self, given_up: GivenUp) {
        self.letters.inc_by(given_up.letters as u64);
        self.ended.inc_by(given_up.ended as u64);
    }
}

impl EventsMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let published = registry.counters(
            "outrigger_events_published_total",
            "Events published, by what became of them; `conflicting` are duplicates too, with other data under the same id.",
            &["outcome"],
        )?;
        let failures = registry.counters(
            "outrigger_events_publish_failures_total",
            "Calls whose events were not accepted, or may have been; `tenant_share`: their tenant had more waiting than one may have, or its part of the embedded store was full; `rate_limited`: it published faster than it may.",
            &["meaning"],
        )?;
        let deliveries = registry.counters(
            "outrigger_events_deliveries_total",
            "Deliveries to consumer groups, and what became of them.",
            &["outcome"],
        )?;
        Ok(Self {
            accepted: published.with_label_values(&["accepted"]),
            duplicates: published.with_label_values(&["duplicate"]),
            conflicting: published.with_label_values(&["conflicting"]),
            unavailable: failures.with_label_values(&["unavailable"]),
            unknown: failures.with_label_values(&["unknown"]),
            defects: failures.with_label_values(&["internal"]),
            share_taken: failures.with_label_values(&["tenant_share"]),
            rate_limited: failures.with_label_values(&["rate_limited"]),
            publishing: GroupMetrics {
                callers: registry.histogram(
                    "outrigger_events_callers_per_transaction",
                    "How many publishers share a transaction of PostgreSQL.",
                    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
                )?,
                seconds: registry.histogram(
                    "outrigger_events_accept_seconds",
                    "From a publisher's call to its events' commit in PostgreSQL.",
                    SECONDS,
                )?,
            },
            delivery_age_seconds: registry.histogram(
                "outrigger_events_delivery_age_seconds",
                "How long before its first delivery to a consumer group an event was accepted.",
                AGES,
            )?,
            delivered: deliveries.with_label_values(&["delivered"]),
            redelivered: deliveries.with_label_values(&["redelivered"]),
            acked: deliveries.with_label_values(&["acked"]),
            nacked: deliveries.with_label_values(&["nacked"]),
            extended: deliveries.with_label_values(&["extended"]),
            stale: deliveries.with_label_values(&["stale"]),
            full_groups: registry.counter(
                "outrigger_events_full_groups_total",
                "Pulls that looked at no new event, since their group has `max_outstanding` that are not done.",
            )?,
            read: registry
                .counter("outrigger_events_read_total", "Events read from a topic, not by consumer groups.")?,
            refused_pulls: registry.counter(
                "outrigger_events_pulls_refused_total",
                "Pulls that would have waited, of a tenant that has `events.tenant_pulls` that wait.",
            )?,
        })
    }

    pub(super) fn published(&self, appended: &Appended) {
        for (counter, count) in [
            (&self.accepted, appended.accepted),
            (&self.duplicates, appended.duplicates),
            (&self.conflicting, appended.conflicting),
        ] {
            counter.inc_by(count as u64);
        }
    }

    pub(super) fn failed(&self, kind: ErrorKind) {
        match kind {
            ErrorKind::OutcomeUnknown => self.unknown.inc(),
            ErrorKind::Internal => self.defects.inc(),
            _ => self.unavailable.inc(),
        }
    }

    pub(super) fn pulled(&self, attempts: impl Iterator<Item = u16>) {
        for attempt in attempts {
            if attempt == 1 { self.delivered.inc() } else { self.redelivered.inc() }
        }
    }

    pub(super) fn settled(&self, what: super::Settle, outcome: &groups::Outcome) {
        let counter = match what {
            super::Settle::Ack => &self.acked,
            super::Settle::Nack(_) => &self.nacked,
            super::Settle::Extend(_) => &self.extended,
        };
        counter.inc_by(outcome.done as u64);
        self.stale.inc_by(outcome.stale.len() as u64);
    }
}
