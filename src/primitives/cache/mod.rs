//! `cache`: values by tenant, namespace, key and version, in memory (L1) in front of a store (L2).
//!
//! What it promises, whatever the store ([`conformance`] is the same in code):
//! - a value that was acknowledged is read by everyone until it expires, is overwritten, deleted,
//!   invalidated or evicted; a miss is always possible, another tenant's value never;
//! - a condition on the current value and the write that depends on it are one step;
//! - after a DELETE or an invalidation this process serves the old value no more, and no process does
//!   100 ms later with its connection healthy, 3 s later in any case;
//! - while a fill lease is held nobody else gets one for that key.

mod api;
mod config;
#[cfg(test)]
mod conformance;
mod embedded;
pub mod envelope;
mod etag;
mod generation;
mod key;
mod l1;
mod lease;
mod metrics;
mod pending;
mod policy;
mod redis;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;

use self::etag::{Conditions, Etag};
use self::generation::Generation;
use self::key::{Address, Scope};
use self::lease::{LeaseToken, Waiters};
use self::policy::Namespace;
pub use self::policy::largest_share;
use crate::error::ErrorKind;
use crate::http::Route;
use crate::policy::{Action, Kind};
use crate::primitives::{BuildError, Primitive, Resources};
use crate::store::sqlite::{Full, SqliteError};

/// The registry row.
pub const PRIMITIVE: Primitive = Primitive {
    name: "cache",
    actions: ACTIONS,
    config_schema: config::schema,
    policy: Kind { name: "cache", schema: policy::schema, load: policy::load },
    redis_families: &["cache:", "outrigger:"],
    must_not_be_evicted: false,
    migrations: embedded::MIGRATIONS,
    needs_store: false,
    build,
};

/// Reads a value.
pub const READ: Action = Action::new("cache", "read");
/// Writes a value.
pub const WRITE: Action = Action::new("cache", "write");
/// Deletes a value, or gives up a fill lease.
pub const DELETE: Action = Action::new("cache", "delete");
/// Invalidates all of a tenant's values in a namespace.
pub const INVALIDATE: Action = Action::new("cache", "invalidate");

/// Every action.
pub const ACTIONS: &[Action] = &[READ, WRITE, DELETE, INVALIDATE];

/// What an entry costs a tenant beside its key, content type and body, in bytes.
const ENTRY_BYTES: u64 = 128;

/// Why a call on the cache has no other answer. The text is for the client.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A condition does not hold for the current value.
    #[error("the current value is not the one that `If-Match` or `If-None-Match` asks for")]
    PreconditionFailed,
    /// The fill lease is not held any more.
    #[error(
        "this fill lease is void: it ran out, or a DELETE, another write or an invalidation came between"
    )]
    LeaseVoid,
    /// The tenant has no room left.
    #[error(
        "with this value the tenant would keep more than {max_bytes} bytes; deleting values, or their expiry, makes room"
    )]
    TenantFull {
        /// What the tenant may keep.
        max_bytes: u64,
    },
    /// The store has no room for it; nothing was done.
    #[error("{}", match .0 {
        Full::Disk => "the disk under the cache is full: nothing is stored until it has room again; reads and deletes go on, and values that end or are deleted make room",
        Full::Database | Full::Share => "the cache's store has reached `limits.cache_db_bytes`: values that end or are deleted make room",
    })]
    Full(Full),
    /// The store does not answer; nothing was done.
    #[error("the cache's store does not answer: treat a read as a miss; a write was not stored")]
    Unavailable,
    /// The store did not say whether it was done.
    #[error("the cache's store did not say whether this was done: doing it again is safe")]
    Unknown,
    /// This process has too much to do.
    #[error("too many calls wait for the cache's store")]
    Overloaded,
}

impl CacheError {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PreconditionFailed => ErrorKind::PreconditionFailed,
            Self::LeaseVoid => ErrorKind::Conflict,
            Self::TenantFull { .. } => ErrorKind::TooLarge,
            Self::Full(_) | Self::Unavailable => ErrorKind::BackendUnavailable,
            Self::Unknown => ErrorKind::OutcomeUnknown,
            Self::Overloaded => ErrorKind::Overloaded,
        }
    }
}

impl From<SqliteError> for CacheError {
    fn from(error: SqliteError) -> Self {
        if let Some(full) = error.full() {
            return Self::Full(full);
        }
        match error {
            SqliteError::Overloaded | SqliteError::ShareTaken => Self::Overloaded,
            SqliteError::Full(_) | SqliteError::Gone | SqliteError::Sqlite(_) | SqliteError::Waited => {
                tracing::warn!(%error, "the cache's store refused a job");
                Self::Unavailable
            }
        }
    }
}

/// Where a value came from: the `Outrigger-Cache` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// This process's memory.
    L1,
    /// The store.
    L2,
    /// Either, past its time.
    Stale,
}

