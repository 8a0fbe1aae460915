//! What is counted about the database's connections and transactions.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::classify::Failure;
use crate::telemetry::{MetricError, Registry};

/// Bounds of waits, in seconds: from a free connection to the end of patience.
const WAITS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Bounds of transactions, in seconds.
const DURATIONS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

pub(super) struct PostgresMetrics {
    pub(super) connections: IntGauge,
    pub(super) in_use: IntGauge,
    pub(super) limit: IntGauge,
    pub(super) wait: Histogram,
    pub(super) transactions: Histogram,
    pub(super) slow_statements: IntCounter,
    failures: [IntCounter; 4],
}

impl PostgresMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let failures = registry.counters(
            "outrigger_store_postgres_failures_total",
            "Runs of transactions that failed, by what it means: `again` is run again, `unavailable` wrote nothing, `unknown` \
             may have, `refused` is a defect.",
            &["meaning"],
        )?;
        let failure = |meaning| failures.with_label_values(&[meaning]);
        Ok(Self {
            connections: registry.gauge(
                "outrigger_store_postgres_connections",
                "Connections to PostgreSQL, used and unused.",
            )?,
            in_use: registry.gauge(
                "outrigger_store_postgres_connections_in_use",
                "Connections to PostgreSQL that a transaction has.",
            )?,
            limit: registry.gauge(
                "outrigger_store_postgres_connections_limit",
                "The most connections there may be (`postgres.connections`).",
            )?,
            wait: registry.histogram(
                "outrigger_store_postgres_wait_seconds",
                "How long transactions waited for a connection.",
                WAITS,
            )?,
            transactions: registry.histogram(
                "outrigger_store_postgres_transaction_seconds",
                "How long transactions took, from the connection to the commit.",
                DURATIONS,
            )?,
            slow_statements: registry.counter(
                "outrigger_store_postgres_slow_statements_total",
                "Round trips of statements that took over a second; each is in the log.",
            )?,
            failures: [failure("again"), failure("unavailable"), failure("unknown"), failure("refused")],
        })
    }

    pub(super) fn failed(&self, failure: Failure) {
        let place = match failure {
            Failure::Again => 0,
            Failure::Unavailable => 1,
            Failure::Unknown => 2,
            Failure::Refused => 3,
        };
        if let Some(counter) = self.failures.get(place) {
            counter.inc();
        }
    }
}
