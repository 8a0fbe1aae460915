//! `postgres:` in `proxy.yaml`: the database of `store: postgres`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretSource;

/// A PostgreSQL 15 database, or a later one.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Its servers, `host:port`: the one that takes writes is used, so that a promoted standby is found.
    #[schemars(length(min = 1, max = 16))]
    pub servers: Vec<String>,
    /// The database's name.
    pub database: String,
    /// TLS 1.3 with the server's name verified. Without it only a server on loopback is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PostgresTls>,
    /// Who carries tenants' calls: owns nothing, NOBYPASSRLS.
    pub app: PostgresRole,
    /// Who owns the database; `outrigger migrate` runs as it, and nothing else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PostgresRole>,
    /// Who relays the log of every tenant to Kafka; for processes of the role `relay` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<PostgresRole>,
    /// Transactions at once; more wait.
    #[serde(default = "default_connections")]
    #[schemars(range(min = 1, max = 256))]
    pub connections: usize,
    /// Of those one tenant's at the most, fewer beside others that have many; more of it wait for its own. Without it half of
    /// `connections`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub tenant_connections: Option<usize>,
    /// How long an unused connection is kept, in milliseconds.
    #[serde(default = "default_idle_ms")]
    #[schemars(range(min = 100, max = 3_600_000))]
    pub idle_ms: u64,
    /// How long a connection may take to be made, in milliseconds.
    #[serde(default = "default_connect_timeout_ms")]
    #[schemars(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// How long a transaction may wait for a connection, in milliseconds.
    #[serde(default = "default_wait_ms")]
    #[schemars(range(min = 1, max = 60_000))]
    pub wait_ms: u64,
    /// Whether statements are prepared once a connection, which saves planning them each time. Not through a pooler that
    /// gives each transaction another connection, unless it keeps track of them (PgBouncer from 1.21 on).
    #[serde(default)]
    pub prepared: bool,
    /// Whether this process is not ready without it.
    #[serde(default)]
    pub required: bool,
}

/// A database role, and its password.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresRole {
    /// Its name.
    pub user: String,
    /// Its password; read at each connection, so that a rotated one is taken.
    pub password: SecretSource,
}

/// TLS to PostgreSQL.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresTls {
    /// The certificate authority, PEM; without it the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

fn default_connections() -> usize {
    8
}

fn default_idle_ms() -> u64 {
    60_000
}

fn default_connect_timeout_ms() -> u64 {
    2000
}

fn default_wait_ms() -> u64 {
    1000
}

impl PostgresConfig {
    /// Connections of one tenant at the most.
    #[must_use]
    pub fn share(&self) -> usize {
        self.tenant_connections.unwrap_or(self.connections / 2).max(1)
    }

    /// Every role that is configured.
    pub fn roles(&self) -> impl Iterator<Item = &PostgresRole> {
        [Some(&self.app), self.owner.as_ref(), self.relay.as_ref()].into_iter().flatten()
    }

    /// Takes relative files as relative to `base`.
    pub(super) fn resolve(&mut self, base: &Path) {
        for role in [Some(&mut self.app), self.owner.as_mut(), self.relay.as_mut()].into_iter().flatten() {
            role.password.resolve(base);
        }
        if let Some(file) = self.tls.as_mut().and_then(|tls| tls.ca_file.as_mut()) {
            *file = base.join(&*file);
        }
    }
}
