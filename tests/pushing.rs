//! Subscriptions on real stores: what was accepted is sent to the application's port, signed, until it is taken or dead.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use outrigger::primitives::events::push::signature::verify;
use serde_json::{Value, json};
use support::postgres::OnPostgres;
use support::sidecar::{ACME, BINARY, GLOBEX, Sidecar};
use support::webhooks::{self, Received};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const BOUND: Duration = Duration::from_secs(20);

/// An application that answers 500 to the first request about `flaky`, always to `poison…`, 429 to `busy`, and else 204.
fn application() -> (u16, Receiver<Received>) {
    let ((sender, receiver), flaky) = (sync_channel(1000), AtomicBool::new(false));
    let port = webhooks::endpoint(move |received| {
        let id = received.body["id"].as_str().unwrap_or_default();
        let refused = id.starts_with("poison") || id == "flaky" && !flaky.swap(true, Ordering::SeqCst);
        let status = match id {
            "busy" => "429 Too Many Requests\r\nRetry-After: 60",
            _ if refused => "500 Internal Server Error",
            _ => "204 No Content",
        };
        // After the test's end nobody wants to know.
        sender.send(received).is_ok().then_some(status)
    });
    (port, receiver)
}

fn policy(port: u16, secret: &str) -> String {
    format!(
        "kind: events\ntopics:\n  leads: {{}}\npush:\n  app:\n    topic: leads\n    target: {{app: {{port: {port}, path: /hook}}}}\n    \
         tenants: any\n    secrets: [\"${{file:{secret}}}\"]\n    max_attempts: 2\n    backoff: {{first_ms: 100, max_ms: 1000}}\n"
    )
}

/// The same, and one of its dead letters.
fn policy_of_letters(port: u16, secret: &str) -> String {
    let app = policy(port, secret);
    let letters = app.split_once("  app:\n").unwrap().1.replace("topic: leads", "topic: leads.dlq");
    format!("{app}  letters:\n{}", letters.replace("/hook", "/letters"))
}

/// One sidecar of each store, with the subscription.
fn on_both(test: fn(&Sidecar, &Receiver<Received>)) {
    on_both_with(policy, test);
}

fn on_both_with(policy: fn(u16, &str) -> String, test: fn(&Sidecar, &Receiver<Received>)) {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let (port, received) = application();
    let text = policy(port, secret.to_str().unwrap());
    let data = tempfile::tempdir().unwrap();
    let policies = data.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("events.yaml"), &text).unwrap();
    test(&Sidecar::dev_in(data, &[]), &received);
    let (port, received) = application();
    let on = OnPostgres::new().with_policy("events.yaml", &policy(port, secret.to_str().unwrap()));
    test(&on.sidecar(), &received);
}

fn publish(sidecar: &Sidecar, tenant: &str, ids: &[&str]) {
    let event = |id: &&str| json!({"specversion": "1.0", "id": id, "source": "/t", "type": "made", "partitionkey": id, "data": {"n": 1}});
    let events: Vec<Value> = ids.iter().map(event).collect();
    let bearer = sidecar.bearer(tenant);
    let headers =
        [("Authorization", bearer.as_str()), ("Content-Type", "application/cloudevents-batch+json")];
    let reply =
        sidecar.client().send("POST", "/v1/events/leads", &headers, json!(events).to_string().as_bytes());
    assert_eq!(reply.status, 202, "{}", reply.text());
}

