//! What is counted about the database's connections and transactions, by the role that they are of.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::classify::Failure;
use crate::telemetry::{MetricError, Registry};

/// Bounds of waits, in seconds: from a free connection to the end of patience.
const WAITS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Bounds of transactions, in seconds.
const DURATIONS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// The metrics of every role.
pub struct PostgresMetrics {
    connections: IntGaugeVec,
    in_use: IntGaugeVec,
    limit: IntGaugeVec,
    wait: HistogramVec,
    transactions: HistogramVec,
    slow_statements: IntCounterVec,
    abandoned: IntCounterVec,
    overloads: IntCounterVec,
    failures: IntCounterVec,
}

/// Those of one.
pub(super) struct RoleMetrics {
    pub(super) connections: IntGauge,
    pub(super) in_use: IntGauge,
    pub(super) limit: IntGauge,
    pub(super) wait: Histogram,
    pub(super) transactions: Histogram,
    pub(super) slow_statements: IntCounter,
    pub(super) abandoned: IntCounter,
    pub(super) overloads: IntCounter,
    failures: [IntCounter; 4],
}

impl PostgresMetrics {
    /// Registers them; once per registry.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let role = &["role"];
        Ok(Self {
            connections: registry.gauges(
                "outrigger_store_postgres_connections",
                "Connections to PostgreSQL, used and unused.",
                role,
            )?,
            in_use: registry.gauges(
                "outrigger_store_postgres_connections_in_use",
                "Connections to PostgreSQL that a transaction has.",
                role,
            )?,
            limit: registry.gauges(
                "outrigger_store_postgres_connections_limit",
                "The most connections there may be (`postgres.connections`).",
                role,
            )?,
            wait: registry.histograms(
                "outrigger_store_postgres_wait_seconds",
                "How long transactions waited for a connection.",
                role,
                WAITS,
            )?,
            transactions: registry.histograms(
                "outrigger_store_postgres_transaction_seconds",
                "How long transactions took, from the connection to the commit.",
                role,
                DURATIONS,
            )?,
            slow_statements: registry.counters(
                "outrigger_store_postgres_slow_statements_total",
                "Round trips of statements that took over a second; each is in the log.",
                role,
            )?,
            abandoned: registry.counters(
                "outrigger_store_postgres_abandoned_connections_total",
                "Connections closed because their caller had left and the statement went on for 0.25 s, or failed.",
                role,
            )?,
            overloads: registry.counters(
                "outrigger_store_postgres_overloads_total",
                "Transactions refused because their tenant's others had its share of the connections, which is the smaller the more other tenants have, for `postgres.wait_ms`.",
                role,
            )?,
            failures: registry.counters(
                "outrigger_store_postgres_failures_total",
                "Runs of transactions that failed, by what it means: `again` is run again, `unavailable` wrote nothing, `unknown` \
                 may have, `refused` is a defect.",
                &["role", "meaning"],
            )?,
        })
    }

    pub(super) fn of(&self, role: &str) -> RoleMetrics {
        let failure = |meaning| self.failures.with_label_values(&[role, meaning]);
        RoleMetrics {
            connections: self.connections.with_label_values(&[role]),
            in_use: self.in_use.with_label_values(&[role]),
            limit: self.limit.with_label_values(&[role]),
            wait: self.wait.with_label_values(&[role]),
            transactions: self.transactions.with_label_values(&[role]),
            slow_statements: self.slow_statements.with_label_values(&[role]),
            abandoned: self.abandoned.with_label_values(&[role]),
            overloads: self.overloads.with_label_values(&[role]),
            failures: [failure("again"), failure("unavailable"), failure("unknown"), failure("refused")],
        }
    }
}

impl RoleMetrics {
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
