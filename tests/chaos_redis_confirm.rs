//! Writes that replicas confirm: what is said when they cannot, and that nothing else waits for it.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/redis.rs"]
mod redis_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::pools::redis::{Eviction, RedisFailure, Script, Slot, Written, inspect};
use redis::Value;
use redis_support::{Client, connected, instance, rig, until};
use rig::{Acl, NodeState, Options, RedisCluster, Role};
use serde_json::json;
use tokio::task::JoinSet;

/// The cache's default.
const BUDGET: Duration = Duration::from_millis(250);
/// What the cache touches.
const FAMILIES: &[&str] = &["cache:", "outrigger:"];
const COUNT: &str = "return redis.call('INCR', KEYS[1])";

async fn start(options: Options, more: serde_json::Value) -> (RedisCluster, Arc<Client>) {
    let cluster = rig(|| RedisCluster::start(options));
    let client = connected(&cluster, more).await;
    (cluster, client)
}

async fn count(client: &Client, key: &str) -> Result<Written, RedisFailure> {
    let script = Script::new(COUNT);
    client.pool.confirmed_script(Slot::of(key.as_bytes()), &script, &[key.as_bytes()], &[], BUDGET).await
}

fn confirmations(client: &Client, outcome: &str) -> f64 {
    let labels = format!(r#"{{instance="main",outcome="{outcome}"}}"#);
    client.metric(&format!("outrigger_redis_confirmations_total{labels}"))
}

/// A key whose primary and replica are these.
fn placed(cluster: &RedisCluster, key: &str) -> (usize, usize) {
    let primary = rig(|| cluster.primary_of(cluster.slot_of(key).unwrap()));
    (primary, rig(|| cluster.replica_of(primary)))
}

/// Waits until a write of the key is confirmed.
async fn until_confirmed(client: &Client, key: &str, within: Duration) -> Duration {
    let began = Instant::now();
    while !count(client, key).await.is_ok_and(|written| written.is_confirmed) {
        assert!(began.elapsed() < within, "no write is confirmed within {within:?}");
    }
    began.elapsed()
}

/// The longest of some reads of the key, one after the other, while `during` runs.
async fn worst_read<T>(client: &Arc<Client>, key: &str, during: impl Future<Output = T>) -> (T, Duration) {
    let over = tokio_util::sync::CancellationToken::new();
    let reads = async {
        let mut worst = Duration::ZERO;
        let mut paced = tokio::time::interval(Duration::from_millis(1));
        while !over.is_cancelled() {
            paced.tick().await;
            let began = Instant::now();
            client.run(&["GET", key]).await.unwrap();
            worst = worst.max(began.elapsed());
        }
        worst
    };
    let during = async {
        let _over = over.clone().drop_guard();
        during.await
    };
    tokio::join!(during, reads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_stopped_replica_confirms_nothing_and_holds_up_no_read() {
    let options = Options { cluster_node_timeout_ms: 10_000, ..Options::default() };
    let (cluster, client) = start(options, json!({})).await;
    let (_, replica) = placed(&cluster, "k");
    let first = count(&client, "k").await.unwrap();
    assert_eq!(first, Written { answer: Value::Int(1), is_confirmed: true });
    rig(|| cluster.stop(replica));
    let unconfirmed = async {
        let mut calls = JoinSet::new();
        // Many rounds, each with writes that wait already.
        let mut paced = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..40 {
            paced.tick().await;
            let client = Arc::clone(&client);
            calls.spawn(async move {
                let began = Instant::now();
                (count(&client, "k").await, began.elapsed())
            });
        }
        calls.join_all().await
    };
    let (calls, worst) = worst_read(&client, "k", unconfirmed).await;
    let longest = calls.iter().map(|(_, took)| *took).max().unwrap();
    println!("40 writes with a stopped replica: at most {longest:?}; reads beside them: at most {worst:?}");
    let mut answers: Vec<Value> = Vec::new();
    for (written, took) in calls {
        let written = written.expect("a write that was run says what it did");
        assert!(
            !written.is_confirmed && took <= BUDGET + Duration::from_millis(100),
            "{written:?} after {took:?}"
        );
        answers.push(written.answer);
    }
    let expected: Vec<_> = (2..42).map(Value::Int).collect();
    assert!(expected.iter().all(|answer| answers.contains(answer)), "each was run, once: {answers:?}");
    assert!(worst < Duration::from_millis(100), "a read took {worst:?} beside writes that wait");
    assert_eq!(confirmations(&client, "unconfirmed"), 40.0);
    rig(|| cluster.cont(replica));
    until_confirmed(&client, "k", Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_primary_without_a_replica_confirms_by_itself() {
    let (cluster, client) = start(Options::default(), json!({})).await;
    let (_, replica) = placed(&cluster, "k");
    until_confirmed(&client, "k", Duration::from_secs(2)).await;
    assert_eq!(confirmations(&client, "no_replica"), 0.0);
    // A replica is named once it has read something.
    for at in 0..100 {
        client.run(&["SET", &format!("k{at}"), "1"]).await.unwrap();
    }
    let unreplicated = r#"outrigger_redis_primaries_without_replica_count{instance="main"}"#;
    until("replicas to be named", Duration::from_secs(15), || client.metric(unreplicated) == 0.0).await;
    rig(|| cluster.kill(replica));
    let took = until_confirmed(&client, "k", Duration::from_secs(6)).await;
    println!("a replica killed: writes are confirmed again after {took:?}");
    assert!(confirmations(&client, "no_replica") > 0.0);
    let began = Instant::now();
    assert!(count(&client, "k").await.unwrap().is_confirmed);
    assert!(began.elapsed() < Duration::from_millis(100), "nothing is waited for: {:?}", began.elapsed());
    until("the metric", Duration::from_secs(5), || client.metric(unreplicated) == 1.0).await;
    let summary = inspect("main", &instance(&cluster.addresses(), json!({})), FAMILIES, Eviction::Forbidden)
        .await
        .summary;
    assert!(summary.starts_with("3 primaries (1 without a replica"), "{summary}");
    rig(|| cluster.restart(replica));
    rig(|| cluster.wait_ok());
    let before = confirmations(&client, "confirmed");
    until_confirmed(&client, "k", Duration::from_secs(2)).await;
    assert!(confirmations(&client, "confirmed") > before, "the replica that came back confirms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_of_several_replicas_each_has_to_confirm() {
    let options = Options { cluster_node_timeout_ms: 10_000, ..Options::default() };
    let (cluster, client) = start(options, json!({})).await;
    let (primary, replica) = placed(&cluster, "k");
    let nodes = rig(|| cluster.nodes());
    let moves = nodes.iter().find(|node| node.role == Role::Replica && node.index != replica).unwrap();
    let left = nodes.iter().find(|node| moves.primary_id.as_ref() == Some(&node.id)).unwrap();
    rig(|| cluster.cli_at(moves.index, &["CLUSTER", "REPLICATE", &nodes[primary].id]));
    let attached = |count: usize| {
        let role = rig(|| cluster.cli_at(primary, &["INFO", "replication"]));
        role.matches("state=online").count() == count
    };
    until("two replicas", Duration::from_secs(20), || attached(2)).await;
    until_confirmed(&client, "k", Duration::from_secs(5)).await;
    for stopped in [replica, moves.index] {
        rig(|| cluster.stop(stopped));
        assert!(!count(&client, "k").await.unwrap().is_confirmed, "the stopped one may be elected");
        rig(|| cluster.cont(stopped));
        until_confirmed(&client, "k", Duration::from_secs(2)).await;
    }
    let alone = (0..)
        .map(|at| format!("k{at}"))
        .find(|key| rig(|| cluster.primary_of(cluster.slot_of(key).unwrap())) == left.index);
    let took = until_confirmed(&client, &alone.unwrap(), Duration::from_secs(5)).await;
    println!("a primary whose replica went to another: confirmed after {took:?}");
    assert!(nodes.iter().all(|node| node.state == NodeState::Running));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_confirmed_writes_count_once_while_their_slot_moves_and_a_replica_is_promoted() {
    let (cluster, client) = start(Options::default(), json!({})).await;
    let slot = rig(|| cluster.slot_of("k"));
    let over = tokio_util::sync::CancellationToken::new();
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (client, over) = (Arc::clone(&client), over.clone());
        callers.spawn(async move {
            let (mut confirmed, mut run, mut doubtful) = (0_i64, 0_i64, 0_i64);
            // A call that cannot be made is tried again at once otherwise, and takes the processor from the others.
            let mut paced = tokio::time::interval(Duration::from_millis(1));
            while !over.is_cancelled() {
                match count(&client, "k").await {
                    Ok(written) => {
                        run += 1;
                        confirmed += i64::from(written.is_confirmed);
                    }
                    Err(RedisFailure::Unknown(_)) => doubtful += 1,
                    Err(RedisFailure::Unavailable(_)) => drop(paced.tick().await),
                    Err(refused) => panic!("{refused}"),
                }
            }
            (confirmed, run, doubtful)
        });
    }
    let more = async |than: f64| {
        until("more confirmed writes", Duration::from_secs(10), || {
            confirmations(&client, "confirmed") > than + 200.0
        })
        .await;
    };
    more(0.0).await;
    let from = rig(|| cluster.primary_of(slot));
    let to = rig(|| cluster.nodes())
        .iter()
        .find(|node| node.role == Role::Primary && node.index != from)
        .unwrap()
        .index;
    let migration = rig(|| cluster.begin_slot_migration(slot, to));
    more(confirmations(&client, "confirmed")).await;
    rig(|| migration.move_keys(10).map(drop));
    more(confirmations(&client, "confirmed")).await;
    rig(|| migration.finish());
    more(confirmations(&client, "confirmed")).await;
    rig(|| cluster.failover(cluster.replica_of(to).unwrap()));
    more(confirmations(&client, "confirmed")).await;
    over.cancel();
    let (mut confirmed, mut run, mut doubtful) = (0, 0, 0);
    for (a, b, c) in callers.join_all().await {
        (confirmed, run, doubtful) = (confirmed + a, run + b, doubtful + c);
    }
    let counted: i64 = redis::from_redis_value(client.run(&["GET", "k"]).await.unwrap()).unwrap();
    println!("{confirmed} of {run} writes confirmed, {doubtful} without an answer, {counted} counted");
    assert!(confirmed <= counted && counted <= run + doubtful, "{confirmed} {run} {doubtful} {counted}");
    for kind in ["moved", "ask"] {
        let line = format!(r#"outrigger_redis_redirects_total{{instance="main",kind="{kind}"}}"#);
        assert!(client.metric(&line) > 0.0, "no {kind} was followed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_without_the_right_to_wait_nothing_is_confirmed_and_that_is_shown() {
    let mut acl = Acl::outrigger("secret");
    acl.rules.push_str(" -wait ~k");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let more = json!({"username": "outrigger", "password": format!("${{file:{}}}", file.display())});
    let (cluster, client) = start(Options { acl: Some(acl), ..Options::default() }, more.clone()).await;
    let began = Instant::now();
    let written = count(&client, "k").await.unwrap();
    assert_eq!(written, Written { answer: Value::Int(1), is_confirmed: false });
    assert!(began.elapsed() < Duration::from_millis(100), "at once, not at the end of the budget");
    until("shown", Duration::from_secs(2), || client.health().1.contains("NOPERM")).await;
    let problems =
        inspect("main", &instance(&cluster.addresses(), more), FAMILIES, Eviction::Forbidden).await.problems;
    assert!(problems.iter().any(|problem| problem.message.contains("may not run: WAIT 1 1")), "{problems:?}");
}
