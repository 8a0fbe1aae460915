//! What Kafka refused, and what operators do about it.

use std::process::{Command, Output};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rig::PostgresRole;
use serde_json::{Value, json};

use super::consumer::{Seen, read_committed};
use super::support::postgres::OnPostgres;
use super::support::sidecar::{ACME, BINARY, GLOBEX, Sidecar};
use super::support::wait_until;
use super::{BOUND, LANES, on_kafka, publish_all, wait_for_shards};

const LEAST: usize = 20_000;
const USUAL: usize = 1_048_588;

/// The largest batch that Kafka takes in a topic.
pub(super) fn set_max_bytes(brokers: &str, topic: &str, bytes: usize) {
    let client: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let text = bytes.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &text);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let changed = runtime.block_on(client.alter_configs([&change], &AdminOptions::new())).unwrap();
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// `outrigger outbox …` with a process's configuration.
pub(super) fn outbox(process: &Sidecar, arguments: &[&str]) -> Output {
    let config = process.directory.path().join("proxy.yaml");
    Command::new(BINARY).arg("outbox").args(arguments).arg("--config").arg(config).output().unwrap()
}

fn states(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

pub(super) fn event(key: &str, number: usize, bytes: usize) -> Value {
    json!({"specversion": "1.0", "id": format!("{key}-{number}"), "source": "/t", "type": "made",
        "partitionkey": key, "data": "x".repeat(bytes)})
}

/// Of a key's events, which came, in their order.
pub(super) fn of_key<'s>(seen: &'s [Seen], key: &str) -> Vec<&'s str> {
    seen.iter().filter(|record| record.key == format!("{ACME}/{key}")).map(Seen::id).collect()
}

pub(super) fn check_numbers(seen: &[Seen]) {
    for lane in 0..i32::from(LANES) {
        let is_first = |record: &&Seen| !record.headers.contains_key("outrigger-replay");
        let of_lane = seen.iter().filter(|record| record.partition == lane).filter(is_first);
        let numbers: Vec<u64> =
            of_lane.map(|record| record.headers["outrigger-seq"].parse().unwrap()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "lane {lane}: {numbers:?}");
    }
}

pub(super) fn parked(process: &Sidecar) -> Vec<Value> {
    states(&outbox(process, &["list", "--json", "--limit", "10000"]))
}

/// A relay that has parked so many events, of those that were published while the topic took them.
fn with_parked(events: &[Value], expected: usize) -> (OnPostgres, String, String, Sidecar) {
    let (on, brokers, prefix) = on_kafka();
    let topic = format!("{prefix}.leads");
    publish_all(&on.sidecar(), ACME, events);
    set_max_bytes(&brokers, &topic, LEAST);
    let relay = on.process("roles: [relay]\n");
    wait_until("parked events", BOUND, || parked(&relay).len() == expected);
    (on, brokers, topic, relay)
}

