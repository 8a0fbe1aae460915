//! What is counted about usage.

use std::sync::Arc;

use jiff::Timestamp;
use prometheus::{IntCounter, IntGauge};

use super::Verdict;
use super::count::Counted;
use super::spool::SpoolError;
use crate::error::ErrorKind;
use crate::store::sqlite::Full;
use crate::store::{GroupCommitError, GroupMetrics};
use crate::telemetry::{MetricError, Registry};

/// Upper bounds of waits, in seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// The metrics.
pub(super) struct UsageMetrics {
    accepted: IntCounter,
    duplicates: IntCounter,
    late: IntCounter,
    conflicts: IntCounter,
    pub(super) invalid: IntCounter,
    pub(super) rate_limited: IntCounter,
    share_taken: IntCounter,
    spool_full: IntCounter,
    pub(super) other_zone: IntCounter,
    unavailable: IntCounter,
    unknown: IntCounter,
    defects: IntCounter,
    pub(super) spool: Arc<SpoolMetrics>,
    pub(super) counting: GroupMetrics,
}

impl UsageMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let points = registry.counters(
            "outrigger_usage_points_total",
            "Usage records by what became of them; `late` are accepted too, and of an hour that was over an hour before. With `ack: spool` \
             they are `spooled` first, and what is not counted then is a `conflict`.",
            &["outcome"],
        )?;
        let rejected = registry.counters(
            "outrigger_usage_calls_rejected_total",
            "Calls of which nothing was counted, or may have been; `conflict`: a key came back with another record; `tenant_share`: \
             its tenant had too many waiting, or its part of the spool or of the embedded store was full; `spool_full`: the spool or its disk was; \
             `rate_limited`: it recorded faster than it may; `time_zone`: this process's policy has another one than the store.",
            &["cause"],
        )?;
        Ok(Self {
            spool: Arc::new(SpoolMetrics {
                spooled: points.with_label_values(&["spooled"]),
                accepted: points.with_label_values(&["accepted"]),
                late: points.with_label_values(&["late"]),
                duplicates: points.with_label_values(&["duplicate"]),
                conflicts: points.with_label_values(&["conflict"]),
                max_bytes: registry.gauge(
                    "outrigger_usage_spool_max_bytes",
                    "What the spool of usage may have at the most (`usage.spool_max_bytes`).",
                )?,
                bytes: registry.gauge("outrigger_usage_spool_bytes", "What the spool of usage has on disk.")?,
                oldest: registry.gauge(
                    "outrigger_usage_spool_oldest_timestamp_seconds",
                    "When the oldest call was accepted that is in the spool and not counted, in seconds since 1970; 0 where all are counted.",
                )?,
                held: registry.gauge(
                    "outrigger_usage_spool_tenants_held_count",
                    "Tenants whose next call of the spool cannot be counted now and is tried again later; those of the others are counted.",
                )?,
                damaged_bytes: registry.counter(
                    "outrigger_usage_spool_damaged_bytes_total",
                    "Bytes of the spool that are no entry: ends that were torn off, or damage.",
                )?,
                refused: registry.counter(
                    "outrigger_usage_spool_refused_total",
                    "Calls that were accepted to disk and that the store refuses for good: each is in a file of its own.",
                )?,
            }),
            accepted: points.with_label_values(&["accepted"]),
            duplicates: points.with_label_values(&["duplicate"]),
            late: points.with_label_values(&["late"]),
            conflicts: rejected.with_label_values(&["conflict"]),
            invalid: rejected.with_label_values(&["invalid"]),
            rate_limited: rejected.with_label_values(&["rate_limited"]),
            spool_full: rejected.with_label_values(&["spool_full"]),
            share_taken: rejected.with_label_values(&["tenant_share"]),
            other_zone: rejected.with_label_values(&["time_zone"]),
            unavailable: rejected.with_label_values(&["unavailable"]),
            unknown: rejected.with_label_values(&["unknown"]),
            defects: rejected.with_label_values(&["internal"]),
            counting: GroupMetrics {
                callers: registry.histogram(
                    "outrigger_usage_callers_per_transaction",
                    "How many calls share a transaction of PostgreSQL.",
                    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0],
                )?,
                seconds: registry.histogram(
                    "outrigger_usage_accept_seconds",
                    "From a call to its points' commit in PostgreSQL.",
                    SECONDS,
                )?,
            },
        })
    }

    /// Why a call was not accepted to disk.
    pub(super) fn unspooled(&self, error: &SpoolError) {
        match error {
            SpoolError::ShareTaken => self.share_taken.inc(),
            SpoolError::Store(error) if error.full() == Some(Full::Share) => self.share_taken.inc(),
            _ => match error.kind() {
                ErrorKind::OutcomeUnknown => self.unknown.inc(),
                ErrorKind::Internal => self.defects.inc(),
                ErrorKind::TooLarge => self.invalid.inc(),
                _ => self.spool_full.inc(),
            },
        }
    }

    /// What became of a call with so many late points.
    pub(super) fn ended(&self, ended: &Result<Verdict, GroupCommitError>, late: u64) {
        match ended {
            Ok(Verdict::Counted { accepted, duplicates }) => {
                self.accepted.inc_by(*accepted as u64);
                self.duplicates.inc_by(*duplicates as u64);
                if *accepted > 0 {
                    self.late.inc_by(late);
                }
            }
            Ok(Verdict::Refused(refusal)) if refusal.conflicts.is_empty() => self.invalid.inc(),
            Ok(Verdict::Refused(_)) => self.conflicts.inc(),
            Ok(Verdict::OtherZone(_)) => self.other_zone.inc(),
            Err(error) if error.is_of_tenant() => self.share_taken.inc(),
            Err(error) => match error.kind() {
                ErrorKind::OutcomeUnknown => self.unknown.inc(),
                ErrorKind::Internal => self.defects.inc(),
                _ => self.unavailable.inc(),
            },
        }
    }
}