/// A value as it was read.
#[derive(Debug)]
pub(crate) struct Stored {
    body: Bytes,
    content_type: HeaderValue,
    etag: Etag,
    /// As its header, made once.
    etag_header: HeaderValue,
    /// When it was written, in milliseconds since the epoch.
    written_at_ms: u64,
    /// From when on it is no longer fresh.
    expires_at_ms: u64,
    /// From when on L1 does not serve it.
    l1_until_ms: u64,
    /// The generation under which it was valid.
    generation: Arc<Generation>,
}

impl Stored {
    #[cfg(test)]
    fn for_test(body: &'static [u8], until_ms: u64, generation: Arc<Generation>) -> Self {
        Self {
            body: Bytes::from_static(body),
            content_type: HeaderValue::from_static("text/plain"),
            etag: Etag::of_body(body),
            etag_header: Etag::of_body(body).header(),
            written_at_ms: 0,
            expires_at_ms: until_ms,
            l1_until_ms: until_ms,
            generation,
        }
    }
}

/// A value, and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    stored: Arc<Stored>,
    tier: Tier,
}

/// What a look-up in the store comes to.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// The value; stale only where the store does not answer and the namespace allows it.
    Found(Found),
    /// No value that is fresh.
    Absent,
}

/// What asking for a fill lease comes to.
#[derive(Debug)]
pub(crate) enum LeaseAnswer {
    /// There is a value: no lease is needed.
    Found(Found),
    /// The caller is to fill.
    Granted(LeaseToken),
    /// Another holds it.
    Held {
        /// For how long yet, in milliseconds.
        for_ms: u64,
        /// The last value, where the namespace lets it be used past its time.
        stale: Option<Found>,
    },
}

/// A value to write.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    body: Bytes,
    content_type: HeaderValue,
    ttl_ms: u64,
    conditions: Conditions,
    /// With it, the write counts only while the lease is held. Without it the write wins and voids the lease.
    lease: Option<LeaseToken>,
    /// What the tenant may keep.
    max_tenant_bytes: u64,
}

/// A store with its L1. `budget` is how long a method may wait for the store.
#[async_trait]
pub(crate) trait CacheBackend: Send + Sync {
    /// The value from L1, where it is certain enough; no I/O.
    fn cached(&self, address: &Address) -> Option<Found>;

    /// The value from the store; what is found goes into L1.
    async fn lookup(
        &self,
        address: &Address,
        rules: &Namespace,
        budget: Duration,
    ) -> Result<Lookup, CacheError>;

    /// The value, or else the lease to fill it, given to one caller until it is used, given up, voided or
    /// `lease_ms` old.
    async fn lease(
        &self,
        address: &Address,
        rules: &Namespace,
        lease_ms: u64,
        budget: Duration,
    ) -> Result<LeaseAnswer, CacheError>;

    /// Writes a value and voids the key's lease; conditions, lease and the tenant's bytes are checked in the
    /// same step.
    async fn put(
        &self,
        address: &Address,
        rules: &Namespace,
        write: Write,
        budget: Duration,
    ) -> Result<Etag, CacheError>;

    /// Deletes the value and voids the lease; with a token gives up that lease, if it is still held, and
    /// leaves the value. What is absent is no error.
    async fn delete(
        &self,
        address: &Address,
        rules: &Namespace,
        lease: Option<LeaseToken>,
        budget: Duration,
    ) -> Result<(), CacheError>;

    /// Makes every entry of the scope, or of one version in it, a miss, and voids its leases.
    async fn invalidate(
        &self,
        scope: &Scope,
        rules: &Namespace,
        version: Option<&str>,
        budget: Duration,
    ) -> Result<(), CacheError>;

    /// Who waits for entries to change.
    fn waiters(&self) -> &Waiters;
}

fn build(section: serde_json::Value, resources: &Resources) -> Result<Vec<Route>, BuildError> {
    let config: config::CacheConfig = serde_json::from_value(section)
        .map_err(|error| BuildError::Section { pointer: "", message: error.to_string() })?;
    let metrics = metrics::CacheMetrics::new(&resources.metrics)?;
    let l1 = Arc::new(l1::L1::new(config.l1_bytes, &metrics));
    let backend: Arc<dyn CacheBackend> = match config.backend {
        config::Backend::Embedded => {
            embedded::EmbeddedCache::start(resources.cache_db()?, l1, metrics.clone(), &resources.tasks)
        }
        config::Backend::Redis => {
            let name = config.redis.as_deref().ok_or_else(|| BuildError::Section {
                pointer: "",
                message: "`backend: redis` needs `redis`, the name of an instance under `redis:`".to_owned(),
            })?;
            redis::RedisCache::start(resources.redis(name)?, l1, metrics.clone(), &resources.tasks)
        }
    };
    Ok(api::routes(backend, metrics, Duration::from_millis(config.budget_ms)))
}

/// Milliseconds since the epoch, by this machine's clock.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What an entry whose content has this many bytes counts against its tenant's.
fn cost(address: &Address, content_bytes: usize) -> u64 {
    (address.entry().len() + content_bytes) as u64 + ENTRY_BYTES
}
