//! A failover does not bring back what was deleted or invalidated: the primary is lost right after the 204.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rig::{Options, RedisCluster};
use support::client::Reply;
use support::random::size;
use support::sidecar::{ACME, GLOBEX, Sidecar};
use support::wait_until;

/// How long a replica is held back, less than `cluster-node-timeout`.
const HELD: Duration = Duration::from_millis(400);
/// The contract: no sidecar serves the old value later.
const BOUND: Duration = Duration::from_secs(3);
/// What waits for a stopped replica in the primary's memory, beyond what the sockets' buffers take: lost with it.
const BACKLOG_BYTES: &str = "33554432";
/// Entries of one invalidation: they lie on all nodes.
const ENTRIES: usize = 6;

/// What happens to replication before the call, and to the primary after its 204.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing; killed.
    Killed,
    /// Nothing; stopped.
    Stopped,
    /// The replica is stopped with a backlog, goes on 400 ms later; the primary is killed.
    Lagging,
    /// The replica is stopped and its connection cut, goes on 400 ms later; the primary is killed.
    CutOff,
}

const FAULTS: [Fault; 4] = [Fault::Lagging, Fault::CutOff, Fault::Killed, Fault::Stopped];

struct Fleet {
    cluster: RedisCluster,
    /// One that deletes, and one that does not.
    sidecars: [Sidecar; 2],
}

/// Ends the threads that go on until then, also where a check fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What one round removes.
struct Target {
    call: (&'static str, String, Vec<u8>),
    paths: Vec<String>,
    /// A key on the node whose write decides.
    decides: String,
}

impl Fleet {
    fn send(&self, sidecar: usize, method: &str, path: &str, body: &[u8]) -> Reply {
        let sidecar = &self.sidecars[sidecar];
        let bearer = sidecar.bearer(ACME);
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        sidecar.client().send(method, path, &headers, body)
    }

    fn nodes_of(&self, key: &str) -> (usize, usize) {
        let primary = self.cluster.primary_of(self.cluster.slot_of(key).unwrap()).unwrap();
        (primary, self.cluster.replica_of(primary).unwrap())
    }

