//! `kind: cache`: the namespaces and what holds in each.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::Value;

use super::envelope::MAX_CONTENT_TYPE_BYTES;
use crate::config::{Findings, pointer_step};
use crate::names::Name;
use crate::policy::{Policies, Vocabulary};

/// How a namespace's values are kept in Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    /// The body alone, so that other systems can read and write the keys.
    Raw,
    /// The body behind a header with its content type and times.
    #[default]
    Envelope,
}

/// A `cache` policy document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheDocument {
    /// What a tenant may keep in all namespaces together, in bytes: keys, bodies, and about 128 bytes each.
    #[serde(default = "default_tenant_bytes")]
    #[schemars(range(min = 1))]
    pub(super) max_bytes_per_tenant: u64,
    /// By tier, where a tier may keep more or less.
    #[serde(default)]
    pub(super) tiers: BTreeMap<String, TierDocument>,
    /// The namespaces, by name. What is not listed does not exist.
    pub(super) namespaces: BTreeMap<String, NamespaceDocument>,
}

/// What a tier may keep.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TierDocument {
    /// What a tenant of the tier may keep, in bytes.
    #[schemars(range(min = 1))]
    pub(super) max_bytes_per_tenant: u64,
}

/// One namespace.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamespaceDocument {
    /// How values are kept in Redis.
    #[serde(default)]
    pub(super) format: Format,
    /// The content type of every value, with `format: raw`.
    #[serde(default)]
    pub(super) content_type: Option<String>,
    /// The largest value, in bytes.
    #[serde(default = "default_value_bytes")]
    #[schemars(range(min = 1, max = 67_108_864))]
    pub(super) max_value_bytes: usize,
    /// The time to live of a value whose writer names none, in milliseconds.
    #[serde(default = "default_ttl_ms")]
    #[schemars(range(min = 1, max = 2_592_000_000_u64))]
    pub(super) default_ttl_ms: u64,
    /// The longest time to live that a writer may ask for, in milliseconds.
    #[serde(default = "default_max_ttl_ms")]
    #[schemars(range(min = 1, max = 2_592_000_000_u64))]
    pub(super) max_ttl_ms: u64,
    /// With it, on a miss one caller gets a lease to fill, of this many milliseconds; `true` is 10000.
    #[serde(default)]
    pub(super) fill_lease_ms: Option<FillLease>,
    /// How long past its time a value may be given to those who wait for its successor, and to readers
    /// while the store does not answer, in milliseconds.
    #[serde(default)]
    #[schemars(range(max = 86_400_000))]
    pub(super) stale_ms: u64,
    /// The longest time that a process may answer from its memory, in milliseconds; 0 turns that off.
    #[serde(default = "default_l1_ttl_ms")]
    #[schemars(range(max = 86_400_000))]
    pub l1_ttl_ms: u64,
}

/// The length of fill leases.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FillLease {
    /// `true`: 10000 ms. `false`: none.
    Switch(bool),
    /// In milliseconds.
    Ms(#[schemars(range(min = 10, max = 600_000))] u64),
}

impl FillLease {
    fn ms(self) -> Option<u64> {
        match self {
            Self::Switch(on) => on.then_some(10_000),
            Self::Ms(ms) => Some(ms),
        }
    }
}

fn default_tenant_bytes() -> u64 {
    64 * 1024 * 1024
}

fn default_value_bytes() -> usize {
    1024 * 1024
}

fn default_ttl_ms() -> u64 {
    300_000
}

fn default_max_ttl_ms() -> u64 {
    86_400_000
}

fn default_l1_ttl_ms() -> u64 {
    60_000
}

/// A namespace in force.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(super) format: Format,
    /// The content type of a value whose writer named none, and of every raw one.
    pub(super) content_type: HeaderValue,
    pub(super) max_value_bytes: usize,
    pub(super) default_ttl_ms: u64,
    pub(super) max_ttl_ms: u64,
    pub(super) fill_lease_ms: Option<u64>,
    pub(super) stale_ms: u64,
    pub(super) l1_ttl_ms: u64,
}

/// The cache policy in force.
pub(crate) struct CachePolicy {
    max_bytes_per_tenant: u64,
    tiers: BTreeMap<String, u64>,
    namespaces: BTreeMap<Name, Arc<Namespace>>,
}

impl CachePolicy {
    pub(super) fn namespace(&self, name: &Name) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// What a tenant of this tier may keep, in bytes.
    pub(super) fn max_bytes(&self, tier: &str) -> u64 {
        self.tiers.get(tier).copied().unwrap_or(self.max_bytes_per_tenant)
    }
}

/// The most that a tenant of any tier may keep, in bytes.
#[must_use]
pub fn largest_share(policies: &Policies) -> Option<u64> {
    let policy = policies.get::<CachePolicy>()?;
    policy.tiers.values().copied().chain([policy.max_bytes_per_tenant]).max()
}

/// The schema of the policy kind.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    CacheDocument::json_schema(generator)
}

