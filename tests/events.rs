//! Events over HTTP, on both stores: published in every form, read, followed, consumed by groups.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX, Sidecar};
use support::tenant::Tenant;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
const BATCH: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");

impl Tenant {
    fn post(&mut self, target: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.send("POST", target, headers, &body.to_string())
    }

    fn publish(&mut self, topic: &str, events: &[Value]) -> Value {
        let reply = self.post(&format!("/v1/events/{topic}"), &[BATCH], &json!(events));
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()
    }

    fn lines(&mut self, target: &str) -> Vec<Value> {
        let reply = self.send("GET", target, &[], "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn verb(&mut self, verb: &str, body: Value) -> Value {
        let reply = self.post(&format!("/v1/events/leads:{verb}"), &[JSON], &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }
}

fn event(id: &str, key: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/leads", "type": "lead.created", "partitionkey": key, "data": {"id": id}})
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["id"].as_str().unwrap()).collect()
}

/// One sidecar of each store; what lives as long comes with it.
fn on_both(test: fn(&Sidecar)) {
    test(&Sidecar::dev());
    let on = OnPostgres::new();
    test(&on.sidecar());
}

#[test]
fn every_form_is_accepted_and_read_back_in_order_by_its_tenant_alone() {
    on_both(|sidecar| {
        let (mut acme, mut globex) = (Tenant::new(sidecar, ACME), Tenant::new(sidecar, GLOBEX));
        let plain = acme.post(
            "/v1/events/leads?type=lead.scored",
            &[JSON, ("Idempotency-Key", "k1")],
            &json!({"score": 1}),
        );
        assert_eq!(
            (plain.status, plain.json()),
            (202, json!({"accepted": 1, "duplicates": 0, "ids": ["k1"]}))
        );
        let structured = acme.post("/v1/events/leads", &[STRUCTURED], &event("e1", "a"));
        assert_eq!(structured.json(), json!({"accepted": 1, "duplicates": 0, "ids": ["e1"]}));
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "b1"),
            ("ce-source", "/leads"),
            ("ce-type", "lead.noted"),
            ("Content-Type", "text/plain"),
        ];
        assert_eq!(acme.send("POST", "/v1/events/leads", &headers, "a note").json()["accepted"], 1);
        let batch = acme.publish("leads", &[event("e2", "a"), event("e1", "a"), event("e3", "b")]);
        assert_eq!(batch, json!({"accepted": 2, "duplicates": 1, "ids": ["e2", "e1", "e3"]}));

        let read = acme.lines("/v1/events/leads");
        assert_eq!(ids(&read), ["k1", "e1", "b1", "e2", "e3"]);
        assert!(
            read.iter().all(|event| event["tenantid"] == ACME && event["cursor"].is_string()),
            "{read:?}"
        );
        assert_eq!((&read[0]["type"], &read[0]["data"]), (&json!("lead.scored"), &json!({"score": 1})));
        assert_eq!((&read[2]["data"], &read[2]["datacontenttype"]), (&json!("a note"), &json!("text/plain")));
        assert_eq!(ids(&acme.lines("/v1/events/leads?type=lead.scored,lead.noted")), ["k1", "b1"]);
        for (at, event) in read.iter().enumerate() {
            let cursor = event["cursor"].as_str().unwrap();
            let rest = acme.lines(&format!("/v1/events/leads?from={cursor}"));
            assert_eq!(ids(&rest), ids(&read[at + 1..]));
            let foreign = globex.send("GET", &format!("/v1/events/leads?from={cursor}"), &[], "");
            assert_eq!(foreign.problem(422, "invalid")["errors"][0]["pointer"], "?from");
            acme.send("GET", &format!("/v1/events/payments?from={cursor}"), &[], "").problem(422, "invalid");
        }
        assert_eq!(globex.lines("/v1/events/leads"), Vec::<Value>::new());
        assert_eq!(acme.lines("/v1/events/leads?from=latest"), Vec::<Value>::new());
    });
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_nothing_is_kept() {
    on_both(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let mut bad = event("e2", "a");
        bad.as_object_mut().unwrap().remove("type");
        let refused = acme.post("/v1/events/leads", &[BATCH], &json!([event("e1", "a"), bad]));
        assert_eq!(refused.problem(422, "invalid")["errors"][0]["pointer"], "/1/type");
        let mut foreign = event("e1", "a");
        foreign["tenantid"] = json!(GLOBEX);
        acme.post("/v1/events/leads", &[STRUCTURED], &foreign).problem(403, "forbidden");
        acme.post("/v1/events/nothing", &[STRUCTURED], &event("e1", "a")).problem(404, "not_found");
        acme.post("/v1/events/leads.dlq", &[STRUCTURED], &event("e1", "a")).problem(404, "not_found");
        acme.send("GET", "/v1/events/nothing", &[], "").problem(404, "not_found");
        acme.send("POST", "/v1/events/leads", &[JSON], "{").problem(400, "malformed");
        acme.send("POST", "/v1/events/leads", &[("Content-Type", "text/plain")], "x")
            .problem(415, "unsupported_media_type");
        let large = json!({"data": "x".repeat(300_000)});
        acme.post("/v1/events/leads", &[JSON], &large).problem(413, "too_large");
        acme.post("/v1/events/leads", &[STRUCTURED, ("Idempotency-Key", "k")], &event("e1", "a"))
            .problem(400, "idempotency_not_supported");
        for (target, pointer) in [
            ("?from=yesterday", "?from"),
            ("?from=2026-13-01T00:00:00Z", "?from"),
            ("?type=", "?type"),
            ("?type=a,,b", "?type"),
            ("?type=a%00b", "?type"),
        ] {
            let reply = acme.send("GET", &format!("/v1/events/leads{target}"), &[], "");
            assert_eq!(reply.problem(422, "invalid")["errors"][0]["pointer"], pointer);
        }
        for (verb, body, pointer) in [
            ("pull", json!({"group": "G"}), "/group"),
            ("pull", json!({"group": "g", "max": 0}), "/max"),
            ("pull", json!({"group": "g", "lease_ms": 1}), "/lease_ms"),
            ("pull", json!({"group": "g", "wait_ms": 60_001}), "/wait_ms"),
            ("ack", json!({"group": "g", "receipts": []}), "/receipts"),
            ("nack", json!({"group": "g", "receipts": ["r"], "delay_ms": 43_200_001}), "/delay_ms"),
            ("extend", json!({"group": "g", "receipts": ["r"], "lease_ms": 1}), "/lease_ms"),
            ("seek", json!({"group": "g", "to": "then"}), "/to"),
        ] {
            let reply = acme.post(&format!("/v1/events/leads:{verb}"), &[JSON], &body);
            assert_eq!(reply.problem(422, "invalid")["errors"][0]["pointer"], pointer, "{verb} {body}");
        }
        assert_eq!(acme.lines("/v1/events/leads"), Vec::<Value>::new());
    });
}

