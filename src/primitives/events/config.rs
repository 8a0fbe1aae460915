//! `events:` in `proxy.yaml`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::primitives::BuildError;

/// How events are kept and read. Topics are in `policies/events.yaml`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsConfig {
    /// For how many days events are kept. On PostgreSQL `outrigger migrate` puts a change into force.
    #[serde(default = "default_retention_days")]
    #[schemars(range(min = 1, max = 3650))]
    pub(super) retention_days: u32,
    /// In how many parts relays share the log; each is a transaction of its own in Kafka. It stays as it is while there is
    /// something to relay.
    #[serde(default = "default_relay_shards")]
    #[schemars(range(min = 1, max = 64))]
    pub(super) relay_shards: u16,
    /// How long a stream that follows a topic is silent at the most, in milliseconds; then it gets a heartbeat.
    #[serde(default = "default_heartbeat_ms")]
    #[schemars(range(min = 100, max = 600_000))]
    pub(super) heartbeat_ms: u64,
    /// Pulls of one tenant, or of one service, that wait at once; more are refused. Those of one group look in turn, and those of
    /// as many groups look once a second each.
    #[serde(default = "default_tenant_pulls")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) tenant_pulls: usize,
}

fn default_retention_days() -> u32 {
    7
}

fn default_relay_shards() -> u16 {
    4
}

fn default_heartbeat_ms() -> u64 {
    15_000
}

fn default_tenant_pulls() -> usize {
    256
}

impl EventsConfig {
    /// Reads a section that fits its schema.
    pub(super) fn read(section: Value) -> Result<Self, BuildError> {
        serde_json::from_value(section)
            .map_err(|error| BuildError::Section { pointer: "", message: error.to_string() })
    }
}
