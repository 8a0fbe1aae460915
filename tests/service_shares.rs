//! A service's group over HTTP: a tenant whose events fail holds up no other, and nothing is lost or out of order by that.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const BATCH: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
const POLICY: &str =
    "kind: events\ntopics:\n  leads: {max_batch: 1000, groups: {max_outstanding: 100, lease_ms: 600000}}\n";
const ACCESS: &str = "kind: access
rules:
  - {name: tenants, match: {scopes: [tenant:admin]}, allow: [{actions: ['*']}]}
  - {name: services, match: {subjects: [every]}, allow: [{actions: ['events:*']}]}
services:
  - {subject: every, issuer: dev, act_for: any}
";

struct Caller {
    bearer: String,
    client: Client,
}

impl Caller {
    fn send(&mut self, target: &str, kind: (&str, &str), body: &Value) -> Reply {
        let headers = [("Authorization", self.bearer.as_str()), kind];
        let reply = self.client.send("POST", target, &headers, body.to_string().as_bytes());
        assert!(matches!(reply.status, 200 | 202 | 204), "{target}: {}", reply.text());
        reply
    }

    /// So many events of each of these keys, one key after the other.
    fn publish(&mut self, name: &str, keys: &[&str], count: usize) {
        let event = |key: &str, at: usize| json!({"specversion": "1.0", "id": format!("{name}.{key}.{at:04}"), "source": "/t", "type": "made", "partitionkey": key});
        for key in keys {
            let batch: Vec<_> = (0..count).map(|at| event(key, at)).collect();
            self.send("/v1/events/leads", BATCH, &json!(batch));
        }
    }

    fn pull(&mut self, max: usize) -> Vec<Value> {
        let pulled = self.send("/v1/events/leads:pull", JSON, &json!({"group": "g", "max": max})).json();
        pulled["deliveries"].as_array().unwrap().clone()
    }

    fn settle(&mut self, verb: &str, deliveries: &[&Value], delay_ms: Option<u64>) {
        let receipts: Vec<_> = deliveries.iter().map(|one| &one["receipt"]).collect();
        let mut body = json!({"group": "g", "receipts": receipts});
        if let Some(delay_ms) = delay_ms {
            body["delay_ms"] = json!(delay_ms);
        }
        let settled = self.send(&format!("/v1/events/leads:{verb}"), JSON, &body).json();
        assert_eq!(settled, json!({"done": deliveries.len(), "stale": []}));
    }
}

fn id(delivery: &Value) -> String {
    delivery["event"]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_tenant_that_makes_a_service_fail_holds_up_no_other_and_loses_nothing() {
    let on = OnPostgres::new().with_policy("events.yaml", POLICY).with_policy("access.yaml", ACCESS);
    let sidecar = on.sidecar();
    let tenant = |name| Caller { bearer: sidecar.bearer(name), client: sidecar.client() };
    let (mut acme, mut globex) = (tenant(ACME), tenant(GLOBEX));
    let bearer = format!("Bearer {}", sidecar.token_with(&["--subject", "every"]));
    let mut service = Caller { bearer, client: sidecar.client() };
    acme.publish("a", &["k0", "k1"], 200);
    globex.publish("g", &["k0"], 1);
    let mut calls = 0;
    loop {
        let pulled = service.pull(50);
        let (own, other): (Vec<_>, Vec<_>) =
            pulled.iter().partition(|one| one["event"]["tenantid"] == json!(ACME));
        if !own.is_empty() {
            service.settle("nack", &own, Some(12 * 3_600_000));
        }
        calls += 1;
        if !other.is_empty() {
            assert_eq!(other.into_iter().map(id).collect::<Vec<_>>(), ["g.k0.0000"]);
            break;
        }
        assert!(calls < 10, "the other tenant's event was not among what {calls} pulls brought");
    }
    // From the beginning, and this time nothing fails.
    service.send("/v1/events/leads:seek", JSON, &json!({"group": "g", "to": "earliest"}));
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut later = 0;
    loop {
        let pulled = service.pull(70);
        if pulled.is_empty() {
            break;
        }
        for one in &pulled {
            assert_eq!(one["attempt"], 1);
            let id = id(one);
            told.entry(id.rsplit_once('.').unwrap().0.to_owned()).or_default().push(id);
        }
        service.settle("ack", &pulled.iter().collect::<Vec<_>>(), None);
        if later < 3 {
            later += 1;
            globex.publish("g", &[&format!("later{later}")], 30);
        }
    }
    let counts: Vec<_> = told.iter().map(|(key, ids)| (key.as_str(), ids.len())).collect();
    let expected =
        [("a.k0", 200), ("a.k1", 200), ("g.k0", 1), ("g.later1", 30), ("g.later2", 30), ("g.later3", 30)];
    assert_eq!(counts, expected, "each once");
    assert!(told.values().all(|ids| ids.is_sorted()), "in their order: {told:?}");
}