/// Reads a stream until what it said so far has this text.
fn read_until(client: &mut Client, said: &mut String, text: &str) {
    while !said.contains(text) {
        let chunk = client.read_chunk().unwrap().unwrap_or_else(|| panic!("ended without {text:?}: {said}"));
        said.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

fn follow(tenant: &Tenant, sidecar: &Sidecar, target: &str, headers: &[(&str, &str)]) -> Client {
    let mut client = sidecar.client();
    let mut head =
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n", tenant.bearer);
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    client.write_raw(format!("{head}\r\n").as_bytes()).unwrap();
    let reply = client.read_head().unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    client
}

#[test]
fn a_stream_follows_the_topic_and_is_resumed_after_every_event() {
    on_both(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        acme.publish("leads", &[event("before", "a")]);
        const SSE: (&str, &str) = ("Accept", "text/event-stream");
        let mut latest = follow(&acme, sidecar, "/v1/events/leads", &[SSE]);
        let mut earliest = follow(&acme, sidecar, "/v1/events/leads?follow=true", &[]);
        let (mut said, mut lines) = (String::new(), String::new());
        read_until(&mut latest, &mut said, "retry: 1000\n");
        for id in ["n1", "n2", "n3"] {
            acme.publish("leads", &[event(id, "a")]);
            read_until(&mut latest, &mut said, &format!("\"id\":\"{id}\""));
            read_until(&mut earliest, &mut lines, &format!("\"id\":\"{id}\""));
        }
        assert!(!said.contains("before"), "a reader that follows gets what comes");
        let events: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(ids(&events), ["before", "n1", "n2", "n3"]);
        let cursors: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        assert_eq!(cursors.len(), 3, "{said}");
        for (cursor, next) in cursors.iter().zip(["n2", "n3"]) {
            let mut resumed =
                follow(&acme, sidecar, "/v1/events/leads?from=earliest", &[SSE, ("Last-Event-ID", cursor)]);
            let mut again = String::new();
            read_until(&mut resumed, &mut again, "\"id\":");
            assert!(again.contains(&format!("\"id\":\"{next}\"")), "{again}");
        }
    });
}

#[test]
fn consumers_of_a_group_share_a_topic_and_what_fails_ends_among_the_dead_letters() {
    on_both(|sidecar| {
        let (mut one, mut other) = (Tenant::new(sidecar, ACME), Tenant::new(sidecar, ACME));
        one.publish("leads", &[event("a1", "a"), event("b1", "b"), event("a2", "a")]);
        let pulled = one.verb("pull", json!({"group": "g", "max": 1}));
        assert_eq!(pulled["deliveries"][0]["event"]["id"], "a1");
        assert_eq!(pulled["deliveries"][0]["attempt"], 1);
        let receipt = pulled["deliveries"][0]["receipt"].clone();
        let rest = other.verb("pull", json!({"group": "g"}));
        let got: Vec<&Value> =
            rest["deliveries"].as_array().unwrap().iter().map(|one| &one["event"]["id"]).collect();
        assert_eq!(got, ["b1"], "a2 waits for a1");
        let settled = one.verb("ack", json!({"group": "g", "receipts": [receipt, "nonsense"]}));
        assert_eq!(settled, json!({"done": 1, "stale": ["nonsense"]}));
        // Again and again, until the policy's attempts are over.
        for attempt in 1..=16 {
            let pulled = one.verb("pull", json!({"group": "g"}));
            let delivery = &pulled["deliveries"][0];
            assert_eq!((&delivery["event"]["id"], &delivery["attempt"]), (&json!("a2"), &json!(attempt)));
            let extended = one.verb("extend", json!({"group": "g", "receipts": [delivery["receipt"]]}));
            assert_eq!(extended["done"], 1);
            assert_eq!(one.verb("nack", json!({"group": "g", "receipts": [delivery["receipt"]]}))["done"], 1);
        }
        assert_eq!(one.verb("pull", json!({"group": "g"}))["deliveries"], json!([]));
        let dead = one.lines("/v1/events/leads.dlq");
        assert_eq!(ids(&dead), ["a2"]);
        assert_eq!((&dead[0]["dlqgroup"], &dead[0]["dlqreason"]), (&json!("g"), &json!("nacked")));
        for attempt in 1..=16 {
            let letters =
                one.post("/v1/events/leads.dlq:pull", &[JSON], &json!({"group": "undertaker"})).json();
            let letter = &letters["deliveries"][0];
            assert_eq!((&letter["event"]["id"], &letter["attempt"]), (&json!("a2"), &json!(attempt)));
            let refused = json!({"group": "undertaker", "receipts": [letter["receipt"]]});
            assert_eq!(one.post("/v1/events/leads.dlq:nack", &[JSON], &refused).json()["done"], 1);
        }
        // Given up again it stays what and where it is, and its group is done with it.
        let pulled = one.post("/v1/events/leads.dlq:pull", &[JSON], &json!({"group": "undertaker"})).json();
        assert_eq!(pulled["deliveries"], json!([]));
        assert_eq!(one.lines("/v1/events/leads.dlq"), dead);
        let ended = "outrigger_events_dead_letters_given_up_total";
        assert_eq!(
            (sidecar.metric("outrigger_events_dead_letters_total"), sidecar.metric(ended)),
            (1.0, 1.0)
        );
        // A receipt makes no group.
        let nobody = one.verb("ack", json!({"group": "nobody", "receipts": ["r"]}));
        assert_eq!(nobody, json!({"done": 0, "stale": ["r"]}));
        assert_eq!(
            one.post("/v1/events/leads:seek", &[JSON], &json!({"group": "g", "to": "earliest"})).status,
            204
        );
        assert_eq!(one.verb("pull", json!({"group": "g"}))["deliveries"].as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_pull_that_waits_gets_what_comes() {
    on_both(|sidecar| {
        let mut acme = Tenant::new(sidecar, ACME);
        let (bearer, mut waiting) = (acme.bearer.clone(), sidecar.client());
        let begun = std::time::Instant::now();
        let empty = acme.verb("pull", json!({"group": "g", "wait_ms": 300}));
        assert_eq!(empty["deliveries"], json!([]));
        assert!(begun.elapsed() >= std::time::Duration::from_millis(300));
        let body = json!({"group": "g", "wait_ms": 20_000}).to_string();
        let head = format!(
            "POST /v1/events/leads:pull HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nOutrigger-Timeout-Ms: 30000\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        waiting.write_raw(head.as_bytes()).unwrap();
        acme.publish("leads", &[event("e1", "a")]);
        let reply = waiting.read_reply(false).unwrap();
        assert_eq!(reply.json()["deliveries"][0]["event"]["id"], "e1", "{}", reply.text());
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    });
}

#[test]
fn two_sidecars_on_one_database_see_each_other_s_events_and_share_a_group() {
    let on = OnPostgres::new();
    let (one, other) = (on.sidecar(), on.sidecar());
    let mut publisher = Tenant::new(&one, ACME);
    // Each sidecar has a signing key of its own here, and a token of its own.
    let mut consumer = Tenant::new(&other, ACME);
    let mut stream = follow(&consumer, &other, "/v1/events/leads?follow=true", &[]);
    let mut said = String::new();
    for id in ["e1", "e2"] {
        publisher.publish("leads", &[event(id, id)]);
        read_until(&mut stream, &mut said, &format!("\"id\":\"{id}\""));
    }
    let first = publisher.verb("pull", json!({"group": "g", "max": 1}));
    let second = consumer.verb("pull", json!({"group": "g", "max": 5}));
    assert_eq!(first["deliveries"][0]["event"]["id"], "e1");
    assert_eq!(second["deliveries"].as_array().unwrap().len(), 1);
    assert_eq!(second["deliveries"][0]["event"]["id"], "e2");
    // What one leased the other may settle.
    let receipt = &first["deliveries"][0]["receipt"];
    assert_eq!(consumer.verb("ack", json!({"group": "g", "receipts": [receipt]}))["done"], 1);
    let cursor: Value = serde_json::from_str(said.lines().find(|line| line.contains("e1")).unwrap()).unwrap();
    let rest = publisher.lines(&format!("/v1/events/leads?from={}", cursor["cursor"].as_str().unwrap()));
    assert_eq!(ids(&rest), ["e2"], "a cursor of one sidecar is good at the other");
}

const FLEET_ACCESS: &str = "kind: access
rules:
  - {name: tenants, match: {scopes: [tenant:admin]}, allow: [{actions: ['*']}]}
  - {name: services, match: {subjects: [every, one]}, allow: [{actions: ['events:*']}]}
services:
  - {subject: every, issuer: dev, act_for: any}
  - {subject: one, issuer: dev, act_for: {tenants: [0190c7a8-3c5e-7f00-8000-0000000000a1]}}
";

/// A caller without a tenant.
fn service(sidecar: &Sidecar, subject: &str) -> Tenant {
    let bearer = format!("Bearer {}", sidecar.token_with(&["--subject", subject]));
    Tenant { bearer, client: sidecar.client() }
}

fn with_services(test: fn(&Sidecar)) {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("access.yaml"), FLEET_ACCESS).unwrap();
    let on = OnPostgres::new().with_policy("access.yaml", FLEET_ACCESS);
    for (name, text) in on.policies.iter().filter(|(name, _)| name != "access.yaml") {
        std::fs::write(policies.join(name), text).unwrap();
    }
    test(&Sidecar::dev_in(directory, &["--policies", policies.to_str().unwrap()]));
    test(&on.sidecar());
}

#[test]
fn a_service_reads_and_consumes_for_its_tenants_and_for_no_other() {
    with_services(|sidecar| {
        let (mut acme, mut globex) = (Tenant::new(sidecar, ACME), Tenant::new(sidecar, GLOBEX));
        acme.publish("leads", &[event("a1", "k"), event("a2", "k")]);
        globex.publish("leads", &[event("g1", "k")]);
        let (mut every, mut one) = (service(sidecar, "every"), service(sidecar, "one"));
        let mut stranger = service(sidecar, "stranger");
        assert_eq!(ids(&every.lines("/v1/events/leads")), ["a1", "a2", "g1"]);
        assert_eq!(ids(&one.lines("/v1/events/leads")), ["a1", "a2"]);
        stranger.send("GET", "/v1/events/leads", &[], "").problem(403, "forbidden");
        every.publish_refused();
        // One tenant of its own, named.
        let named = every.send("GET", "/v1/events/leads", &[("Outrigger-Tenant", GLOBEX)], "");
        assert!(named.text().contains("\"g1\"") && !named.text().contains("\"a1\""), "{}", named.text());
        one.send("GET", "/v1/events/leads", &[("Outrigger-Tenant", GLOBEX)], "").problem(403, "forbidden");
        // A cursor of the fleet's is the fleet's.
        let cursor = every.lines("/v1/events/leads")[0]["cursor"].as_str().unwrap().to_owned();
        assert_eq!(ids(&every.lines(&format!("/v1/events/leads?from={cursor}"))), ["a2", "g1"]);
        acme.send("GET", &format!("/v1/events/leads?from={cursor}"), &[], "").problem(422, "invalid");
        // Keys of two tenants are two keys; a group of the same name is each owner's own.
        let pulled = every.verb("pull", json!({"group": "g", "max": 1}));
        assert_eq!(pulled["deliveries"][0]["event"]["tenantid"], ACME);
        let second = every.verb("pull", json!({"group": "g"}));
        assert_eq!(second["deliveries"].as_array().unwrap().len(), 1);
        assert_eq!(second["deliveries"][0]["event"]["id"], "g1");
        assert_eq!(acme.verb("pull", json!({"group": "g"}))["deliveries"].as_array().unwrap().len(), 2);
        assert_eq!(one.verb("pull", json!({"group": "g"}))["deliveries"].as_array().unwrap().len(), 2);
        // Whoever names the service's own UUID as a tenant reaches nothing of the service.
        let own = every.owner_of("every");
        let seek = json!({"group": "g", "to": "earliest"});
        let named = [JSON, ("Outrigger-Tenant", own.as_str())];
        assert_eq!(every.post("/v1/events/leads:seek", &named, &seek).status, 204);
        let held = every.verb("pull", json!({"group": "g"}));
        assert_eq!(held["deliveries"], json!([]), "its leases are as they were");
        every
            .send(
                "GET",
                &format!("/v1/events/leads?from={cursor}"),
                &[("Outrigger-Tenant", own.as_str())],
                "",
            )
            .problem(422, "invalid");
        let stolen = &second["deliveries"][0]["receipt"];
        assert_eq!(acme.verb("ack", json!({"group": "g", "receipts": [stolen]}))["done"], 0);
        // What a fleet's group gives up goes to the dead letters of its tenant.
        let mut receipt = stolen.clone();
        for _ in 0..16 {
            assert_eq!(every.verb("nack", json!({"group": "g", "receipts": [receipt]}))["done"], 1);
            receipt = every.verb("pull", json!({"group": "g"}))["deliveries"][0]["receipt"].clone();
        }
        assert_eq!(ids(&globex.lines("/v1/events/leads.dlq")), ["g1"]);
        assert_eq!(acme.lines("/v1/events/leads.dlq"), Vec::<Value>::new());
    });
}

impl Tenant {
    /// The UUID that a service's groups are kept under, as anyone can work it out.
    fn owner_of(&self, subject: &str) -> String {
        let services = uuid::uuid!("6b1f6c1e-2f0b-5c57-9e0c-6a1d7c0b9f52");
        uuid::Uuid::new_v5(&services, format!("dev\n{subject}").as_bytes()).to_string()
    }

    /// Publishing is one tenant's.
    fn publish_refused(&mut self) {
        self.post("/v1/events/leads", &[STRUCTURED], &event("x", "k")).problem(403, "forbidden");
        let named =
            self.post("/v1/events/leads", &[STRUCTURED, ("Outrigger-Tenant", GLOBEX)], &event("g1", "k"));
        assert_eq!(named.json()["duplicates"], 1, "{}", named.text());
    }
}

#[test]
fn one_tenant_s_events_give_another_s_readers_and_consumers_nothing_to_do() {
    const IDLE: usize = 20;
    let on = OnPostgres::new();
    let sidecar = on.sidecar();
    let (acme, mut globex) = (Tenant::new(&sidecar, ACME), Tenant::new(&sidecar, GLOBEX));
    let idle: Vec<Client> =
        (0..IDLE).map(|_| follow(&acme, &sidecar, "/v1/events/leads?follow=true", &[])).collect();
    let mut own = follow(&globex, &sidecar, "/v1/events/leads?follow=true", &[]);
    let transactions = || {
        let text = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
        let name = "outrigger_store_postgres_transaction_seconds_count{role=\"app\"} ";
        text.lines().find_map(|line| line.strip_prefix(name)).map_or(0, |count| count.parse().unwrap())
    };
    let (before, began): (u64, _) = (transactions(), std::time::Instant::now());
    let mut said = String::new();
    for at in 0..30 {
        let id = format!("g{at}");
        globex.publish("leads", &[event(&id, &id)]);
        read_until(&mut own, &mut said, &format!("\"id\":\"{id}\""));
    }
    // For each event its own and the look of who follows it; and a look at the head every 10 ms, and each 5 s of all.
    let looks = u64::try_from(began.elapsed().as_millis()).unwrap() / 10;
    let (most, made) = (30 * 4 + looks + 2 * IDLE as u64, transactions() - before);
    assert!(made <= most, "{made} transactions in {:?}, where {most} are enough", began.elapsed());
    drop(idle);
}

/// Where nothing is of the type that a stream wants, it says how far it is, and a reader that comes back goes on there.
#[test]
fn a_heartbeat_says_where_a_stream_is_that_found_nothing() {
    let on = OnPostgres::new();
    let sidecar = on.sidecar();
    let mut acme = Tenant::new(&sidecar, ACME);
    let sse = ("Accept", "text/event-stream");
    acme.publish("leads", &[event("e1", "a"), event("e2", "a")]);
    let target = "/v1/events/leads?from=earliest&type=rare";
    let mut stream = follow(&acme, &sidecar, target, &[sse]);
    let (mut whole, mut again) = (String::new(), String::new());
    read_until(&mut stream, &mut whole, "id: ");
    let mut later = String::new();
    read_until(&mut stream, &mut later, ":\n\n");
    assert!(!later.contains("id: "), "a place is told once: {later}");
    let place = whole.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert!(!whole.contains("data:"), "{whole}");
    // What was passed is not looked at again: of every type, only what came later is left.
    acme.publish("leads", &[event("e3", "a")]);
    let mut resumed = follow(&acme, &sidecar, "/v1/events/leads", &[sse, ("Last-Event-ID", place)]);
    read_until(&mut resumed, &mut again, "\"id\":\"e3\"");
    assert!(!again.contains("e1") && !again.contains("e2"), "{again}");
}
