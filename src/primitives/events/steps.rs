//! Looks for what is rare go through the log in steps, each with a bounded number of rows, and never begin again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::PostgresRole;

use super::bench::{Callers, event};
use super::groups::{LeaseTime, MaxDeliveries};
use super::read::STEP;
use super::{
    Audience, CONSUME, Deliveries, Event, Group, Position, READ, ReadFrom, Scan, append, page, place,
};
use crate::names::Name;
use crate::store::bench::Stores;
use crate::store::{Store, StoreError};

const TOPICS: &str = "  leads: {max_batch: 1000}\n  quiet: {}\n";
/// What a step may take on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(5);

/// Events of a tenant whose ids are these numbers.
async fn publish(
    store: &Store,
    callers: &Callers,
    tenant: u128,
    topic: &str,
    ids: std::ops::Range<u32>,
    kind: &str,
) {
    let numbered = |id: u32| Event { kind: kind.into(), ..event(&id.to_string(), &format!("k{}", id % 7)) };
    let ids: Vec<u32> = ids.collect();
    for part in ids.chunks(1000) {
        let permit = callers.publisher(tenant, topic).await;
        let events = part.iter().copied().map(numbered).collect();
        let batch = Arc::new(callers.batch(tenant, topic, events).await);
        let done: Result<_, StoreError> = store
            .run(&permit, batch.bytes(), move |tx| {
                let batch = Arc::clone(&batch);
                Box::pin(async move { append(tx, &batch).await })
            })
            .await;
        assert_eq!(done.unwrap().accepted, part.len());
    }
}

/// The ids that are found up to the head, the steps that it took, and where it goes on.
async fn read(store: &Store, audience: &Audience, mut scan: Scan) -> (Vec<String>, usize, Position) {
    let (mut found, mut steps) = (Vec::new(), 0);
    loop {
        let began = Instant::now();
        let page = page(store, audience, &scan).await.unwrap();
        assert!(began.elapsed() < PATIENCE, "a step took {:?}", began.elapsed());
        found.extend(page.events.iter().map(|event| String::from_utf8(event.data.bytes().to_vec()).unwrap()));
        steps += 1;
        assert!(page.at_head || page.next > scan.after, "it stands still at {:?}", page.next);
        (scan.after, scan.after_ms) = (page.next, page.next_ms);
        if page.at_head {
            return (found, steps, scan.after);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_is_rare_is_looked_for_in_steps_and_the_look_goes_on_where_it_was() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        publish(store, &callers, 1, "leads", 0..12_000, "made").await;
        publish(store, &callers, 1, "leads", 12_000..12_001, "rare").await;
        publish(store, &callers, 1, "leads", 12_001..18_500, "made").await;
        let reader = callers.reader(1, "leads").await;
        let rare = Scan { kinds: vec!["rare".to_owned()], ..Scan::new(&reader) };
        let (found, steps, head) = read(store, &reader, rare.clone()).await;
        assert_eq!((found, steps), (vec!["12000".to_owned()], 4), "{name}");
        let (found, steps, _) = read(store, &reader, Scan { after: head, ..rare.clone() }).await;
        assert_eq!((found.len(), steps), (0, 1), "{name}: from the head there is nothing to look through");
        publish(store, &callers, 1, "leads", 18_500..18_501, "rare").await;
        let (found, steps, _) = read(store, &reader, Scan { after: head, ..rare }).await;
        assert_eq!((found, steps), (vec!["18500".to_owned()], 1), "{name}");
    }
}

const MANY: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('events_id_seq'), now(), '00000000-0000-0000-0000-000000000001', 'leads', 0, 'k', 'made', '{}', 2, \
         convert_to(repeat('x', 100), 'UTF8') FROM generate_series(1, 300000)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_looks_through_a_log_of_300_000_events_for_a_type_that_none_has() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    let store = &stores.postgres;
    tokio::task::block_in_place(|| stores._database.database.psql(PostgresRole::Superuser, &[MANY])).unwrap();
    let reader = callers.reader(1, "leads").await;
    let mut scan = Scan { kinds: vec!["none".to_owned()], ..Scan::new(&reader) };
    let (mut steps, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        let page = page(store, &reader, &scan).await.unwrap();
        longest = longest.max(began.elapsed());
        assert_eq!(page.events.len(), 0);
        steps += 1;
        if page.at_head {
            break;
        }
        let passed = page.next.number() - scan.after.number();
        assert!(passed <= STEP + 1, "{passed} rows in one step");
        scan.after = page.next;
    }
    println!("300,000 events in {steps} steps, the longest {longest:?}");
    assert!((60..=61).contains(&steps), "{steps}");
    assert!(longest < PATIENCE, "{longest:?}");
    publish(store, &callers, 1, "leads", 0..1, "none").await;
    let (found, steps, _) = read(store, &reader, scan).await;
    assert_eq!((found, steps), (vec!["0".to_owned()], 1));
}

