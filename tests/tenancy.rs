//! Three tenants at once, over TCP and the socket, with the same keys: nobody ever sees another's.
//!
//! Each worker keeps a model of what it wrote. Without faults a read must be exactly what the model has. A PUT that was
//! given up may be in the writer's queue for longer than its connection stood: it takes effect at most once, whenever.
//! Beside a failover a read may be any value that this worker wrote to that key, or nothing, since Redis forgets what
//! it had not replicated. Every value names its tenant, so that a crossing shows whatever the model says.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use support::client::{Client, Reply};
use support::random::{Random, seed, size};
use support::sidecar::{Sidecar, write_config};

/// Three tenants that nobody else uses: the shared cluster may hold what earlier runs wrote.
type Tenants = [String; 3];

fn fresh_tenants() -> Tenants {
    std::array::from_fn(|_| uuid::Uuid::new_v4().to_string())
}

const KEYS: u64 = 40;
/// Workers: three tenants, over TCP and over the socket.
const WORKERS: usize = 6;
/// The shipped limit `login` on tier `free`.
const LOGIN_BURST: u64 = 5;

#[derive(Clone)]
enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Door {
    fn open(&self) -> Client {
        match self {
            Self::Tcp(address) => Client::tcp(*address),
            Self::Unix(path) => Client::unix(path),
        }
    }
}

/// What a key may hold.
struct Possible {
    /// One value when sure, several when a call's outcome is not known.
    values: BTreeSet<Option<String>>,
    /// Of PUTs that were given up, and not seen to take effect.
    given_up: BTreeSet<String>,
}

impl Possible {
    fn nothing() -> Self {
        Self { values: BTreeSet::from([None]), given_up: BTreeSet::new() }
    }

    /// Whether this may be found; what was given up may be once.
    fn may_be(&mut self, found: &Option<String>) -> bool {
        if self.values.contains(found) {
            return true;
        }
        let came_late = found.as_ref().is_some_and(|value| self.given_up.remove(value));
        if came_late {
            self.values = BTreeSet::from([found.clone()]);
        }
        came_late
    }
}

struct Worker {
    tenant: String,
    others: Vec<String>,
    /// The one whose limits are used up beside the others'.
    takes: bool,
    bearer: String,
    door: Door,
    client: Client,
    random: Random,
    model: BTreeMap<String, Possible>,
    written: u64,
    /// Whether faults are injected, so that any value once written may be seen, and 503 is an answer.
    faults: bool,
}

impl Worker {
    fn send(&mut self, method: &str, target: &str, body: &[u8]) -> Reply {
        let bearer = self.bearer.clone();
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let reply = self.client.send(method, target, &headers, body);
        if reply.header("connection") == Some("close") {
            assert!(self.faults, "a connection was ended: {reply:?}");
            self.client = self.door.open();
        }
        reply
    }

    fn key(&mut self) -> String {
        let at = self.random.below(KEYS);
        let kind = if matches!(self.door, Door::Tcp(_)) { "tcp" } else { "unix" };
        match at % 4 {
            0 => format!("{kind}-{at}"),
            1 => format!("{kind}%3A{at}%7Bx%7D"),
            2 => format!("{kind}%2F{at}"),
            _ => format!("{kind}-{at}-%C3%A9"),
        }
    }

    fn possible(&mut self, key: &str) -> &mut Possible {
        self.model.entry(key.to_owned()).or_insert_with(Possible::nothing)
    }

    fn settle(&mut self, key: &str, value: Option<String>, sure: bool) {
        let sure = sure && !self.faults;
        let possible = self.possible(key);
        if sure {
            possible.values.clear();
        }
        possible.values.insert(value);
    }

    fn put(&mut self, cancelled: bool) {
        let key = self.key();
        self.written += 1;
        let value = format!("{}|{key}|{}", self.tenant, self.written);
        let target = format!("/v1/cache/scoring/{key}");
        if cancelled {
            let request = format!(
                "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n{value}",
                self.bearer,
                value.len()
            );
            self.client.write_raw(request.as_bytes()).unwrap();
            self.client = self.door.open();
            if self.faults {
                self.possible(&key).values.insert(Some(value));
            } else {
                self.possible(&key).given_up.insert(value);
            }
            return self.get_key(&key);
        }
        let reply = self.send("PUT", &target, value.as_bytes());
        match reply.status {
            204 => self.settle(&key, Some(value), true),
            503 | 504 if self.faults => self.settle(&key, Some(value), false),
            _ => panic!("PUT {key}: {reply:?}"),
        }
    }

