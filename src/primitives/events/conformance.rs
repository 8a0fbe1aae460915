//! What the log promises, on both stores.

mod groups;
mod shares;

use std::sync::Arc;

use super::bench::{Callers, event};
use super::groups::{DelayTime, LeaseTime, MaxDeliveries};
use super::{
    Appended, Batch, Data, Deliveries, Event, Group, Logged, Position, ReadFrom, Scan, Settle, append,
    append_all, page, place,
};
use crate::names::Name;
use crate::store::bench::Stores;
use crate::store::{Store, StoreError};

const TOPICS: &str =
    "  leads: {dedupe_ms: 86400000, groups: {max_attempts: 2, max_outstanding: 6}}\n  payments: {}\n";

/// Appends one batch in a transaction of its own.
async fn publish(
    store: &Store,
    callers: &Callers,
    tenant: u128,
    topic: &str,
    events: Vec<Event>,
) -> Appended {
    let permit = callers.publisher(tenant, topic).await;
    let batch = Arc::new(Batch::new(&permit, callers.topic(topic), events));
    let appended: Result<_, StoreError> = store
        .run(&permit, batch.bytes(), move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move { append(tx, &batch).await })
        })
        .await;
    appended.unwrap()
}

/// Every event of a tenant's topic.
async fn all(store: &Store, callers: &Callers, tenant: u128, topic: &str) -> Vec<Logged> {
    let permit = callers.reader(tenant, topic).await;
    page(store, &permit, &Scan::new(&permit)).await.unwrap().events
}

fn data(events: &[Logged]) -> Vec<String> {
    events.iter().map(|event| String::from_utf8(event.data.bytes().to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn events_are_read_as_they_were_published_by_their_tenant_alone() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let mut events = vec![event("a", "k1"), event("b", "k2"), event("c", "k1")];
        events[1].data = Data::None;
        events[2].data = Data::Json("{\"n\": 1.0}".into());
        let published = publish(store, &callers, 1, "leads", events.clone()).await;
        assert_eq!(published, Appended { accepted: 3, duplicates: 0, conflicting: 0 }, "{name}");
        let read = all(store, &callers, 1, "leads").await;
        let parts = |event: &Logged| {
            (event.key.clone(), event.kind.clone(), event.attributes.clone(), event.data.clone())
        };
        let expected: Vec<_> =
            events.into_iter().map(|event| (event.key, event.kind, event.attributes, event.data)).collect();
        assert_eq!(read.iter().map(parts).collect::<Vec<_>>(), expected, "{name}");
        assert!(read.is_sorted_by(|a, b| a.position < b.position), "{name}");
        assert_eq!(all(store, &callers, 1, "payments").await, [], "{name}");
        assert_eq!(all(store, &callers, 2, "leads").await, [], "{name}");
    }
}

#[tokio::test]
async fn an_id_counts_once_for_each_tenant_topic_and_source() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let says = |accepted, duplicates, conflicting| Appended { accepted, duplicates, conflicting };
        let twice = vec![event("a", "k"), event("b", "k"), event("a", "k")];
        assert_eq!(publish(store, &callers, 1, "leads", twice).await, says(2, 1, 0), "{name}: in one batch");
        let again = vec![event("b", "k"), event("c", "k")];
        assert_eq!(publish(store, &callers, 1, "leads", again).await, says(1, 1, 0), "{name}: later");
        let mut other = event("a", "k");
        other.data = Data::Text("other".into());
        assert_eq!(publish(store, &callers, 1, "leads", vec![other]).await, says(0, 1, 1), "{name}");
        let mut source = event("a", "k");
        source.source = "/other".into();
        assert_eq!(publish(store, &callers, 1, "leads", vec![source]).await, says(1, 0, 0), "{name}");
        assert_eq!(
            publish(store, &callers, 1, "payments", vec![event("a", "k")]).await,
            says(1, 0, 0),
            "{name}"
        );
        assert_eq!(
            publish(store, &callers, 2, "leads", vec![event("a", "k")]).await,
            says(1, 0, 0),
            "{name}"
        );
        let mut ours = event("x", "k");
        ours.id_is_ours = true;
        assert_eq!(
            publish(store, &callers, 1, "leads", vec![ours.clone(), ours]).await,
            says(2, 0, 0),
            "{name}"
        );
        assert_eq!(data(&all(store, &callers, 1, "leads").await), ["a", "b", "c", "a", "x", "x"], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_publish_one_id_at_once_one_is_accepted() {
    let (stores, callers) = (Stores::new(8).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let callers = &callers;
        let calls = (0..16).map(|caller| async move {
            let events = (0..5).map(|id| event(&format!("id{}", (id + caller) % 5), "k")).collect();
            publish(store, callers, 1, "leads", events).await
        });
        let published = futures_util::future::join_all(calls).await;
        assert_eq!(published.iter().map(|one| one.accepted).sum::<usize>(), 5, "{name}");
        assert_eq!(published.iter().map(|one| one.duplicates).sum::<usize>(), 75, "{name}");
        let mut read = data(&all(store, callers, 1, "leads").await);
        read.sort();
        assert_eq!(read, ["id0", "id1", "id2", "id3", "id4"], "{name}");
    }
}

#[tokio::test]
async fn a_transaction_of_many_tenants_appends_for_each_and_one_that_fails_leaves_nothing() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let permits = [callers.publisher(1, "leads").await, callers.publisher(2, "payments").await];
        let batches = Arc::new([
            callers.batch(1, "leads", vec![event("a", "k")]).await,
            callers.batch(2, "payments", vec![event("a", "k"), event("b", "k")]).await,
        ]);
        for fails in [true, false] {
            let batches = Arc::clone(&batches);
            let ended: Result<_, StoreError> = store
                .run(&permits[..], 0, move |tx| {
                    let batches = Arc::clone(&batches);
                    Box::pin(async move {
                        let appended = append_all(tx, &*batches).await?;
                        if fails { Err(StoreError::Corrupt("on purpose".to_owned())) } else { Ok(appended) }
                    })
                })
                .await;
            assert_eq!(ended.is_err(), fails, "{name}: {ended:?}");
        }
        assert_eq!(data(&all(store, &callers, 1, "leads").await), ["a"], "{name}");
        assert_eq!(data(&all(store, &callers, 2, "payments").await), ["a", "b"], "{name}");
    }
}

