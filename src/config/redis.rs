//! `redis:` in `proxy.yaml`: named Redis Clusters.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretSource;

/// A Redis 7 Cluster.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisInstance {
    /// Some of its nodes, `host:port`; the others are learnt from them.
    #[schemars(length(min = 1, max = 64))]
    pub nodes: Vec<String>,
    /// The ACL user; without it the default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Its password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretSource>,
    /// With it, connections are TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// Multiplexed connections to each node.
    #[serde(default = "default_connections")]
    #[schemars(range(min = 1, max = 16))]
    pub connections: usize,
    /// How long a connection may take to be made, in milliseconds.
    #[serde(default = "default_connect_timeout_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// How long a command may take that sets itself no tighter bound, in milliseconds.
    #[serde(default = "default_command_timeout_ms")]
    #[schemars(range(min = 1, max = 60_000))]
    pub command_timeout_ms: u64,
    /// Whether this process is not ready without it.
    #[serde(default)]
    pub required: bool,
}

/// TLS to a Redis Cluster.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisTls {
    /// The certificate authority, PEM; without it the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

fn default_connections() -> usize {
    2
}

fn default_connect_timeout_ms() -> u64 {
    1000
}

fn default_command_timeout_ms() -> u64 {
    1000
}

impl RedisInstance {
    pub(super) fn resolve(&mut self, base: &Path) {
        if let Some(password) = &mut self.password {
            password.resolve(base);
        }
        if let Some(file) = self.tls.as_mut().and_then(|tls| tls.ca_file.as_mut()) {
            *file = base.join(&*file);
        }
    }
}
