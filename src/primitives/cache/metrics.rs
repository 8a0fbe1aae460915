//! What the cache counts. Labels are closed lists; children are made once.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::Tier;
use crate::telemetry::{Counter, MetricError, Registry};

/// The cache's metrics.
#[derive(Clone)]
pub(super) struct CacheMetrics {
    l1_hits: Counter,
    l2_hits: Counter,
    stale_hits: Counter,
    pub(super) misses: Counter,
    pub(super) lookups_failed: Counter,
    pub(super) writes_stored: IntCounter,
    pub(super) writes_refused: IntCounter,
    pub(super) writes_failed: IntCounter,
    pub(super) leases_granted: IntCounter,
    pub(super) leases_held: IntCounter,
    pub(super) leases_filled: IntCounter,
    pub(super) leases_void: IntCounter,
    pub(super) leases_returned: IntCounter,
    pub(super) deletes: IntCounter,
    pub(super) invalidations: IntCounter,
    pub(super) tracking_flushes: IntCounter,
    pub(super) l1_evictions: IntCounter,
    pub(super) l1_bytes: IntGauge,
}

impl CacheMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let labelled = |name: &str, help: &str| registry.counters(name, help, &["outcome"]);
        let lookups = registry.calls(
            "outrigger_cache_lookups_total",
            "Reads, by where the value came from.",
            ["outcome"],
            [["l1"], ["l2"], ["stale"], ["miss"], ["failed"]],
        )?;
        let [l1_hits, l2_hits, stale_hits, misses, lookups_failed] = lookups;
        let writes = labelled("outrigger_cache_writes_total", "Writes, by how they ended.")?;
        let leases = labelled("outrigger_cache_leases_total", "Fill leases, by what became of them.")?;
        let child = |family: &IntCounterVec, outcome: &str| family.with_label_values(&[outcome]);
        Ok(Self {
            l1_hits,
            l2_hits,
            stale_hits,
            misses,
            lookups_failed,
            writes_stored: child(&writes, "stored"),
            writes_refused: child(&writes, "refused"),
            writes_failed: child(&writes, "failed"),
            leases_granted: child(&leases, "granted"),
            leases_held: child(&leases, "held"),
            leases_filled: child(&leases, "filled"),
            leases_void: child(&leases, "void"),
            leases_returned: child(&leases, "returned"),
            deletes: registry.counter("outrigger_cache_deletes_total", "Entries that callers deleted.")?,
            invalidations: registry
                .counter("outrigger_cache_invalidations_total", "Namespaces and versions invalidated.")?,
            tracking_flushes: registry.counter(
                "outrigger_cache_tracking_flushes_total",
                "Times that all of L1 was dropped because changes may have been missed.",
            )?,
            l1_evictions: registry
                .counter("outrigger_cache_l1_evictions_total", "Values that left L1 for want of room.")?,
            l1_bytes: registry.gauge("outrigger_cache_l1_bytes", "Bytes of keys and values in L1.")?,
        })
    }

    pub(super) fn hit(&self, tier: Tier) {
        match tier {
            Tier::L1 => self.l1_hits.inc(),
            Tier::L2 => self.l2_hits.inc(),
            Tier::Stale => self.stale_hits.inc(),
        }
    }
}
