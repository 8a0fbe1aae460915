//! What identity counts.

use std::sync::Arc;

use prometheus::{IntCounterVec, IntGaugeVec};

use super::refusal::Refusal;
use crate::telemetry::{Counter, MetricError, Registry};

const CACHED: usize = 0;
const VERIFIED: usize = 1;
const REFUSED: usize = 2;

/// What identity counts. Labels are outcomes and the issuers' names of the configuration, never a token's.
#[derive(Clone)]
pub struct IdentityMetrics {
    /// By [`CACHED`], [`VERIFIED`], and from [`REFUSED`] on each refusal by `Refusal as usize`.
    tokens: Arc<[Counter]>,
    pub(super) fetches: IntCounterVec,
    pub(super) last_success: IntGaugeVec,
    pub(super) usable_keys: IntGaugeVec,
    pub(super) refused_keys: IntGaugeVec,
}

impl IdentityMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, MetricError> {
        let outcomes: [_; 2 + Refusal::ALL.len()] = std::array::from_fn(|at| match at {
            CACHED => ["cached"],
            VERIFIED => ["verified"],
            _ => [Refusal::ALL[at - REFUSED].label()],
        });
        let tokens = registry.calls(
            "outrigger_identity_tokens_total",
            "Tokens looked at: found in the cache, verified, or why refused.",
            ["outcome"],
            outcomes,
        )?;
        Ok(Self {
            tokens: tokens.into(),
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

    pub(super) fn cached(&self) {
        self.count(CACHED);
    }

    pub(super) fn verified(&self) {
        self.count(VERIFIED);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.count(REFUSED + refusal as usize);
    }

    fn count(&self, outcome: usize) {
        if let Some(counter) = self.tokens.get(outcome) {
            counter.inc();
        }
    }
}
