//! Usage with `ack: spool`, over HTTP: answered from this machine's disk, counted soon after, and while PostgreSQL is away once it is back.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan as _};
use rig::{PostgresCluster, PostgresOptions, PostgresRole};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::Reply;
use support::postgres::OnPostgres;
use support::sidecar::{ACME, BINARY, GLOBEX, Sidecar};
use support::tenant::Tenant;
use support::wait_until;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
const POLICY: &str =
    "kind: usage\nmetrics:\n  api_calls: {}\n  voice_minutes: {ack: spool, group_by: [region]}\n";
const BOUND: Duration = Duration::from_secs(60);
/// As API.md promises it.
const VISIBLE: Duration = Duration::from_secs(1);

/// The beginning of the hour that an hour ago was in.
fn hour() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second().div_euclid(3600) * 3600 - 3600).unwrap()
}

fn record(key: &str, value: &str) -> Value {
    json!({"metric": "voice_minutes", "value": value, "time": hour().to_string(), "idempotency_key": key})
}

fn send(tenant: &mut Tenant, records: &[Value]) -> Reply {
    tenant.send("POST", "/v1/usage", &[JSON], &json!({ "records": records }).to_string())
}

fn pending(accepted: usize) -> Value {
    json!({"accepted": accepted, "duplicates": null, "pending": true})
}

fn get(tenant: &mut Tenant, target: &str) -> Value {
    let reply = tenant.send("GET", target, &[], "");
    assert_eq!(reply.status, 200, "{target}: {}", reply.text());
    reply.json()
}

fn total(tenant: &mut Tenant) -> String {
    let (from, to) = (hour(), hour() + 1.hour());
    get(tenant, &format!("/v1/usage/voice_minutes?from={from}&to={to}&window=hour"))["total"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn embedded() -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "store: embedded\nusage: {}\n");
    let text = fs::read_to_string(&config).unwrap();
    let shipped = text.lines().find_map(|line| line.strip_prefix("policies: ")).unwrap().to_owned();
    let own = directory.path().join("policies");
    fs::create_dir(&own).unwrap();
    fs::copy(Path::new(&shipped).join("access.yaml"), own.join("access.yaml")).unwrap();
    fs::write(own.join("usage.yaml"), POLICY).unwrap();
    fs::write(&config, text.replace(&shipped, "policies")).unwrap();
    Sidecar::serve_in(directory, &config)
}

fn on_both(test: fn(&Sidecar)) {
    test(&embedded());
    let on = OnPostgres::new().with_policy("usage.yaml", POLICY);
    test(&on.sidecar());
}

