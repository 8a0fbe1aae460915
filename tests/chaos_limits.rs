//! Four sidecars on one cluster never admit more than the limit's burst and rate allow, to the token.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use support::random::size;
use support::sidecar::{ACME, Sidecar, write_config};

/// The shipped limit `api` on tier `free`.
const BURST: u64 = 20;
const RATE_PER_MINUTE: u64 = 100;
const BODY: &[u8] = br#"{"checks":[{"limit":"api","key":"/shared"}]}"#;

#[derive(Default)]
struct Counts {
    admitted: AtomicU64,
    degraded: AtomicU64,
    denied: AtomicU64,
}

fn config(directory: &Path, nodes: &str, budget_ms: u64) -> PathBuf {
    let sections = format!(
        "redis:\n  main: {{nodes: [{nodes}]}}\nratelimit: {{backend: redis, redis: main, budget_ms: {budget_ms}}}\n"
    );
    write_config(directory, &sections, "")
}

/// A sidecar that is up; with `like` it accepts the tokens of that one.
fn sidecar(nodes: &str, budget_ms: u64, like: Option<&Sidecar>) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    if let Some(like) = like {
        let identity = directory.path().join("identity");
        std::fs::create_dir(&identity).unwrap();
        for file in std::fs::read_dir(like.directory.path().join("identity")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), identity.join(file.file_name())).unwrap();
        }
    }
    let path = config(directory.path(), nodes, budget_ms);
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "up");
    sidecar
}

/// Four sidecars that accept the same tokens.
fn four_sidecars(nodes: &str, budget_ms: u64) -> Vec<Sidecar> {
    let first = sidecar(nodes, budget_ms, None);
    let more: Vec<_> = (0..3).map(|_| sidecar(nodes, budget_ms, Some(&first))).collect();
    std::iter::once(first).chain(more).collect()
}

fn hammer(sidecars: &[Sidecar], counts: &Counts, during: impl FnOnce()) -> Duration {
    let bearer = sidecars[0].bearer(ACME);
    let over = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for sidecar in sidecars {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut client = sidecar.client();
                    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
                    while !over.load(Relaxed) {
                        let reply = client.send("POST", "/v1/ratelimit/check", &headers, BODY);
                        let document = reply.json();
                        match (reply.status, document["degraded"] == true) {
                            (200, false) => counts.admitted.fetch_add(1, Relaxed),
                            (200, true) => counts.degraded.fetch_add(1, Relaxed),
                            (429, _) => {
                                assert!(reply.header("retry-after").is_some(), "{reply:?}");
                                counts.denied.fetch_add(1, Relaxed)
                            }
                            _ => panic!("{reply:?}"),
                        };
                    }
                });
            }
        }
        during();
        over.store(true, Relaxed);
    });
    began.elapsed()
}

fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn assert_exact(counts: &Counts, took: Duration) {
    let (admitted, denied) = (counts.admitted.load(Relaxed), counts.denied.load(Relaxed));
    let allowed = BURST + u64::try_from(took.as_millis()).unwrap() * RATE_PER_MINUTE / 60_000;
    println!(
        "admitted {admitted} of {allowed} allowed in {took:?}; degraded {}, denied {denied}",
        counts.degraded.load(Relaxed)
    );
    assert!(admitted <= allowed, "admitted {admitted}, burst and rate allow {allowed} in {took:?}");
    assert!(denied > 100, "the limit was not under load");
}

#[test]
fn chaos_four_sidecars_admit_exactly_what_one_limit_allows() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    // Nothing is broken, so no answer may be `degraded`, however slow a machine that does other things too.
    let sidecars = four_sidecars(&cluster.addresses().join(", "), 1000);
    let counts = Counts::default();
    let took = hammer(&sidecars, &counts, || wait(Duration::from_secs(size(8, 120))));
    assert_exact(&counts, took);
    let admitted = counts.admitted.load(Relaxed);
    let allowed = BURST + u64::try_from(took.as_millis()).unwrap() * RATE_PER_MINUTE / 60_000;
    assert_eq!(counts.degraded.load(Relaxed), 0, "nothing was broken");
    assert!(
        admitted + 2 >= allowed,
        "a caller that always asks gets all of its rate: {admitted} of {allowed}"
    );
}

