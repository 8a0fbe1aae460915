//! A pool of the tests' own, with what it reports to.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::config::RedisInstance;
use outrigger::pools::redis::{RedisFailure, RedisMetrics, RedisPool, Slot};
use outrigger::tasks::Tasks;
use outrigger::telemetry::{BackendState, HealthBoard, Registry};
use redis::Value;

const BUDGET: Duration = Duration::from_secs(1);

/// A pool with what it reports to.
pub struct Client {
    pub pool: Arc<RedisPool>,
    pub board: HealthBoard,
    pub registry: Registry,
    pub tasks: Tasks,
}

pub fn instance(nodes: &[String], more: serde_json::Value) -> RedisInstance {
    let mut config = serde_json::json!({ "nodes": nodes });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

impl Client {
    pub fn new(nodes: &[String], more: serde_json::Value) -> Self {
        let (board, registry, tasks) = (HealthBoard::default(), Registry::default(), Tasks::default());
        let metrics = RedisMetrics::new(&registry).unwrap();
        let health = board.add("redis.main", false);
        let pool = RedisPool::new("main", instance(nodes, more), health, &metrics, &tasks).unwrap();
        Self { pool, board, registry, tasks }
    }

    pub fn shared() -> Self {
        Self::new(&rig::shared_redis_nodes(), serde_json::json!({}))
    }

    pub async fn run(&self, words: &[&str]) -> Result<Value, RedisFailure> {
        self.run_within(words, BUDGET).await
    }

    pub async fn run_within(&self, words: &[&str], budget: Duration) -> Result<Value, RedisFailure> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let key = words.get(1).unwrap_or(&"");
        self.pool.command(Slot::of(key.as_bytes()), &command, budget).await
    }

    pub fn health(&self) -> (BackendState, String) {
        let report = self.board.reports().remove(0);
        (report.state, report.advice)
    }

    pub fn metric(&self, line: &str) -> f64 {
        let text = self.registry.render().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or("0").parse().unwrap()
    }
}

/// Waits for `condition`, looking every 5 ms, without holding up the runtime.
pub async fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

pub fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

/// The rig waits in the thread that asks it.
pub fn rig<T>(act: impl FnOnce() -> Result<T, rig::Error>) -> T {
    tokio::task::block_in_place(act).unwrap()
}

/// A pool that is up.
pub async fn connected(cluster: &rig::RedisCluster, more: serde_json::Value) -> Arc<Client> {
    let client = Arc::new(Client::new(&cluster.addresses(), more));
    until("the pool to be up", Duration::from_secs(10), || client.health().0 == BackendState::Up).await;
    client
}
