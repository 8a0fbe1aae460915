//! `ratelimit:` in `proxy.yaml`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::primitives::BuildError;

/// The section `ratelimit`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateLimitConfig {
    /// Where tokens are counted.
    pub(super) backend: Backend,
    /// With `redis`: the instance, by its name in `redis:`.
    #[serde(default)]
    pub(super) redis: Option<String>,
    /// With `redis`: how long a check may wait for it, in milliseconds, before the limits' `on_backend_failure`
    /// answers.
    #[serde(default = "default_budget_ms")]
    #[schemars(range(min = 1, max = 1000))]
    pub(super) budget_ms: u64,
    /// With `redis`: after this many checks in a row without an answer, no check waits until Redis answers again.
    #[serde(default = "default_breaker_failures")]
    #[schemars(range(min = 1, max = 1000))]
    pub(super) breaker_failures: u32,
    /// With `redis`: how often it is asked whether it answers again, in milliseconds.
    #[serde(default = "default_probe_interval_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub(super) probe_interval_ms: u64,
    /// How many keys of all tenants together are kept in memory: every one with `embedded`, those counted while
    /// Redis does not answer with `redis`. About 250 bytes each.
    #[serde(default = "default_max_keys")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub(super) max_keys: usize,
    /// With `embedded`: how often what was taken is written to `cache.db`, in milliseconds.
    #[serde(default = "default_save_interval_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub(super) save_interval_ms: u64,
}

/// Where tokens are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Backend {
    /// In this process, and written to `cache.db`.
    Embedded,
    /// In a Redis Cluster, for a whole fleet.
    Redis,
}

fn default_budget_ms() -> u64 {
    20
}

fn default_breaker_failures() -> u32 {
    3
}

fn default_probe_interval_ms() -> u64 {
    250
}

fn default_max_keys() -> usize {
    1_000_000
}

fn default_save_interval_ms() -> u64 {
    250
}

impl RateLimitConfig {
    /// Reads a section that fits its schema.
    pub(super) fn read(section: Value) -> Result<Self, BuildError> {
        serde_json::from_value(section)
            .map_err(|error| BuildError::Section { pointer: "", message: error.to_string() })
    }

    /// The Redis instance's name.
    pub(super) fn redis_name(&self) -> Result<&str, BuildError> {
        self.redis.as_deref().ok_or_else(|| BuildError::Section {
            pointer: "/redis",
            message: "`backend: redis` needs `redis:`, the name of an instance".to_owned(),
        })
    }
}

#[cfg(test)]
impl RateLimitConfig {
    /// A section of nothing but its backend.
    pub(super) fn of(backend: &str) -> Self {
        Self::read(serde_json::json!({"backend": backend, "redis": "main"})).unwrap()
    }
}
