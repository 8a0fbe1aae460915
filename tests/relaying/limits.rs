//! What relays say for all: to publishers what Kafka takes, to operators how far behind groups and topics are.

use std::time::Duration;

use rig::PostgresRole;
use serde_json::{Value, json};

use super::parked::{event, parked, set_max_bytes};
use super::support::client::Reply;
use super::support::sidecar::{ACME, Sidecar};
use super::support::wait_until;
use super::{BOUND, on_kafka, publish_all, wait_for_shards};

const LEAST: usize = 20_000;

fn publish(sidecar: &Sidecar, events: &[Value]) -> Reply {
    let bearer = sidecar.bearer(ACME);
    let headers =
        [("Authorization", bearer.as_str()), ("Content-Type", "application/cloudevents-batch+json")];
    sidecar.client().send("POST", "/v1/events/leads", &headers, json!(events).to_string().as_bytes())
}

/// Until publishers know what Kafka takes; a broker may have told the relay of the time before, and is asked again after a
/// minute. How many events came before that.
fn publish_until_refused(sidecar: &Sidecar, most: usize) -> usize {
    let mut early = 0;
    wait_until("publishers know what Kafka takes", BOUND + Duration::from_secs(30), || {
        let refused = publish(sidecar, &[event("early", early, most)]).status == 413;
        early += usize::from(!refused);
        refused
    });
    early
}

/// The data of the largest event that is taken, found by halving, and how many were on the way.
fn largest(sidecar: &Sidecar, most: usize) -> (usize, u16) {
    let (mut taken, mut too_large, mut accepted) = (most / 2, most, 0);
    while too_large - taken > 1 {
        let bytes = usize::midpoint(taken, too_large);
        match publish(sidecar, &[event("size", bytes, bytes)]).status {
            202 => (taken, accepted) = (bytes, accepted + 1),
            413 => too_large = bytes,
            other => panic!("{other}"),
        }
    }
    (taken, accepted)
}

#[test]
fn an_event_that_the_broker_would_not_take_is_refused_at_publish_and_every_other_arrives() {
    let (on, brokers, prefix) = on_kafka();
    let topic = format!("{prefix}.leads");
    set_max_bytes(&brokers, &topic, LEAST);
    let (sidecar, relay) = (on.sidecar(), on.process("roles: [relay]\n"));
    let early = publish_until_refused(&sidecar, LEAST);
    let refused = publish(&sidecar, &[event("batch", 0, 10), event("batch", 1, LEAST)]);
    let problem = refused.problem(413, "too_large");
    let field = &problem["errors"][0];
    assert_eq!(field["pointer"], "/1");
    let said = field["detail"].as_str().unwrap();
    assert!(said.starts_with(&format!("at most {LEAST} bytes as a record of Kafka")), "{said}");
    assert!(said.contains(&format!("`max.message.bytes` of the topic `{topic}`")), "{said}");

    // Up to the largest that is taken: each reaches Kafka, and the bound is not far below what Kafka takes.
    let (taken, accepted) = largest(&sidecar, LEAST);
    assert!(accepted > 3 && LEAST - taken < 450, "{accepted} taken, the largest of {taken} bytes");
    publish_all(&sidecar, ACME, &[event("last", 0, 10)]);
    let delivered = f64::from(accepted) + 1.0;
    wait_until("all are in Kafka", BOUND, || {
        relay.metric("outrigger_events_relay_delivered_total") == delivered
    });
    assert_eq!(parked(&relay).len(), early, "what came before is parked, and nothing else");
}

const ONE_ATTEMPT: &str =
    "kind: events\ntopics:\n  leads: {max_event_bytes: 1000000, groups: {max_attempts: 1}}\n";
/// Above what a producer puts into one batch, so that nothing is refused for its neighbours.
const MOST: usize = 600_000;

