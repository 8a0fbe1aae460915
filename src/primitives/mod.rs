//! The primitives: one folder each, one row each in [`ALL`].

pub mod cache;
pub mod events;
mod housekeeping;
pub mod ratelimit;
mod store_answer;
pub mod tiers;
pub mod usage;
pub mod write_rates;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

use crate::config::{Role, Section};
use crate::http::Route;
use crate::policy::{Action, Kind, PolicySource};
use crate::pools::kafka::Kafka;
use crate::pools::redis::RedisPool;
use crate::store::Store;
use crate::store::sqlite::Sqlite;
use crate::tasks::Tasks;
use crate::telemetry::{HealthBoard, MetricError, Registry};

/// A primitive as the composition root sees it.
pub struct Primitive {
    /// Its name: its section of `proxy.yaml`, the `primitive` label, the first part of its actions.
    pub name: &'static str,
    /// Every action that access rules can allow.
    pub actions: &'static [Action],
    /// The schema of its section of `proxy.yaml`.
    pub config_schema: fn(&mut SchemaGenerator) -> Schema,
    /// Its kind of policy document.
    pub policy: Kind,
    /// Its tables in `cache.db`, where its embedded backend has some.
    pub migrations: &'static [&'static str],
    /// What its keys in Redis begin with.
    pub redis_families: &'static [&'static str],
    /// Whether Redis must not evict what it keeps there (`maxmemory-policy noeviction`).
    pub must_not_be_evicted: bool,
    /// Whether it keeps what it has in the store that transactional primitives share.
    pub needs_store: bool,
    /// Makes its backend from its section, which fits the schema, and returns its routes. It does not
    /// wait for a backend: what is down recovers by itself.
    pub build: fn(section: Value, resources: &Resources) -> Result<Vec<Route>, BuildError>,
}

/// Every primitive there is.
pub const ALL: &[&Primitive] =
    &[&ratelimit::PRIMITIVE, &cache::PRIMITIVE, &events::PRIMITIVE, &usage::PRIMITIVE];

/// The sections of `proxy.yaml` that primitives bring.
#[must_use]
pub fn sections() -> Vec<Section> {
    ALL.iter()
        .map(|row| Section { name: row.name, schema: row.config_schema, needs_store: row.needs_store })
        .collect()
}

/// What a primitive is built from.
pub struct Resources {
    /// The named Redis instances.
    pub redis: BTreeMap<String, Arc<RedisPool>>,
    /// `cache.db`, where a data directory is configured.
    pub cache_db: Option<Arc<Sqlite>>,
    /// The data directory, where one is configured.
    pub data_dir: Option<PathBuf>,
    /// The store that transactional primitives share, where one is chosen.
    pub store: Option<Store>,
    /// What relays need, where this process is one.
    pub relay: Option<RelayParts>,
    /// The policies in force, for work that no call asks for.
    pub policies: PolicySource,
    /// What this process does.
    pub roles: Vec<Role>,
    /// Where its metrics go.
    pub metrics: Registry,
    /// Where it says how its backend is, if no pool does.
    pub health: HealthBoard,
    /// Where its background tasks run.
    pub tasks: Tasks,
}

/// What a process of the role `relay` has beside the store.
#[derive(Clone)]
pub struct RelayParts {
    /// The store, as the narrow role that reads everyone's log.
    pub log: Store,
    /// Where it goes.
    pub kafka: Arc<Kafka>,
}

/// Why a primitive cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The section names something that is not configured.
    #[error("{pointer}: {message}")]
    Section {
        /// RFC 6901 pointer within the section.
        pointer: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A metric cannot be registered.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// The folder of what is accepted to disk cannot be used.
    #[error("{}: {reason}", directory.display())]
    Spool {
        /// Which.
        directory: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The embedded database cannot be used.
    #[error("cache.db: {0}")]
    Store(String),
}

impl Resources {
    /// The Redis instance that a section names.
    pub fn redis(&self, name: &str) -> Result<Arc<RedisPool>, BuildError> {
        self.redis.get(name).cloned().ok_or_else(|| BuildError::Section {
            pointer: "/redis",
            message: format!(
                "no Redis instance is called `{name}`; `redis:` has {}",
                self.redis.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
            ),
        })
    }

    /// The embedded database.
    pub fn cache_db(&self) -> Result<Arc<Sqlite>, BuildError> {
        self.cache_db.clone().ok_or_else(|| BuildError::Section {
            pointer: "/backend",
            message: "the embedded backend needs `data_dir`".to_owned(),
        })
    }

    /// The store.
    pub fn store(&self) -> Result<Store, BuildError> {
        self.store.clone().ok_or_else(|| BuildError::Section {
            pointer: "",
            message: "this needs `store: embedded` or `store: postgres` at the top of the file".to_owned(),
        })
    }
}