/// By command, everything of one tenant again.
fn sent_again(config: &Path, received: &Receiver<Received>) {
    while received.recv_timeout(Duration::from_millis(500)).is_ok() {}
    let replay = |more: &[&str]| {
        let command = ["outbox", "replay", "--from", "2026-01-01T00:00:00Z", "--config"];
        Command::new(BINARY).args(command).arg(config).args(more).output().unwrap()
    };
    let done = replay(&["--subscription", "app", "--tenant", GLOBEX, "--json"]);
    assert!(done.status.success(), "{done:?}");
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done, json!({"subscription": "app", "tenants": 1}));
    let again = received.recv_timeout(BOUND).unwrap();
    assert_eq!((&again.body["tenantid"], &again.body["id"]), (&json!(GLOBEX), &json!("good")));
    // One key alone, in the middle of everything else.
    let done = replay(&["--subscription", "app", "--tenant", ACME, "--key", "good", "--json"]);
    assert!(done.status.success(), "{done:?}");
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done, json!({"subscription": "app", "events": 1}));
    let again = received.recv_timeout(BOUND).unwrap();
    assert_eq!((&again.body["tenantid"], &again.body["id"]), (&json!(ACME), &json!("good")));
    assert!(received.recv_timeout(Duration::from_secs(3)).is_err(), "nothing else is sent");
    let unknown = replay(&["--subscription", "none"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
}

/// A subscription begins when it is first seen: what comes after that is sent.
fn until_it_runs(sidecar: &Sidecar, received: &Receiver<Received>) {
    support::wait_until("the subscription runs", BOUND, || {
        publish(sidecar, ACME, &[&format!("probe{}", uuid::Uuid::now_v7().simple())]);
        received.recv_timeout(Duration::from_millis(300)).is_ok()
    });
    while received.recv_timeout(Duration::from_millis(500)).is_ok() {}
}

#[test]
fn a_letter_that_its_own_subscription_gives_up_is_sent_no_more_and_stays_where_it_is() {
    on_both_with(policy_of_letters, |sidecar, received| {
        until_it_runs(sidecar, received);
        support::wait_until("the subscription of letters runs", BOUND, || {
            let id = uuid::Uuid::now_v7().simple();
            // The good one keeps the circuit closed.
            publish(sidecar, ACME, &[&format!("poison{id}"), &format!("good{id}")]);
            let mut told = std::iter::from_fn(|| received.recv_timeout(Duration::from_secs(2)).ok());
            told.any(|one| one.path == "/letters")
        });
        while received.recv_timeout(Duration::from_secs(3)).is_ok() {}
        let ended = || sidecar.metric("outrigger_events_dead_letters_given_up_total");
        let before = ended();
        publish(sidecar, ACME, &["poison"]);
        let paths: Vec<String> = (0..4).map(|_| received.recv_timeout(BOUND).unwrap().path).collect();
        assert_eq!(paths, ["/hook", "/hook", "/letters", "/letters"]);
        support::wait_until("the end", BOUND, || ended() >= before + 1.0);
        // Whatever comes next is another event's.
        publish(sidecar, ACME, &["next"]);
        let next = received.recv_timeout(BOUND).unwrap();
        assert_eq!((next.path.as_str(), &next.body["id"]), ("/hook", &json!("next")));
        let more = received.recv_timeout(Duration::from_secs(5)).map(|one| one.path);
        assert_eq!(more, Err(RecvTimeoutError::Timeout), "longer than any wait between attempts and looks");
        let bearer = sidecar.bearer(ACME);
        let headers = [("Authorization", bearer.as_str())];
        let letters = sidecar.client().send("GET", "/v1/events/leads.dlq", &headers, b"").text();
        let of_it: Vec<_> = letters.lines().filter(|line| line.contains("\"id\":\"poison\"")).collect();
        assert_eq!((of_it.len(), of_it[0].matches("push.app").count()), (1, 1), "{letters}");
        assert!(sidecar.log().contains("a group gave up dead letters"), "it is said in the log");
    });
}

#[test]
fn an_endpoint_that_asks_one_tenant_to_wait_is_sent_the_others_events() {
    on_both(|sidecar, received| {
        until_it_runs(sidecar, received);
        for round in 0..4 {
            publish(sidecar, ACME, &["busy", &format!("behind{round}")]);
        }
        let first = received.recv_timeout(BOUND).unwrap();
        assert_eq!(first.body["tenantid"], json!(ACME));
        let ids: Vec<String> = (0..10).map(|number| format!("well{number}")).collect();
        for id in &ids {
            publish(sidecar, GLOBEX, &[id]);
        }
        let mut got = Vec::new();
        while got.len() < ids.len() {
            let one = received.recv_timeout(BOUND).unwrap_or_else(|_| panic!("only {got:?}"));
            if one.body["tenantid"] == json!(GLOBEX) {
                got.push(one.body["id"].as_str().unwrap().to_owned());
            }
        }
        got.sort();
        assert_eq!(got, ids);
        assert_eq!(sidecar.metric("outrigger_events_push_circuits_open_count"), 0.0);
    });
}

/// By command, what was tried: the poisoned event twice, in vain.
fn attempts_are_listed(config: &Path) {
    let list = |more: &[&str]| {
        let command = ["outbox", "attempts", "--subscription", "app", "--config"];
        let done = Command::new(BINARY).args(command).arg(config).args(more).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let as_json =
        |more: &[&str]| -> Vec<Value> { serde_json::from_str(&list(&[&["--json"], more].concat())).unwrap() };
    let failed = as_json(&["--tenant", ACME, "--failed"]);
    let of = |id: &str| -> Vec<&Value> { failed.iter().filter(|one| one["event_id"] == id).collect() };
    let [last, first] = of("poison")[..] else { panic!("{failed:?}") };
    assert_eq!((&first["attempt"], &last["attempt"]), (&json!(1), &json!(2)), "the newest first");
    assert_eq!(
        (&last["outcome"], &last["status"], &last["tenant"]),
        (&json!("failed"), &json!(500), &json!(ACME))
    );
    assert!(
        first["next_at_ms"].as_i64() >= first["at_ms"].as_i64() && first["duration_ms"].is_i64(),
        "{first}"
    );
    assert_eq!((of("flaky").len(), of("good").len(), &last["next_at_ms"]), (1, 0, &Value::Null));
    let of_globex = as_json(&["--tenant", GLOBEX]);
    assert!(
        of_globex.iter().all(|one| one["event_id"] == "good" && one["outcome"] == "delivered"),
        "{of_globex:?}"
    );
    assert!(!of_globex.is_empty());
    assert_eq!(as_json(&["--limit", "2"]).len(), 2);
    let text = list(&["--failed"]);
    assert!(
        text.contains("attempt 2: failed (status 500) after") && text.contains("that was the last"),
        "{text}"
    );
}

#[test]
fn what_was_accepted_is_sent_signed_until_it_is_taken_or_dead() {
    on_both(|sidecar, received| {
        until_it_runs(sidecar, received);
        publish(sidecar, ACME, &["good", "flaky", "poison"]);
        publish(sidecar, GLOBEX, &["good"]);
        let mut got: Vec<(String, String)> = Vec::new();
        let mut messages = std::collections::BTreeMap::new();
        while got.len() < 6 {
            let one = received.recv_timeout(BOUND).unwrap_or_else(|_| panic!("only {got:?}"));
            let (id, timestamp) = (one.header("webhook-id"), one.header("webhook-timestamp"));
            let signed =
                verify(SECRET, id, timestamp.parse().unwrap(), &one.text, one.header("webhook-signature"));
            assert!(signed, "{one:?}");
            let key = (one.body["tenantid"].to_string(), one.body["id"].to_string());
            assert_eq!(messages.entry(key.clone()).or_insert_with(|| id.to_owned()).as_str(), id);
            got.push(key);
        }
        let count = |tenant: &str, id: &str| {
            got.iter().filter(|(of, name)| of.contains(tenant) && name.contains(id)).count()
        };
        let counts =
            [count(ACME, "good"), count(ACME, "flaky"), count(ACME, "poison"), count(GLOBEX, "good")];
        assert_eq!(counts, [1, 2, 2, 1], "{got:?}");
        let bearer = sidecar.bearer(ACME);
        support::wait_until("the poisoned one is dead", BOUND, || {
            let headers = [("Authorization", bearer.as_str())];
            let dead = sidecar.client().send("GET", "/v1/events/leads.dlq", &headers, b"").text();
            dead.contains("\"id\":\"poison\"") && dead.contains("\"dlqgroup\":\"push.app\"")
        });
        let taken = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let reply =
            sidecar.client().send("POST", "/v1/events/leads:pull", &taken, br#"{"group":"push.app"}"#);
        assert_eq!(reply.problem(422, "invalid")["errors"][0]["pointer"], "/group");
        let config = sidecar.directory.path().join("proxy.yaml");
        if config.exists() {
            attempts_are_listed(&config);
            sent_again(&config, received);
        }
    });
}
