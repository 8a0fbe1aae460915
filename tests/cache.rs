//! The cache over HTTP, against the real binary: embedded, and on the shared Redis Cluster.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::sidecar::{Sidecar, write_config};
use support::wait_until;

/// A caller of one tenant, with its own connection.
struct Caller {
    client: Client,
    bearer: String,
}

impl Caller {
    fn of(sidecar: &Sidecar, tenant: &str) -> Self {
        Self { client: sidecar.client(), bearer: sidecar.bearer(tenant) }
    }

    fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut all = vec![("Authorization", self.bearer.as_str())];
        all.extend_from_slice(headers);
        self.client.send(method, target, &all, body)
    }

    fn put(&mut self, namespace: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let path = target(namespace, key);
        self.send("PUT", &path, headers, body)
    }

    fn get(&mut self, namespace: &str, key: &str, headers: &[(&str, &str)]) -> Reply {
        let path = target(namespace, key);
        self.send("GET", &path, headers, b"")
    }

    fn post(&mut self, target: &str, body: &Value) -> Reply {
        self.send("POST", target, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }
}

fn target(namespace: &str, key: &str) -> String {
    format!("/v1/cache/{namespace}/{key}")
}

/// A tenant that no other test has: tests share the cluster, and some invalidate whole namespaces.
fn new_tenant() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn redis_config(directory: &Path) -> PathBuf {
    let nodes = rig::shared_redis_nodes().join(", ");
    let sections = format!("redis:\n  main: {{nodes: [{nodes}]}}\ncache: {{backend: redis, redis: main}}\n");
    write_config(directory, &sections, "")
}

fn on_redis() -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let config = redis_config(directory.path());
    let sidecar = Sidecar::serve_in(directory, &config);
    sidecar.wait_for_backend("redis.main", "up");
    sidecar
}

/// Every backend, each with a caller.
fn on_each(test: impl Fn(&Sidecar, &str, Caller)) {
    for sidecar in [Sidecar::dev(), on_redis()] {
        let tenant = new_tenant();
        let caller = Caller::of(&sidecar, &tenant);
        test(&sidecar, &tenant, caller);
    }
}

#[test]
fn a_value_comes_back_as_it_was_sent() {
    on_each(|_, _, mut caller| {
        let typed = [("Content-Type", "text/html; charset=utf-8")];
        let written = caller.put("profiles", "a", &typed, b"<p>\xff\x00");
        assert_eq!(written.status, 204, "{written:?}");
        let etag = written.header("etag").unwrap().to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"'), "a strong entity tag: {etag}");
        for tier in ["l2", "l1"] {
            let read = caller.get("profiles", "a", &[]);
            assert_eq!((read.status, &read.body[..]), (200, &b"<p>\xff\x00"[..]));
            assert_eq!(read.header("content-type"), Some("text/html; charset=utf-8"));
            assert_eq!(read.header("etag"), Some(etag.as_str()));
            assert!(read.header("age").unwrap().parse::<u64>().unwrap() < 60);
            assert_eq!(read.header("outrigger-cache"), Some(tier));
        }
        let path = target("profiles", "a");
        let head = caller.send("HEAD", &path, &[], b"");
        assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, Some("5")));
        let untyped = caller.put("profiles", "b", &[], b"x");
        assert_eq!(untyped.status, 204);
        assert_eq!(caller.get("profiles", "b", &[]).header("content-type"), Some("application/octet-stream"));
        caller.put("scoring", "c", &typed, b"{}");
        assert_eq!(caller.get("scoring", "c", &[]).header("content-type"), Some("application/json"));
        for _ in 0..2 {
            assert_eq!(caller.send("DELETE", &path, &[], b"").status, 204, "also when absent");
        }
        caller.get("profiles", "a", &[]).problem(404, "not_found");
        caller.get("nowhere", "a", &[]).problem(404, "not_found");
    });
}

