//! What the relay counts.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Shard;
use crate::telemetry::{MetricError, Registry};

/// Seconds: from a transaction's time to an outage.
const LAGS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

/// What the relay counts, for every shard.
pub struct RelayMetrics {
    undelivered: IntGaugeVec,
    oldest: IntGaugeVec,
    parked_keys: IntGaugeVec,
    lag: Histogram,
    delivered: IntCounter,
    parked: IntCounter,
    transactions: IntCounterVec,
    pub(super) shards: IntGauge,
}

impl RelayMetrics {
    /// Registers them; once per registry.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let by_shard = &["shard"];
        Ok(Self {
            undelivered: registry.gauges(
                "outrigger_events_relay_undelivered_count",
                "Events that can be read and are not yet in Kafka, as far as the relay has seen.",
                by_shard,
            )?,
            oldest: registry.gauges(
                "outrigger_events_relay_oldest_undelivered_timestamp_seconds",
                "When the oldest event that is not yet in Kafka was accepted, in seconds since 1970; 0 where there is none.",
                by_shard,
            )?,
            parked_keys: registry.gauges(
                "outrigger_events_relay_parked_keys_count",
                "Keys whose events wait for an operator, since Kafka refused one.",
                by_shard,
            )?,
            shards: registry.gauge(
                "outrigger_events_relay_shards_count",
                "Shards of the log that this process relays.",
            )?,
            lag: registry.histogram(
                "outrigger_events_relay_lag_seconds",
                "From an event's acceptance to its commit in Kafka.",
                &LAGS,
            )?,
            delivered: registry.counter("outrigger_events_relay_delivered_total", "Events committed in Kafka.")?,
            parked: registry.counter(
                "outrigger_events_relay_parked_total",
                "Events that Kafka refused, and the later ones of their keys.",
            )?,
            transactions: registry.counters(
                "outrigger_events_relay_transactions_total",
                "Transactions in Kafka, by how they ended.",
                &["outcome"],
            )?,
        })
    }

    pub(super) fn of(&self, shard: Shard) -> ShardMetrics {
        let shard = shard.number().to_string();
        let outcome = |outcome| self.transactions.with_label_values(&[outcome]);
        ShardMetrics {
            undelivered: self.undelivered.with_label_values(&[&shard]),
            oldest: self.oldest.with_label_values(&[&shard]),
            parked_keys: self.parked_keys.with_label_values(&[&shard]),
            lag: self.lag.clone(),
            delivered: self.delivered.clone(),
            parked: self.parked.clone(),
            committed: outcome("committed"),
            aborted: outcome("aborted"),
            refused: outcome("refused"),
            unknown: outcome("unknown"),
        }
    }
}

/// The metrics of one shard.
pub(super) struct ShardMetrics {
    undelivered: IntGauge,
    oldest: IntGauge,
    pub(super) parked_keys: IntGauge,
    lag: Histogram,
    delivered: IntCounter,
    parked: IntCounter,
    committed: IntCounter,
    pub(super) aborted: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) unknown: IntCounter,
}

impl ShardMetrics {
    /// Rows were read, the oldest accepted at this time, and so many are behind them.
    pub(super) fn seen(&self, rows: usize, oldest_ms: Option<i64>, behind: u64) {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX).saturating_add(behind);
        self.undelivered.set(i64::try_from(rows).unwrap_or(i64::MAX));
        self.oldest.set(oldest_ms.unwrap_or(0) / 1000);
    }

    /// A transaction was committed: events accepted at these times, and so many parked.
    pub(super) fn committed(&self, accepted_ms: &[i64], parked: usize) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        for accepted in accepted_ms {
            #[allow(clippy::cast_precision_loss, reason = "a metric")]
            self.lag.observe(now.saturating_sub(*accepted).max(0) as f64 / 1000.0);
        }
        self.committed.inc();
        self.delivered.inc_by(u64::try_from(accepted_ms.len()).unwrap_or(0));
        self.parked.inc_by(u64::try_from(parked).unwrap_or(0));
    }
}

/// A shard that is given up is another relay's to speak of.
impl Drop for ShardMetrics {
    fn drop(&mut self) {
        for gauge in [&self.undelivered, &self.oldest, &self.parked_keys] {
            gauge.set(0);
        }
    }
}
