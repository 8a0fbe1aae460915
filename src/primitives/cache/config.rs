//! `cache:` in `proxy.yaml`.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

/// Where cached values are kept.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheConfig {
    /// The technology.
    pub(super) backend: Backend,
    /// The Redis instance, by its name under `redis:`; with `backend: redis`.
    #[serde(default)]
    pub(super) redis: Option<String>,
    /// What this process keeps in memory in front of the backend, in bytes, over all tenants.
    #[serde(default = "default_l1_bytes")]
    #[schemars(range(min = 65_536, max = 17_179_869_184_u64))]
    pub(super) l1_bytes: u64,
    /// How long one call may wait for the backend, in milliseconds; then it is 503.
    #[serde(default = "default_budget_ms")]
    #[schemars(range(min = 1, max = 60_000))]
    pub(super) budget_ms: u64,
}

/// Where cached values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Backend {
    /// `cache.db` in the data directory, for one process.
    Embedded,
    /// A Redis Cluster, for a fleet.
    Redis,
}

fn default_l1_bytes() -> u64 {
    32 * 1024 * 1024
}

fn default_budget_ms() -> u64 {
    250
}

/// The schema of the section.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    CacheConfig::json_schema(generator)
}