#[test]
fn versions_are_entries_of_their_own() {
    on_each(|_, _, mut caller| {
        let path = target("scoring", "v");
        for query in ["", "?version=1", "?version=-", "?version=a%3Ab"] {
            assert_eq!(caller.send("GET", &format!("{path}{query}"), &[], b"").status, 404, "{query}");
            assert_eq!(caller.send("PUT", &format!("{path}{query}"), &[], query.as_bytes()).status, 204);
        }
        for query in ["", "?version=1", "?version=-", "?version=a%3Ab"] {
            assert_eq!(caller.send("GET", &format!("{path}{query}"), &[], b"").text(), query);
        }
        caller.send("GET", &format!("{path}?version="), &[], b"").problem(400, "malformed");
        caller.send("GET", &format!("{path}?colour=red"), &[], b"").problem(400, "malformed");
    });
}

#[test]
fn conditions_are_those_of_rfc_9110() {
    on_each(|_, _, mut caller| {
        caller.put("scoring", "k", &[("If-Match", "*")], b"0").problem(412, "precondition_failed");
        let one = caller.put("scoring", "k", &[("If-None-Match", "*")], b"1");
        assert_eq!(one.status, 204, "{one:?}");
        let tag = one.header("etag").unwrap().to_owned();
        caller.put("scoring", "k", &[("If-None-Match", "*")], b"2").problem(412, "precondition_failed");
        caller.put("scoring", "k", &[("If-Match", "\"x\"")], b"2").problem(412, "precondition_failed");
        caller.put("scoring", "k", &[("If-Match", "x")], b"2").problem(400, "malformed");
        let weak = format!("W/{tag}");
        for condition in [tag.as_str(), weak.as_str(), "*"] {
            let unchanged = caller.get("scoring", "k", &[("If-None-Match", condition)]);
            assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
            assert_eq!(unchanged.header("etag"), Some(tag.as_str()));
        }
        assert_eq!(caller.get("scoring", "k", &[("If-None-Match", "\"x\"")]).status, 200);
        caller.get("scoring", "k", &[("If-Match", "\"x\"")]).problem(412, "precondition_failed");
        assert_eq!(caller.put("scoring", "k", &[("If-Match", &tag)], b"2").status, 204);
        assert_eq!(caller.get("scoring", "k", &[]).text(), "2");
    });
}

#[test]
fn times_to_live_and_sizes_are_bounded() {
    on_each(|sidecar, _, mut caller| {
        let path = target("scoring", "t");
        for (query, header, status) in [
            ("?ttl_ms=60000", "", 204),
            ("", "max-age=60", 204),
            ("?ttl_ms=0", "", 422),
            ("?ttl_ms=86400001", "", 422),
            ("", "max-age=86401", 422),
            ("?ttl_ms=x", "", 400),
            ("", "max-age=x", 400),
        ] {
            let headers = [("Cache-Control", header)];
            let reply = caller.send("PUT", &format!("{path}{query}"), &headers, b"1");
            assert_eq!(reply.status, status, "{query} {header}: {}", reply.text());
        }
        let began = Instant::now();
        assert_eq!(caller.send("PUT", &format!("{path}?ttl_ms=300"), &[], b"1").status, 204);
        wait_until("the value to end", Duration::from_secs(3), || {
            caller.send("GET", &path, &[], b"").status == 404
        });
        assert!(began.elapsed() >= Duration::from_millis(299), "it ended early");
        let large = vec![b'x'; 1_048_577];
        caller.put("scoring", "large", &[], &large).problem(413, "too_large");
        // What was left unread of it ended the connection.
        caller.client = sidecar.client();
        assert_eq!(caller.put("scoring", "large", &[], &large[..1_048_576]).status, 204);
        assert_eq!(caller.get("scoring", "large", &[]).body.len(), 1_048_576);
        let encoded = [("Content-Encoding", "gzip")];
        caller.put("scoring", "t", &encoded, b"1").problem(415, "unsupported_media_type");
    });
}

