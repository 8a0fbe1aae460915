//! What is counted about usage.

use prometheus::IntCounter;

use super::Verdict;
use crate::error::ErrorKind;
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
    share_taken: IntCounter,
    unavailable: IntCounter,
    unknown: IntCounter,
    defects: IntCounter,
    pub(super) counting: GroupMetrics,
}

impl UsageMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let points = registry.counters(
            "outrigger_usage_points_total",
            "Usage records by what became of them; `late` are accepted too, and of an hour that was over an hour before.",
            &["outcome"],
        )?;
        let rejected = registry.counters(
            "outrigger_usage_calls_rejected_total",
            "Calls of which nothing was counted, or may have been; `conflict`: a key came back with another record; `tenant_share`: \
             its tenant had too many waiting, or its part of the embedded store was full.",
            &["cause"],
        )?;
        Ok(Self {
            accepted: points.with_label_values(&["accepted"]),
            duplicates: points.with_label_values(&["duplicate"]),
            late: points.with_label_values(&["late"]),
            conflicts: rejected.with_label_values(&["conflict"]),
            invalid: rejected.with_label_values(&["invalid"]),
            share_taken: rejected.with_label_values(&["tenant_share"]),
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
            Err(error) if error.is_of_tenant() => self.share_taken.inc(),
            Err(error) => match error.kind() {
                ErrorKind::OutcomeUnknown => self.unknown.inc(),
                ErrorKind::Internal => self.defects.inc(),
                _ => self.unavailable.inc(),
            },
        }
    }
}