/// Reads a document into the policies.
pub(super) fn load(document: Value, _: &Vocabulary, findings: &mut Findings, policies: &mut Policies) {
    match serde_json::from_value(document) {
        Ok(document) => {
            if let Some(policy) = read(document, findings) {
                policies.insert(Arc::new(policy));
            }
        }
        Err(error) => findings.add("", error.to_string(), "a document that fits the schema of `kind: cache`"),
    }
}

fn read(document: CacheDocument, findings: &mut Findings) -> Option<CachePolicy> {
    let mut namespaces = BTreeMap::new();
    let mut right = true;
    for (name, namespace) in document.namespaces {
        let pointer = format!("/namespaces{}", pointer_step(&name));
        match (Name::parse(&name), read_namespace(&namespace, &pointer, findings)) {
            (Ok(name), Some(namespace)) => {
                namespaces.insert(name, Arc::new(namespace));
            }
            (Err(error), _) => {
                findings.add(pointer, "this is no name", error.to_string());
                right = false;
            }
            (Ok(_), None) => right = false,
        }
    }
    let tiers = document.tiers.into_iter().map(|(name, tier)| (name, tier.max_bytes_per_tenant)).collect();
    right.then_some(CachePolicy { max_bytes_per_tenant: document.max_bytes_per_tenant, tiers, namespaces })
}

fn read_namespace(document: &NamespaceDocument, pointer: &str, findings: &mut Findings) -> Option<Namespace> {
    let before = findings.iter().count();
    if document.max_ttl_ms < document.default_ttl_ms {
        findings.add(
            format!("{pointer}/default_ttl_ms"),
            "the default is above `max_ttl_ms`",
            format!("at most {}", document.max_ttl_ms),
        );
    }
    if document.format == Format::Envelope && document.content_type.is_some() {
        findings.add(
            format!("{pointer}/content_type"),
            "an envelope keeps each value's own content type",
            "leave it out, or `format: raw`",
        );
    }
    if document.format == Format::Raw && document.content_type.is_none() {
        findings.add(
            pointer,
            "a raw namespace needs `content_type`: nothing is kept beside the body",
            "such as `content_type: application/json`",
        );
    }
    let text = document.content_type.as_deref().unwrap_or("application/octet-stream");
    let content_type = HeaderValue::from_str(text)
        .ok()
        .filter(|_| text.contains('/') && text.len() <= MAX_CONTENT_TYPE_BYTES);
    if content_type.is_none() {
        findings.add(
            format!("{pointer}/content_type"),
            "this is no media type",
            "such as `application/json`",
        );
    }
    (findings.iter().count() == before).then_some(())?;
    Some(Namespace {
        format: document.format,
        content_type: content_type?,
        max_value_bytes: document.max_value_bytes,
        default_ttl_ms: document.default_ttl_ms,
        max_ttl_ms: document.max_ttl_ms,
        fill_lease_ms: document.fill_lease_ms.and_then(FillLease::ms),
        stale_ms: document.stale_ms,
        l1_ttl_ms: document.l1_ttl_ms,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn loaded(document: Value) -> (Vec<String>, Policies) {
        let (mut findings, mut policies) = (Findings::default(), Policies::default());
        load(document, &Vocabulary::default(), &mut findings, &mut policies);
        (findings.iter().map(|finding| finding.pointer.clone()).collect(), policies)
    }

    #[test]
    fn what_is_wrong_in_a_namespace_is_named() {
        for (namespace, pointer) in [
            (json!({"format": "raw"}), "/namespaces/n"),
            (json!({"content_type": "a/b"}), "/namespaces/n/content_type"),
            (json!({"format": "raw", "content_type": "json"}), "/namespaces/n/content_type"),
            (json!({"default_ttl_ms": 10, "max_ttl_ms": 9}), "/namespaces/n/default_ttl_ms"),
        ] {
            let (pointers, policies) = loaded(json!({"namespaces": {"n": namespace}}));
            assert_eq!(pointers, [pointer], "{namespace}");
            assert!(policies.get::<CachePolicy>().is_none());
        }
        assert_eq!(loaded(json!({"namespaces": {"N": {}}})).0, ["/namespaces/N"]);
    }

    #[test]
    fn the_shipped_policy_has_what_the_contract_names() {
        let (pointers, policies) = loaded(json!({
            "tiers": {"pro": {"max_bytes_per_tenant": 7}},
            "namespaces": {
                "scoring": {"format": "raw", "content_type": "application/json"},
                "profiles": {"fill_lease_ms": true, "stale_ms": 60000},
            },
        }));
        assert_eq!(pointers, [""; 0]);
        let policy = policies.get::<CachePolicy>().unwrap();
        let namespace = |name: &str| policy.namespace(&Name::parse(name).unwrap()).unwrap();
        assert_eq!(namespace("scoring").format, Format::Raw);
        assert_eq!(namespace("profiles").fill_lease_ms, Some(10_000));
        assert_eq!((policy.max_bytes("pro"), policy.max_bytes("free")), (7, 64 * 1024 * 1024));
    }
}