#[test]
fn one_caller_fills_and_waiters_get_its_value() {
    on_each(|sidecar, tenant, mut caller| {
        let miss = caller.get("profiles", "f", &[]);
        miss.problem(404, "not_found");
        let token = miss.header("outrigger-fill-lease").unwrap().to_owned();
        assert_eq!(
            caller.get("profiles", "f", &[]).header("outrigger-fill-lease"),
            None,
            "another is filling"
        );
        let path = target("profiles", "f");
        assert_eq!(caller.send("HEAD", &path, &[], b"").header("outrigger-fill-lease"), None);
        let waited = std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| {
                    let mut waiter = Caller::of(sidecar, tenant);
                    let path = format!("{path}?wait_ms=5000");
                    scope.spawn(move || waiter.send("GET", &path, &[], b""))
                })
                .collect();
            let filled = caller.put("profiles", "f", &[("Outrigger-Fill-Lease", &token)], b"filled");
            assert_eq!(filled.status, 204, "{filled:?}");
            waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect::<Vec<_>>()
        });
        for reply in waited {
            assert_eq!((reply.status, reply.text().as_str()), (200, "filled"));
        }
        let void = caller.put("profiles", "f", &[("Outrigger-Fill-Lease", &token)], b"again");
        void.problem(409, "conflict");

        let token = caller.get("profiles", "g", &[]).header("outrigger-fill-lease").unwrap().to_owned();
        let path = target("profiles", "g");
        assert_eq!(caller.send("DELETE", &path, &[("Outrigger-Fill-Lease", &token)], b"").status, 204);
        let next = caller.get("profiles", "g", &[]);
        assert!(next.header("outrigger-fill-lease").is_some_and(|next| next != token), "{next:?}");
        assert_eq!(caller.send("DELETE", &path, &[], b"").status, 204);
        let token = next.header("outrigger-fill-lease").unwrap();
        caller.put("profiles", "g", &[("Outrigger-Fill-Lease", token)], b"x").problem(409, "conflict");
        caller.put("profiles", "g", &[("Outrigger-Fill-Lease", "?")], b"x").problem(400, "malformed");
        caller.send("GET", &format!("{path}?wait_ms=60001"), &[], b"").problem(422, "invalid");
    });
}

#[test]
fn a_batch_answers_for_each_item() {
    on_each(|_, _, mut caller| {
        let (a, b) = ("a", "b/é:{}");
        let puts = json!({"items": [
            {"key": a, "value": "b25l", "content_type": "text/plain"},
            {"key": b, "version": "2", "value": "dHdv", "ttl_ms": 60000},
            {"key": a, "version": "bad", "value": "not base64!"},
            {"key": a, "version": "long", "value": "", "ttl_ms": 0},
        ]});
        let reply = caller.post("/v1/cache/profiles:batchPut", &puts);
        assert_eq!(reply.status, 200, "{reply:?}");
        let items = reply.json()["items"].clone();
        let statuses: Vec<_> = items.as_array().unwrap().iter().map(|item| item["status"].as_u64()).collect();
        assert_eq!(statuses, [Some(204), Some(204), Some(422), Some(422)], "{items}");
        assert_eq!((&items[1]["version"], &items[2]["code"]), (&json!("2"), &json!("invalid")));
        let gets = json!({"items": [{"key": b, "version": "2"}, {"key": a}, {"key": b}]});
        let found = caller.post("/v1/cache/profiles:batchGet", &gets).json()["items"].clone();
        assert_eq!((&found[0]["value"], &found[0]["found"]), (&json!("dHdv"), &json!(true)));
        assert_eq!((&found[1]["value"], &found[1]["content_type"]), (&json!("b25l"), &json!("text/plain")));
        assert_eq!(found[1]["etag"], items[0]["etag"]);
        assert!(found[1]["age_ms"].as_u64().unwrap() < 60_000);
        assert_eq!(found[2], json!({"key": b, "found": false}));
        let wrong = json!({"items": [{"key": a}, {"key": ""}]});
        let problem = caller.post("/v1/cache/profiles:batchGet", &wrong).problem(422, "invalid");
        assert_eq!(problem["errors"][0]["pointer"], "/items/1/key");
        let many: Vec<_> = (0..101).map(|at| json!({"key": at.to_string()})).collect();
        caller.post("/v1/cache/profiles:batchGet", &json!({"items": many})).problem(422, "invalid");
        caller.post("/v1/cache/profiles:batchGet", &json!({"items": []})).problem(422, "invalid");
        caller.post("/v1/cache/profiles:batchGet", &json!({"item": []})).problem(422, "invalid");
    });
}

