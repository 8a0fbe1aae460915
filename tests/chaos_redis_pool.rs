//! The Redis pool while servers break: nothing counts twice, calls end in time, and it recovers by itself.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/redis.rs"]
mod redis_support;
#[path = "support/timers.rs"]
mod timers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger::pools::redis::{RedisFailure, Slot, TrackingEvent};
use outrigger::telemetry::BackendState;
use redis::Value;
use redis_support::{Client, bulk, connected, rig, until};
use rig::{Options, RedisCluster};
use serde_json::json;
use timers::Timers;
use tokio::task::JoinSet;

const BUDGET: Duration = Duration::from_secs(1);

fn start(options: Options) -> Arc<RedisCluster> {
    Arc::new(rig(|| RedisCluster::start(options)))
}

/// A key of each primary, by the index of the primary.
fn keys_by_primary(cluster: &RedisCluster) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for number in 0.. {
        let key = format!("key-{number}");
        let primary = cluster.primary_of(cluster.slot_of(&key).unwrap()).unwrap();
        if found.iter().all(|(other, _)| *other != primary) {
            found.push((primary, key));
        }
        if found.len() == 3 {
            break;
        }
    }
    found
}

/// Waits until a key of every primary can be written and read, and says how long that took.
async fn until_served(client: &Client, keys: &[(usize, String)], began: Instant) -> Duration {
    for (_, key) in keys {
        while client.run(&["SET", key, "served"]).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "{key}: {:?}", client.health());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    began.elapsed()
}

/// How increments of some keys ended, from tasks that go on until told to stop.
#[derive(Default)]
struct Increments {
    over: AtomicBool,
    ok: Vec<AtomicU64>,
    unknown: Vec<AtomicU64>,
    unavailable: AtomicU64,
    worst_us: AtomicU64,
}

impl Increments {
    fn start(client: &Arc<Client>, keys: &[String], tasks: usize) -> (Arc<Self>, JoinSet<()>) {
        let zeros = || keys.iter().map(|_| AtomicU64::new(0)).collect();
        let counts = Arc::new(Self { ok: zeros(), unknown: zeros(), ..Self::default() });
        let mut running = JoinSet::new();
        for task in 0..tasks {
            let (client, counts, keys) = (Arc::clone(client), Arc::clone(&counts), keys.to_vec());
            running.spawn(async move {
                let mut number = task;
                while !counts.over.load(Relaxed) {
                    number += 1;
                    let place = number % keys.len();
                    let began = Instant::now();
                    match client.run(&["INCR", &keys[place]]).await {
                        Ok(Value::Int(_)) => counts.ok[place].fetch_add(1, Relaxed),
                        Err(RedisFailure::Unknown(_)) => counts.unknown[place].fetch_add(1, Relaxed),
                        Err(RedisFailure::Unavailable(_)) => {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            counts.unavailable.fetch_add(1, Relaxed)
                        }
                        other => panic!("{other:?}"),
                    };
                    let took = u64::try_from(began.elapsed().as_micros()).unwrap();
                    counts.worst_us.fetch_max(took, Relaxed);
                }
            });
        }
        (counts, running)
    }

    /// Stops the tasks, and compares what Redis counted with what callers were told.
    async fn check(&self, client: &Client, keys: &[String], running: JoinSet<()>) -> String {
        self.over.store(true, Relaxed);
        running.join_all().await;
        let (mut ok, mut unknown) = (0, 0);
        for (place, key) in keys.iter().enumerate() {
            let counted: u64 = redis::from_redis_value(client.run(&["GET", key]).await.unwrap()).unwrap();
            let (told, doubtful) = (self.ok[place].load(Relaxed), self.unknown[place].load(Relaxed));
            assert!(counted >= told, "{key}: {told} were acknowledged, {counted} were counted");
            assert!(counted <= told + doubtful, "{key}: {told} + {doubtful} calls counted {counted} times");
            ok += told;
            unknown += doubtful;
        }
        let (unavailable, worst) = (self.unavailable.load(Relaxed), self.worst_us.load(Relaxed) / 1000);
        format!("{ok} ok, {unknown} unknown, {unavailable} unavailable, worst call {worst} ms")
    }

