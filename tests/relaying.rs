//! The relay as processes of a fleet: what sidecars accepted reaches Kafka once, in its key's order, whichever relay dies.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "relay/consumer.rs"]
mod consumer;
#[path = "relaying/limits.rs"]
mod limits;
#[path = "relaying/parked.rs"]
mod parked;
#[path = "relaying/replay.rs"]
mod replay;
#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consumer::{Seen, read_committed};
use rig::shared_kafka_brokers;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX, Sidecar};
use support::wait_until;

const LANES: u16 = 16;
const BOUND: Duration = Duration::from_secs(120);

/// A database, and a prefix of Kafka's topics, of the test's own.
fn on_kafka() -> (OnPostgres, String, String) {
    let brokers = shared_kafka_brokers();
    let prefix = format!("test-{}", uuid::Uuid::now_v7().simple());
    let list = brokers.iter().map(|broker| format!("'{broker}'")).collect::<Vec<_>>().join(", ");
    let more = format!("kafka: {{brokers: [{list}], prefix: {prefix}, timeout_ms: 5000}}\n");
    (OnPostgres::new().with_config(&more), brokers.join(","), prefix)
}

fn publish(sidecar: &Sidecar, tenant: &str, first: usize, count: usize) {
    let event = |at: usize| {
        json!({"specversion": "1.0", "id": format!("e{at}"), "source": "/t", "type": "made",
            "partitionkey": format!("k{}", at % 23), "data": at})
    };
    publish_all(sidecar, tenant, &(first..first + count).map(event).collect::<Vec<_>>());
}

fn publish_all(sidecar: &Sidecar, tenant: &str, events: &[Value]) {
    let (bearer, mut client) = (sidecar.bearer(tenant), sidecar.client());
    for events in events.chunks(100) {
        let headers =
            [("Authorization", bearer.as_str()), ("Content-Type", "application/cloudevents-batch+json")];
        let reply = client.send("POST", "/v1/events/leads", &headers, json!(events).to_string().as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
}

/// Each tenant's events once, each key's in order, numbers without a gap.
fn check(seen: &[Seen], counts: &[(&str, usize)]) {
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut by_key: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut by_lane: BTreeMap<i32, BTreeSet<u64>> = BTreeMap::new();
    for record in seen {
        ids.entry(&record.headers["ce_tenantid"]).or_default().push(record.id());
        let number = record.id().trim_start_matches('e').parse().unwrap();
        by_key.entry(&record.key).or_default().push(number);
        let sequence = record.headers["outrigger-seq"].parse().unwrap();
        assert!(by_lane.entry(record.partition).or_default().insert(sequence), "{record:?} twice");
        assert_eq!(record.value.as_deref(), Some(number.to_string().as_bytes()));
    }
    for (tenant, count) in counts {
        let of_tenant = &ids[tenant];
        assert_eq!(of_tenant.len(), *count, "{tenant}");
        assert_eq!(of_tenant.iter().collect::<BTreeSet<_>>().len(), *count, "{tenant}");
    }
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    for (lane, numbers) in by_lane {
        let (first, last) = (*numbers.first().unwrap(), *numbers.last().unwrap());
        assert_eq!(last - first + 1, numbers.len() as u64, "lane {lane} has a gap");
    }
}

/// Waits until a relay has so many of the four shards.
fn wait_for_shards(relay: &Sidecar, count: f64) {
    wait_until("a relay's part of the shards", BOUND, || {
        relay.metric("outrigger_events_relay_shards_count") == count
    });
}

#[test]
fn what_was_accepted_reaches_kafka_once_in_order_through_relays_that_come_die_and_stop() {
    let (on, brokers, prefix) = on_kafka();
    let (one, other) = (on.sidecar(), on.sidecar());
    publish(&one, ACME, 0, 1000);
    let first = on.process("roles: [relay]\n");
    wait_for_shards(&first, 4.0);
    let mut second = on.process("roles: [relay]\n");
    publish(&other, GLOBEX, 0, 1500);
    wait_for_shards(&second, 2.0);
    publish(&other, GLOBEX, 1500, 300);
    first.kill();
    publish(&one, ACME, 1000, 1000);
    let third = on.process("roles: [relay]\n");
    publish(&other, GLOBEX, 1800, 200);
    wait_for_shards(&third, 2.0);
    // At SIGTERM a relay gives its shards back: the other goes on at once.
    second.signal(Signal::TERM);
    assert!(second.wait(Duration::from_secs(20)).success());
    publish(&one, ACME, 2000, 100);
    let seen = read_committed(&brokers, &format!("{prefix}.leads"), LANES, 4100, BOUND);
    check(&seen, &[(ACME, 2100), (GLOBEX, 2000)]);
}

#[test]
fn a_process_that_relays_only_serves_no_call() {
    let (on, ..) = on_kafka();
    let relay = on.process("roles: [relay]\n");
    let bearer = relay.bearer(ACME);
    let reply = relay.client().send("GET", "/v1/events/leads", &[("Authorization", bearer.as_str())], b"");
    reply.problem(404, "not_found");
}