    /// Waits until the replica has the key, so that there is an old value to bring back.
    fn wait_replicated(&self, key: &str) {
        let slot = self.cluster.slot_of(key).unwrap().to_string();
        wait_until(&format!("a replica to have {key}"), Duration::from_secs(10), || {
            let (_, replica) = self.nodes_of(key);
            let keys = self.cluster.cli_at(replica, &["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).unwrap();
            keys.lines().any(|found| found == key)
        });
    }
}

fn target(round: u64, namespace: &str, invalidates: bool) -> Target {
    let key = |at: usize| format!("deleted-{round}-{at}");
    let path = |at: usize| format!("/v1/cache/{namespace}/{}", key(at));
    if invalidates {
        let call = ("POST", format!("/v1/cache/{namespace}:invalidate"), b"{}".to_vec());
        let decides = format!("outrigger:cache-generation:{ACME}:{namespace}");
        return Target { call, paths: (0..ENTRIES).map(path).collect(), decides };
    }
    let decides = format!("cache:{ACME}:{namespace}:{}:-", key(0));
    Target { call: ("DELETE", path(0), Vec::new()), paths: vec![path(0)], decides }
}

/// Writes of another tenant and of other keys, until `over`.
fn write_load(sidecar: &Sidecar, client: usize, over: &AtomicBool, stored: &AtomicU64) {
    let bearer = sidecar.bearer(GLOBEX);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let (mut connection, body) = (sidecar.client(), vec![b'7'; 2000]);
    let mut number = 0_u64;
    while !over.load(Relaxed) {
        number += 1;
        let path = format!("/v1/cache/profiles/load-{client}-{}", number % 500);
        let reply = connection.send("PUT", &path, &headers, &body);
        assert!([204, 503].contains(&reply.status), "{reply:?}");
        stored.fetch_add(u64::from(reply.status == 204), Relaxed);
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Reads what was removed until `over`, and counts the rounds; when each read that had the old value began.
fn read_until(sidecar: &Sidecar, paths: &[String], rounds: &AtomicU64, over: &AtomicBool) -> Vec<Instant> {
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str())];
    let (mut connection, mut old) = (sidecar.client(), Vec::new());
    while !over.load(Relaxed) {
        for path in paths {
            let began = Instant::now();
            let reply = connection.send("GET", path, &headers, b"");
            assert!([200, 404, 503].contains(&reply.status), "{reply:?}");
            if reply.status == 200 {
                assert_eq!(reply.body, b"\"old\"");
                old.push(began);
            }
        }
        rounds.fetch_add(1, Relaxed);
        std::thread::park_timeout(Duration::from_millis(1));
    }
    old
}

/// How the calls of one round ended.
#[derive(Default)]
struct Removed {
    acknowledged: Option<Instant>,
    unconfirmed: u64,
    took: Duration,
}

impl Fleet {
    /// Removes the target, again and again until that is acknowledged, and takes the primary away at that moment.
    fn remove(&self, target: &Target, fault: Fault) -> Removed {
        let (primary, replica) = self.nodes_of(&target.decides);
        let (bearer, mut connection) = (self.sidecars[0].bearer(ACME), self.sidecars[0].client());
        if matches!(fault, Fault::Lagging | Fault::CutOff) {
            self.cluster.stop(replica).unwrap();
        }
        if fault == Fault::Lagging {
            let filler = format!("filler:{{{}}}", target.decides);
            let script = "redis.call('SET', KEYS[1], string.rep('x', ARGV[1]), 'PX', 60000) return 1";
            self.cluster.cli_at(primary, &["EVAL", script, "1", &filler, BACKLOG_BYTES]).unwrap();
        }
        if fault == Fault::CutOff {
            self.cluster.cli_at(primary, &["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        }
        let held = Instant::now();
        let mut removed = Removed::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while held.elapsed() < HELD {
                    std::thread::park_timeout(HELD.saturating_sub(held.elapsed()));
                }
                self.cluster.cont(replica).unwrap();
            });
            let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
            let (method, path, body) = &target.call;
            while removed.acknowledged.is_none() {
                let began = Instant::now();
                let reply = connection.send(method, path, &headers, body);
                removed.took = removed.took.max(began.elapsed());
                match reply.status {
                    204 => removed.acknowledged = Some(Instant::now()),
                    503 => {
                        assert_eq!(reply.json()["retryable"], true, "{reply:?}");
                        removed.unconfirmed += 1;
                    }
                    _ => panic!("{reply:?}"),
                }
                assert!(held.elapsed() < Duration::from_secs(20), "never acknowledged: {reply:?}");
            }
            match fault {
                Fault::Stopped => self.cluster.stop(primary).unwrap(),
                Fault::Killed | Fault::Lagging | Fault::CutOff => self.cluster.kill(primary).unwrap(),
            }
        });
        removed
    }

    /// Waits until another node answers for the key.
    fn wait_promoted(&self, lost: usize, key: &str) {
        let slot = self.cluster.slot_of(key).unwrap();
        wait_until("a promotion", Duration::from_secs(30), || {
            self.cluster.primary_of(slot).is_ok_and(|primary| primary != lost)
        });
        self.cluster.wait_ok().unwrap();
    }

    fn round(&self, round: u64, fault: Fault, namespace: &str, invalidates: bool) -> String {
        let target = target(round, namespace, invalidates);
        for path in &target.paths {
            wait_until("a value to be stored", Duration::from_secs(20), || {
                self.send(0, "PUT", path, b"\"old\"").status == 204
            });
            for sidecar in 0..2 {
                assert_eq!(self.send(sidecar, "GET", path, b"").status, 200, "round {round}");
            }
        }
        self.wait_replicated(&target.decides);
        let (primary, _) = self.nodes_of(&target.decides);
        let (over, reads) = (AtomicBool::new(false), [(); 2].map(|()| AtomicU64::new(0)));
        let (mut removed, old) = (Removed::default(), Mutex::new([Vec::new(), Vec::new()]));
        std::thread::scope(|scope| {
            let _over = Over(&over);
            for (at, sidecar) in self.sidecars.iter().enumerate() {
                let (over, reads, paths, old) = (&over, &reads[at], &target.paths, &old);
                scope.spawn(move || {
                    let seen = read_until(sidecar, paths, reads, over);
                    old.lock().unwrap()[at] = seen;
                });
            }
            wait_until("reads of both", Duration::from_secs(10), || {
                reads.iter().all(|reads| reads.load(Relaxed) > 0)
            });
            removed = self.remove(&target, fault);
            self.wait_promoted(primary, &target.decides);
            for (sidecar, path) in (0..2).flat_map(|at| target.paths.iter().map(move |path| (at, path))) {
                wait_until("an answer from the new primary", Duration::from_secs(20), || {
                    self.send(sidecar, "GET", path, b"").status != 503
                });
            }
            let end = removed.acknowledged.unwrap() + BOUND + Duration::from_millis(300);
            wait_until("the contract's bound", BOUND * 2, || Instant::now() > end);
        });
        let acknowledged = removed.acknowledged.unwrap();
        let [mine, others] = old.into_inner().unwrap();
        let late = |seen: &[Instant]| {
            seen.last().map_or(Duration::ZERO, |at| at.saturating_duration_since(acknowledged))
        };
        assert!(!mine.is_empty() && !others.is_empty(), "nothing was there before: round {round}");
        let what = if invalidates { ":invalidate" } else { "DELETE" };
        let line = format!(
            "round {round}: {what} in {namespace}, {fault:?}: {} unconfirmed, worst call {:?}; the old value last read {:?} (here) and {:?} (elsewhere) after the 204",
            removed.unconfirmed,
            removed.took,
            late(&mine),
            late(&others)
        );
        assert_eq!(late(&mine), Duration::ZERO, "{line}");
        assert!(late(&others) < BOUND, "{line}");
        match fault {
            Fault::Stopped => self.cluster.cont(primary).unwrap(),
            Fault::Killed | Fault::Lagging | Fault::CutOff => self.cluster.restart(primary).unwrap(),
        }
        self.cluster.wait_ok().unwrap();
        for (sidecar, path) in (0..2).flat_map(|at| target.paths.iter().map(move |path| (at, path))) {
            let reply = self.send(sidecar, "GET", path, b"");
            assert_ne!(reply.status, 200, "with the lost primary back: {line}");
        }
        line
    }
}

#[test]
fn chaos_a_failover_does_not_undo_an_acknowledged_delete_or_invalidation() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let sidecars = [(); 2].map(|()| Sidecar::on_redis(&cluster.addresses()));
    let fleet = Fleet { cluster, sidecars };
    let (over, stored) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for client in 0..4 {
            let (over, stored, sidecar) = (&over, &stored, &fleet.sidecars[client % 2]);
            scope.spawn(move || write_load(sidecar, client, over, stored));
        }
        for round in 0..size(8, 160) {
            let fault = FAULTS[usize::try_from(round / 2 % 4).unwrap()];
            let namespace = if round / 8 % 2 == 0 { "profiles" } else { "scoring" };
            println!("{}", fleet.round(round, fault, namespace, round % 2 == 1));
        }
    });
    println!("{} writes were stored meanwhile", stored.into_inner());
}