#[test]
fn what_is_accepted_to_disk_is_read_within_a_second_and_a_lie_is_listed_to_its_tenant_alone() {
    on_both(|sidecar| {
        let (mut acme, mut globex) = (Tenant::new(sidecar, ACME), Tenant::new(sidecar, GLOBEX));
        let began = Instant::now();
        let reply = send(&mut acme, &[record("k1", "0.1"), record("k2", "0.2")]);
        assert_eq!((reply.status, reply.json()), (202, pending(2)), "{}", reply.text());
        wait_until("a total", VISIBLE.saturating_sub(began.elapsed()), || total(&mut acme) == "0.3");
        // The same again in lines, with a lie and something new.
        let mut lie = record("k1", "7");
        lie["tags"] = json!({"region": "eu"});
        lie["metadata"] = json!({"why": "a test"});
        // A number that PostgreSQL would write out in 400,000 digits.
        let mut huge = record("k4", "0").to_string();
        huge.insert_str(huge.len() - 1, r#","metadata":{"n":1e400000}"#);
        let [k2, lie, k3] = [record("k2", "0.2"), lie, record("k3", "1")].map(|record| record.to_string());
        let lines = [k2, lie, k3, huge].join("\n\n");
        let reply = acme.send("POST", "/v1/usage", &[NDJSON], &lines);
        assert_eq!((reply.status, reply.json()), (202, pending(4)), "{}", reply.text());
        assert_eq!(send(&mut globex, &[record("k1", "5")]).json(), pending(1));
        wait_until("what is not a lie", BOUND, || total(&mut acme) == "1.3" && total(&mut globex) == "5");
        let listed = get(&mut acme, "/v1/usage/voice_minutes/conflicts");
        let mut conflict = listed["conflicts"][0].clone();
        let found: Timestamp = conflict["found_at"].as_str().unwrap().parse().unwrap();
        assert!(found > hour() && found < Timestamp::now() + 1.minute(), "{found}");
        conflict.as_object_mut().unwrap().remove("found_at");
        let expected = json!({"idempotency_key": "k1", "time": hour().to_string(), "value": "7",
                              "tags": {"region": "eu"}, "metadata": {"why": "a test"}});
        assert_eq!((listed["conflicts"].as_array().unwrap().len(), conflict), (1, expected), "{listed}");
        // Also once no policy names the metric any more.
        let policy = sidecar.directory.path().join("policies/usage.yaml");
        fs::write(&policy, "kind: usage\nmetrics:\n  api_calls: {}\n").unwrap();
        let of_metric = format!("/v1/usage/voice_minutes?from={}", hour());
        wait_until("the other policy", BOUND, || acme.send("GET", &of_metric, &[], "").status == 404);
        assert_eq!(get(&mut acme, "/v1/usage/voice_minutes/conflicts"), listed);
        let later = format!("/v1/usage/voice_minutes/conflicts?from={}", found + 1.second());
        assert_eq!(get(&mut acme, &later)["conflicts"], json!([]));
        let none = json!({"metric": "voice_minutes", "conflicts": []});
        assert_eq!(get(&mut globex, "/v1/usage/voice_minutes/conflicts"), none);
        // Of a metric that no policy names, and maybe never did.
        let none = json!({"metric": "nothing", "conflicts": []});
        assert_eq!(get(&mut acme, "/v1/usage/nothing/conflicts"), none);
        // The last instant and the first that a cursor may have are no error of the store's.
        for cursor in
            ["253402207200000000.-9223372036854775808.k", "0.9223372036854775807.k", "0.0.%C3%A9%F0%9F%9A%80"]
        {
            get(&mut acme, &format!("/v1/usage/voice_minutes/conflicts?cursor={cursor}"));
        }
        let long = format!("?cursor=5.1.{}", "k".repeat(513));
        for (query, field) in [
            ("?cursor=x", "?cursor"),
            ("?cursor=9223372036854775807.1.k", "?cursor"),
            ("?cursor=-9223372036854775808.1.k", "?cursor"),
            ("?cursor=253402207201000000.1.k", "?cursor"),
            ("?cursor=-377705023200000000.1.k", "?cursor"),
            ("?cursor=-1.1.k", "?cursor"),
            ("?cursor=99999999999999999999.1.k", "?cursor"),
            ("?cursor=5.99999999999999999999.k", "?cursor"),
            ("?cursor=5.1.a%00b", "?cursor"),
            ("?cursor=5.1.", "?cursor"),
            (&long, "?cursor"),
            ("?from=x", "?from"),
            ("?from=10000-01-01T00:00:00Z", "?from"),
        ] {
            let reply = acme.send("GET", &format!("/v1/usage/voice_minutes/conflicts{query}"), &[], "");
            assert_eq!(reply.status, 422, "{query}: {}", reply.text());
            assert_eq!(reply.json()["errors"][0]["pointer"], field, "{}", reply.text());
        }
    });
}

#[test]
fn conflicts_are_listed_in_pages() {
    on_both(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let records = |value: &str| -> Vec<Value> {
            (0..1001).map(|number| record(&format!("k{number:04}"), value)).collect()
        };
        assert_eq!(send(&mut acme, &records("1")).json(), pending(1001));
        assert_eq!(send(&mut acme, &records("2")).json(), pending(1001));
        let target = "/v1/usage/voice_minutes/conflicts";
        wait_until("a second page", BOUND, || get(&mut acme, target)["next_cursor"].is_string());
        let first = get(&mut acme, target);
        let cursor = first["next_cursor"].as_str().unwrap();
        let second = get(&mut acme, &format!("{target}?cursor={cursor}"));
        let keys = |page: &Value| -> Vec<String> {
            let of = |one: &Value| one["idempotency_key"].as_str().unwrap().to_owned();
            page["conflicts"].as_array().unwrap().iter().map(of).collect()
        };
        let all: Vec<String> = [keys(&first), keys(&second)].concat();
        assert_eq!(all, (0..1001).map(|number| format!("k{number:04}")).collect::<Vec<_>>());
        assert_eq!(second["next_cursor"], Value::Null);
        assert_eq!(total(&mut acme), "1001");
    });
}