#[tokio::test]
async fn pages_end_at_their_bounds_and_go_on_where_they_ended() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let events = (0..25).map(|at| {
            let mut event = event(&format!("{at:02}"), "k");
            event.kind = if at % 5 == 0 { "rare".into() } else { event.kind };
            event
        });
        publish(store, &callers, 1, "leads", events.collect()).await;
        publish(store, &callers, 1, "payments", vec![event("other", "k")]).await;
        let permit = callers.reader(1, "leads").await;
        let base = Scan { max_rows: 10, ..Scan::new(&permit) };
        for (scan, pages) in [
            (base.clone(), vec![10, 10, 5]),
            (Scan { max_bytes: 1, max_rows: 9, ..base.clone() }, vec![1; 25]),
            (Scan { kinds: vec!["rare".to_owned(), "none".to_owned()], ..base.clone() }, vec![5]),
            (Scan { kinds: vec!["none".to_owned()], ..base }, vec![]),
        ] {
            let (mut scan, mut found, mut seen) = (scan, Vec::new(), Vec::new());
            loop {
                let page = page(store, &permit, &scan).await.unwrap();
                if !page.events.is_empty() {
                    found.push(page.events.len());
                }
                seen.extend(data(&page.events));
                scan.after = page.next;
                if page.at_head {
                    break;
                }
            }
            assert_eq!(found, pages, "{name}: {scan:?}");
            assert!(seen.is_sorted_by(|a, b| a < b), "{name}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn a_read_begins_at_either_end_at_a_time_or_after_an_event() {
    let (stores, callers) = (Stores::new(2).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        for at in 0..20 {
            publish(store, &callers, 1, "leads", vec![event(&format!("{at:02}"), "k")]).await;
        }
        let (permit, read) = (callers.reader(1, "leads").await, all(store, &callers, 1, "leads").await);
        for (from, first) in [
            (ReadFrom::Earliest, 0),
            (ReadFrom::Latest, 20),
            (ReadFrom::Time(0), 0),
            (ReadFrom::Time(read[19].accepted_ms + 1), 20),
            (ReadFrom::Time(read[19].accepted_ms + 1_000_000_000), 20),
        ] {
            let after = place(store, &permit, from).await.unwrap();
            let rest = page(store, &permit, &Scan { after, ..Scan::new(&permit) }).await.unwrap().events;
            assert_eq!(data(&rest), data(&read[first..]), "{name}: {from:?}");
        }
        for event in &read {
            let from = ReadFrom::Time(event.accepted_ms);
            let after = place(store, &permit, from).await.unwrap();
            let rest = page(store, &permit, &Scan { after, ..Scan::new(&permit) }).await.unwrap().events;
            let expected: Vec<_> =
                read.iter().filter(|other| other.accepted_ms >= event.accepted_ms).cloned().collect();
            assert_eq!(data(&rest), data(&expected), "{name}: {from:?}");
        }
    }
}

/// A group, and what its consumers do.
struct Consumers<'a> {
    store: &'a Store,
    group: Group,
}

