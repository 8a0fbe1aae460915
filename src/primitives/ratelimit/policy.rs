//! The policy kind `ratelimits`: which limits there are, and whose are how large.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderValue;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::config::{Findings, pointer_step};
use crate::fairness::gcra::{Quota, greatest_common_divisor};
use crate::names::Name;
use crate::policy::{Permit, Policies, Vocabulary};
use crate::primitives::tiers::{Tiers, TiersDocument};

/// A policy document of the kind `ratelimits`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitsDocument {
    /// How many keys of its limits a tenant may have in use at once. Keys beyond it share one bucket a limit.
    #[serde(default = "default_max_keys_per_tenant")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_keys_per_tenant: usize,
    /// The limits, by name.
    #[serde(default)]
    pub limits: BTreeMap<String, LimitDocument>,
}

/// One limit.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitDocument {
    /// How large it is for the tenants of each tier.
    pub tiers: TiersDocument<QuotaDocument>,
    /// How large it is for tenants that have it their own way, by UUID in lower case; instead of their tier's.
    #[serde(default)]
    pub tenants: BTreeMap<String, QuotaDocument>,
    /// How large it is for some keys, whosever; the first pattern that fits counts, before tenant and tier.
    #[serde(default)]
    pub keys: Vec<KeyRuleDocument>,
    /// What is answered while Redis does not answer.
    #[serde(default)]
    pub on_backend_failure: OnBackendFailure,
    /// With `local`: the percentage of the limit that each sidecar grants on its own meanwhile.
    #[serde(default = "default_local_share_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub local_share_percent: u64,
}

/// `requests` in each `per_ms` milliseconds, `burst` at once.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaDocument {
    /// The sustained rate: this many.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u64,
    /// In this time, in milliseconds: 60000 is a minute, 31 days the longest.
    #[schemars(range(min = 1, max = 2_678_400_000_u64))]
    pub per_ms: u64,
    /// How many at once after a pause, and the largest cost of one check.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: u64,
}

/// A quota for the keys that fit a pattern.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRuleDocument {
    /// The key, or a pattern in which each `*` stands for any text.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The quota of each key that fits.
    pub quota: QuotaDocument,
}

/// What is answered, `degraded`, while Redis does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBackendFailure {
    /// Each sidecar counts by itself, with a share of the limit.
    #[default]
    Local,
    /// Everything passes.
    Open,
    /// Nothing passes.
    Closed,
}

fn default_max_keys_per_tenant() -> usize {
    10_000
}

fn default_local_share_percent() -> u64 {
    25
}

/// The limits in force.
#[derive(Debug)]
pub struct RateLimits {
    max_keys_per_tenant: usize,
    limits: HashMap<Box<str>, Limit>,
}

/// One limit in force.
#[derive(Debug)]
pub struct Limit {
    name: Name,
    tiers: Tiers<Rule>,
    keys: Vec<(Box<str>, Arc<Rule>)>,
}

/// What holds for one bucket.
#[derive(Debug)]
pub struct Rule {
    /// The limit's name.
    pub limit: Name,
    /// The key pattern it comes from; empty where it is the tenant's or the tier's.
    pub pattern: Box<str>,
    /// How large.
    pub quota: Quota,
    /// How large while Redis does not answer and each sidecar counts by itself.
    pub local: Quota,
    /// What is answered while Redis does not answer.
    pub on_backend_failure: OnBackendFailure,
    /// Its item of the `RateLimit-Policy` header.
    pub header: HeaderValue,
}

impl RateLimits {
    /// How many keys a tenant may have in use at once.
    #[must_use]
    pub fn max_keys_per_tenant(&self) -> usize {
        self.max_keys_per_tenant
    }

    /// The limit of this name.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<&Limit> {
        self.limits.get(name)
    }

    /// Reads a document that fits its schema; says what is wrong beyond it.
    #[must_use]
    pub fn new(document: &RateLimitsDocument, findings: &mut Findings) -> Self {
        let mut limits = HashMap::new();
        for (text, limit) in &document.limits {
            let pointer = format!("/limits{}", pointer_step(text));
            match Name::parse(text) {
                Ok(name) => {
                    if let Some(limit) = Limit::new(name, limit, &pointer, findings) {
                        limits.insert(Box::from(text.as_str()), limit);
                    }
                }
                Err(error) => findings.add(pointer, "this is not a limit's name", error.to_string()),
            }
        }
        Self { max_keys_per_tenant: document.max_keys_per_tenant, limits }
    }
}

/// The registry row's `load`.
pub(super) fn load(document: Value, _: &Vocabulary, findings: &mut Findings, policies: &mut Policies) {
    match serde_json::from_value::<RateLimitsDocument>(document) {
        Ok(document) => {
            let limits = RateLimits::new(&document, findings);
            if findings.is_empty() {
                policies.insert(Arc::new(limits));
            }
        }
        Err(error) => findings.add("", error.to_string(), "a document that fits docs/schemas/policy.json"),
    }
}

