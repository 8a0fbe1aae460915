//! What callers see while Redis breaks, under load. Each test prints a row of the table in
//! `docs/operations.md`.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rig::{Acl, Options, RedisCluster};
use support::client::Reply;
use support::sidecar::{ACME, GLOBEX, Sidecar, redis_config};
use support::wait_until;

/// How long a check waits for Redis, unless it is configured.
const CHECK_BUDGET: Duration = Duration::from_millis(20);
const CHECK: &[u8] = br#"{"checks":[{"limit":"api","key":"/chaos","cost":0}]}"#;

/// One call as its caller saw it.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    took: Duration,
    call: &'static str,
    status: u16,
    degraded: bool,
}

fn start(cluster: &RedisCluster, more: &str) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let path = redis_config(directory.path(), &cluster.addresses(), more);
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "up");
    sidecar
}

/// Calls from six clients of two tenants while `during` runs.
fn under_load(sidecar: &Sidecar, during: impl FnOnce()) -> Vec<Seen> {
    let seen = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let bearers = [sidecar.bearer(ACME), sidecar.bearer(GLOBEX)];
    std::thread::scope(|scope| {
        for client in 0..6_usize {
            let (bearer, seen, over) = (&bearers[client % 2], &seen, &over);
            scope.spawn(move || {
                let mut connection = sidecar.client();
                let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
                let mut number = 0_u64;
                while !over.load(Relaxed) {
                    number += 1;
                    let key = format!("/v1/cache/scoring/{client}-{}", number / 3 % 500);
                    let at = Instant::now();
                    let (call, reply): (_, Reply) = match number % 3 {
                        0 => ("check", connection.send("POST", "/v1/ratelimit/check", &headers, CHECK)),
                        1 => ("put", connection.send("PUT", &key, &headers, b"{\"score\":1}")),
                        _ => ("get", connection.send("GET", &key, &headers, b"")),
                    };
                    let took = at.elapsed();
                    let degraded = call == "check" && reply.json()["degraded"] == true;
                    seen.lock().unwrap().push(Seen { at, took, call, status: reply.status, degraded });
                }
            });
        }
        during();
        over.store(true, Relaxed);
    });
    seen.into_inner().unwrap()
}

/// Waits until every kind of call is answered as on a healthy cluster, and says when that was.
fn wait_healthy(sidecar: &Sidecar) -> Instant {
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    wait_until("calls to be answered as before the fault", Duration::from_secs(30), || {
        (0..24).all(|at| {
            let mut client = sidecar.client();
            let key = format!("/v1/cache/scoring/health-{at}");
            let check = client.send("POST", "/v1/ratelimit/check", &headers, CHECK);
            client.send("PUT", &key, &headers, b"1").status == 204
                && client.send("GET", &key, &headers, b"").status == 200
                && check.status == 200
                && check.json()["degraded"] == false
        })
    });
    Instant::now()
}

/// Prints the row, and holds what every fault must keep.
fn report(fault: &str, seen: &[Seen], broke: Instant, healthy: Instant) {
    let after: Vec<_> = seen.iter().filter(|seen| seen.at + seen.took >= broke).collect();
    let share = |call: &str, wanted: &dyn Fn(&Seen) -> bool| {
        let of: Vec<_> = after.iter().filter(|seen| seen.call == call && seen.at < healthy).collect();
        let count = of.iter().filter(|seen| wanted(seen)).count();
        format!("{count} of {}", of.len())
    };
    let worst = |call: &str| {
        after.iter().filter(|seen| seen.call == call).map(|seen| seen.took).max().unwrap_or_default()
    };
    println!(
        "| {fault} | {:.1} s | {} degraded, worst {} ms | {} were 503, worst {} ms | {} were 503, worst {} ms |",
        healthy.saturating_duration_since(broke).as_secs_f64(),
        share("check", &|seen| seen.degraded),
        worst("check").as_millis(),
        share("get", &|seen| seen.status == 503),
        worst("get").as_millis(),
        share("put", &|seen| seen.status == 503),
        worst("put").as_millis(),
    );
    for seen in seen {
        let expected: &[u16] = match seen.call {
            "check" => &[200, 429],
            "get" => &[200, 404, 503],
            _ => &[204, 503],
        };
        assert!(expected.contains(&seen.status), "{} answered {}", seen.call, seen.status);
    }
    assert!(worst("check") < Duration::from_millis(500), "a rate-limit check took {:?}", worst("check"));
    let bound = Duration::from_secs(4);
    assert!(worst("get") < bound && worst("put") < bound, "get {:?}, put {:?}", worst("get"), worst("put"));
    let before = seen.iter().filter(|seen| seen.at + seen.took < broke);
    assert!(before.clone().count() > 50, "there was no load before the fault");
    // A machine that stands still for longer than a check waits makes that one degraded, and a few after it; nothing else does.
    let stood_still = before.clone().any(|seen| seen.degraded && seen.took >= CHECK_BUDGET);
    for seen in before {
        assert!(
            seen.status < 500 && (stood_still || !seen.degraded),
            "{} answered {} before the fault, after {:?}, degraded: {}",
            seen.call,
            seen.status,
            seen.took,
            seen.degraded
        );
    }
}