impl<'a> Consumers<'a> {
    async fn new(store: &'a Store, callers: &Callers, tenant: u128, name: &str) -> Self {
        let permit = callers.consumer(tenant, "leads").await;
        let group = Group::new(permit, callers.topic("leads"), Name::parse(name).unwrap()).unwrap();
        Self { store, group }
    }

    async fn pull(&self, max: u64, lease_ms: u64) -> Deliveries {
        let (max, lease) = (MaxDeliveries::new(max).unwrap(), LeaseTime::new(lease_ms).unwrap());
        self.group.pull(self.store, max, lease).await.unwrap()
    }

    async fn settle(&self, deliveries: &Deliveries, what: Settle) -> (usize, usize) {
        let receipts: Vec<Box<str>> =
            deliveries.deliveries.iter().map(|one| one.lease.receipt.to_string().into()).collect();
        let (outcome, _) = self.group.settle(self.store, receipts.into(), what).await.unwrap();
        (outcome.done, outcome.stale.len())
    }
}

fn delivered(deliveries: &Deliveries) -> Vec<(String, u16)> {
    let one = |one: &super::Delivery| {
        (String::from_utf8(one.event.data.bytes().to_vec()).unwrap(), one.lease.attempt)
    };
    deliveries.deliveries.iter().map(one).collect()
}

fn of(list: &[(&str, u16)]) -> Vec<(String, u16)> {
    list.iter().map(|(data, attempt)| ((*data).to_owned(), *attempt)).collect()
}

