//! What identity counts.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec};

use super::refusal::Refusal;
use crate::telemetry::{MetricError, Registry};

/// What identity counts. Labels are outcomes and the issuers' names of the configuration, never a token's.
#[derive(Clone)]
pub struct IdentityMetrics {
    pub(super) cached: IntCounter,
    pub(super) verified: IntCounter,
    /// By `Refusal as usize`.
    refused: Box<[IntCounter]>,
    pub(super) fetches: IntCounterVec,
    pub(super) last_success: IntGaugeVec,
    pub(super) usable_keys: IntGaugeVec,
    pub(super) refused_keys: IntGaugeVec,
}

impl IdentityMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let tokens = registry.counters(
            "outrigger_identity_tokens_total",
            "Tokens looked at: found in the cache, verified, or why refused.",
            &["outcome"],
        )?;
        Ok(Self {
            cached: tokens.with_label_values(&["cached"]),
            verified: tokens.with_label_values(&["verified"]),
            refused: Refusal::ALL
                .iter()
                .map(|refusal| tokens.with_label_values(&[refusal.label()]))
                .collect(),
            fetches: registry.counters(
                "outrigger_identity_key_fetches_total",
                "Readings of an issuer's key set: changed, unchanged or failed.",
                &["issuer", "outcome"],
            )?,
            last_success: registry.gauges(
                "outrigger_identity_keys_fetched_timestamp_seconds",
                "When an issuer's key set was last read, in seconds since 1970; 0 for never.",
                &["issuer"],
            )?,
            usable_keys: registry.gauges(
                "outrigger_identity_keys_count",
                "An issuer's keys that can verify tokens now.",
                &["issuer"],
            )?,
            refused_keys: registry.gauges(
                "outrigger_identity_symmetric_keys_count",
                "Symmetric keys (`oct`) in an issuer's key set that are refused: not a file with `hs256: true`.",
                &["issuer"],
            )?,
        })
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        if let Some(counter) = self.refused.get(refusal as usize) {
            counter.inc();
        }
    }
}