    fn get(&mut self) {
        let key = self.key();
        self.get_key(&key);
    }

    fn get_key(&mut self, key: &str) {
        let reply = self.send("GET", &format!("/v1/cache/scoring/{key}"), b"");
        let found = match reply.status {
            200 => Some(reply.text()),
            404 => None,
            503 | 504 if self.faults => return,
            _ => panic!("GET {key}: {reply:?}"),
        };
        self.check(key, &found);
        self.settle(key, found, true);
    }

    fn check(&mut self, key: &str, found: &Option<String>) {
        if let Some(value) = found {
            let own = format!("{}|{key}|", self.tenant);
            assert!(value.starts_with(&own), "CROSSING: {} read {value:?} at {key}", self.tenant);
        }
        if !(self.faults && found.is_none()) {
            let tenant = self.tenant.clone();
            let possible = self.possible(key);
            let may_be = possible.may_be(found);
            assert!(may_be, "{tenant} read {found:?} at {key}, the model has {:?}", possible.values);
        }
    }

    fn delete(&mut self) {
        let key = self.key();
        let reply = self.send("DELETE", &format!("/v1/cache/scoring/{key}"), b"");
        match reply.status {
            204 => self.settle(&key, None, true),
            503 | 504 if self.faults => self.settle(&key, None, false),
            _ => panic!("DELETE {key}: {reply:?}"),
        }
    }