#[tokio::test]
async fn a_group_gets_each_event_once_in_key_order_and_what_is_not_done_again() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let events = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")];
        let events = events.iter().map(|(id, key)| event(id, key)).collect();
        publish(store, &callers, 1, "leads", events).await;
        publish(store, &callers, 2, "leads", vec![event("foreign", "a")]).await;
        let one = Consumers::new(store, &callers, 1, "g").await;
        let other = Consumers::new(store, &callers, 1, "g").await;
        let first = one.pull(2, 60_000).await;
        assert_eq!(delivered(&first), of(&[("a1", 1), ("b1", 1)]), "{name}");
        let second = other.pull(10, 60_000).await;
        assert_eq!(delivered(&second), of(&[("c1", 1)]), "{name}: a2 waits for a1");
        assert_eq!(delivered(&one.pull(10, 60_000).await), of(&[]), "{name}");
        assert_eq!(one.settle(&first, Settle::Ack).await, (2, 0), "{name}");
        assert_eq!(one.settle(&first, Settle::Ack).await, (0, 2), "{name}: a receipt is good once");
        let third = one.pull(10, 60_000).await;
        assert_eq!(delivered(&third), of(&[("a2", 1)]), "{name}");
        // Not done, for the first time and for the last.
        assert_eq!(one.settle(&third, Settle::Nack(DelayTime::new(0).unwrap())).await, (1, 0), "{name}");
        let fourth = other.pull(10, 60_000).await;
        assert_eq!(delivered(&fourth), of(&[("a2", 2)]), "{name}");
        let extended = Settle::Extend(LeaseTime::new(120_000).unwrap());
        assert_eq!(other.settle(&fourth, extended).await, (1, 0), "{name}");
        assert_eq!(other.settle(&fourth, Settle::Nack(DelayTime::new(0).unwrap())).await, (1, 0), "{name}");
        assert_eq!(delivered(&other.pull(10, 60_000).await), of(&[]), "{name}: given up");
        let dead = all(store, &callers, 1, "leads.dlq").await;
        let attributes: serde_json::Value = serde_json::from_slice(&dead[0].attributes).unwrap();
        assert_eq!(
            (data(&dead), &attributes["dlqgroup"], &attributes["dlqreason"]),
            (vec!["a2".to_owned()], &"g".into(), &"nacked".into()),
            "{name}"
        );
        assert_eq!(attributes["id"], "a2", "{name}");
        // Another group, and the same name in another tenant, are other groups.
        let fresh = Consumers::new(store, &callers, 1, "h").await;
        assert_eq!(fresh.pull(10, 60_000).await.deliveries.len(), 4, "{name}");
        let foreign = Consumers::new(store, &callers, 2, "g").await;
        assert_eq!(delivered(&foreign.pull(10, 60_000).await), of(&[("foreign", 1)]), "{name}");
    }
}

#[tokio::test]
async fn a_group_moves_to_a_place_and_old_receipts_are_void() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        for id in ["1", "2", "3"] {
            publish(store, &callers, 1, "leads", vec![event(id, id)]).await;
        }
        let group = Consumers::new(store, &callers, 1, "g").await;
        let first = group.pull(10, 60_000).await;
        assert_eq!(first.deliveries.len(), 3, "{name}");
        assert!(first.due_in_ms.is_some_and(|due| (50_000..=60_000).contains(&due)), "{name}: {first:?}");
        group.group.seek(store, ReadFrom::Latest).await.unwrap();
        assert_eq!(group.settle(&first, Settle::Ack).await, (0, 3), "{name}");
        assert_eq!(delivered(&group.pull(10, 60_000).await), of(&[]), "{name}");
        group.group.seek(store, ReadFrom::Earliest).await.unwrap();
        assert_eq!(delivered(&group.pull(10, 60_000).await), of(&[("1", 1), ("2", 1), ("3", 1)]), "{name}");
        let cursor = super::Cursor {
            position: Position::new(first.deliveries[1].event.position.number()),
            accepted_ms: 0,
        };
        group.group.seek(store, ReadFrom::Cursor(cursor)).await.unwrap();
        assert_eq!(delivered(&group.pull(10, 60_000).await), of(&[("3", 1)]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_share_a_group_share_its_events() {
    let (stores, callers) = (Stores::new(6).await, Callers::new("  leads: {max_batch: 1000}\n"));
    for (name, store) in stores.both() {
        let events = (0..300).map(|at| event(&format!("{at:03}"), &format!("k{}", at % 7))).collect();
        publish(store, &callers, 1, "leads", events).await;
        let consumers = (0..6).map(|_| async {
            let group = Consumers::new(store, &callers, 1, "g").await;
            let mut got = Vec::new();
            loop {
                let pulled = group.pull(7, 60_000).await;
                if pulled.deliveries.is_empty() && pulled.due_in_ms.is_none() {
                    break got;
                }
                got.extend(delivered(&pulled));
                let count = pulled.deliveries.len();
                if count > 0 {
                    assert_eq!(group.settle(&pulled, Settle::Ack).await, (count, 0), "{name}");
                }
            }
        });
        let got = futures_util::future::join_all(consumers).await;
        let mut all: Vec<_> = got.into_iter().flatten().collect();
        all.sort();
        let expected: Vec<_> = (0..300).map(|at| (format!("{at:03}"), 1)).collect();
        assert_eq!(all, expected, "{name}");
    }
}
