//! What groups give up, when it is much: it goes to the dead letters in portions, within the store, and holds nobody up.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::postgres::OnPostgres;
use support::random::size;
use support::sidecar::{ACME, GLOBEX, Sidecar};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const BATCH: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
const POLICY: &str = "kind: events\ntopics:\n  leads: {groups: {max_attempts: 1, lease_ms: 600000}}\n";
/// Of each event's data.
const BYTES: usize = 250_000;
const BOUND: Duration = Duration::from_secs(60);

/// A caller of one tenant.
struct Tenant {
    bearer: String,
    client: Client,
}

impl Tenant {
    fn new(sidecar: &Sidecar, tenant: &str) -> Self {
        Self { bearer: sidecar.bearer(tenant), client: sidecar.client() }
    }

    fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut all = vec![("Authorization", self.bearer.as_str())];
        all.extend(headers);
        let reply = self.client.send(method, target, &all, body.as_bytes());
        assert!(matches!(reply.status, 200 | 202), "{target}: {}", reply.text());
        reply
    }

    fn publish(&mut self, events: &[String]) {
        self.send("POST", "/v1/events/leads", &[BATCH], &format!("[{}]", events.join(",")));
    }

    /// The receipts of one pull. What comes with them is much, and is not read as JSON.
    fn pull(&mut self) -> Vec<String> {
        let body = json!({"group": "g", "max": 1000}).to_string();
        let text = self.send("POST", "/v1/events/leads:pull", &[JSON], &body).text();
        text.split("\"receipt\":\"").skip(1).map(|rest| rest.chars().take(28).collect()).collect()
    }

    /// Which events are dead letters, in order.
    fn letters(&mut self) -> Vec<usize> {
        let text = self.send("GET", "/v1/events/leads.dlq", &[], "").text();
        let letter = |line: &str| {
            let (attributes, data) = line.split_once(",\"data\":").unwrap();
            let event: Value = serde_json::from_str(&format!("{attributes}}}")).unwrap();
            assert_eq!((&event["dlqgroup"], &event["dlqreason"]), (&json!("g"), &json!("nacked")));
            assert_eq!(data.matches('x').count(), BYTES);
            event["id"].as_str().unwrap().parse().unwrap()
        };
        text.lines().map(letter).collect()
    }
}

fn event(id: &str, bytes: usize) -> String {
    let data = "x".repeat(bytes);
    format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{id}\",\"source\":\"/t\",\"type\":\"made\",\"datacontenttype\":\"text/plain\",\"data\":\"{data}\"}}"
    )
}

/// One sidecar of each store.
fn on_both(test: fn(&str, &Sidecar)) {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("policies")).unwrap();
    std::fs::write(data.path().join("policies/events.yaml"), POLICY).unwrap();
    test("sqlite", &Sidecar::dev_in(data, &[]));
    let on = OnPostgres::new().with_policy("events.yaml", POLICY);
    test("postgres", &on.sidecar());
}

/// A field of the process's status, such as `VmHWM`, in bytes.
fn memory_of(sidecar: &Sidecar, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// What another tenant publishes and reads meanwhile: how often, and the longest that it took together. Says when it has begun.
fn meanwhile(mut globex: Tenant, begun: &Barrier, ended: &AtomicBool) -> (usize, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !ended.load(Ordering::SeqCst) {
        let (began, id) = (Instant::now(), format!("other{count}"));
        globex.publish(&[event(&id, 10)]);
        let read = format!("\"id\":\"{id}\"");
        while !globex.send("GET", "/v1/events/leads", &[], "").text().contains(&read) {
            std::thread::yield_now();
        }
        longest = longest.max(began.elapsed());
        count += 1;
        if count == 1 {
            begun.wait();
        }
    }
    (count, longest)
}

#[test]
fn much_that_is_given_up_at_once_holds_nobody_up_and_comes_once_and_in_order() {
    on_both(|name, sidecar| {
        let count = usize::try_from(size(150, 1000)).unwrap();
        let mut acme = Tenant::new(sidecar, ACME);
        for batch in (0..count).collect::<Vec<_>>().chunks(20) {
            acme.publish(&batch.iter().map(|place| event(&place.to_string(), BYTES)).collect::<Vec<_>>());
        }
        let mut receipts = Vec::new();
        while receipts.len() < count {
            let before = receipts.len();
            receipts.extend(acme.pull());
            assert!(receipts.len() > before);
        }
        std::fs::write(format!("/proc/{}/clear_refs", sidecar.pid()), "5").unwrap();
        let before = memory_of(sidecar, "VmRSS");
        let (begun, ended) = (Barrier::new(2), AtomicBool::new(false));
        let globex = Tenant::new(sidecar, GLOBEX);
        let body = json!({"group": "g", "receipts": receipts}).to_string();
        let (answered, all, (looks, longest)) = std::thread::scope(|scope| {
            let other = scope.spawn(|| meanwhile(globex, &begun, &ended));
            begun.wait();
            let began = Instant::now();
            let nacked = acme.send("POST", "/v1/events/leads:nack", &[JSON], &body).json();
            assert_eq!(nacked["done"], count);
            let answered = began.elapsed();
            let metric = || sidecar.metric("outrigger_events_dead_letters_total");
            #[allow(clippy::cast_precision_loss, reason = "a thousand")]
            support::wait_until("the dead letters", BOUND, || metric() >= count as f64);
            ended.store(true, Ordering::SeqCst);
            (answered, began.elapsed(), other.join().unwrap())
        });
        let grown = memory_of(sidecar, "VmHWM").saturating_sub(before);
        println!(
            "{name}: {count} events of {BYTES} bytes: answered after {answered:?}, all after {all:?}, {grown} bytes more, {looks} looks, the longest {longest:?}"
        );
        assert!(longest < Duration::from_secs(1), "{name}: another tenant was held up for {longest:?}");
        assert!(looks >= 2, "{name}: nobody else looked meanwhile");
        assert!(grown < 24 << 20, "{name}: {grown} bytes");
        // They failed together, so that one's place among all of them is its place among those of its key.
        assert_eq!(acme.letters(), (0..count).collect::<Vec<_>>(), "{name}: each once");
    });
}