#[test]
fn chaos_what_a_stopped_replica_cannot_confirm_is_outcome_unknown_each_time() {
    let options = Options { cluster_node_timeout_ms: 10_000, ..Options::default() };
    let cluster = RedisCluster::start(options).unwrap();
    let sidecars = [(); 2].map(|()| Sidecar::on_redis(&cluster.addresses()));
    let fleet = Fleet { cluster, sidecars };
    let (path, invalidate) = ("/v1/cache/scoring/k", "/v1/cache/scoring:invalidate");
    assert_eq!(fleet.send(0, "PUT", path, b"1").status, 204);
    for sidecar in 0..2 {
        wait_until("a value in L1", Duration::from_secs(5), || {
            fleet.send(sidecar, "GET", path, b"").header("outrigger-cache") == Some("l1")
        });
    }
    let entry = format!("cache:{ACME}:scoring:k:-");
    let generation = format!("outrigger:cache-generation:{ACME}:scoring");
    let stopped: std::collections::BTreeSet<_> =
        [&entry, &generation].map(|key| fleet.nodes_of(key).1).into_iter().collect();
    for replica in &stopped {
        fleet.cluster.stop(*replica).unwrap();
    }
    // The second DELETE finds nothing to do where it asks; what the replica lacks is still not confirmed.
    for _ in 0..2 {
        let began = Instant::now();
        let unknown = fleet.send(0, "DELETE", path, b"");
        assert_eq!(unknown.problem(503, "outcome_unknown")["retryable"], true);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(fleet.send(0, "GET", path, b"").status, 404, "it is done here, whatever was said");
    }
    let told = Instant::now();
    wait_until("the other sidecar to hear of it", Duration::from_millis(100), || {
        fleet.send(1, "GET", path, b"").status == 404
    });
    println!("a DELETE that is not confirmed is heard of elsewhere after {:?}", told.elapsed());
    assert_eq!(fleet.send(0, "PUT", path, b"2").status, 204, "a PUT waits for no replica");
    fleet.send(0, "POST", invalidate, b"{}").problem(503, "outcome_unknown");
    assert_eq!(fleet.send(0, "GET", path, b"").status, 404);
    for replica in &stopped {
        fleet.cluster.cont(*replica).unwrap();
    }
    for (method, path, body) in [("DELETE", path, &b""[..]), ("POST", invalidate, b"{}")] {
        wait_until("a confirmed removal", Duration::from_secs(2), || {
            fleet.send(0, method, path, body).status == 204
        });
    }
}