impl Limit {
    fn new(name: Name, document: &LimitDocument, pointer: &str, findings: &mut Findings) -> Option<Self> {
        let rule = |pattern: &str, quota: &QuotaDocument, pointer: &str, findings: &mut Findings| {
            let rule = Rule::new(&name, pattern, quota, document);
            if rule.is_none() {
                findings.add(
                    pointer,
                    "this burst takes too long to fill to be counted exactly",
                    "a smaller `burst` or `per_ms`, or `requests` that divide `per_ms` without a remainder",
                );
            }
            rule
        };
        let keys = document.keys.iter().enumerate().filter_map(|(at, key)| {
            let pointer = format!("{pointer}/keys/{at}/quota");
            let rule = rule(&key.key, &key.quota, &pointer, findings)?;
            Some((Box::from(key.key.as_str()), Arc::new(rule)))
        });
        let keys = keys.collect();
        let read = |quota: &QuotaDocument, pointer: &str, findings: &mut Findings| {
            rule("", quota, pointer, findings)
        };
        let tiers = Tiers::read(&document.tiers, &document.tenants, pointer, findings, read)?;
        Some(Self { name, tiers, keys })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What holds for `key` of the permit's tenant: the first key pattern that fits, else the tenant's own
    /// quota, else that of its tier. An unknown tier is `free`, the smallest.
    #[must_use]
    pub fn rule(&self, permit: &Permit, key: &str) -> &Arc<Rule> {
        self.rule_of(permit.tenant().as_uuid(), permit.tier(), key)
    }

    pub(super) fn rule_of(&self, tenant: &Uuid, tier: &str, key: &str) -> &Arc<Rule> {
        if let Some((_, rule)) = self.keys.iter().find(|(pattern, _)| fits(pattern, key)) {
            return rule;
        }
        self.tiers.of_tenant(tenant, tier)
    }
}

impl Rule {
    fn new(limit: &Name, pattern: &str, quota: &QuotaDocument, document: &LimitDocument) -> Option<Self> {
        let counted = Quota::new(quota.requests, quota.per_ms, quota.burst).ok()?;
        // `w` is whole seconds: the window that is some of them, with as many more requests, is the same rate.
        let factor = 1000 / greatest_common_divisor(u128::from(quota.per_ms), 1000);
        let (requests, seconds) =
            (u128::from(quota.requests) * factor, u128::from(quota.per_ms) * factor / 1000);
        Some(Self {
            limit: limit.clone(),
            pattern: Box::from(pattern),
            local: counted.share(document.local_share_percent).ok()?,
            quota: counted,
            on_backend_failure: document.on_backend_failure,
            header: HeaderValue::from_str(&format!("\"{limit}\";q={requests};w={seconds}")).ok()?,
        })
    }
}

/// Whether `key` fits `pattern`, in which each `*` stands for any text. Linear but for the last `*`'s retries.
fn fits(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| key.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(document: Value) -> (RateLimits, Findings) {
        let mut findings = Findings::default();
        let document: RateLimitsDocument = serde_json::from_value(document).unwrap();
        let limits = RateLimits::new(&document, &mut findings);
        (limits, findings)
    }

    const TENANT: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";

    #[test]
    fn the_most_particular_quota_counts() {
        let quota = |burst: u64| json!({"requests": 60, "per_ms": 60_000, "burst": burst});
        let (limits, findings) = read(json!({"limits": {"api": {
            "tiers": {"free": quota(1), "enterprise": quota(3)},
            "tenants": {TENANT: quota(4)},
            "keys": [{"key": "/export/*/full", "quota": quota(5)}, {"key": "/export/*", "quota": quota(6)}],
        }}}));
        assert!(findings.is_empty(), "{findings:?}");
        let limit = limits.limit("api").unwrap();
        let (own, other) = (Uuid::try_parse(TENANT).unwrap(), Uuid::nil());
        for (tenant, tier, key, burst) in [
            (other, "free", "/leads", 1),
            (other, "pro", "/leads", 1),
            (other, "no such tier", "/leads", 1),
            (other, "enterprise", "/leads", 3),
            (own, "enterprise", "/leads", 4),
            (own, "free", "/export/a/full", 5),
            (other, "free", "/export/a", 6),
        ] {
            let rule = limit.rule_of(&tenant, tier, key);
            assert_eq!(rule.quota.burst(), burst, "{tier} {key}");
        }
    }

    #[test]
    fn everything_wrong_is_found_with_its_place() {
        let bad = json!({"requests": 999_999_937, "per_ms": 86_400_000, "burst": 1_000_000});
        let good = json!({"requests": 1, "per_ms": 1, "burst": 1});
        let (_, findings) = read(json!({"limits": {
            "Api": {"tiers": {"free": good}},
            "login": {"tiers": {"free": good, "pro": bad}, "keys": [{"key": "*", "quota": bad}],
                "tenants": {"ACME": good}},
        }}));
        let mut places: Vec<_> = findings.iter().map(|finding| finding.pointer.as_str()).collect();
        places.sort_unstable();
        assert_eq!(
            places,
            [
                "/limits/Api",
                "/limits/login/keys/0/quota",
                "/limits/login/tenants/ACME",
                "/limits/login/tiers/pro"
            ]
        );
    }

    #[test]
    fn the_header_s_window_is_whole_seconds_of_the_same_rate() {
        for (requests, per_ms, header) in [
            (100, 60_000, "\"api\";q=100;w=60"),
            (10, 100, "\"api\";q=100;w=1"),
            (3, 1500, "\"api\";q=6;w=3"),
        ] {
            let quota = json!({"requests": requests, "per_ms": per_ms, "burst": 1});
            let (limits, _) = read(json!({"limits": {"api": {"tiers": {"free": quota}}}}));
            let rule = limits.limit("api").unwrap().rule_of(&Uuid::nil(), "free", "k");
            assert_eq!(rule.header, header);
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, key, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("/é*", "/é/1", true),
        ] {
            assert_eq!(fits(pattern, key), expected, "{pattern} {key}");
        }
    }
}