    fn batch_get(&mut self) {
        let keys: BTreeSet<String> = (0..4).map(|_| self.key()).collect();
        let decoded =
            |key: &str| percent_encoding::percent_decode_str(key).decode_utf8().unwrap().into_owned();
        let items: Vec<_> = keys.iter().map(|key| serde_json::json!({"key": decoded(key)})).collect();
        let body = serde_json::json!({"items": items}).to_string();
        let reply = self.send("POST", "/v1/cache/scoring:batchGet", body.as_bytes());
        if self.faults && reply.status != 200 {
            assert!(matches!(reply.status, 503 | 504), "{reply:?}");
            return;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = reply.text();
        for other in &self.others {
            assert!(!text.contains(other), "CROSSING: {text}");
        }
        assert_eq!(reply.json()["items"].as_array().map(Vec::len), Some(keys.len()), "{text}");
    }

    /// Only the first tenant takes from `login`; what the others have left must stay whole.
    fn limit(&mut self) {
        let cost = u8::from(self.takes);
        let body = format!(r#"{{"checks":[{{"limit":"login","key":"shared","cost":{cost}}}]}}"#);
        let reply = self.send("POST", "/v1/ratelimit/check", body.as_bytes());
        assert!(matches!(reply.status, 200 | 429), "{reply:?}");
        let answer = reply.json();
        let result = &answer["results"][0];
        let (remaining, reset_ms) =
            (result["remaining"].as_u64().unwrap(), result["reset_ms"].as_u64().unwrap());
        assert!(remaining <= LOGIN_BURST, "{result}");
        if self.takes {
            return;
        }
        assert_eq!(reply.status, 200, "a look is never refused: {reply:?}");
        // Without Redis `login` is closed: nothing is left, and it may be asked again in a second.
        let closed = answer["degraded"] == true && (remaining, reset_ms) == (0, 1000);
        assert!(
            closed || (remaining, reset_ms) == (LOGIN_BURST, 0),
            "CROSSING: another tenant took from {}'s limit: {answer}",
            self.tenant
        );
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..35 => self.put(false),
            35..75 => self.get(),
            75..85 => self.delete(),
            85..90 => self.batch_get(),
            90..98 => self.limit(),
            _ => self.put(true),
        }
    }
}

fn run(sidecar: &Sidecar, operations: u64, faults: bool, done: &AtomicU64) {
    let (seed, tenants) = (seed(), fresh_tenants());
    println!("seed {seed}, {operations} operations");
    let doors = [Door::Tcp(sidecar.api), Door::Unix(sidecar.socket.clone())];
    std::thread::scope(|scope| {
        for (at, tenant) in tenants.iter().enumerate() {
            for (way, door) in doors.iter().enumerate() {
                let mut worker = Worker {
                    tenant: tenant.clone(),
                    others: tenants.iter().filter(|other| *other != tenant).cloned().collect(),
                    takes: at == 0,
                    bearer: sidecar.bearer(tenant),
                    door: door.clone(),
                    client: door.open(),
                    random: Random::new(seed + (at * 2 + way) as u64),
                    model: BTreeMap::new(),
                    written: 0,
                    faults,
                };
                scope.spawn(move || {
                    for _ in 0..operations / WORKERS as u64 {
                        worker.step();
                        done.fetch_add(1, Relaxed);
                    }
                });
            }
        }
    });
}

#[test]
fn no_tenant_sees_another_s_data_embedded() {
    let directory = tempfile::tempdir().unwrap();
    // A disk that is slow for a moment is not what is asked about here.
    let sections = "ratelimit: {backend: embedded}\ncache: {backend: embedded, budget_ms: 10000}\n";
    let config = write_config(directory.path(), sections, "");
    let sidecar = Sidecar::serve_in(directory, &config);
    run(&sidecar, size(24_000, 1_000_000), false, &AtomicU64::new(0));
}

#[test]
fn no_tenant_sees_another_s_data_on_redis() {
    let sidecar = Sidecar::on_redis(&rig::shared_redis_nodes());
    run(&sidecar, size(18_000, 1_000_000), false, &AtomicU64::new(0));
}

/// Ends the failovers also where a worker panicked.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn chaos_no_tenant_sees_another_s_data_beside_failovers() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let sidecar = Sidecar::on_redis(&cluster.addresses());
    let operations = size(18_000, 1_000_000);
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let failovers = std::thread::scope(|scope| {
        let (cluster, done, over) = (&cluster, &done, &over);
        let breaker = scope.spawn(move || {
            let mut failovers = 0;
            while !over.load(Relaxed) {
                let next = done.load(Relaxed) + operations / 8;
                let primary = cluster.primary_of(failovers as u16 * 5461 % 16384).unwrap();
                let replica = cluster.replica_of(primary).unwrap();
                cluster.failover(replica).unwrap();
                failovers += 1;
                cluster.wait_ok().unwrap();
                while done.load(Relaxed) < next && !over.load(Relaxed) {
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                }
            }
            failovers
        });
        let stop = StopOnDrop(over);
        run(&sidecar, operations, true, done);
        drop(stop);
        breaker.join().unwrap()
    });
    assert!(failovers >= 3, "only {failovers} failovers happened among the operations");
}

#[test]
fn one_connection_may_carry_the_tokens_of_many_tenants() {
    let sidecar = Sidecar::dev();
    let tenants = fresh_tenants();
    let bearers = tenants.each_ref().map(|tenant| sidecar.bearer(tenant));
    let mut client = sidecar.client();
    for (tenant, bearer) in tenants.iter().zip(&bearers) {
        let headers = [("Authorization", bearer.as_str())];
        let reply = client.send("PUT", "/v1/cache/scoring/shared", &headers, tenant.as_bytes());
        assert_eq!(reply.status, 204, "{reply:?}");
    }
    let mut random = Random::new(seed());
    for _ in 0..300 {
        let at = random.below(tenants.len() as u64) as usize;
        for _ in 0..=random.below(3) {
            let headers = [("Authorization", bearers[at].as_str())];
            let reply = client.send("GET", "/v1/cache/scoring/shared", &headers, b"");
            assert_eq!((reply.status, reply.text().as_str()), (200, tenants[at].as_str()), "CROSSING");
        }
        let tampered = format!("{}x", bearers[at]);
        let headers = [("Authorization", tampered.as_str())];
        client.send("GET", "/v1/cache/scoring/shared", &headers, b"").problem(401, "unauthenticated");
    }
}
