//! Redis Cluster: a few multiplexed connections to each node, and a router that knows the slots.
//!
//! `connect.rs` dials, `node.rs` keeps a node's connections, `refresh.rs` learns the topology, `route.rs` runs
//! commands, `confirm.rs` those that a failover must not undo, `tracking.rs` listens for changes. `docs/decisions/004-own-slot-router.md` says why it is our own.

mod confirm;
mod connect;
mod core;
mod health;
mod inspect;
mod metrics;
mod node;
mod refresh;
mod reply;
mod route;
mod script;
mod slot;
mod topology;
mod tracking;
mod trouble;

pub use confirm::Written;
pub use inspect::{Eviction, Inspection, Problem, inspect};
pub use metrics::RedisMetrics;
pub use script::Script;
pub use slot::Slot;
pub use tracking::TrackingEvent;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redis::{Cmd, Value};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use self::core::Core;
use crate::config::RedisInstance;
use crate::error::ErrorKind;
use crate::tasks::Tasks;
use crate::telemetry::BackendHealth;
use connect::{Address, Dialer};
use node::Shared;
use topology::Table;

/// Why a pool cannot be made: its configuration is wrong.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A node is no `host:port`.
    #[error("nodes: `{0}` is not `host:port`")]
    Node(String),
    /// No node is named.
    #[error("nodes: name at least one node, `host:port`")]
    NoNodes,
    /// The certificate authority cannot be read.
    #[error("tls.ca_file {path}: {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("tls: {0}")]
    Tls(String),
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

/// A named Redis Cluster. Dropping it closes its connections.
pub struct RedisPool {
    core: Arc<Core>,
    command_timeout: Duration,
}

impl Drop for RedisPool {
    fn drop(&mut self) {
        self.core.closed.cancel();
    }
}

impl RedisPool {
    /// Connects in the background; never waits for a backend. An error is one of the configuration.
    pub fn new(
        name: &str,
        instance: RedisInstance,
        health: BackendHealth,
        metrics: &RedisMetrics,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, PoolError> {
        let parse = |node: &String| Address::parse(node).ok_or_else(|| PoolError::Node(node.clone()));
        let seeds = instance.nodes.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if seeds.is_empty() {
            return Err(PoolError::NoNodes);
        }
        let shared = Arc::new(Shared {
            dialer: Dialer::new(&instance)?,
            metrics: metrics.of(name),
            tasks: tasks.clone(),
            changed: Notify::new(),
            refresh: Notify::new(),
        });
        let core = Arc::new(Core {
            name: name.to_owned(),
            seeds,
            connections: instance.connections.max(1),
            shared,
            table: ArcSwap::from_pointee(Table::unknown()),
            nodes: parking_lot::Mutex::default(),
            generation: watch::Sender::new(0),
            last_refresh: watch::Sender::new((None, None)),
            trouble: trouble::Trouble::default(),
            trackers: tracking::Trackers::default(),
            closed: CancellationToken::new(),
        });
        tasks.spawn("redis topology", refresh::keep(Arc::clone(&core)));
        tasks.spawn("redis health", health::keep(Arc::clone(&core), health));
        let command_timeout = Duration::from_millis(instance.command_timeout_ms);
        Ok(Arc::new(Self { core, command_timeout }))
    }

    /// Runs one command on the primary of `slot`, within `budget`. MOVED, ASK, TRYAGAIN, CLUSTERDOWN, READONLY and
    /// LOADING are followed or retried as long as the budget lasts and the command was not run. A command that only
    /// reads (GET, MGET, PTTL, …) is also sent again when its answer was lost.
    pub async fn command(&self, slot: Slot, command: &Cmd, budget: Duration) -> Result<Value, RedisFailure> {
        let began = Instant::now();
        let result = self.core.command(slot, command, (began + budget).into()).await.and_then(refuse);
        self.core.shared.metrics.command(&result, began);
        result
    }

    /// Runs commands of one slot in one go, each with its own answer; not a transaction. A command that Redis
    /// refused has [`Value::ServerError`] as its answer.
    pub async fn pipeline(
        &self,
        slot: Slot,
        pipeline: &redis::Pipeline,
        budget: Duration,
    ) -> Result<Vec<Value>, RedisFailure> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        if pipeline.is_transaction() {
            return Err(RedisFailure::Refused("a pipeline here is no transaction: use a script".to_owned()));
        }
        let began = Instant::now();
        let result = self.core.pipeline(slot, pipeline, (began + budget).into()).await;
        self.core.shared.metrics.command(&result, began);
        result
    }

