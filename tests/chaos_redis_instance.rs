//! The Redis pool and what an operator does to an instance: TLS, a password that rotates, rights, full memory, scripts
//! flushed; and what `check` says of it.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/redis.rs"]
mod redis_support;

use std::time::Duration;

use outrigger::pools::redis::{Eviction, RedisFailure, Script, Slot, inspect};
use outrigger::telemetry::BackendState;
use redis::Value;
use redis_support::{Client, bulk, connected, instance, rig, until};
use rig::{Acl, Options, RedisCluster};
use serde_json::json;

const BUDGET: Duration = Duration::from_secs(1);
const FAMILIES: &[&str] = &["cache:", "outrigger:", "tenant:"];

fn start(options: Options) -> RedisCluster {
    rig(|| RedisCluster::start(options))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_tls_and_a_password_that_is_wrong_and_then_right() {
    let options = Options { tls: true, acl: Some(Acl::outrigger("first word")), ..Options::default() };
    let cluster = start(options);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first word\n").unwrap();
    let more = json!({
        "username": "outrigger",
        "password": format!("${{file:{}}}", file.display()),
        "tls": {"ca_file": cluster.certificate().unwrap().authority},
    });
    let client = connected(&cluster, more.clone()).await;
    assert_eq!(client.run(&["SET", "cache:x", "1"]).await.unwrap(), Value::Okay);
    let forbidden = client.run(&["SET", "elsewhere", "1"]).await;
    assert!(
        matches!(&forbidden, Err(RedisFailure::Refused(text)) if text.contains("NOPERM")),
        "{forbidden:?}"
    );
    let prefixes: &'static [&'static str] = &["cache:"];
    let _events = client.pool.track(prefixes);
    until("tracking as that user", Duration::from_secs(5), || client.pool.tracking_is_current()).await;

    rig(|| cluster.change_password("second word"));
    until("down", Duration::from_secs(3), || client.health().0 == BackendState::Down).await;
    let (_, advice) = client.health();
    assert!(
        advice.contains("WRONGPASS") && advice.contains("check redis.main.username and redis.main.password"),
        "{advice}"
    );
    assert!(!advice.contains("word\n") && !advice.contains("first word"), "{advice}");
    assert!(matches!(client.run(&["GET", "cache:x"]).await, Err(RedisFailure::Unavailable(_))));

    std::fs::write(&file, "second word").unwrap();
    let took = until("no primary down", Duration::from_secs(3), || {
        let (state, advice) = client.health();
        // What was forbidden above is still shown.
        state == BackendState::Up || advice.contains("NOPERM")
    });
    println!("a right password: up after {:?}", took.await);
    assert_eq!(client.run(&["GET", "cache:x"]).await.unwrap(), bulk("1"));

    let found =
        inspect("main", &instance(&cluster.addresses(), more.clone()), FAMILIES, Eviction::Forbidden).await;
    assert_eq!(found.problems, [], "{found:?}");

    // A certificate that nobody vouches for is not trusted.
    let mut public = more;
    public["tls"] = json!({});
    let stranger = Client::new(&cluster.addresses(), public);
    until("down", Duration::from_secs(3), || stranger.health().0 == BackendState::Down).await;
    assert!(stranger.health().1.contains("TLS with"), "{:?}", stranger.health());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_scripts_run_after_they_were_flushed() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    let script = Script::new("return redis.call('INCR', KEYS[1])");
    for expected in 1..4 {
        let answer = client.pool.script(Slot::of(b"counter"), &script, &[b"counter"], &[], BUDGET).await;
        assert_eq!(answer.unwrap(), Value::Int(expected));
        for node in 0..rig::NODES {
            rig(|| cluster.cli_at(node, &["SCRIPT", "FLUSH"]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_full_memory_is_a_refusal_and_shown() {
    let cluster = start(Options::default());
    let client = connected(&cluster, json!({})).await;
    rig(|| cluster.config_set("maxmemory", "1"));
    let refused = client.run(&["SET", "x", "1"]).await;
    assert!(matches!(&refused, Err(RedisFailure::Refused(text)) if text.starts_with("OOM")), "{refused:?}");
    until("shown", Duration::from_secs(2), || client.health().1.starts_with("OOM: maxmemory reached")).await;
    rig(|| cluster.config_set("maxmemory", "0"));
    assert!(client.run(&["SET", "x", "1"]).await.is_ok());
    until("up", Duration::from_secs(15), || client.health().0 == BackendState::Up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_check_names_every_problem_of_an_instance_at_once() {
    let rules = "resetkeys ~tenant:* -@all +@read +@connection +eval +evalsha +cluster +info -pttl";
    let acl = Acl { user: "outrigger".to_owned(), password: "secret".to_owned(), rules: rules.to_owned() };
    let maxmemory = Some((64 << 20, "allkeys-lru".to_owned()));
    let cluster = start(Options { acl: Some(acl), maxmemory, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "secret").unwrap();
    let more = json!({"username": "outrigger", "password": format!("${{file:{}}}", file.display())});
    let instance = instance(&cluster.addresses(), more);
    let messages = |found: Vec<outrigger::pools::redis::Problem>| {
        found.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")
    };
    let limits = inspect("main", &instance, &["outrigger:", "tenant:"], Eviction::Forbidden).await;
    let found = messages(limits.problems);
    assert!(found.contains("anything on outrigger:*"), "{found}");
    assert!(found.contains("maxmemory-policy is allkeys-lru on 127.0.0.1:"), "{found}");
    assert!(found.contains("SET tenant:* 1 PX 1") && found.contains("PTTL tenant:*"), "{found}");
    assert!(found.contains("TIME") && !found.contains("cache:") && !found.contains(" GET"), "{found}");
    let found = inspect("main", &instance, &["tenant:"], Eviction::Welcome).await;
    assert_eq!(found.warnings, [""; 0], "an instance that evicts is what a cache wants");
    let found = messages(found.problems);
    assert!(!found.contains("outrigger:") && !found.contains("maxmemory-policy"), "{found}");
    std::fs::write(&file, "wrong").unwrap();
    let found = inspect("main", &instance, FAMILIES, Eviction::Forbidden).await;
    assert_eq!(found.problems.len(), rig::NODES, "{found:?}");
    assert!(
        found.problems.iter().all(|problem| problem.expected.contains("redis.main.password")),
        "{found:?}"
    );
}
