//! Redis Cluster: a few multiplexed connections to each node, and a router that knows the slots.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::broadcast;

use crate::config::RedisInstance;
use crate::error::ErrorKind;
use crate::tasks::Tasks;
use crate::telemetry::{BackendHealth, MetricError, Registry};

/// What the pools count, for every instance.
pub struct RedisMetrics;

impl RedisMetrics {
    /// STUB
    pub fn new(_: &Registry) -> Result<Self, MetricError> {
        Ok(Self)
    }
}

/// Why a pool cannot be made (its configuration is wrong: a file that is not there, a node that is no `host:port`).
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct PoolError;

/// A slot of the cluster: what is sent to one slot runs on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a key, by its hash tag where it has one.
    #[must_use]
    pub fn of(_: &[u8]) -> Self {
        Self(0)
    }
}

/// Why a command has no answer that can be used. The text is for the log; it holds no key and no credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisFailure {
    /// The command was not run: no connection, cluster down, loading, or the budget ended before it was sent.
    #[error("redis does not answer: {0}")]
    Unavailable(String),
    /// The command was sent and its answer did not come: it may have been run.
    #[error("redis did not say whether the command was run: {0}")]
    Unknown(String),
    /// Redis refused it and did nothing: out of memory, no permission, a wrong password, a script error.
    #[error("redis refused the command: {0}")]
    Refused(String),
}

impl RedisFailure {
    /// What kind of error it is to a caller that wrote; a reader answers `BackendUnavailable` for each.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) | Self::Refused(_) => ErrorKind::BackendUnavailable,
            Self::Unknown(_) => ErrorKind::OutcomeUnknown,
        }
    }
}

/// A Lua script: run by EVALSHA, and by EVAL where a node does not know it yet.
pub struct Script {
    /// Its source.
    pub source: &'static str,
}

impl Script {
    /// A script of this source.
    #[must_use]
    pub fn new(source: &'static str) -> Self {
        Self { source }
    }
}

/// What the tracking connections of a pool say.
#[derive(Debug, Clone)]
pub enum TrackingEvent {
    /// Somebody, this process too, wrote these keys, or they expired or were evicted.
    Invalidated(Arc<[Box<[u8]>]>),
    /// Everything may have changed: a tracking connection was lost, a shard moved, FLUSHALL.
    Flush,
}

/// A named Redis Cluster.
pub struct RedisPool {}

impl RedisPool {
    /// STUB. Connects in the background; never waits for a backend.
    pub fn new(
        _: &str,
        _: RedisInstance,
        _: BackendHealth,
        _: &RedisMetrics,
        _: &Tasks,
    ) -> Result<Arc<Self>, PoolError> {
        Ok(Arc::new(Self {}))
    }

    /// Runs one command on the primary of `slot`, within `budget`. MOVED, ASK, TRYAGAIN, CLUSTERDOWN, READONLY and
    /// LOADING are followed or retried as long as the budget lasts and the command was not run.
    pub async fn command(&self, _: Slot, _: &Cmd, _: Duration) -> Result<Value, RedisFailure> {
        Err(RedisFailure::Unavailable("stub".to_owned()))
    }

    /// Runs commands of one slot in one go, each with its own answer; not a transaction.
    pub async fn pipeline(
        &self,
        _: Slot,
        _: &redis::Pipeline,
        _: Duration,
    ) -> Result<Vec<Value>, RedisFailure> {
        Err(RedisFailure::Unavailable("stub".to_owned()))
    }

    /// Runs a script whose keys are all of `slot`.
    pub async fn script(
        &self,
        _: Slot,
        _: &Script,
        _keys: &[&[u8]],
        _arguments: &[&[u8]],
        _: Duration,
    ) -> Result<Value, RedisFailure> {
        Err(RedisFailure::Unavailable("stub".to_owned()))
    }

    /// Runs one command on every primary (such as one SCAN step); answers by node, in a stable order.
    pub async fn on_primaries(&self, _: &Cmd, _: Duration) -> Vec<Result<Value, RedisFailure>> {
        Vec::new()
    }

    /// The pool's own bound for a command, from the configuration.
    #[must_use]
    pub fn command_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Follows changes of the keys with these prefixes, by RESP3 client tracking (BCAST), on a connection of its
    /// own to each primary.
    pub fn track(self: &Arc<Self>, _prefixes: &'static [&'static str]) -> broadcast::Receiver<TrackingEvent> {
        broadcast::channel(1).1
    }

    /// Whether every primary's tracking connection has answered a ping that was sent less than 2 seconds ago: only
    /// then may what was read earlier be used without asking again.
    #[must_use]
    pub fn tracking_is_current(&self) -> bool {
        false
    }
}