#[test]
fn invalidation_takes_a_tenant_s_own_entries_only() {
    on_each(|sidecar, _, mut caller| {
        let mut other = Caller::of(sidecar, &new_tenant());
        for caller in [&mut caller, &mut other] {
            caller.put("scoring", "i", &[], b"1");
            let path = target("scoring", "i");
            caller.send("PUT", &format!("{path}?version=1"), &[], b"1");
        }
        let path = target("scoring", "i");
        assert_eq!(caller.post("/v1/cache/scoring:invalidate", &json!({"version": "1"})).status, 204);
        assert_eq!(caller.send("GET", &format!("{path}?version=1"), &[], b"").status, 404);
        assert_eq!(caller.get("scoring", "i", &[]).status, 200);
        assert_eq!(caller.post("/v1/cache/scoring:invalidate", &json!({})).status, 204);
        assert_eq!(caller.get("scoring", "i", &[]).status, 404);
        assert_eq!(other.get("scoring", "i", &[]).status, 200);
        caller.post("/v1/cache/scoring:invalidate", &json!({"key": "i"})).problem(422, "invalid");
    });
}

#[test]
fn what_one_sidecar_deletes_or_invalidates_no_other_serves_100_ms_later() {
    let (one, two) = (on_redis(), on_redis());
    let tenant = new_tenant();
    // Each sidecar has an identity of its own and trusts its own tokens.
    let (mut one, mut two) = (Caller::of(&one, &tenant), Caller::of(&two, &tenant));
    for round in 0..20 {
        let body = format!("round {round}");
        assert_eq!(one.put("scoring", "x", &[], body.as_bytes()).status, 204);
        wait_until("the other sidecar to have it in L1", Duration::from_secs(3), || {
            let read = two.get("scoring", "x", &[]);
            read.text() == body && read.header("outrigger-cache") == Some("l1")
        });
        if round % 2 == 0 {
            let path = target("scoring", "x");
            assert_eq!(one.send("DELETE", &path, &[], b"").status, 204);
        } else {
            assert_eq!(one.post("/v1/cache/scoring:invalidate", &json!({})).status, 204);
        }
        wait_until("the other sidecar to miss", Duration::from_millis(100), || {
            two.get("scoring", "x", &[]).status == 404
        });
    }
}

#[test]
fn raw_values_are_shared_with_other_users_of_redis() {
    let sidecar = on_redis();
    let tenant = new_tenant();
    let mut caller = Caller::of(&sidecar, &tenant);
    let key = format!("cache:{tenant}:scoring:r:-");
    assert_eq!(caller.put("scoring", "r", &[], b"{\"score\":1}").status, 204);
    assert_eq!(redis_cli(&["GET", &key]), "{\"score\":1}");
    assert_eq!(redis_cli(&["SET", &key, "{\"score\":2}"]), "OK");
    wait_until("their value", Duration::from_secs(1), || {
        caller.get("scoring", "r", &[]).text() == "{\"score\":2}"
    });
    let read = caller.get("scoring", "r", &[]);
    let tag = read.header("etag").unwrap().to_owned();
    assert_eq!(caller.put("scoring", "r", &[("If-Match", &tag)], b"3").status, 204, "their value has a tag");
    assert_eq!(redis_cli(&["SET", &key, "4"]), "OK");
    assert_eq!(caller.post("/v1/cache/scoring:invalidate", &json!({})).status, 204);
    wait_until("the sweep", Duration::from_secs(10), || redis_cli(&["EXISTS", &key]) == "0");
    assert_eq!(caller.get("scoring", "r", &[]).status, 404);
    // What they write once that is at its end is read again.
    assert_eq!(redis_cli(&["SET", &key, "5"]), "OK");
    wait_until("their next value", Duration::from_secs(5), || {
        redis_cli(&["SET", &key, "5"]);
        caller.get("scoring", "r", &[]).text() == "5"
    });
}