fn warm_up() {
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Runs one fault under load and reports it. `break_it` returns when the fault is there; `mend` undoes it.
fn fault(
    name: &str,
    options: Options,
    instance: &str,
    break_it: impl FnOnce(&RedisCluster),
    mend: impl FnOnce(&RedisCluster),
) {
    let cluster = RedisCluster::start(options).unwrap();
    let sidecar = start(&cluster, instance);
    let (mut broke, mut healthy) = (Instant::now(), Instant::now());
    let seen = under_load(&sidecar, || {
        warm_up();
        broke = Instant::now();
        break_it(&cluster);
        mend(&cluster);
        healthy = wait_healthy(&sidecar);
        warm_up();
    });
    report(name, &seen, broke, healthy);
}

fn own_primary(cluster: &RedisCluster) -> usize {
    let slot = cluster.slot_of(&format!("{{{ACME}}}")).unwrap();
    cluster.primary_of(slot).unwrap()
}

#[test]
fn chaos_a_primary_is_killed() {
    fault(
        "a primary killed (`kill -9`)",
        Options::default(),
        "",
        |cluster| cluster.kill(own_primary(cluster)).unwrap(),
        |_| {},
    );
}

#[test]
fn chaos_a_primary_is_stopped() {
    fault(
        "a primary stopped (SIGSTOP)",
        Options::default(),
        "",
        |cluster| cluster.stop(own_primary(cluster)).unwrap(),
        |_| {},
    );
}

#[test]
fn chaos_a_replica_is_promoted() {
    let promote =
        |cluster: &RedisCluster| cluster.failover(cluster.replica_of(own_primary(cluster)).unwrap()).unwrap();
    fault("a replica promoted (`CLUSTER FAILOVER`)", Options::default(), "", promote, |_| {});
}

#[test]
fn chaos_a_slot_is_migrated() {
    let migrate = |cluster: &RedisCluster| {
        let slot = cluster.slot_of(&format!("{{{ACME}}}")).unwrap();
        let from = cluster.primary_of(slot).unwrap();
        let other = cluster
            .nodes()
            .unwrap()
            .into_iter()
            .find(|node| node.role == rig::Role::Primary && node.index != from);
        let migration = cluster.begin_slot_migration(slot, other.unwrap().index).unwrap();
        warm_up();
        migration.finish().unwrap();
    };
    fault("a tenant's slot migrated, half-way for a second", Options::default(), "", migrate, |_| {});
}

#[test]
fn chaos_the_whole_cluster_goes_down_and_comes_back() {
    let down = |cluster: &RedisCluster| {
        cluster.shutdown_all().unwrap();
        warm_up();
        warm_up();
    };
    fault("the whole cluster down for about 3 s, and back", Options::default(), "", down, |cluster| {
        cluster.start_all().unwrap()
    });
}

#[test]
fn chaos_maxmemory_is_reached() {
    let fill = |cluster: &RedisCluster| {
        cluster.config_set("maxmemory-policy", "noeviction").unwrap();
        cluster.config_set("maxmemory", "1mb").unwrap();
        warm_up();
    };
    fault("`maxmemory` reached (noeviction)", Options::default(), "", fill, |cluster| {
        cluster.config_set("maxmemory", "0").unwrap()
    });
}

#[test]
fn chaos_the_password_is_wrong() {
    let cluster =
        RedisCluster::start(Options { acl: Some(Acl::outrigger("first")), ..Options::default() }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "first\n").unwrap();
    let instance = ", username: outrigger, password: \"${file:password}\"";
    let path = redis_config(directory.path(), &cluster.addresses(), instance);
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "up");
    let (mut broke, mut healthy) = (Instant::now(), Instant::now());
    let seen = under_load(&sidecar, || {
        warm_up();
        broke = Instant::now();
        cluster.change_password("second").unwrap();
        sidecar.wait_for_backend("redis.main", "down");
        let verbose = sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
        assert!(verbose.contains("password"), "nothing says that the password is wrong: {verbose}");
        cluster.change_password("first").unwrap();
        healthy = wait_healthy(&sidecar);
    });
    report("a wrong password, then the right one", &seen, broke, healthy);
}

#[test]
fn chaos_it_starts_with_redis_down_and_recovers_by_itself() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    cluster.shutdown_all().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = redis_config(directory.path(), &cluster.addresses(), "");
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "down");
    assert_eq!(
        sidecar.admin_client().send("GET", "/readyz", &[], b"").status,
        200,
        "an optional backend takes no pod out"
    );
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let reply = sidecar.client().send("POST", "/v1/ratelimit/check", &headers, CHECK);
    assert_eq!((reply.status, reply.json()["degraded"] == true), (200, true), "{reply:?}");
    cluster.start_all().unwrap();
    sidecar.wait_for_backend("redis.main", "up");
    wait_healthy(&sidecar);
}

#[test]
fn chaos_tls_and_an_acl_user() {
    let options =
        Options { tls: true, acl: Some(Acl::outrigger("a password with spaces")), ..Options::default() };
    let cluster = RedisCluster::start(options).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "a password with spaces").unwrap();
    let ca = cluster.certificate().unwrap().authority.display().to_string();
    let instance = format!(", username: outrigger, password: \"${{file:password}}\", tls: {{ca_file: {ca}}}");
    let path = redis_config(directory.path(), &cluster.addresses(), &instance);
    let sidecar = Sidecar::serve_in(directory, &path);
    sidecar.wait_for_backend("redis.main", "up");
    wait_healthy(&sidecar);
    for text in [sidecar.log(), sidecar.admin_client().send("GET", "/config", &[], b"").text()] {
        assert!(!text.contains("a password with spaces"), "the password is shown: {text}");
    }
}