#[test]
fn chaos_a_failover_admits_nothing_more_apart_from_what_degraded_says() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let sidecars = four_sidecars(&cluster.addresses().join(", "), 20);
    let counts = Counts::default();
    let slot = cluster.slot_of(&format!("{{{ACME}}}")).unwrap();
    let took = hammer(&sidecars, &counts, || {
        wait(Duration::from_secs(2));
        let primary = cluster.primary_of(slot).unwrap();
        cluster.kill(primary).unwrap();
        wait(Duration::from_secs(size(8, 60)));
        cluster.restart(primary).unwrap();
        cluster.wait_ok().unwrap();
        wait(Duration::from_secs(2));
    });
    assert_exact(&counts, took);
    assert!(counts.degraded.load(Relaxed) > 0, "the failover was not felt, so nothing was shown");
}

/// Looks at the limit without taking: `degraded` of the answer.
fn is_degraded(sidecar: &Sidecar, bearer: &str) -> bool {
    let headers = [("Authorization", bearer), ("Content-Type", "application/json")];
    let look = br#"{"checks":[{"limit":"api","key":"/shared","cost":0}]}"#;
    let reply = sidecar.client().send("POST", "/v1/ratelimit/check", &headers, look);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["degraded"].as_bool().unwrap()
}

#[test]
fn chaos_a_sidecar_that_starts_after_a_failover_says_degraded_for_as_long_as_the_others() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let nodes = cluster.addresses().join(", ");
    // The time in which a bucket of the shipped limit fills, and some for a slow machine.
    let (fill, patience) = (Duration::from_secs(12), Duration::from_secs(5));
    let primary_of =
        |tenant: &str| cluster.primary_of(cluster.slot_of(&format!("{{{tenant}}}")).unwrap()).unwrap();
    let lost = primary_of(ACME);
    let elsewhere = (0..)
        .map(|at| format!("0190c7a8-3c5e-7f00-8000-{at:012x}"))
        .find(|tenant| primary_of(tenant) != lost);
    let before = sidecar(&nodes, 200, None);
    let (bearer, other) = (before.bearer(ACME), before.bearer(&elsewhere.unwrap()));
    assert!(!is_degraded(&before, &bearer), "a cluster that is as it was");
    let second = sidecar(&nodes, 200, Some(&before));
    assert!(!is_degraded(&second, &bearer), "a cluster that is as it was, for one that starts later");

    cluster.kill(lost).unwrap();
    let killed = Instant::now();
    cluster.wait_ok().unwrap();
    let ready = Instant::now();
    let after = sidecar(&nodes, 200, Some(&before));
    assert!(ready.elapsed() < fill, "too slow to see anything: {:?}", ready.elapsed());
    assert!(is_degraded(&after, &bearer), "it does not say that tokens may be lost");
    assert!(!is_degraded(&after, &other), "no primary of this tenant was lost");
    while is_degraded(&after, &bearer) {
        assert!(ready.elapsed() < fill + patience, "still degraded {:?} after the failover", ready.elapsed());
        wait(Duration::from_millis(20));
    }
    println!(
        "exact again {:?} after the kill, {:?} after the cluster was whole",
        killed.elapsed(),
        ready.elapsed()
    );
    assert!(killed.elapsed() > fill, "exact before the bucket can be full: {:?}", killed.elapsed());
    assert!(!is_degraded(&after, &other));
    let third = sidecar(&nodes, 200, Some(&before));
    assert!(!is_degraded(&third, &bearer) && !is_degraded(&third, &other), "all is long past");
}