    fn total(&self) -> u64 {
        self.ok.iter().map(|count| count.load(Relaxed)).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_an_increment_counts_once_while_its_slot_moves() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys: Vec<String> = (0..40).map(|number| format!("{{moving}}:{number}")).collect();
    let (counts, running) = Increments::start(&client, &keys, 16);
    let slot = rig(|| cluster.slot_of("{moving}"));
    let from = rig(|| cluster.primary_of(slot));
    let to = keys_by_primary(&cluster).iter().find(|(primary, _)| *primary != from).unwrap().0;
    let there_and_back = [to, from];
    for to in there_and_back {
        let before = counts.total();
        until("increments before the move", Duration::from_secs(10), || counts.total() > before + 500).await;
        let migration = rig(|| cluster.begin_slot_migration(slot, to));
        loop {
            let before = counts.total();
            let moved = rig(|| migration.move_keys(5));
            until("increments amid the move", Duration::from_secs(10), || counts.total() > before + 100)
                .await;
            // A pipeline whose keys are on both sides has an answer for each, too.
            let mut pipeline = redis::Pipeline::new();
            for key in &keys {
                pipeline.cmd("INCRBY").arg(key).arg(0);
            }
            let answers = client.pool.pipeline(Slot::of(b"{moving}"), &pipeline, BUDGET).await.unwrap();
            assert!(answers.iter().all(|answer| matches!(answer, Value::Int(_))), "{answers:?}");
            if moved == 0 {
                break;
            }
        }
        rig(|| migration.finish());
    }
    let summary = counts.check(&client, &keys, running).await;
    let redirects = |kind: &str| {
        client.metric(&format!(r#"outrigger_redis_redirects_total{{instance="main",kind="{kind}"}}"#))
    };
    println!("a slot moved twice: {summary}; {} MOVED, {} ASK", redirects("moved"), redirects("ask"));
    assert!(redirects("moved") > 0.0 && redirects("ask") > 0.0);
    assert!(summary.contains(" 0 unknown, 0 unavailable"), "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_an_increment_counts_once_while_a_replica_is_promoted() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys: Vec<String> = (0..8).map(|number| format!("{{promoted}}:{number}")).collect();
    let (counts, running) = Increments::start(&client, &keys, 16);
    until("increments before", Duration::from_secs(10), || counts.total() > 500).await;
    let primary = rig(|| cluster.primary_of(cluster.slot_of("{promoted}").unwrap()));
    rig(|| cluster.failover(cluster.replica_of(primary).unwrap()));
    let before = counts.total();
    until("increments after", Duration::from_secs(10), || counts.total() > before + 500).await;
    println!("a replica promoted: {}", counts.check(&client, &keys, running).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_read_survives_a_lost_connection_and_a_write_counts_at_most_once() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys: Vec<String> = (0..8).map(|number| format!("{{cut}}:{number}")).collect();
    client.run(&["SET", "{cut}:read", "here"]).await.unwrap();
    let (counts, running) = Increments::start(&client, &keys, 8);
    let over = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let (client, over) = (Arc::clone(&client), Arc::clone(&over));
        readers.spawn(async move {
            while !over.load(Relaxed) {
                assert_eq!(client.run(&["GET", "{cut}:read"]).await.unwrap(), bulk("here"));
            }
        });
    }
    let node = rig(|| cluster.primary_of(cluster.slot_of("{cut}").unwrap()));
    for _ in 0..5 {
        let before = counts.total();
        until("increments", Duration::from_secs(10), || counts.total() > before + 200).await;
        rig(|| cluster.cli_at(node, &["CLIENT", "KILL", "TYPE", "normal"]));
    }
    over.store(true, Relaxed);
    readers.join_all().await;
    let summary = counts.check(&client, &keys, running).await;
    println!("all connections cut five times: {summary}");
    assert!(client.metric(r#"outrigger_redis_reconnects_total{instance="main"}"#) >= 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_killed_primary_is_replaced_without_a_restart() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys = keys_by_primary(&cluster);
    let began = Instant::now();
    rig(|| cluster.kill(keys[0].0));
    let seen = until("the health board to show it", Duration::from_secs(2), || {
        client.health().0 != BackendState::Up
    });
    let seen = seen.await;
    let (state, advice) = client.health();
    assert!(state == BackendState::Degraded || state == BackendState::Down);
    println!("a primary killed: seen after {seen:?}: {state:?}: {advice}");
    let call = Instant::now();
    let failed = client.run(&["SET", &keys[0].1, "x"]).await;
    assert!(matches!(failed, Err(RedisFailure::Unavailable(_))), "{failed:?}");
    assert!(call.elapsed() < Duration::from_millis(400), "a call to a dead node took {:?}", call.elapsed());
    println!(
        "a primary killed: every slot written again after {:?}",
        until_served(&client, &keys, began).await
    );
    until("up", Duration::from_secs(5), || client.health().0 == BackendState::Up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_calls_to_a_stopped_node_end_within_their_budget() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys = keys_by_primary(&cluster);
    let tight = Duration::from_millis(20);
    let began = Instant::now();
    rig(|| cluster.stop(keys[0].0));
    let (mut worst, mut calls, mut at_once) = (Duration::ZERO, 0_u32, 0_u32);
    let timers = Timers::start(32, tight);
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let (client, key) = (Arc::clone(&client), keys[0].1.clone());
        callers.spawn(async move {
            let mut seen = Vec::new();
            loop {
                let call = Instant::now();
                let answer = client.run_within(&["INCR", &key], tight).await;
                if answer.is_ok() {
                    return seen;
                }
                seen.push((call, call.elapsed()));
                assert!(began.elapsed() < Duration::from_secs(20), "{:?}", client.health());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    // The other nodes are not held up by it.
    let call = Instant::now();
    let answer = client.run_within(&["GET", &keys[1].1], tight).await;
    let took = call.elapsed();
    assert!(answer.is_ok() && took < tight, "{answer:?} after {took:?}");
    let seen = callers.join_all().await;
    let machine = timers.end();
    let mut late = Vec::new();
    for (call, took) in seen.into_iter().flatten() {
        worst = worst.max(took);
        calls += 1;
        at_once += u32::from(took < Duration::from_millis(5));
        if took > tight * 2 {
            late.push((took, machine.during(call, call + took)));
        }
    }
    println!(
        "a primary stopped: served again after {:?}; {calls} calls failed, {at_once} at once, {} late, worst {worst:?}; timers alone: {} late, by {:?} at most",
        began.elapsed(),
        late.len(),
        machine.count(),
        machine.during(began, Instant::now()),
    );
    for (took, delay) in late {
        // Twice: a call has its time-out to be woken from, and its caller to be run.
        assert!(
            took <= tight * 2 + delay * 2,
            "{took:?} with a budget of 20 ms, timers were late by {delay:?}"
        );
    }
    assert!(at_once > calls / 2, "{at_once} of {calls} failed at once");
    until_served(&client, &keys, began).await;
    until("up", Duration::from_secs(5), || client.health().0 == BackendState::Up).await;
    rig(|| cluster.cont(keys[0].0));
    rig(|| cluster.wait_ok());
    until_served(&client, &keys, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_node_that_pauses_is_used_again_as_soon_as_it_answers() {
    let cluster = start(Options { cluster_node_timeout_ms: 10_000, ..Options::default() });
    let client = connected(&cluster, json!({})).await;
    let keys = keys_by_primary(&cluster);
    rig(|| cluster.stop(keys[0].0));
    until("down", Duration::from_secs(3), || client.health().0 == BackendState::Degraded).await;
    assert!(client.health().1.contains("does not answer"), "{:?}", client.health());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    rig(|| cluster.cont(keys[0].0));
    let took = until_served(&client, &keys, began).await;
    println!("a node stopped for 2 s, no failover: served {took:?} after it went on");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_it_starts_with_everything_down_and_survives_a_full_restart() {
    let cluster = start(Options::default());
    let keys = keys_by_primary(&cluster);
    rig(|| cluster.shutdown_all());
    let client = Client::new(&cluster.addresses(), json!({}));
    until("down", Duration::from_secs(2), || client.health().0 == BackendState::Down).await;
    assert!(client.health().1.contains("connection refused"), "{:?}", client.health());
    let call = Instant::now();
    let failed = client.run(&["GET", "x"]).await;
    assert!(matches!(failed, Err(RedisFailure::Unavailable(_))), "{failed:?}");
    assert!(call.elapsed() < Duration::from_millis(100), "{:?}", call.elapsed());
    for round in ["first start", "full restart"] {
        rig(|| cluster.start_all());
        let took = until_served(&client, &keys, Instant::now()).await;
        println!("{round}: served {took:?} after the cluster was ready");
        assert!(took < Duration::from_secs(2), "{took:?}");
        until("up", Duration::from_secs(5), || client.health().0 == BackendState::Up).await;
        rig(|| cluster.shutdown_all());
        until("down", Duration::from_secs(3), || client.health().0 == BackendState::Down).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_what_is_tracked_is_flushed_when_a_primary_is_lost_and_current_again_after() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let keys = keys_by_primary(&cluster);
    let prefixes: &'static [&'static str] = &["key-"];
    let mut events = client.pool.track(prefixes);
    until("tracking", Duration::from_secs(5), || client.pool.tracking_is_current()).await;
    while events.try_recv().is_ok() {}
    let began = Instant::now();
    rig(|| cluster.kill(keys[0].0));
    loop {
        let event = tokio::time::timeout(Duration::from_secs(2), events.recv()).await.unwrap().unwrap();
        if matches!(event, TrackingEvent::Flush) {
            break;
        }
    }
    println!("a tracked primary killed: flush after {:?}", began.elapsed());
    assert!(!client.pool.tracking_is_current());
    until("tracking again", Duration::from_secs(15), || client.pool.tracking_is_current()).await;
    println!("a tracked primary killed: current again after {:?}", began.elapsed());
    while events.try_recv().is_ok() {}
    until_served(&client, &keys, began).await;
    for (_, key) in &keys {
        client.run(&["SET", key, "again"]).await.unwrap();
    }
    let mut told = std::collections::BTreeSet::new();
    while told.len() < keys.len() {
        match tokio::time::timeout(Duration::from_secs(2), events.recv()).await.unwrap().unwrap() {
            TrackingEvent::Invalidated(keys) => told.extend(keys.iter().map(|key| key.to_vec())),
            TrackingEvent::Flush => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_tracking_is_not_current_once_a_primary_is_silent() {
    let cluster = start(Options { cluster_node_timeout_ms: 10_000, ..Options::default() });
    let client = connected(&cluster, json!({})).await;
    let _events = client.pool.track(&["key-"]);
    until("tracking", Duration::from_secs(5), || client.pool.tracking_is_current()).await;
    rig(|| cluster.stop(0));
    let took = until("not current", Duration::from_secs(3), || !client.pool.tracking_is_current()).await;
    println!("a tracked primary stopped: not current after {took:?}");
    assert!(took < Duration::from_millis(2100), "{took:?}");
    rig(|| cluster.cont(0));
    until("tracking again", Duration::from_secs(5), || client.pool.tracking_is_current()).await;
}
