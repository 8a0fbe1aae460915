//! Usage over HTTP, on each store: counted once, read as exact totals.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};
use support::client::Reply;
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX, Sidecar};
use support::tenant::Tenant;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");

impl Tenant {
    fn record(&mut self, records: &[Value]) -> Reply {
        self.send("POST", "/v1/usage", &[JSON], &json!({ "records": records }).to_string())
    }

    /// What was accepted, and what was there.
    fn counted(&mut self, records: &[Value]) -> (u64, u64) {
        counts(&self.record(records))
    }

    fn get(&mut self, target: &str) -> Value {
        let reply = self.send("GET", target, &[], "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// The problem that a call is.
    fn problem(&mut self, status: u16, method: &str, target: &str, body: &str) -> Value {
        let reply = self.send(method, target, &[JSON], body);
        assert_eq!(reply.status, status, "{}", reply.text());
        reply.json()
    }
}

fn counts(reply: &Reply) -> (u64, u64) {
    assert_eq!(reply.status, 202, "{}", reply.text());
    let counts = reply.json();
    (counts["accepted"].as_u64().unwrap(), counts["duplicates"].as_u64().unwrap())
}

/// The beginning of the hour that an hour ago was in.
fn hour() -> Timestamp {
    let hour = Timestamp::now().as_second().div_euclid(3600) * 3600 - 3600;
    Timestamp::from_second(hour).unwrap()
}

fn record(key: &str, value: Value, time: Timestamp) -> Value {
    json!({"metric": "voice_minutes", "value": value, "time": time.to_string(), "idempotency_key": key})
}

fn with_tags(mut record: Value, tags: Value) -> Value {
    record["tags"] = tags;
    record
}

fn fields(problem: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| (text(&error["pointer"]), text(&error["detail"]))).collect()
}

/// One sidecar of each store, TimescaleDB with its one connection among them; what lives as long comes with it.
fn on_each(test: fn(&Sidecar)) {
    test(&Sidecar::dev());
    let on = OnPostgres::new();
    test(&on.sidecar());
    let on = OnPostgres::on_timescale();
    test(&on.sidecar());
}

#[test]
fn a_record_counts_once_whatever_is_sent_again_and_is_in_the_next_read_of_its_tenant_alone() {
    on_each(|sidecar| {
        let (mut acme, mut globex) = (Tenant::new(sidecar, ACME), Tenant::new(sidecar, GLOBEX));
        let hour = hour();
        let number: Value = serde_json::from_str("0.1").unwrap();
        let records = [
            record("call-0001", number, hour + 1.minute()),
            record("call-0002", json!("0.2"), hour + 2.minutes()),
            record("call-0003", json!("-12345678901234567890123456789.123456789"), hour),
        ];
        assert_eq!(acme.counted(&records), (3, 0));
        assert_eq!(acme.counted(&records), (0, 3));
        assert_eq!(acme.counted(&[records[0].clone(), records[0].clone()]), (0, 2));
        // The same number, time and tags in other words.
        let mut again = record("call-0001", json!("0.100"), hour + 1.minute());
        again["tags"] = json!({});
        assert_eq!(acme.counted(&[again]), (0, 1));
        assert_eq!(globex.counted(&[record("call-0001", json!(7), hour)]), (1, 0));
        let target = format!("/v1/usage/voice_minutes?window=hour&from={hour}&to={}", hour + 1.hour());
        let read = acme.get(&target);
        let start = hour.to_string();
        let value = "-12345678901234567890123456788.823456789";
        let expected = json!({"metric": "voice_minutes", "window": "hour", "total": value,
                              "points": [{"start": start, "value": value, "count": 3}]});
        assert_eq!(read, expected);
        assert_eq!(globex.get(&target)["total"], "7");
    });
}

#[test]
fn a_key_that_comes_back_with_another_record_is_a_conflict_and_nothing_of_the_call_is_counted() {
    on_each(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let hour = hour();
        assert_eq!(acme.counted(&[record("k-1", json!(1), hour), record("k-2", json!(2), hour)]), (2, 0));
        let lies = [
            record("k-3", json!(4), hour),
            record("k-1", json!(8), hour),
            record("k-2", json!(2), hour),
            with_tags(record("k-2", json!(2), hour), json!({"region": "eu"})),
            record("k-1", json!(1), hour + 1.second()),
        ];
        let reply = acme.record(&lies);
        assert_eq!(reply.status, 409, "{}", reply.text());
        let problem = reply.json();
        assert_eq!((&problem["code"], &problem["retryable"]), (&json!("conflict"), &json!(false)));
        let pointers: Vec<String> = fields(&problem).into_iter().map(|(pointer, _)| pointer).collect();
        let of = |number: usize| format!("/records/{number}/idempotency_key");
        assert_eq!(pointers, [of(1), of(3), of(4)]);
        let total = format!("/v1/usage/voice_minutes?from={hour}&to={}", hour + 1.hour());
        assert_eq!(acme.get(&total)["total"], "3");
        // Another metric and another day have keys of their own.
        let mut other = record("k-1", json!(16), hour);
        other["metric"] = json!("api_calls");
        assert_eq!(acme.counted(&[other, record("k-1", json!(32), hour - 24.hours())]), (2, 0));
        let inside = acme.record(&[record("k-9", json!(1), hour), record("k-9", json!(2), hour)]);
        assert_eq!(fields(&inside.json())[0].0, of(1), "{}", inside.text());
    });
}

