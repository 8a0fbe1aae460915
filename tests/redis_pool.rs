//! The Redis pool against real servers: routing, redirections, scripts, tracking, and what it does while they break.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::config::RedisInstance;
use outrigger::pools::redis::{RedisFailure, RedisMetrics, RedisPool, Script, Slot, TrackingEvent};
use outrigger::tasks::Tasks;
use outrigger::telemetry::{BackendState, HealthBoard, Registry};
use redis::Value;

const BUDGET: Duration = Duration::from_secs(1);

/// A pool with what it reports to.
struct Client {
    pool: Arc<RedisPool>,
    board: HealthBoard,
    registry: Registry,
    tasks: Tasks,
}

fn instance(nodes: &[String], more: serde_json::Value) -> RedisInstance {
    let mut config = serde_json::json!({ "nodes": nodes });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

impl Client {
    fn new(nodes: &[String], more: serde_json::Value) -> Self {
        let (board, registry, tasks) = (HealthBoard::default(), Registry::default(), Tasks::default());
        let metrics = RedisMetrics::new(&registry).unwrap();
        let health = board.add("redis.main", false);
        let pool = RedisPool::new("main", instance(nodes, more), health, &metrics, &tasks).unwrap();
        Self { pool, board, registry, tasks }
    }

    fn shared() -> Self {
        Self::new(&rig::shared_redis_nodes(), serde_json::json!({}))
    }

    async fn run(&self, words: &[&str]) -> Result<Value, RedisFailure> {
        self.run_within(words, BUDGET).await
    }

    async fn run_within(&self, words: &[&str], budget: Duration) -> Result<Value, RedisFailure> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let key = words.get(1).unwrap_or(&"");
        self.pool.command(Slot::of(key.as_bytes()), &command, budget).await
    }

    fn health(&self) -> (BackendState, String) {
        let report = self.board.reports().remove(0);
        (report.state, report.advice)
    }

    fn metric(&self, line: &str) -> f64 {
        let text = self.registry.render().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or("0").parse().unwrap()
    }
}

/// Waits for `condition`, looking every 5 ms, without holding up the runtime.
async fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// A key of this test alone.
fn unique(name: &str) -> String {
    format!("outrigger:test:{}:{name}", uuid::Uuid::now_v7())
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_reach_the_primary_of_every_slot() {
    let client = Client::shared();
    let prefix = unique("slots");
    for number in 0..500 {
        let key = format!("{prefix}:{number}");
        let value = number.to_string();
        assert_eq!(client.run(&["SET", &key, &value, "EX", "60"]).await.unwrap(), Value::Okay);
        assert_eq!(client.run(&["GET", &key]).await.unwrap(), bulk(&value));
    }
    assert_eq!(client.metric(r#"outrigger_redis_redirects_total{instance="main",kind="moved"}"#), 0.0);
    assert_eq!(client.metric(r#"outrigger_redis_commands_total{instance="main",outcome="ok"}"#), 1000.0);
    assert_eq!(client.metric(r#"outrigger_redis_connections_open{instance="main"}"#), 6.0);
    assert_eq!(client.health().0, BackendState::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_has_an_answer_for_each_command() {
    let client = Client::shared();
    let key = unique("{pipeline}");
    let mut pipeline = redis::Pipeline::new();
    pipeline.cmd("SET").arg(&key).arg("text").arg("EX").arg(60);
    pipeline.cmd("LPUSH").arg(&key).arg("x");
    pipeline.cmd("GET").arg(&key);
    let answers = client.pool.pipeline(Slot::of(key.as_bytes()), &pipeline, BUDGET).await.unwrap();
    assert_eq!(answers.len(), 3);
    assert_eq!((&answers[0], &answers[2]), (&Value::Okay, &bulk("text")));
    assert!(matches!(&answers[1], Value::ServerError(error) if error.code() == "WRONGTYPE"), "{answers:?}");
    let mut transaction = redis::pipe();
    transaction.atomic().cmd("GET").arg(&key);
    let refused = client.pool.pipeline(Slot::of(key.as_bytes()), &transaction, BUDGET).await;
    assert!(matches!(refused, Err(RedisFailure::Refused(_))), "{refused:?}");
    assert_eq!(client.run(&["GET", &key]).await.unwrap(), bulk("text"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_runs_where_its_source_is_not_known() {
    let client = Client::shared();
    let key = unique("script");
    // A source of this run alone, so that no node has it.
    let source: &'static str = format!("return redis.call('INCRBY', KEYS[1], ARGV[1]) -- {key}").leak();
    let script = Script::new(source);
    for expected in [5, 10] {
        let slot = Slot::of(key.as_bytes());
        let answer = client.pool.script(slot, &script, &[key.as_bytes()], &[b"5"], BUDGET).await;
        assert_eq!(answer.unwrap(), Value::Int(expected));
    }
    client.run(&["UNLINK", &key]).await.unwrap();
    let wrong = Script::new("return redis.error_reply('ERR no')");
    let refused = client.pool.script(Slot::of(key.as_bytes()), &wrong, &[key.as_bytes()], &[], BUDGET).await;
    assert!(matches!(refused, Err(RedisFailure::Refused(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_primary_answers_once_and_in_one_order() {
    let client = Client::shared();
    client.run(&["GET", "any"]).await.unwrap();
    let mut command = redis::cmd("CLUSTER");
    command.arg("MYID");
    let ids = |answers: Vec<Result<Value, RedisFailure>>| {
        answers.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let first = ids(client.pool.on_primaries(&command, BUDGET).await);
    assert_eq!(first.len(), 3);
    assert_eq!(first, ids(client.pool.on_primaries(&command, BUDGET).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_told_to_whoever_tracks_its_prefix_at_once() {
    let client = Client::shared();
    let prefix: &'static str = unique("tracked").leak();
    let prefixes: &'static [&'static str] = vec![prefix].leak();
    assert!(!client.pool.tracking_is_current());
    let mut events = client.pool.track(prefixes);
    until("tracking to be current", Duration::from_secs(5), || client.pool.tracking_is_current()).await;
    let mut worst = Duration::ZERO;
    for number in 0..100 {
        let key = format!("{prefix}:{number}");
        client.run(&["SET", &key, "1", "EX", "60"]).await.unwrap();
        let wrote = Instant::now();
        loop {
            match tokio::time::timeout(BUDGET, events.recv()).await.unwrap().unwrap() {
                TrackingEvent::Invalidated(keys) if keys.iter().any(|found| **found == *key.as_bytes()) => {
                    break;
                }
                TrackingEvent::Invalidated(_) | TrackingEvent::Flush => {}
            }
        }
        worst = worst.max(wrote.elapsed());
    }
    println!("from a write's answer to its event: at most {worst:?} in 100");
    assert!(worst < Duration::from_millis(100), "{worst:?}");
    assert!(client.pool.tracking_is_current());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_end_when_the_process_stops() {
    let client = Client::shared();
    let _events = client.pool.track(&["outrigger:test:stop:"]);
    until("tracking to be current", Duration::from_secs(5), || client.pool.tracking_is_current()).await;
    client.run(&["GET", "any"]).await.unwrap();
    let began = Instant::now();
    let Client { pool, tasks, registry, .. } = client;
    drop(pool);
    assert!(tasks.stop(Duration::from_secs(5)).await, "some task did not end");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let text = registry.render().unwrap();
    assert!(text.contains("outrigger_redis_connections_open{instance=\"main\"} 0"), "{text}");
}