#[test]
fn an_invalidation_reaches_raw_values_without_a_companion_at_once() {
    let (one, two) = (on_redis(), on_redis());
    let tenant = new_tenant();
    let (mut one, mut two) = (Caller::of(&one, &tenant), Caller::of(&two, &tenant));
    // So many that the sweep takes its time.
    let load: Vec<String> = (0..3000).map(|at| format!("load-{at}")).collect();
    for key in &load {
        assert_eq!(one.put("scoring", key, &[], b"1").status, 204);
    }
    for version in [None, Some("v1")] {
        let query = version.map_or(String::new(), |version| format!("?version={version}"));
        let (evicted, foreign) = (format!("evicted{query}"), format!("foreign{query}"));
        let key = |name: &str| format!("cache:{tenant}:scoring:{name}:{}", version.unwrap_or("-"));
        assert_eq!(one.put("scoring", &evicted, &[], b"\"old\"").status, 204);
        assert_eq!(redis_cli(&["DEL", &format!("outrigger:cache-meta:{{{}}}", key("evicted"))]), "1");
        assert_eq!(redis_cli(&["SET", &key("foreign"), "\"old\""]), "OK");
        for path in [&evicted, &foreign] {
            for caller in [&mut one, &mut two] {
                wait_until("the old value", Duration::from_secs(10), || {
                    caller.get("scoring", path, &[]).text() == "\"old\""
                });
            }
        }
        let body = version.map_or(json!({}), |version| json!({"version": version}));
        assert_eq!(one.post("/v1/cache/scoring:invalidate", &body).status, 204);
        for path in [&evicted, &foreign] {
            assert_eq!(one.get("scoring", path, &[]).status, 404, "{path}");
        }
        for path in [&evicted, &foreign] {
            wait_until("the other sidecar to miss", Duration::from_millis(100), || {
                two.get("scoring", path, &[]).status == 404
            });
        }
        let exists = |name: &str| redis_cli(&["EXISTS", &key(name)]);
        println!(
            "{version:?}: the sweep had yet to come: {}",
            exists("evicted") == "1" || exists("foreign") == "1"
        );
        // What others write before its end may be removed by it.
        let generation = format!("outrigger:cache-generation:{tenant}:scoring");
        let field = version.map_or("all".to_owned(), |version| format!("v:{version}"));
        wait_until("the sweep's end", Duration::from_secs(20), || {
            redis_cli(&["HSTRLEN", &generation, &field]) == "8"
        });
        assert_eq!((&*exists("evicted"), &*exists("foreign")), ("0", "0"));
        for path in [&evicted, &foreign] {
            assert_eq!(one.get("scoring", path, &[]).status, 404, "{path}");
        }
    }
}