#[test]
fn records_come_as_lines_too() {
    on_each(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let hour = hour();
        let lines = format!(
            "{}\r\n\n{}\n{}",
            record("k-1", json!(1), hour),
            record("k-2", json!("2.5"), hour),
            record("k-1", json!(1), hour)
        );
        assert_eq!(counts(&acme.send("POST", "/v1/usage", &[NDJSON], &lines)), (2, 1));
        let broken = format!("{}\n{{\"metric\": \"a\"\n", record("k-3", json!(1), hour));
        let reply = acme.send("POST", "/v1/usage", &[NDJSON], &broken);
        assert_eq!(
            (reply.status, fields(&reply.json())[0].0.as_str()),
            (400, "/records/1"),
            "{}",
            reply.text()
        );
        let wrong = format!("{}\n{}", record("k-4", json!(1), hour), record("k-5", json!("1,5"), hour));
        let reply = acme.send("POST", "/v1/usage", &[NDJSON], &wrong);
        assert_eq!((reply.status, fields(&reply.json())[0].0.as_str()), (422, "/records/1/value"));
        let reply = acme.send("POST", "/v1/usage", &[NDJSON], "\n");
        assert_eq!((reply.status, fields(&reply.json())[0].0.as_str()), (422, "/records"));
        let reply = acme.send("POST", "/v1/usage", &[("Content-Type", "text/csv")], "a,b");
        assert_eq!(reply.status, 415);
        assert!(reply.text().contains("application/x-ndjson"), "{}", reply.text());
        let total = format!("/v1/usage/voice_minutes?from={hour}&to={}", hour + 1.hour());
        assert_eq!(acme.get(&total)["total"], "3.5", "what was refused left nothing");
    });
}

