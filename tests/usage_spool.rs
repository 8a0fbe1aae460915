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
use rig::{PostgresCluster, PostgresOptions};
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
    assert_eq!(reply.status, 200, "{}", reply.text());
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
        let later = format!("/v1/usage/voice_minutes/conflicts?from={}", found + 1.second());
        assert_eq!(get(&mut acme, &later)["conflicts"], json!([]));
        let none = json!({"metric": "voice_minutes", "conflicts": []});
        assert_eq!(get(&mut globex, "/v1/usage/voice_minutes/conflicts"), none);
        assert_eq!(acme.send("GET", "/v1/usage/nothing/conflicts", &[], "").status, 404);
        for (query, field) in [("?cursor=x", "?cursor"), ("?from=x", "?from")] {
            let reply = acme.send("GET", &format!("/v1/usage/voice_minutes/conflicts{query}"), &[], "");
            assert_eq!(reply.status, 422, "{}", reply.text());
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
    let large = large("large");
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

/// 5,000 records of a call of 2.7 MB.
fn large(name: &str) -> Vec<Value> {
    let large = |number| {
        let mut record = record(&format!("{name}{number}"), "1");
        record["metadata"] = json!({"text": "x".repeat(400)});
        record
    };
    (0..5000).map(large).collect()
}

fn segments(sidecar: &Sidecar) -> Vec<PathBuf> {
    let spool = sidecar.directory.path().join("data/spool");
    let files = fs::read_dir(spool).unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    found.sort();
    found
}

#[test]
fn a_call_that_was_under_way_at_sigterm_is_counted_by_the_process_that_answered_it() {
    let on = OnPostgres::new().with_policy("usage.yaml", POLICY);
    for mut sidecar in [embedded(), on.sidecar()] {
        let body = json!({"records": [record("late", "3")]}).to_string();
        let (begun, rest) = body.split_at(10);
        let mut acme = Tenant::new(&sidecar, ACME);
        let (mut busy, mut idle) = (sidecar.client(), sidecar.client());
        let head = format!(
            "POST /v1/usage HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{begun}",
            acme.bearer,
            body.len()
        );
        busy.write_raw(head.as_bytes()).unwrap();
        assert_eq!(send(&mut acme, &[record("before", "1")]).json(), pending(1));
        wait_until("the first total", BOUND, || total(&mut acme) == "1");
        sidecar.signal(Signal::TERM);
        assert!(idle.is_closed(), "the drain has not begun");
        busy.write_raw(rest.as_bytes()).unwrap();
        let reply = busy.read_reply(false).unwrap();
        assert_eq!((reply.status, reply.json()), (202, pending(1)), "{}", reply.text());
        assert!(sidecar.wait(BOUND).success());
        assert_eq!(segments(&sidecar), [""; 0].map(PathBuf::from));
        let directory = sidecar.kill();
        let config = directory.path().join("proxy.yaml");
        let again = Sidecar::serve_in(directory, &config);
        assert_eq!(total(&mut Tenant::new(&again, ACME)), "4");
    }
}

#[test]
fn nothing_is_accepted_into_a_folder_whose_files_were_removed() {
    let sidecar = embedded();
    let mut acme = Tenant::new(&sidecar, ACME);
    assert_eq!(send(&mut acme, &[record("before", "1")]).json(), pending(1));
    wait_until("the first total", BOUND, || total(&mut acme) == "1");
    let spool = sidecar.directory.path().join("data/spool");
    let files: Vec<PathBuf> = fs::read_dir(&spool).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "a segment and the lock: {files:?}");
    files.iter().for_each(|file| fs::remove_file(file).unwrap());
    for _ in 0..2 {
        send(&mut acme, &[record("after", "1")]).problem(503, "backend_unavailable");
    }
    let log = sidecar.log();
    let said = log.lines().filter(|line| line.contains("nothing is taken to disk any more"));
    assert_eq!(said.count(), 1, "{log}");
    assert!(log.contains("the file `lock` of the spool's folder was removed"), "{log}");
    // The alert on what waits.
    wait_until("its age", BOUND, || sidecar.metric("outrigger_usage_spool_oldest_timestamp_seconds") > 0.0);
    let directory = sidecar.kill();
    let config = directory.path().join("proxy.yaml");
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut acme = Tenant::new(&sidecar, ACME);
    assert_eq!(send(&mut acme, &[record("after", "1")]).json(), pending(1));
    wait_until("both", BOUND, || total(&mut acme) == "2");
}

#[test]
fn nothing_is_accepted_while_another_folder_is_where_the_spool_s_was_and_all_goes_on_once_it_is_back() {
    let sidecar = embedded();
    let mut acme = Tenant::new(&sidecar, ACME);
    assert_eq!(send(&mut acme, &[record("before", "1")]).json(), pending(1));
    let data = sidecar.directory.path().join("data");
    let (spool, away) = (data.join("spool"), data.join("away"));
    fs::rename(&spool, &away).unwrap();
    fs::create_dir(&spool).unwrap();
    send(&mut acme, &[record("after", "1")]).problem(503, "backend_unavailable");
    assert!(sidecar.log().contains("the spool's folder is not the one that was opened"), "{}", sidecar.log());
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
    fs::remove_dir(&spool).unwrap();
    fs::rename(&away, &spool).unwrap();
    assert_eq!(send(&mut acme, &[record("after", "1")]).json(), pending(1));
    wait_until("both", BOUND, || total(&mut acme) == "2");
    assert_eq!(sidecar.metric("outrigger_usage_spool_damaged_bytes_total"), 0.0);
}

#[test]
fn chaos_a_file_that_was_removed_is_said_to_be_lost_and_the_rest_is_counted() {
    let Away { cluster, on } = Away::new();
    let sidecar = on.sidecar();
    let mut tenants = [Tenant::new(&sidecar, ACME), Tenant::new(&sidecar, GLOBEX)];
    cluster.stop(cluster.primary()).unwrap();
    for number in 0..10 {
        let reply = send(&mut tenants[number % 2], &large(&format!("{number}-")));
        assert_eq!(reply.json(), pending(5000));
    }
    let segments = segments(&sidecar);
    let [_, second, last] = &segments[..] else { panic!("{segments:?}") };
    let lost = fs::metadata(second).unwrap().len();
    [second, last].into_iter().for_each(|file| fs::remove_file(file).unwrap());
    // The one that was written to goes on as another one.
    assert_eq!(send(&mut tenants[0], &[record("after", "1")]).json(), pending(1));
    cluster.cont(cluster.primary()).unwrap();
    wait_until("the rest", BOUND, || tenants.each_mut().map(total) == ["10001", "10000"]);
    wait_until("no age", BOUND, || sidecar.metric("outrigger_usage_spool_oldest_timestamp_seconds") == 0.0);
    assert!(sidecar.metric("outrigger_usage_spool_damaged_bytes_total") >= lost as f64);
    let log = sidecar.log();
    assert_eq!(
        log.lines().filter(|line| line.contains("was removed: what it had is lost")).count(),
        2,
        "{log}"
    );
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