/// Of the spool.
pub(super) struct SpoolMetrics {
    spooled: IntCounter,
    accepted: IntCounter,
    late: IntCounter,
    duplicates: IntCounter,
    conflicts: IntCounter,
    max_bytes: IntGauge,
    bytes: IntGauge,
    oldest: IntGauge,
    held: IntGauge,
    damaged_bytes: IntCounter,
    refused: IntCounter,
}

impl SpoolMetrics {
    pub(super) fn bounds(&self, max_bytes: u64) {
        self.max_bytes.set(i64::try_from(max_bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn bytes(&self, bytes: u64) {
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn spooled(&self, points: usize) {
        self.spooled.inc_by(points as u64);
    }

    /// When the oldest entry that is not counted was accepted.
    pub(super) fn oldest(&self, accepted_s: Option<u32>) {
        self.oldest.set(accepted_s.map_or(0, i64::from));
    }

    /// Of how many tenants the next call is tried again later.
    pub(super) fn held(&self, tenants: usize) {
        self.held.set(i64::try_from(tenants).unwrap_or(i64::MAX));
    }

    /// What is there cannot even be read.
    pub(super) fn stuck(&self) {
        if self.oldest.get() == 0 {
            self.oldest.set(Timestamp::now().as_second());
        }
    }

    pub(super) fn counted(&self, counted: &Counted) {
        self.accepted.inc_by(counted.accepted as u64);
        self.late.inc_by(counted.late as u64);
        self.duplicates.inc_by(counted.duplicates as u64);
        self.conflicts.inc_by(counted.refused.len() as u64);
    }

    pub(super) fn damaged(&self, bytes: u64) {
        self.damaged_bytes.inc_by(bytes);
    }

    pub(super) fn refused(&self) {
        self.refused.inc();
    }
}