#[test]
fn what_must_be_looked_up_first_or_is_of_another_metric_too_is_counted_before_it_is_answered() {
    on_both(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let mut other = record("k1", "2");
        other["metric"] = json!("api_calls");
        let reply = send(&mut acme, &[record("k1", "5"), other]);
        assert_eq!((reply.status, reply.json()), (202, json!({"accepted": 2, "duplicates": 0})));
        let mut correction = record("k2", "-3");
        correction["corrects"] = json!("k1");
        let reply = send(&mut acme, &[correction.clone()]);
        assert_eq!((reply.status, reply.json()), (202, json!({"accepted": 1, "duplicates": 0})));
        assert_eq!(total(&mut acme), "2");
        correction["corrects"] = json!("nothing");
        correction["idempotency_key"] = json!("k3");
        assert_eq!(send(&mut acme, &[correction]).status, 422);
        // Of what was accepted to disk a moment ago too.
        assert_eq!(send(&mut acme, &[record("k5", "9")]).json(), pending(1));
        let mut correction = record("k6", "-9");
        correction["corrects"] = json!("k5");
        assert_eq!(send(&mut acme, &[correction]).json(), json!({"accepted": 1, "duplicates": 0}));
        assert_eq!(total(&mut acme), "2");
        // What is wrong with a record is said before it is accepted.
        let reply = send(&mut acme, &[record("k4", "x")]);
        assert_eq!(reply.json()["errors"][0]["pointer"], "/records/0/value", "{}", reply.text());
    });
}

/// On servers of its own, which are stopped.
struct Away {
    cluster: PostgresCluster,
    on: OnPostgres,
}

impl Away {
    fn new() -> Self {
        let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
        let on = OnPostgres::on_cluster(&cluster, None)
            .with("usage: {}", "usage: {spool_max_bytes: 67108864}")
            .with_policy("usage.yaml", POLICY);
        Self { cluster, on }
    }
}

#[test]
fn chaos_calls_are_accepted_while_postgresql_is_away_and_counted_when_it_is_back_also_after_a_kill() {
    let Away { cluster, on } = Away::new();
    let sidecar = on.sidecar();
    let (mut acme, mut globex) = (Tenant::new(&sidecar, ACME), Tenant::new(&sidecar, GLOBEX));
    assert_eq!(send(&mut acme, &[record("before", "1")]).json(), pending(1));
    wait_until("the first total", BOUND, || total(&mut acme) == "1");
    cluster.stop(cluster.primary()).unwrap();
    for number in 0..50 {
        assert_eq!(send(&mut acme, &[record(&format!("a{number}"), "1")]).json(), pending(1));
    }
    assert_eq!(send(&mut globex, &[record("g", "2")]).json(), pending(1));
    wait_until("its age", BOUND, || sidecar.metric("outrigger_usage_spool_oldest_timestamp_seconds") > 0.0);
    // A tenant has its part of the spool, and not the others'.
    let large: Vec<Value> = (0..5000)
        .map(|number| {
            let mut record = record(&format!("large{number}"), "1");
            record["metadata"] = json!({"text": "x".repeat(400)});
            record
        })
        .collect();
    let mut sent = 0;
    let refused = loop {
        let reply = send(&mut acme, &large);
        if reply.status != 202 {
            break reply;
        }
        sent += 1;
    };
    refused.problem(503, "overloaded");
    assert!((4..=6).contains(&sent), "{sent} calls of 2.7 MB fit a quarter of 64 MiB");
    assert_eq!(send(&mut globex, &[record("g2", "2")]).json(), pending(1));
    assert!(sidecar.metric("outrigger_usage_spool_bytes") > 10e6);
    let directory = sidecar.kill();
    let config = directory.path().join("proxy.yaml");
    let sidecar = Sidecar::serve_in(directory, &config);
    let (mut acme, mut globex) = (Tenant::new(&sidecar, ACME), Tenant::new(&sidecar, GLOBEX));
    let reply = send(&mut acme, &large);
    reply.problem(503, "overloaded");
    cluster.cont(cluster.primary()).unwrap();
    wait_until("all totals", BOUND, || total(&mut acme) == "5051" && total(&mut globex) == "4");
    wait_until("no age", BOUND, || sidecar.metric("outrigger_usage_spool_oldest_timestamp_seconds") == 0.0);
    let conflicts = get(&mut acme, "/v1/usage/voice_minutes/conflicts");
    assert_eq!(conflicts["conflicts"], json!([]));
    // What is counted leaves the disk at the end.
    let segments = segments(&sidecar);
    assert!(segments.len() <= 1, "{segments:?}");
    let mut sidecar = sidecar;
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(BOUND).success());
    assert_eq!(self::segments(&sidecar), [""; 0].map(PathBuf::from));
}

fn segments(sidecar: &Sidecar) -> Vec<PathBuf> {
    let spool = sidecar.directory.path().join("data/spool");
    let files = fs::read_dir(spool).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}