/// By whoever wants a dead letter to be larger than Kafka takes, and its key to be parked.
#[test]
fn the_largest_event_that_is_taken_reaches_kafka_as_a_dead_letter_too() {
    let (on, brokers, prefix) = on_kafka();
    let on = on.with_policy("events.yaml", ONE_ATTEMPT);
    for topic in ["leads", "leads.dlq"] {
        set_max_bytes(&brokers, &format!("{prefix}.{topic}"), MOST);
    }
    let relay = on.process("roles: [relay]\n");
    // Before anything large is published.
    let told = format!("SELECT count(*) FROM event_topic_limits WHERE max_message_bytes = {MOST}");
    let told = || on.database.psql(PostgresRole::Superuser, &[&told]).unwrap();
    wait_until("the relay has read what Kafka takes", BOUND + Duration::from_secs(30), || {
        told().trim() == "2"
    });
    let sidecar = on.sidecar();
    let early = publish_until_refused(&sidecar, MOST);
    let (taken, accepted) = largest(&sidecar, MOST);
    let large: Vec<Value> = ["kone", "ktwo", "kthr"].iter().map(|key| event(key, 10_000, taken)).collect();
    assert_eq!(publish(&sidecar, &large).status, 202);

    // All of them are given up, by a group whose name is as long as one can be.
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let group = "g".repeat(64);
    let send = |call: &str, body: Value| {
        let reply = sidecar.client().send("POST", call, &headers, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    };
    let letters = "SELECT count(*) FROM events WHERE topic = 'leads.dlq'";
    let letters = || on.database.psql(PostgresRole::Superuser, &[letters]).unwrap();
    let expected = (early + usize::from(accepted) + large.len()).to_string();
    // Of each key the first one counts as failed.
    wait_until("all are dead letters", BOUND, || {
        let pulled = send("/v1/events/leads:pull", json!({"group": group, "max": 1000}));
        let deliveries = pulled["deliveries"].as_array().unwrap();
        let receipts: Vec<&Value> = deliveries.iter().map(|one| &one["receipt"]).collect();
        if !receipts.is_empty() {
            send("/v1/events/leads:nack", json!({"group": group, "receipts": receipts}));
        }
        letters().trim() == expected
    });
    let all = 2.0 * (f64::from(accepted) + 3.0);
    let told = || relay.metric("outrigger_events_relay_delivered_total");
    wait_until("all are in Kafka, and each as a letter", BOUND, || told() == all);
    let of_early = parked(&relay).iter().filter(|event| event["key"] == "early").count();
    assert_eq!((of_early, parked(&relay).len()), (2 * early, 2 * early), "what came before, and its letters");
}

/// A service that reads for every tenant.
const SERVICES: &str = "kind: access
rules:
  - {name: tenants, match: {scopes: [tenant:admin]}, allow: [{actions: ['*']}]}
  - {name: services, match: {subjects: [every]}, allow: [{actions: ['events:*']}]}
services:
  - {subject: every, issuer: dev, act_for: any}
";

#[test]
fn one_relay_of_the_fleet_says_how_far_behind_groups_and_topics_are() {
    let (on, ..) = on_kafka();
    let on = on.with_policy("access.yaml", SERVICES);
    let sidecar = on.sidecar();
    let of_service = format!("Bearer {}", sidecar.token_with(&["--subject", "every"]));
    let service = [("Authorization", of_service.as_str()), ("Content-Type", "application/json")];
    // Its group begins with the log.
    let begun =
        sidecar.client().send("POST", "/v1/events/leads:pull", &service, br#"{"group": "all", "max": 1}"#);
    assert_eq!(begun.status, 200, "{}", begun.text());
    publish_all(&sidecar, ACME, &(0..20).map(|number| event("k", number, 10)).collect::<Vec<_>>());
    let bearer = sidecar.bearer(ACME);
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let pull = br#"{"group": "workers", "max": 1, "lease_ms": 600000}"#;
    assert_eq!(sidecar.client().send("POST", "/v1/events/leads:pull", &headers, pull).status, 200);
    let first = on.process("roles: [relay]\n");
    wait_for_shards(&first, 4.0);
    let second = on.process("roles: [relay]\n");
    wait_for_shards(&second, 2.0);
    let said = |what: &str, labels: &str| -> Vec<f64> {
        [&first, &second].map(|relay| relay.metric(&format!("outrigger_events_{what}{{{labels}}}"))).to_vec()
    };
    let sum = |what: &str, labels: &str| said(what, labels).iter().sum::<f64>();
    let consumers = "group=\"consumers\",topic=\"leads\"";
    let bound = BOUND + Duration::from_secs(30);
    wait_until("the group is behind", bound, || sum("groups_behind_count", consumers) == 1.0);
    let services = "group=\"services\",topic=\"leads\"";
    assert_eq!(sum("groups_behind_count", services), 1.0);
    let oldest = said("groups_oldest_unseen_timestamp_seconds", consumers);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let spoken: Vec<f64> = oldest.into_iter().filter(|oldest| *oldest > 0.0).collect();
    assert!(matches!(spoken[..], [one] if now - one >= 10.0 && now - one < 600.0), "{spoken:?} at {now}");
    assert_eq!(sum("topic_undelivered_count", "topic=\"leads\""), 0.0);

    let seek = br#"{"group": "workers", "to": "latest"}"#;
    let reply = sidecar.client().send("POST", "/v1/events/leads:seek", &headers, seek);
    assert!(reply.status < 300, "{}", reply.text());
    let reply = sidecar.client().send(
        "POST",
        "/v1/events/leads:seek",
        &service,
        br#"{"group": "all", "to": "latest"}"#,
    );
    assert!(reply.status < 300, "{}", reply.text());
    wait_until("the groups have looked at all", bound, || {
        [consumers, services].iter().all(|group| sum("groups_behind_count", group) == 0.0)
    });
}