    /// Runs a script whose keys are all of `slot`. It may write, so it is not sent again when its answer was lost.
    pub async fn script(
        &self,
        slot: Slot,
        script: &Script,
        keys: &[&[u8]],
        arguments: &[&[u8]],
        budget: Duration,
    ) -> Result<Value, RedisFailure> {
        let began = Instant::now();
        let deadline = (began + budget).into();
        let mut result = self.core.command(slot, &script.by_hash(keys, arguments), deadline).await;
        if result.as_ref().is_ok_and(script::is_unknown) {
            result = self.core.command(slot, &script.by_source(keys, arguments), deadline).await;
        }
        let result = result.and_then(refuse);
        self.core.shared.metrics.command(&result, began);
        result
    }

    /// Like [`RedisPool::script`], on a connection apart, and waits until every replica that could take over has what
    /// it wrote. The script has to write each time, also where it finds done what it is to do. Where that is not
    /// confirmed within `budget` the script was run all the same.
    pub async fn confirmed_script(
        &self,
        slot: Slot,
        script: &Script,
        keys: &[&[u8]],
        arguments: &[&[u8]],
        budget: Duration,
    ) -> Result<Written, RedisFailure> {
        let began = Instant::now();
        let deadline = (began + budget).into();
        let mut result = self.core.confirmed(slot, &script.by_hash(keys, arguments), deadline).await;
        if result.as_ref().is_ok_and(|written| script::is_unknown(&written.answer)) {
            result = self.core.confirmed(slot, &script.by_source(keys, arguments), deadline).await;
        }
        let result = result.and_then(|Written { answer, is_confirmed }| {
            Ok(Written { answer: refuse(answer)?, is_confirmed })
        });
        self.core.shared.metrics.command(&result, began);
        result
    }

    /// Runs one command on every primary (such as one SCAN step); answers by node, in the order of their addresses.
    /// Where the cluster's shape is not known the one answer says so.
    pub async fn on_primaries(&self, command: &Cmd, budget: Duration) -> Vec<Result<Value, RedisFailure>> {
        let began = Instant::now();
        let answers = self.core.on_primaries(command, (began + budget).into()).await;
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.and_then(refuse)).collect();
        for answer in &answers {
            self.core.shared.metrics.command(answer, began);
        }
        answers
    }

    /// The pool's own bound for a command, from the configuration.
    #[must_use]
    pub fn command_timeout(&self) -> Duration {
        self.command_timeout
    }

    /// Follows changes of the keys with these prefixes, by RESP3 client tracking (BCAST), on a connection of its
    /// own to each primary. A receiver that lags has to take that as [`TrackingEvent::Flush`].
    pub fn track(self: &Arc<Self>, prefixes: &'static [&'static str]) -> broadcast::Receiver<TrackingEvent> {
        self.core.track(prefixes)
    }

    /// Whether every primary's tracking connection has answered a ping that was sent less than 2 seconds ago: only
    /// then may what was read earlier be used without asking again.
    #[must_use]
    pub fn tracking_is_current(&self) -> bool {
        self.core.trackers.are_current()
    }
}

/// An error reply is a failure.
fn refuse(value: Value) -> Result<Value, RedisFailure> {
    match value {
        Value::ServerError(error) => Err(RedisFailure::Refused(reply::text(&error))),
        value => Ok(value),
    }
}
