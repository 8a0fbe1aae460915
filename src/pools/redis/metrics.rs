//! What the pools count. The children of an instance are made at its start: the hot path looks nothing up.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::RedisFailure;
use super::reply::Redirect;
use crate::telemetry::{MetricError, Registry};

/// Seconds: from a round trip on loopback to the longest configurable wait.
const DURATIONS: [f64; 13] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];

/// What the pools count, for every instance.
pub struct RedisMetrics {
    commands: IntCounterVec,
    duration: HistogramVec,
    redirects: IntCounterVec,
    connections: IntGaugeVec,
    reconnects: IntCounterVec,
    flushes: IntCounterVec,
    confirmations: IntCounterVec,
    unreplicated: IntGaugeVec,
}

impl RedisMetrics {
    /// Registers them; once per registry.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        Ok(Self {
            commands: registry.counters(
                "outrigger_redis_commands_total",
                "Commands, pipelines and scripts, by how they ended.",
                &["instance", "outcome"],
            )?,
            duration: registry.histograms(
                "outrigger_redis_command_duration_seconds",
                "How long a command, pipeline or script took, redirections and retries included.",
                &["instance"],
                &DURATIONS,
            )?,
            redirects: registry.counters(
                "outrigger_redis_redirects_total",
                "Replies that sent a command elsewhere or asked for patience.",
                &["instance", "kind"],
            )?,
            connections: registry.gauges(
                "outrigger_redis_connections_open",
                "Open connections, those for tracking and for confirmed writes included.",
                &["instance"],
            )?,
            reconnects: registry.counters(
                "outrigger_redis_reconnects_total",
                "Connections that were lost and dialed again.",
                &["instance"],
            )?,
            flushes: registry.counters(
                "outrigger_redis_tracking_flushes_total",
                "Times that everything cached in the process was declared old.",
                &["instance"],
            )?,
            confirmations: registry.counters(
                "outrigger_redis_confirmations_total",
                "Writes that a failover must not undo: confirmed by the replicas, not confirmed in time, or on a primary without one.",
                &["instance", "outcome"],
            )?,
            unreplicated: registry.gauges(
                "outrigger_redis_primaries_without_replica_count",
                "Primaries for which the cluster names no replica: nothing takes over from them.",
                &["instance"],
            )?,
        })
    }

    pub(super) fn of(&self, instance: &str) -> InstanceMetrics {
        let outcome = |outcome| self.commands.with_label_values(&[instance, outcome]);
        let confirmations = |outcome| self.confirmations.with_label_values(&[instance, outcome]);
        InstanceMetrics {
            ok: outcome("ok"),
            unavailable: outcome("unavailable"),
            unknown: outcome("unknown"),
            refused: outcome("refused"),
            duration: self.duration.with_label_values(&[instance]),
            redirects: Redirect::LABELS.map(|kind| self.redirects.with_label_values(&[instance, kind])),
            connections: self.connections.with_label_values(&[instance]),
            reconnects: self.reconnects.with_label_values(&[instance]),
            flushes: self.flushes.with_label_values(&[instance]),
            confirmed: confirmations("confirmed"),
            unconfirmed: confirmations("unconfirmed"),
            alone: confirmations("no_replica"),
            unreplicated: self.unreplicated.with_label_values(&[instance]),
        }
    }
}

/// The metrics of one instance.
pub(super) struct InstanceMetrics {
    ok: IntCounter,
    unavailable: IntCounter,
    unknown: IntCounter,
    refused: IntCounter,
    duration: Histogram,
    redirects: [IntCounter; Redirect::LABELS.len()],
    pub(super) connections: IntGauge,
    pub(super) reconnects: IntCounter,
    pub(super) flushes: IntCounter,
    confirmed: IntCounter,
    unconfirmed: IntCounter,
    alone: IntCounter,
    pub(super) unreplicated: IntGauge,
}

impl InstanceMetrics {
    pub(super) fn command<T>(&self, result: &Result<T, RedisFailure>, began: std::time::Instant) {
        self.duration.observe(began.elapsed().as_secs_f64());
        match result {
            Ok(_) => self.ok.inc(),
            Err(RedisFailure::Unavailable(_)) => self.unavailable.inc(),
            Err(RedisFailure::Unknown(_)) => self.unknown.inc(),
            Err(RedisFailure::Refused(_)) => self.refused.inc(),
        }
    }

    pub(super) fn redirect(&self, redirect: &Redirect) {
        self.redirects[redirect.label()].inc();
    }

    /// A write was confirmed by so many replicas; `None`: it was not.
    pub(super) fn confirmation(&self, replicas: Option<usize>) {
        match replicas {
            None => self.unconfirmed.inc(),
            Some(0) => self.alone.inc(),
            Some(_) => self.confirmed.inc(),
        }
    }
}

/// Counts a connection as open for as long as this is there.
pub(super) struct OpenConnection<'a>(&'a InstanceMetrics);

impl<'a> OpenConnection<'a> {
    pub(super) fn count(metrics: &'a InstanceMetrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
