//! The Redis pool against real servers: routing, redirections, scripts, tracking, and what it does while they break.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/redis.rs"]
mod redis_support;

use std::time::{Duration, Instant};

use outrigger::pools::redis::{Eviction, RedisFailure, Script, Slot, TrackingEvent, inspect};
use outrigger::telemetry::BackendState;
use redis::Value;
use redis_support::{Client, bulk, instance, until};
use serde_json::json;

const BUDGET: Duration = Duration::from_secs(1);

/// A key of this test alone.
fn unique(name: &str) -> String {
    format!("outrigger:test:{}:{name}", uuid::Uuid::now_v7())
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
async fn a_request_that_is_still_served_has_its_connection_while_the_process_stops() {
    let client = Client::shared();
    client.run(&["GET", "any"]).await.unwrap();
    let tasks = client.tasks.clone();
    let stopped = async { (tasks.stop(Duration::from_secs(10)).await, Instant::now()) };
    let served = async {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            client.run(&["GET", "any"]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Instant::now()
    };
    let ((all, stopped), served) = tokio::join!(stopped, served);
    assert!(all && stopped >= served, "some task did not end, or a connection was closed too early");
    assert!(stopped - served < Duration::from_secs(2), "{:?}", stopped - served);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_nothing_wrong_with_a_good_cluster_and_names_what_is_wrong_with_none() {
    let nodes = rig::shared_redis_nodes();
    let families = ["cache:", "outrigger:", "tenant:"];
    let found = inspect("main", &instance(&nodes, json!({})), &families, Eviction::Forbidden).await;
    assert_eq!(found.problems, [], "{found:?}");
    assert!(found.summary.starts_with("3 primaries, 3 replicas, Redis 7."), "{}", found.summary);
    let nowhere = ["127.0.0.1:1".to_owned(), "redis".to_owned()];
    let found = inspect("main", &instance(&nowhere, json!({})), &families, Eviction::Forbidden).await;
    let problem = |message: &str, expected: &str| {
        found
            .problems
            .iter()
            .any(|found| found.message.contains(message) && found.expected.contains(expected))
    };
    assert!(problem("`redis` is no node's address", "host:port"), "{found:?}");
    assert!(problem("cannot connect to 127.0.0.1:1 (connection refused)", "`redis.main.nodes`"), "{found:?}");
}