fn redis_cli(arguments: &[&str]) -> String {
    let node = rig::shared_redis_nodes()[0].clone();
    let (host, port) = node.rsplit_once(':').unwrap();
    let output = std::process::Command::new("redis-cli")
        .args(["-c", "-h", host, "-p", port])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn embedded_values_survive_kill_9() {
    let sidecar = Sidecar::dev();
    let tenant = new_tenant();
    let mut caller = Caller::of(&sidecar, &tenant);
    for at in 0..200 {
        assert_eq!(caller.put("scoring", &at.to_string(), &[], at.to_string().as_bytes()).status, 204);
    }
    let sidecar = Sidecar::dev_in(sidecar.kill(), &[]);
    let mut caller = Caller::of(&sidecar, &tenant);
    for at in 0..200 {
        assert_eq!(caller.get("scoring", &at.to_string(), &[]).text(), at.to_string());
    }
}

#[test]
fn chaos_while_redis_is_down_a_copy_is_stale_for_a_moment_and_then_it_is_503() {
    let cluster = rig::RedisCluster::start(rig::Options::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let nodes = cluster.addresses().join(", ");
    let sections = format!("redis:\n  main: {{nodes: [{nodes}]}}\ncache: {{backend: redis, redis: main}}\n");
    let config = write_config(directory.path(), &sections, "");
    let sidecar = Sidecar::serve_in(directory, &config);
    sidecar.wait_for_backend("redis.main", "up");
    let mut caller = Caller::of(&sidecar, &new_tenant());
    for namespace in ["profiles", "scoring"] {
        assert_eq!(caller.put(namespace, "k", &[], b"1").status, 204);
        wait_until("the value in L1", Duration::from_secs(5), || {
            caller.get(namespace, "k", &[]).header("outrigger-cache") == Some("l1")
        });
    }
    cluster.shutdown_all().unwrap();
    // Until the loss is noticed L1 may answer; `scoring` has no `stale_ms`.
    wait_until("503 without stale_ms", Duration::from_secs(3), || {
        caller.get("scoring", "k", &[]).status == 503
    });
    let mut stale = 0;
    let began = Instant::now();
    wait_until("503 after the bound", Duration::from_secs(3), || {
        let read = caller.get("profiles", "k", &[]);
        if read.status == 200 {
            assert_eq!((read.header("outrigger-cache"), &read.body[..]), (Some("stale"), &b"1"[..]));
            stale += 1;
        }
        read.status == 503
    });
    assert!(stale > 0, "no stale value was served");
    assert!(began.elapsed() < Duration::from_millis(1500), "stale for {:?}", began.elapsed());
    let refused = caller.get("profiles", "k", &[]);
    refused.problem(503, "backend_unavailable");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(caller.put("profiles", "k", &[], b"2").status, 503);
    cluster.start_all().unwrap();
    wait_until("writes after the outage", Duration::from_secs(20), || {
        caller.put("profiles", "k", &[], b"3").status == 204
    });
    assert_eq!(caller.get("profiles", "k", &[]).text(), "3");
}

/// A field of the process's status, such as `VmHWM`, in bytes.
fn memory_of(sidecar: &Sidecar, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_batch_does_not_load_what_its_reply_has_no_room_for() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let sections = "cache: {backend: embedded, l1_bytes: 65536, budget_ms: 10000}\n";
    let config = write_config(directory.path(), sections, "");
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut caller = Caller::of(&sidecar, &new_tenant());
    // A bit less each than the most, so that eight leave no room for a ninth.
    let value = vec![b'x'; 1_048_000];
    for at in 0..60 {
        assert_eq!(caller.put("profiles", &format!("large-{at}"), &[], &value).status, 204);
    }
    let hits = || {
        let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
        let lines = metrics.lines().filter(|line| line.starts_with("outrigger_cache_lookups_total{"));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
    };
    let (hits_before, before) = (hits(), memory_of(&sidecar, "VmRSS"));
    // The peak begins anew from what is in use now.
    std::fs::write(format!("/proc/{}/clear_refs", sidecar.pid()), "5").unwrap();
    let items: Vec<_> = (0..60).map(|at| json!({"key": format!("large-{at}")})).collect();
    let reply = caller.post("/v1/cache/profiles:batchGet", &json!({"items": items}));
    assert_eq!(reply.status, 200);
    let items = reply.json()["items"].as_array().unwrap().clone();
    assert!(items[..8].iter().all(|item| item["found"] == true), "eight have room");
    for item in &items[8..] {
        assert_eq!((&item["status"], &item["code"]), (&json!(413), &json!("too_large")), "{item}");
    }
    let (asked, grown) = (hits() - hits_before, memory_of(&sidecar, "VmHWM").saturating_sub(before));
    println!("{asked} values were taken, and the process grew by {} MiB at most", grown / MIB);
    assert_eq!(asked, 9, "the one that has no room, and none after it");
    // Nine values, eight more on their way, and the reply in base64.
    assert!(grown < 48 * MIB, "the process grew by {} MiB", grown / MIB);
}