#[test]
fn chaos_a_full_redis_takes_removals() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let sidecars = [(); 2].map(|()| Sidecar::on_redis(&cluster.addresses()));
    let fleet = Fleet { cluster, sidecars };
    assert_eq!(fleet.send(0, "PUT", "/v1/cache/scoring/k", b"1").status, 204);
    fleet.cluster.config_set("maxmemory", "1").unwrap();
    assert_eq!(fleet.send(0, "PUT", "/v1/cache/scoring/other", b"1").status, 503);
    for key in ["k", "k", "never-there"] {
        let deleted = fleet.send(0, "DELETE", &format!("/v1/cache/scoring/{key}"), b"");
        assert_eq!(deleted.status, 204, "{key}: {deleted:?}");
    }
    for namespace in ["scoring", "profiles"] {
        let invalidated = fleet.send(0, "POST", &format!("/v1/cache/{namespace}:invalidate"), b"{}");
        assert_eq!(invalidated.status, 204, "{namespace}: {invalidated:?}");
    }
}

/// What another system wrote has no stamp: only the sweep tells it from what it writes afterwards.
#[test]
fn chaos_what_a_sweep_removed_and_a_failover_brings_back_is_not_read() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let sidecars = [(); 2].map(|()| Sidecar::on_redis(&cluster.addresses()));
    let fleet = Fleet { cluster, sidecars };
    let generation = format!("outrigger:cache-generation:{ACME}:scoring");
    let decides = fleet.nodes_of(&generation).0;
    let entry = |at: usize| format!("cache:{ACME}:scoring:theirs-{at}:-");
    let at = (0..).find(|at| fleet.nodes_of(&entry(*at)).0 != decides).unwrap();
    let (entry, path) = (entry(at), format!("/v1/cache/scoring/theirs-{at}"));
    let (primary, replica) = fleet.nodes_of(&entry);
    fleet.cluster.cli_at(primary, &["SET", &entry, "\"old\"", "PX", "600000"]).unwrap();
    fleet.wait_replicated(&entry);
    assert_eq!(fleet.send(0, "GET", &path, b"").status, 200);
    fleet.cluster.stop(replica).unwrap();
    let (held, filler) = (Instant::now(), format!("filler:{{{entry}}}"));
    let script = "redis.call('SET', KEYS[1], string.rep('x', ARGV[1]), 'PX', 60000) return 1";
    fleet.cluster.cli_at(primary, &["EVAL", script, "1", &filler, BACKLOG_BYTES]).unwrap();
    wait_until("an acknowledged invalidation", BOUND, || {
        fleet.send(0, "POST", "/v1/cache/scoring:invalidate", b"{}").status == 204
    });
    wait_until("the sweep to remove it", BOUND, || {
        fleet.cluster.cli_at(primary, &["EXISTS", &entry]).unwrap().trim() == "0"
    });
    wait_until("the replica's time", HELD * 2, || held.elapsed() >= HELD);
    fleet.cluster.kill(primary).unwrap();
    fleet.cluster.cont(replica).unwrap();
    fleet.wait_promoted(primary, &entry);
    let new = fleet.cluster.primary_of(fleet.cluster.slot_of(&entry).unwrap()).unwrap();
    assert_eq!(fleet.cluster.cli_at(new, &["EXISTS", &entry]).unwrap().trim(), "1", "nothing came back");
    let promoted = Instant::now();
    wait_until("three seconds of reads", BOUND * 2, || {
        for sidecar in 0..2 {
            let reply = fleet.send(sidecar, "GET", &path, b"");
            assert!([404, 503].contains(&reply.status), "an acknowledged invalidation is undone: {reply:?}");
        }
        promoted.elapsed() > BOUND
    });
    wait_until("another sweep to remove it", Duration::from_secs(40), || {
        fleet.send(1, "GET", &path, b"");
        fleet.cluster.cli_at(new, &["EXISTS", &entry]).unwrap().trim() == "0"
    });
}
