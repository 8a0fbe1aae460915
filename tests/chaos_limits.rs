//! Four sidecars on one cluster never admit more than the limit's burst and rate allow, to the token.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::random::size;
use support::sidecar::{ACME, Sidecar, write_config};

/// The shipped limit `api` on tier `free`.
const BURST: u64 = 20;
const RATE_PER_MINUTE: u64 = 100;
/// The shipped `budget_ms`.
const BUDGET: Duration = Duration::from_millis(20);
/// Where it is not what is asked.
const PATIENT: Duration = Duration::from_millis(200);
/// A PING every millisecond takes a little more than that; a quarter of the budget shows that somebody else ran.
const HELD_UP: Duration = Duration::from_millis(5);
const BODY: &[u8] = br#"{"checks":[{"limit":"api","key":"/shared"}]}"#;

/// One check as its caller saw it.
#[derive(Clone, Copy)]
struct Seen {
    sidecar: usize,
    sent: Instant,
    took: Duration,
    allowed: bool,
    degraded: bool,
}

impl Seen {
    fn answered(&self) -> Instant {
        self.sent + self.took
    }
}

fn config(directory: &Path, nodes: &str, budget: Duration) -> PathBuf {
    let sections = format!(
        "redis:\n  main: {{nodes: [{nodes}]}}\nratelimit: {{backend: redis, redis: main, budget_ms: {}}}\n",
        budget.as_millis()
    );
    write_config(directory, &sections, "")
}

/// A sidecar that is up; with `like` it accepts the tokens of that one.
fn sidecar(nodes: &str, budget: Duration, like: Option<&Sidecar>) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    if let Some(like) = like {
        let identity = directory.path().join("identity");
        std::fs::create_dir(&identity).unwrap();
        for file in std::fs::read_dir(like.directory.path().join("identity")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), identity.join(file.file_name())).unwrap();
        }
    }
    let path = config(directory.path(), nodes, budget);
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "up");
    sidecar
}

/// Four sidecars that accept the same tokens.
fn four_sidecars(nodes: &str, budget: Duration) -> Vec<Sidecar> {
    let first = sidecar(nodes, budget, None);
    let more: Vec<_> = (0..3).map(|_| sidecar(nodes, budget, Some(&first))).collect();
    std::iter::once(first).chain(more).collect()
}

/// Two clients of each sidecar check, with a pause between two checks, until `during` is done; and how long that was.
fn hammer(sidecars: &[Sidecar], pause: Duration, during: impl FnOnce()) -> (Vec<Seen>, Duration) {
    let bearer = sidecars[0].bearer(ACME);
    let (over, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..2 * sidecars.len() {
            let (bearer, over, seen) = (&bearer, &over, &seen);
            scope.spawn(move || {
                let sidecar = client / 2;
                let mut client = sidecars[sidecar].client();
                let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
                while !over.load(Relaxed) {
                    let sent = Instant::now();
                    let reply = client.send("POST", "/v1/ratelimit/check", &headers, BODY);
                    let took = sent.elapsed();
                    let (allowed, degraded) = (reply.status == 200, reply.json()["degraded"] == true);
                    assert!(allowed || reply.status == 429, "{reply:?}");
                    assert!(allowed || reply.header("retry-after").is_some(), "{reply:?}");
                    seen.lock().unwrap().push(Seen { sidecar, sent, took, allowed, degraded });
                    wait(pause);
                }
            });
        }
        during();
        over.store(true, Relaxed);
    });
    (seen.into_inner().unwrap(), began.elapsed())
}

fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// What burst and rate allow in this time.
fn allowed_in(time: Duration) -> usize {
    usize::try_from(BURST + u64::try_from(time.as_millis()).unwrap() * RATE_PER_MINUTE / 60_000).unwrap()
}

/// Of the answers that are not degraded, no more are admissions than the limit allows. Returns how many are.
fn assert_exact(seen: &[Seen], took: Duration) -> usize {
    let count = |of: &dyn Fn(&Seen) -> bool| seen.iter().filter(|seen| of(seen)).count();
    let admitted = count(&|seen| seen.allowed && !seen.degraded);
    let (denied, degraded) = (count(&|seen| !seen.allowed), count(&|seen| seen.degraded));
    let allowed = allowed_in(took);
    println!("admitted {admitted} of {allowed} allowed in {took:?}; degraded {degraded}, denied {denied}");
    assert!(admitted <= allowed, "admitted {admitted}, burst and rate allow {allowed} in {took:?}");
    assert!(denied > 100, "the limit was not under load");
    admitted
}

/// How long a primary takes to answer a PING of this process, and this process to notice: what a check cannot beat.
struct Control(Vec<(Instant, Duration)>);

impl Control {
    /// Asks about every millisecond until `over`.
    fn run(address: &str, over: &AtomicBool) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut asked = Vec::new();
        while !over.load(Relaxed) {
            let at = Instant::now();
            wait(Duration::from_millis(1));
            stream.write_all(b"PING\r\n").unwrap();
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"+PONG\r\n");
            asked.push((at, at.elapsed()));
        }
        Self(asked)
    }

    /// The longest that was under way at some time of a check.
    fn worst(&self, seen: &Seen) -> Duration {
        let during = self.0.iter().filter(|(at, took)| *at <= seen.answered() && *at + *took >= seen.sent);
        during.map(|(_, took)| *took).max().unwrap_or_default()
    }
}