#[test]
fn what_is_wrong_is_said_at_once_with_what_would_be_right_and_nothing_is_counted() {
    let sidecar = Sidecar::dev();
    let mut acme = Tenant::new(&sidecar, ACME);
    let hour = hour();
    let mut unknown = record("k-2", json!(1), hour);
    unknown["metric"] = json!("minutes");
    let problem = acme
        .record(&[
            record("k-1", json!(1), hour),
            unknown,
            record("", json!("0.0000000001"), hour - 36 * 24.hours()),
        ])
        .json();
    let fields_of = fields(&problem);
    let pointers: Vec<&str> = fields_of.iter().map(|(pointer, _)| pointer.as_str()).collect();
    let expected = ["/records/1/metric", "/records/2/value", "/records/2/time", "/records/2/idempotency_key"];
    assert_eq!(pointers, expected);
    assert!(fields_of[2].1.contains("35 days"), "{fields_of:?}");
    let many: Vec<Value> = (0..10_001).map(|n| record(&n.to_string(), json!(1), hour)).collect();
    let reply = acme.record(&many);
    assert_eq!((reply.status, fields(&reply.json())[0].1.as_str()), (422, "1 to 10000 records"));
    for (body, status, pointer) in [
        (
            r#"{"records": [{"metric": "api_calls", "value": 1, "time": "2026-01-31T09:30:00Z"}]}"#,
            422,
            "/records/0",
        ),
        (r#"{"records": [], "more": 1}"#, 422, "/more"),
        (r#"{"records": []}"#, 422, "/records"),
    ] {
        let problem = acme.problem(status, "POST", "/v1/usage", body);
        assert_eq!(fields(&problem)[0].0, pointer, "{problem}");
    }
    let until = format!("from={}&to={}", hour, hour + 1.hour());
    for (target, pointer, right) in [
        ("voice_minutes?to=2026-01-31T00:00:00Z".to_owned(), "?from", "RFC 3339"),
        (format!("voice_minutes?window=week&{until}"), "?window", "`hour`, `day`, `month` or `total`"),
        (format!("voice_minutes?group_by=plan&{until}"), "?group_by", "one of `direction`, `region`"),
        (format!("voice_minutes?cursor={}&{until}", hour + 1.hour()), "?cursor", "`next_cursor`"),
        ("voice_minutes?window=day&from=2026-01-31T01:00:00Z".to_owned(), "?from", "2026-01-31T00:00:00Z"),
        (format!("voice_minutes?from={hour}&to={hour}"), "?to", "later than `from`"),
    ] {
        let problem = acme.problem(422, "GET", &format!("/v1/usage/{target}"), "");
        let (at, detail) = fields(&problem).remove(0);
        assert!(at == pointer && detail.contains(right), "{target}: {problem}");
    }
    let problem = acme.problem(404, "GET", &format!("/v1/usage/minutes?{until}"), "");
    assert!(problem["detail"].as_str().unwrap().contains("`minutes`"), "{problem}");
    let total = format!("/v1/usage/voice_minutes?{until}");
    assert_eq!(acme.get(&total)["total"], "0");
}

#[test]
fn totals_are_read_by_window_and_tag_and_long_ranges_in_pages() {
    on_each(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let hour = hour();
        let tagged = |key: &str, value: &str, hours: i64, region: &str| {
            with_tags(
                record(key, json!(value), hour - hours.hours()),
                json!({"region": region, "other": "x"}),
            )
        };
        let records = [
            tagged("k-1", "1.5", 0, "eu"),
            tagged("k-2", "2", 30, "us"),
            tagged("k-3", "4", 24 * 30, "eu"),
            record("k-4", json!(8), hour),
        ];
        assert_eq!(acme.counted(&records), (4, 0));
        // A year of hours, of three regions (one of them none): three pages.
        let (from, to) = (hour - (24 * 365).hours(), hour + 1.hour());
        let target = format!("/v1/usage/voice_minutes?window=hour&group_by=region&from={from}&to={to}");
        let (mut points, mut cursor, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let more = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
            let page = acme.get(&format!("{target}{more}"));
            assert_eq!(page["total"], "15.5");
            points.extend(page["points"].as_array().unwrap().clone());
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!((pages, points.len()), (3, 3 * (24 * 365 + 1)));
        let used: Vec<String> = points
            .iter()
            .filter(|point| point["count"] != 0)
            .map(|point| format!("{} {} {}", point["start"], point["group"], point["value"]))
            .collect();
        let expected = [
            format!("\"{}\" \"eu\" \"4\"", hour - (24 * 30).hours()),
            format!("\"{}\" \"us\" \"2\"", hour - 30.hours()),
            format!("\"{hour}\" \"\" \"8\""),
            format!("\"{hour}\" \"eu\" \"1.5\""),
        ];
        assert_eq!(used, expected);
        let starts: Vec<&Value> = points.iter().map(|point| &point["start"]).collect();
        assert!(starts.is_sorted_by_key(|start| start.as_str().unwrap().to_owned()));
        // Without `to` it is until now.
        let midnight = |time: Timestamp| format!("{}T00:00:00Z", &time.to_string()[..10]);
        let from = midnight(hour - (24 * 34).hours());
        let days = acme.get(&format!("/v1/usage/voice_minutes?window=day&from={from}"));
        assert_eq!(days["total"], "15.5");
        let last = days["points"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["start"], midnight(Timestamp::now()));
        let total = acme.get(&format!("/v1/usage/voice_minutes?group_by=region&from={from}"));
        let expected = json!([
            {"start": from, "value": "8", "count": 1, "group": ""},
            {"start": from, "value": "5.5", "count": 2, "group": "eu"},
            {"start": from, "value": "2", "count": 1, "group": "us"},
        ]);
        assert_eq!(total["points"], expected);
    });
}

#[test]
fn who_may_read_reads_who_may_record_records_and_metrics_are_listed_for_their_readers() {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir_all(&policies).unwrap();
    let access = "kind: access\nrules:\n\
        \x20 - {name: billing, match: {scopes: [billing]}, allow: [{actions: [\"usage:read\"], names: [voice_minutes]}]}\n\
        \x20 - {name: gateway, match: {scopes: [gateway]}, allow: [{actions: [\"usage:record\"], names: [voice_minutes]}]}\n";
    std::fs::write(policies.join("access.yaml"), access).unwrap();
    let sidecar = Sidecar::dev_in(directory, &[]);
    let of = |scope: &str| {
        let token = sidecar.token_with(&["--tenant", ACME, "--subject", "test", "--scope", scope]);
        Tenant { bearer: format!("Bearer {token}"), client: sidecar.client() }
    };
    let (mut billing, mut gateway) = (of("billing"), of("gateway"));
    let body = json!({"records": [record("k", json!(1), hour())]}).to_string();
    let target = format!("/v1/usage/voice_minutes?from={}", hour());
    assert_eq!(gateway.send("POST", "/v1/usage", &[JSON], &body).status, 202);
    billing.problem(403, "POST", "/v1/usage", &body);
    assert_eq!(billing.get(&target)["total"], "1");
    gateway.problem(403, "GET", &target, "");
    let of_another = json!({"records": [{"metric": "api_calls", "value": 1, "time": hour().to_string(), "idempotency_key": "k"}]});
    gateway.problem(403, "POST", "/v1/usage", &of_another.to_string());
    let listed = billing.get("/v1/usage");
    let expected = json!({"metrics": [
        {"metric": "voice_minutes", "accept_late_ms": 3_024_000_000_u64, "group_by": ["direction", "region"]}
    ]});
    assert_eq!(listed, expected);
}
