//! `usage:` in `proxy.yaml`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::primitives::BuildError;

/// How usage is kept. Metrics are in `policies/usage.yaml`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageConfig {
    /// For how many days each record is kept, beside the sums, which stay. On PostgreSQL `outrigger migrate` puts a change into
    /// force.
    #[serde(default = "default_retention_days")]
    #[schemars(range(min = 100, max = 36_500))]
    pub(super) retention_days: u32,
    /// What records that are accepted with `ack: spool` and not counted yet may have of this machine's disk, in bytes; under
    /// `data_dir`.
    #[serde(default = "default_spool_max_bytes")]
    #[schemars(range(min = 67_108_864, max = 1_099_511_627_776_u64))]
    pub(super) spool_max_bytes: u64,
}

fn default_spool_max_bytes() -> u64 {
    1024 * 1024 * 1024
}

fn default_retention_days() -> u32 {
    400
}

impl UsageConfig {
    /// Reads a section that fits its schema.
    pub(super) fn read(section: Value) -> Result<Self, BuildError> {
        serde_json::from_value(section)
            .map_err(|error| BuildError::Section { pointer: "", message: error.to_string() })
    }
}