#[test]
fn a_parked_key_comes_once_and_in_order_after_its_release_and_an_event_can_be_given_up() {
    let mut events = Vec::new();
    for number in 0..5 {
        events.push(event("whole", number, if number == 1 { 2 * LEAST } else { 10 }));
        events.push(event("without", number, if number == 2 || number == 3 { 2 * LEAST } else { 10 }));
        events.push(event("other", number, 10));
    }
    let (on, brokers, topic, relay) = with_parked(&events, 7);
    let positions = |key: &str| -> Vec<String> {
        let of_key = parked(&relay).into_iter().filter(|event| event["key"] == key);
        of_key.map(|event| event["position"].to_string()).collect()
    };
    let whole = positions("whole");

    // The cause is not mended: the key stays parked, and the command says what Kafka said.
    let again = outbox(&relay, &["release", "--position", &whole[0], "--json"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let state = states(&again).remove(0);
    assert_eq!(
        (&state["outcome"], &state["sent"], &state["key"]),
        (&json!("refused"), &json!(0), &json!("whole"))
    );
    assert!(state["detail"].as_str().unwrap().contains("too large"), "{state}");

    let without = positions("without");
    let given_up = outbox(&relay, &["discard", "--position", &without[0], "--reason", "larger than agreed"]);
    assert!(given_up.status.success(), "{given_up:?}");
    assert_eq!(positions("without"), without[1..]);
    let unknown = outbox(&relay, &["discard", "--position", &without[0], "--reason", "again"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("no event is parked at position"),
        "{unknown:?}"
    );

    set_max_bytes(&brokers, &topic, USUAL);
    publish_all(&on.sidecar(), ACME, &[event("whole", 5, 10), event("other", 5, 10)]);
    wait_until("the brokers take it", BOUND, || outbox(&relay, &["release", "--all"]).status.success());
    assert!(parked(&relay).is_empty());
    publish_all(&on.sidecar(), ACME, &[event("whole", 6, 10), event("without", 5, 10)]);
    let seen = read_committed(&brokers, &topic, LANES, 18, BOUND);
    let ids = |key: &str, numbers: &[usize]| -> Vec<String> {
        numbers.iter().map(|number| format!("{key}-{number}")).collect()
    };
    assert_eq!(of_key(&seen, "whole"), ids("whole", &[0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(of_key(&seen, "without"), ids("without", &[0, 1, 3, 4, 5]));
    assert_eq!(of_key(&seen, "other"), ids("other", &[0, 1, 2, 3, 4, 5]));
    check_numbers(&seen);
    let record = "SELECT count(*) FROM event_orders WHERE outcome = 'discarded' AND reason = 'larger than agreed' \
        AND convert_from(attributes, 'UTF8')::json ->> 'id' = 'without-2'";
    assert_eq!(on.database.psql(PostgresRole::Relay, &[record]).unwrap().trim(), "1");
    assert_eq!(relay.metric("outrigger_events_relay_parked_keys_count"), 0.0);
}

#[test]
fn a_release_that_a_dying_relay_began_is_gone_on_with_by_the_next_one() {
    const COUNT: usize = 4_000;
    let mut events = vec![event("k", 0, 2 * LEAST)];
    events.extend((1..COUNT).map(|number| event("k", number, 10)));
    let (on, brokers, topic, relay) = with_parked(&events, COUNT);
    set_max_bytes(&brokers, &topic, USUAL);
    wait_until("a release under way", BOUND, || {
        let told = outbox(&relay, &["release", "--all", "--wait-ms", "0", "--json"]);
        states(&told).iter().any(|state| state["sent"].as_u64().unwrap() > 0)
    });
    relay.kill();
    let next = on.process("roles: [relay]\n");
    wait_for_shards(&next, 4.0);
    let released = outbox(&next, &["release", "--all"]);
    assert!(released.status.success(), "{released:?}");
    publish_all(&on.sidecar(), ACME, &[event("k", COUNT, 10)]);
    let seen = read_committed(&brokers, &topic, LANES, COUNT + 1, BOUND);
    let expected: Vec<String> = (0..=COUNT).map(|number| format!("k-{number}")).collect();
    assert_eq!(of_key(&seen, "k"), expected);
    check_numbers(&seen);
}

/// As after Kafka refused these, each of another key.
const PARK_FIRST_SHARD: &str = "INSERT INTO event_parked \
    (shard, id, tenant_id, accepted_at, topic, lane, key, type, attributes, form, data, reason) \
    SELECT 0, id, tenant_id, accepted_at, topic, lane, key, type, attributes, form, data, 'too large' \
    FROM events WHERE lane % 4 = 0";

#[test]
fn a_tenant_with_many_parked_keys_is_parked_as_a_whole_and_released_by_one_order() {
    let (on, brokers, prefix) = on_kafka();
    let (sidecar, topic) = (on.sidecar(), format!("{prefix}.leads"));
    let psql = |sql: &str| on.database.psql(PostgresRole::Superuser, &[sql]).unwrap().trim().to_owned();
    let events = |keys: std::ops::Range<usize>, number: usize| -> Vec<Value> {
        keys.map(|key| event(&format!("k{key}"), number, 10)).collect()
    };
    publish_all(&sidecar, ACME, &events(0..600, 0));
    psql(PARK_FIRST_SHARD);
    // Keys that are parked, and others; of another tenant too.
    publish_all(&sidecar, ACME, &events(300..900, 1));
    publish_all(&sidecar, GLOBEX, &events(0..300, 0));
    let relay = on.process("roles: [relay]\n");
    let of_first = format!("SELECT count(*) FROM events WHERE lane % 4 = 0 AND tenant_id = '{ACME}'");
    let in_first: u32 = psql(&of_first).parse().unwrap();
    assert!(in_first > 200, "{in_first}");
    let told = || relay.metric("outrigger_events_relay_delivered_total");
    wait_until("all others are in Kafka", BOUND, || told() == f64::from(1500 - in_first));
    wait_until("and these are parked", BOUND, || {
        psql("SELECT count(*) FROM event_parked") == in_first.to_string()
    });
    assert_eq!(relay.metric("outrigger_events_relay_parked_keys_count{shard=\"0\"}"), 101.0);

    let released = outbox(&relay, &["release", "--all", "--json"]);
    assert!(released.status.success(), "{released:?}");
    let states = states(&released);
    let state = (&states[0]["tenant"], &states[0]["key"], &states[0]["sent"]);
    assert_eq!((states.len(), state), (1, (&json!(ACME), &json!(""), &json!(in_first))));
    publish_all(&sidecar, ACME, &events(0..900, 2));
    let seen = read_committed(&brokers, &topic, LANES, 2400, BOUND);
    for key in 0..900 {
        let expected: Vec<String> = match key {
            0..300 => vec![0, 2],
            300..600 => vec![0, 1, 2],
            _ => vec![1, 2],
        }
        .iter()
        .map(|number| format!("k{key}-{number}"))
        .collect();
        assert_eq!(of_key(&seen, &format!("k{key}")), expected);
    }
    check_numbers(&seen);
    assert_eq!(relay.metric("outrigger_events_relay_parked_keys_count{shard=\"0\"}"), 0.0);
}
