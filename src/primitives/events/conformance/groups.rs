//! What consumer groups promise beyond their machine, on both stores.

use uuid::Uuid;

use super::*;
use crate::error::ErrorKind;
use crate::primitives::events::audience::Subscriber;
use crate::primitives::events::{GivenUp, housekeeping};
use crate::store::Tx;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_no_more_groups_of_a_topic_than_policy_says() {
    let (stores, callers) = (Stores::new(8).await, Callers::new("  leads: {groups: {max_per_tenant: 3}}\n"));
    for (name, store) in stores.both() {
        let callers = &callers;
        let pull = |tenant, group: String| async move {
            let group = Consumers::new(store, callers, tenant, &group).await.group;
            let (max, lease) = (MaxDeliveries::new(1).unwrap(), LeaseTime::new(60_000).unwrap());
            (group.clone(), group.pull(store, max, lease).await)
        };
        let made = futures_util::future::join_all((0..8).map(|number| pull(1, format!("g{number}")))).await;
        let there: Vec<Group> =
            made.iter().filter(|(_, made)| made.is_ok()).map(|(g, _)| g.clone()).collect();
        assert_eq!(there.len(), 3, "{name}: {made:?}");
        for (group, _) in made.iter().filter(|(_, made)| made.is_err()) {
            let refused = group.seek(store, ReadFrom::Latest).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::QuotaExhausted, "{name}: {refused}");
        }
        for group in &there {
            group.seek(store, ReadFrom::Latest).await.unwrap();
        }
        assert!(pull(2, "g0".to_owned()).await.1.is_ok(), "{name}: another tenant's are others");
        let subscriber = Subscriber { tenant: Uuid::from_u128(1), topic: Name::parse("leads").unwrap() };
        let push = Name::parse("push.crm").unwrap();
        let push =
            Group::of_subscription(subscriber, callers.topic("leads"), push, 1, Position::START).unwrap();
        push.seek(store, ReadFrom::Latest).await.unwrap();
    }
}

#[tokio::test]
async fn a_group_that_nobody_used_for_as_long_as_events_are_kept_is_dropped_and_begins_where_it_was() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        for group in ["idle", "used"] {
            let group = Consumers::new(store, &callers, 1, group).await;
            assert_eq!(group.pull(1, 60_000).await.deliveries.len(), 0, "{name}");
        }
        publish(store, &callers, 1, "leads", vec![event("e", "k")]).await;
        assert_eq!(housekeeping::drop_idle_groups(store, 1).await.unwrap(), 0, "{name}");
        let permit = callers.consumer(1, "leads").await;
        let aged: Result<(), StoreError> = store
            .run(&permit, 0, |tx| {
                Box::pin(async move {
                    const LONG_AGO: &str =
                        "UPDATE event_groups SET changed_at = now() - interval '3 days' WHERE name = 'idle'";
                    match tx {
                        Tx::Postgres(tx) => drop(tx.query(LONG_AGO, &[]).await?),
                        Tx::Sqlite(tx) => tx
                            .run(|connection| {
                                connection
                                    .execute("UPDATE event_groups SET changed_ms = 0 WHERE name = 'idle'", [])
                            })
                            .map(drop)?,
                    }
                    Ok(())
                })
            })
            .await;
        aged.unwrap();
        assert_eq!(housekeeping::drop_idle_groups(store, 1).await.unwrap(), 1, "{name}");
        assert_eq!(housekeeping::drop_idle_groups(store, 1).await.unwrap(), 0, "{name}");
        for group in ["idle", "used"] {
            let pulled = Consumers::new(store, &callers, 1, group).await.pull(10, 60_000).await;
            assert_eq!(delivered(&pulled), of(&[("e", 1)]), "{name}");
        }
        // In SQLite the log may be older than the group: what it has not looked at is still kept.
        if let Store::Sqlite(_) = store {
            let aged: Result<(), StoreError> = store
                .run(&permit, 0, |tx| {
                    Box::pin(async move {
                        let Tx::Sqlite(tx) = tx else { panic!("SQLite") };
                        Ok(tx
                            .run(|connection| {
                                connection.execute("UPDATE event_groups SET changed_ms = 0", [])
                            })
                            .map(drop)?)
                    })
                })
                .await;
            aged.unwrap();
            assert_eq!(housekeeping::drop_idle_groups(store, 1).await.unwrap(), 0, "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_dead_is_copied_a_portion_at_a_time_with_all_that_it_is() {
    let (stores, callers) =
        (Stores::new(4).await, Callers::new("  leads: {max_batch: 1000, groups: {max_attempts: 1}}\n"));
    for (name, store) in stores.both() {
        let large = |at: usize| {
            let mut event = event(&format!("{at:02}"), &format!("k{at}"));
            event.data = match at % 3 {
                0 => Data::Binary(vec![0xff; 400_000].into()),
                1 => Data::Text("x".repeat(400_000).into()),
                _ => Data::None,
            };
            event.attributes =
                format!("{{\"specversion\":\"1.0\",\"id\":\"{at:02}\",\"s\":\"\u{e9}}}\"}}").into();
            event
        };
        let events: Vec<Event> = (0..30).map(large).collect();
        for part in events.chunks(10) {
            publish(store, &callers, 1, "leads", part.to_vec()).await;
        }
        let group = Consumers::new(store, &callers, 1, "g").await;
        let mut receipts: Vec<Box<str>> = Vec::new();
        while receipts.len() < 30 {
            let pulled = group.pull(100, 60_000).await;
            receipts.extend(pulled.deliveries.iter().map(|one| one.lease.receipt.to_string().into()));
        }
        let nack = Settle::Nack(DelayTime::new(0).unwrap());
        let (outcome, first) = group.group.settle(store, receipts.into(), nack).await.unwrap();
        assert_eq!((outcome.done, first.letters + first.left, first.ended), (30, 30, 0), "{name}");
        // 4 MiB are eleven of 400,000 bytes, and of each three events one has none.
        assert!((15..=18).contains(&first.letters), "{name}: {first:?}");
        let second = group.group.bury(store).await.unwrap();
        assert_eq!(second, GivenUp { letters: first.left, ..GivenUp::default() }, "{name}");
        assert_eq!(group.group.bury(store).await.unwrap(), GivenUp::default(), "{name}");
        let letters = callers.reader(1, "leads.dlq").await;
        let scan = Scan { max_bytes: i64::MAX, ..Scan::new(&letters) };
        let letters = page(store, &letters, &scan).await.unwrap().events;
        assert_eq!(letters.len(), 30, "{name}");
        for (letter, event) in letters.iter().zip(&events) {
            let more = b",\"dlqgroup\":\"g\",\"dlqreason\":\"nacked\"}";
            let attributes = [event.attributes.strip_suffix(b"}").unwrap(), more].concat();
            assert_eq!(letter.attributes, attributes, "{name}");
            assert_eq!(
                (&letter.data, &letter.key, &letter.kind),
                (&event.data, &event.key, &event.kind),
                "{name}"
            );
        }
    }
}
