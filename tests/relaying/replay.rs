//! Events sent into Kafka again by command.

use serde_json::{Value, json};

use super::consumer::{Seen, read_committed};
use super::parked::{check_numbers, event, of_key, outbox};
use super::support::sidecar::{ACME, GLOBEX};
use super::support::wait_until;
use super::{BOUND, LANES, on_kafka, publish_all};
use rig::PostgresRole;

fn is_again(record: &Seen) -> bool {
    record.headers.get("outrigger-replay").is_some_and(|value| value == "true")
}

#[test]
fn what_is_sent_again_is_marked_and_changes_nothing_of_what_the_relays_send() {
    let (on, brokers, prefix) = on_kafka();
    let topic = format!("{prefix}.leads");
    let (sidecar, relay) = (on.sidecar(), on.process("roles: [relay]\n"));
    let events = |from: usize| -> Vec<Value> {
        (from..from + 60).map(|number| event(&format!("k{}", number % 3), number, 10)).collect()
    };
    let psql = |sql: &str| on.database.psql(PostgresRole::Relay, &[sql]).unwrap().trim().to_owned();
    publish_all(&sidecar, ACME, &events(0));
    publish_all(&sidecar, GLOBEX, &events(0));
    let between =
        psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    publish_all(&sidecar, ACME, &events(60));
    // Nothing is sent again that the relays have not said to be past.
    let behind = "SELECT count(*) FROM events WHERE id > coalesce((SELECT position FROM event_relays WHERE shard = lane % 4), 0)";
    wait_until("the relays are past all", BOUND, || psql(behind) == "0");

    let sent = |more: &[&str]| -> Value {
        let command = ["replay", "--topic", "leads", "--republish", "--json"];
        let done = outbox(&relay, &[&command, more].concat());
        assert!(done.status.success(), "{done:?}");
        assert!(
            String::from_utf8_lossy(&done.stderr).contains("are in Kafka again, up to the one accepted at")
        );
        serde_json::from_slice(&done.stdout).unwrap()
    };
    let one_key = sent(&["--key", "k1", "--tenant", ACME]);
    assert_eq!((&one_key["topic"], &one_key["events"]), (&json!("leads"), &json!(40)));
    assert_eq!(sent(&["--from", &between])["events"], 60);
    assert_eq!(sent(&["--from", &between, "--key", "k2", "--tenant", ACME])["events"], 20);
    publish_all(&sidecar, ACME, &events(120));

    let seen = read_committed(&brokers, &topic, LANES, 240 + 120, BOUND);
    let (again, first): (Vec<Seen>, Vec<Seen>) = seen.into_iter().partition(is_again);
    assert_eq!((again.len(), first.len()), (120, 240));
    check_numbers(&first);
    assert!(again.iter().all(|record| !record.headers.contains_key("outrigger-seq")));
    let ids = |numbers: std::ops::Range<usize>, key: usize| -> Vec<String> {
        numbers.filter(|number| number % 3 == key).map(|number| format!("k{key}-{number}")).collect()
    };
    assert_eq!(of_key(&first, "k1"), ids(0..180, 1));
    assert_eq!(of_key(&again, "k0"), ids(60..120, 0));
    assert_eq!(of_key(&again, "k1"), [ids(0..120, 1), ids(60..120, 1)].concat());
    assert_eq!(of_key(&again, "k2"), [ids(60..120, 2), ids(60..120, 2)].concat());

    let from = "2026-01-01T00:00:00Z";
    for (wrong, code, said) in [
        (&["--topic", "leads", "--from", from][..], 2, "--republish"),
        (&["--subscription", "none", "--republish", "--from", from], 2, "cannot be used with"),
        (
            &["--subscription", "none", "--topic", "leads", "--republish", "--from", from],
            2,
            "cannot be used with",
        ),
        (&["--topic", "leads", "--republish"], 2, "--from"),
        (&["--from", from], 2, "--subscription"),
        (&["--topic", "leads", "--republish", "--key", "k1"], 2, "--tenant"),
        (&["--topic", "leads", "--republish", "--from", "yesterday"], 2, "yesterday"),
        (&["--topic", "leads", "--republish", "--from", "2200-01-01T00:00:00Z"], 1, "is yet to come"),
        (&["--topic", "none", "--republish", "--from", from], 1, "no topic `none`"),
        (&["--subscription", "none", "--from", from], 1, "no subscription `none`"),
    ] {
        let refused = outbox(&relay, &[&["replay"], wrong].concat());
        assert_eq!(refused.status.code(), Some(code), "{wrong:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(said), "{wrong:?}: {refused:?}");
    }
}