#[test]
fn chaos_a_bad_sector_and_a_torn_end_cost_what_they_touch_and_are_said() {
    let Away { cluster, on } = Away::new();
    let sidecar = on.sidecar();
    let mut acme = Tenant::new(&sidecar, ACME);
    cluster.stop(cluster.primary()).unwrap();
    for number in 0..100 {
        assert_eq!(send(&mut acme, &[record(&format!("a{number}"), "1")]).json(), pending(1));
    }
    let [segment] = &segments(&sidecar)[..] else { panic!("one segment") };
    let segment = segment.clone();
    let directory = sidecar.kill();
    let length = fs::metadata(&segment).unwrap().len();
    let file = OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&[0; 512], length / 2).unwrap();
    file.set_len(length - 3).unwrap();
    cluster.cont(cluster.primary()).unwrap();
    let config = directory.path().join("proxy.yaml");
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut acme = Tenant::new(&sidecar, ACME);
    wait_until("the rest", BOUND, || total(&mut acme).parse::<u32>().unwrap() >= 95);
    assert!(total(&mut acme).parse::<u32>().unwrap() <= 98, "two entries at the least were damaged");
    assert!(sidecar.metric("outrigger_usage_spool_damaged_bytes_total") >= 512.0);
    assert!(sidecar.log().contains("what is on the usage spool's disk is damaged"));
    assert_eq!(send(&mut acme, &[record("after", "1000")]).json(), pending(1));
    wait_until("what comes after", BOUND, || total(&mut acme).parse::<u32>().unwrap() >= 1095);
}

fn requeue(config: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(BINARY);
    let ended = command.args(["usage", "requeue", "--config"]).arg(config).args(more).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ended.status.code().unwrap(), text(&ended.stdout), text(&ended.stderr))
}

#[test]
fn what_was_put_aside_is_taken_back_by_hand_and_counted() {
    let on = OnPostgres::new().with_policy("usage.yaml", POLICY);
    let psql = |sql: &str| on.database.psql(PostgresRole::Superuser, &[sql]).unwrap();
    psql("ALTER TABLE usage_events ADD CONSTRAINT not_seven CHECK (value <> 7)");
    let mut sidecar = on.sidecar();
    let mut acme = Tenant::new(&sidecar, ACME);
    assert_eq!(send(&mut acme, &[record("k1", "7"), record("k2", "1")]).json(), pending(2));
    assert_eq!(send(&mut acme, &[record("k3", "2")]).json(), pending(1));
    wait_until("a file", BOUND, || sidecar.metric("outrigger_usage_spool_refused_total") > 0.0);
    wait_until("the other call", BOUND, || total(&mut acme) == "2");
    let config = sidecar.directory.path().join("proxy.yaml");
    let (code, said, error) = requeue(&config, &[]);
    assert!(
        code == 1 && said.contains("0 calls") && error.contains("another process uses"),
        "{code} {said} {error}"
    );
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(BOUND).success());
    psql("ALTER TABLE usage_events DROP CONSTRAINT not_seven");
    let (code, said, _) = requeue(&config, &["--dry-run", "--json"]);
    let told: Value = serde_json::from_str(&said).unwrap();
    let file = told["file"].as_str().unwrap();
    let expected = json!({"file": file, "requeued": false, "tenant": ACME, "accepted_at": told["accepted_at"], "records": 2});
    assert_eq!((code, &told), (0, &expected));
    let (code, said, error) = requeue(&config, &["other"]);
    assert!(code == 1 && error.contains("`other`"), "{code} {said} {error}");
    let (code, said, error) = requeue(&config, &[file]);
    assert!(
        code == 0 && said.contains(&format!("{file}: taken back: tenant {ACME}, 2 records")),
        "{code} {said} {error}"
    );
    let (code, said, _) = requeue(&config, &[]);
    assert!(code == 0 && said.contains("0 calls"), "{said}");
    let directory = sidecar.kill();
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut acme = Tenant::new(&sidecar, ACME);
    wait_until("all", BOUND, || total(&mut acme) == "10");
}

#[test]
fn a_data_directory_is_one_process_s() {
    let data = tempfile::tempdir().unwrap();
    let at = format!("data_dir: '{}'", data.path().display());
    let on = OnPostgres::new().with("data_dir: data", &at);
    let first = on.sidecar();
    let config = first.directory.path().join("proxy.yaml");
    let second = Command::new(BINARY).args(["serve", "--config"]).arg(&config).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another process uses") && said.contains("a data directory of its own"), "{said}");
}