/// A degraded answer on a healthy cluster took the whole budget, or came within 5 s of three that did: then nobody
/// waits until two probes were answered.
fn assert_overran(seen: &[Seen]) {
    let overran: Vec<_> = seen.iter().filter(|seen| seen.degraded && seen.took >= BUDGET).collect();
    for one in seen.iter().filter(|seen| seen.degraded && seen.took < BUDGET) {
        let before = |other: &&&Seen| {
            let ago = one.answered().checked_duration_since(other.answered());
            other.sidecar == one.sidecar && ago.is_some_and(|ago| ago < Duration::from_secs(5))
        };
        let count = overran.iter().filter(before).count();
        assert!(count >= 3, "sidecar {} did not wait, after {count} waits in vain", one.sidecar);
    }
}

/// Four sidecars with the shipped budget on a cluster of which nothing is broken.
fn on_a_healthy_cluster(pause: Duration) -> (Vec<Seen>, Control) {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let sidecars = four_sidecars(&cluster.addresses().join(", "), BUDGET);
    let primary = cluster.primary_of(cluster.slot_of(&format!("{{{ACME}}}")).unwrap()).unwrap();
    let address = cluster.addresses()[primary].clone();
    let over = AtomicBool::new(false);
    let ((seen, took), control) = std::thread::scope(|scope| {
        let control = scope.spawn(|| Control::run(&address, &over));
        let seen = hammer(&sidecars, pause, || wait(Duration::from_secs(size(8, 120))));
        over.store(true, Relaxed);
        (seen, control.join().unwrap())
    });
    let admitted = assert_exact(&seen, took);
    let began = seen.iter().map(|seen| seen.sent).min().unwrap();
    let last = seen.iter().filter(|seen| !seen.degraded).map(Seen::answered).max().unwrap();
    let earned = allowed_in(last - began);
    assert!(admitted + 2 >= earned, "who always asks gets all of the rate: {admitted} of {earned}");
    assert_overran(&seen);
    for sidecar in &sidecars {
        let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
        let others = |line: &&str| {
            line.starts_with("outrigger_ratelimit_decisions_total")
                && !line.contains("source=\"backend\"")
                && !line.contains("source=\"local\"")
                && !line.ends_with(" 0")
        };
        assert_eq!(metrics.lines().find(others), None, "Redis was never lost");
    }
    (seen, control)
}

#[test]
fn chaos_four_sidecars_admit_exactly_what_one_limit_allows() {
    // As fast as two cores can: some checks overrun, since Redis or a sidecar has to wait for a core.
    on_a_healthy_cluster(Duration::ZERO);
}

#[test]
fn chaos_on_a_healthy_cluster_only_a_machine_that_was_held_up_makes_an_answer_degraded() {
    let (seen, control) = on_a_healthy_cluster(Duration::from_millis(5));
    let mut slowest: Vec<_> = seen.iter().map(|seen| seen.took).collect();
    slowest.sort_unstable();
    let most = control.0.iter().map(|(_, took)| *took).max().unwrap();
    println!("slowest checks {:?}, slowest PING {most:?}", slowest.last_chunk::<3>().unwrap());
    for one in seen.iter().filter(|seen| seen.degraded && seen.took >= BUDGET) {
        let worst = control.worst(one);
        assert!(worst > HELD_UP, "{:?}, though a PING meanwhile took no longer than {worst:?}", one.took);
    }
}

#[test]
fn chaos_a_failover_admits_nothing_more_apart_from_what_degraded_says() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let sidecars = four_sidecars(&cluster.addresses().join(", "), BUDGET);
    let slot = cluster.slot_of(&format!("{{{ACME}}}")).unwrap();
    let (seen, took) = hammer(&sidecars, Duration::ZERO, || {
        wait(Duration::from_secs(2));
        let primary = cluster.primary_of(slot).unwrap();
        cluster.kill(primary).unwrap();
        wait(Duration::from_secs(size(8, 60)));
        cluster.restart(primary).unwrap();
        cluster.wait_ok().unwrap();
        wait(Duration::from_secs(2));
    });
    assert_exact(&seen, took);
    assert!(seen.iter().any(|seen| seen.degraded), "the failover was not felt, so nothing was shown");
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
    let before = sidecar(&nodes, PATIENT, None);
    let (bearer, other) = (before.bearer(ACME), before.bearer(&elsewhere.unwrap()));
    assert!(!is_degraded(&before, &bearer), "a cluster that is as it was");
    let second = sidecar(&nodes, PATIENT, Some(&before));
    assert!(!is_degraded(&second, &bearer), "a cluster that is as it was, for one that starts later");

    cluster.kill(lost).unwrap();
    let killed = Instant::now();
    cluster.wait_ok().unwrap();
    let ready = Instant::now();
    let after = sidecar(&nodes, PATIENT, Some(&before));
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
    let third = sidecar(&nodes, PATIENT, Some(&before));
    assert!(!is_degraded(&third, &bearer) && !is_degraded(&third, &other), "all is long past");
}

/// Redis answers in half of the budget, while this process does not run; when it does the budget is over.
#[test]
fn chaos_a_pause_of_the_sidecar_itself_is_no_failure_of_redis() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let sidecar = sidecar(&cluster.addresses().join(", "), Duration::from_millis(400), None);
    let bearer = sidecar.bearer(ACME);
    let primary = cluster.primary_of(cluster.slot_of(&format!("{{{ACME}}}")).unwrap()).unwrap();
    assert!(!is_degraded(&sidecar, &bearer));
    for round in 0..10 {
        cluster.cli_at(primary, &["CLIENT", "PAUSE", "150", "ALL"]).unwrap();
        let degraded = std::thread::scope(|scope| {
            let look = scope.spawn(|| is_degraded(&sidecar, &bearer));
            wait(Duration::from_millis(50));
            sidecar.signal(Signal::STOP);
            wait(Duration::from_millis(500));
            sidecar.signal(Signal::CONT);
            look.join().unwrap()
        });
        assert!(!degraded, "round {round}: the answer was there, unread");
    }
}
