//! `limits:` of the events policy: how fast each tenant may publish through one process.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use crate::config::{Findings, pointer_step};
use crate::fairness::gcra::{Quota, QuotaError};
use crate::policy::Permit;

/// A burst has one call at the least: a body of 8 MiB, what 1,000 events have besides, and some.
const MIN_BURST_BYTES: u64 = 10 * 1024 * 1024;

/// How fast each tenant may publish through one sidecar; a fleet's bound is the sum of its sidecars'.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsDocument {
    /// For the tenants of each tier.
    pub tiers: TiersDocument,
    /// For tenants that have it their own way, by UUID in lower case; instead of their tier's.
    #[serde(default)]
    pub tenants: BTreeMap<String, RateDocument>,
}

/// A rate for each tier. A tier that is not given here, or that no one knows, gets that of `free`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PublishTiersDocument")]
pub struct TiersDocument {
    /// Tenants without a tier claim, too.
    pub free: RateDocument,
    /// Tier `pro`.
    #[serde(default)]
    pub pro: Option<RateDocument>,
    /// Tier `enterprise`.
    #[serde(default)]
    pub enterprise: Option<RateDocument>,
}

/// Events and bytes: both hold.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateDocument {
    /// The sustained rate: this many events in a second, duplicates among them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub events_per_second: u64,
    /// And so many bytes: attributes, data and key of each, and 256 besides.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub bytes_per_second: u64,
    /// What a pause saves up, in seconds of both rates. It has a topic's `max_batch`, and 10 MiB.
    #[serde(default = "default_burst_seconds")]
    #[schemars(range(min = 1, max = 60))]
    pub burst_seconds: u64,
}

fn default_burst_seconds() -> u64 {
    10
}

/// The limits in force.
#[derive(Debug)]
pub(super) struct Limits {
    free: Arc<Rate>,
    pro: Arc<Rate>,
    enterprise: Arc<Rate>,
    tenants: HashMap<Uuid, Arc<Rate>>,
}

/// How fast a tenant may publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) events_per_second: u64,
    pub(super) bytes_per_second: u64,
    pub(super) events: Quota,
    pub(super) bytes: Quota,
}

impl Limits {
    /// Those of a document that fits its schema, for topics of which one takes so many events a call; says what is wrong beyond
    /// the schema. None where a rate is.
    pub(super) fn new(document: &LimitsDocument, max_batch: u64, findings: &mut Findings) -> Option<Self> {
        let tiers = &document.tiers;
        let mut tier = |name: &str, of: &RateDocument| {
            Rate::read(of, max_batch, &format!("/limits/tiers/{name}"), findings)
        };
        let free = tier("free", &tiers.free);
        let pro = tiers.pro.as_ref().map(|of| tier("pro", of));
        let enterprise = tiers.enterprise.as_ref().map(|of| tier("enterprise", of));
        let mut tenants = HashMap::new();
        for (text, of) in &document.tenants {
            let pointer = format!("/limits/tenants{}", pointer_step(text));
            let rate = Rate::read(of, max_batch, &pointer, findings);
            match Uuid::try_parse(text).ok().filter(|uuid| uuid.hyphenated().to_string() == *text) {
                Some(tenant) => tenants.extend(rate.map(|rate| (tenant, rate))),
                None => findings.add(
                    pointer,
                    "this is not a tenant",
                    "a UUID with hyphens, in lower case, such as 0190c7a8-3c5e-7f00-8000-0000000000a1",
                ),
            }
        }
        let free = free?;
        let pro = pro.unwrap_or_else(|| Some(Arc::clone(&free)))?;
        let enterprise = enterprise.unwrap_or_else(|| Some(Arc::clone(&free)))?;
        Some(Self { free, pro, enterprise, tenants })
    }

    /// What holds for the permit's tenant: its own, else its tier's.
    pub(super) fn of(&self, permit: &Permit) -> &Arc<Rate> {
        self.tenants.get(permit.tenant().as_uuid()).unwrap_or(match permit.tier() {
            "pro" => &self.pro,
            "enterprise" => &self.enterprise,
            _ => &self.free,
        })
    }
}

impl Rate {
    /// As a document has it, where one call fits.
    fn read(of: &RateDocument, max_batch: u64, pointer: &str, findings: &mut Findings) -> Option<Arc<Self>> {
        let (events, bytes) =
            (of.events_per_second * of.burst_seconds, of.bytes_per_second * of.burst_seconds);
        if events < max_batch {
            let message = format!("a burst of {events} events has no room for a call of {max_batch}");
            let expected = format!(
                "`events_per_second` x `burst_seconds` of {max_batch} at least, the topics' `max_batch`"
            );
            findings.add(pointer, message, expected);
        }
        if bytes < MIN_BURST_BYTES {
            let message = format!("a burst of {bytes} bytes has no room for the largest call");
            let expected =
                format!("`bytes_per_second` x `burst_seconds` of {MIN_BURST_BYTES} (10 MiB) at least");
            findings.add(pointer, message, expected);
        }
        let rate = Self::new(of.events_per_second, of.bytes_per_second, of.burst_seconds);
        if rate.is_err() {
            let message = "this burst takes too long to fill to be counted exactly";
            findings.add(pointer, message, "smaller `burst_seconds`, or rates with more zeros at their ends");
        }
        rate.ok().map(Arc::new)
    }

    pub(super) fn new(
        events_per_second: u64,
        bytes_per_second: u64,
        burst_seconds: u64,
    ) -> Result<Self, QuotaError> {
        let quota = |per_second: u64| Quota::new(per_second, 1000, per_second.saturating_mul(burst_seconds));
        Ok(Self {
            events_per_second,
            bytes_per_second,
            events: quota(events_per_second)?,
            bytes: quota(bytes_per_second)?,
        })
    }
}