/// Services that see the first tenants' events, or everyone's.
const SERVICES: [&str; 2] = ["every", "two"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_on_a_quiet_topic_looks_through_the_log_once() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        publish(store, &callers, 1, "quiet", 0..1, "made").await;
        publish(store, &callers, 3, "leads", 0..12_000, "made").await;
        publish(store, &callers, 2, "quiet", 1..2, "made").await;
        for subject in SERVICES {
            let service = callers.service(subject, READ, "quiet").await;
            let (found, steps, head) = read(store, &service, Scan::new(&service)).await;
            assert_eq!((found, steps), (vec!["0".to_owned(), "1".to_owned()], 3), "{name} {subject}");
            let latest = place(store, &service, ReadFrom::Latest).await.unwrap();
            assert_eq!(latest, head, "{name} {subject}");
            let (found, steps, next) =
                read(store, &service, Scan { after: head, ..Scan::new(&service) }).await;
            assert_eq!((found.len(), steps, next), (0, 1, head), "{name} {subject}");
            for (time_ms, left) in [(0, 2), (253_402_300_799_000, 0)] {
                let after = place(store, &service, ReadFrom::Time(time_ms)).await.unwrap();
                let (found, ..) = read(store, &service, Scan { after, ..Scan::new(&service) }).await;
                assert_eq!(found.len(), left, "{name} {subject} {time_ms}");
            }
        }
        // What another tenant's topics have between: passed, and not looked at again.
        let service = callers.service("two", READ, "quiet").await;
        let head = place(store, &service, ReadFrom::Latest).await.unwrap();
        publish(store, &callers, 3, "leads", 12_000..18_000, "made").await;
        let (_, steps, passed) = read(store, &service, Scan { after: head, ..Scan::new(&service) }).await;
        assert_eq!(steps, 2, "{name}");
        assert!(passed.number() >= head.number() + 6000, "{name}: {passed:?} after {head:?}");
        publish(store, &callers, 2, "quiet", 2..3, "made").await;
        let (found, steps, _) = read(store, &service, Scan { after: passed, ..Scan::new(&service) }).await;
        assert_eq!((found, steps), (vec!["2".to_owned()], 1), "{name}");
    }
}

async fn pull(store: &Store, group: &Group) -> Deliveries {
    let began = Instant::now();
    let (max, lease) = (MaxDeliveries::new(10).unwrap(), LeaseTime::new(60_000).unwrap());
    let pulled = group.pull(store, max, lease).await.unwrap();
    assert!(began.elapsed() < PATIENCE * 4, "a pull took {:?}", began.elapsed());
    pulled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_s_group_passes_what_is_not_of_its_topic_and_gets_each_event_once() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        publish(store, &callers, 3, "leads", 0..23_000, "made").await;
        publish(store, &callers, 1, "quiet", 0..1, "made").await;
        for subject in SERVICES {
            let service = callers.service(subject, CONSUME, "quiet").await;
            let group = Group::new(service, callers.topic("quiet"), Name::parse("g").unwrap()).unwrap();
            let first = pull(store, &group).await;
            assert!(first.more && first.deliveries.is_empty(), "{name} {subject}: {first:?}");
            assert!(first.position.number() >= 4 * STEP, "{name} {subject}: {first:?}");
            let second = pull(store, &group).await;
            assert_eq!((second.deliveries.len(), second.more), (1, false), "{name} {subject}");
            let third = pull(store, &group).await;
            assert_eq!((third.deliveries.len(), third.more), (0, false), "{name} {subject}");
            assert_eq!(third.position, second.position, "{name} {subject}: nothing came, nothing is written");
        }
    }
}
