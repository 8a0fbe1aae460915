//! A service's group, in which no tenant holds up another.

use std::collections::HashMap;

use super::*;
use crate::primitives::events::CONSUME;

const TOPICS: &str = "  leads: {max_batch: 1000, groups: {max_outstanding: 20}}\n";

async fn service<'s>(store: &'s Store, callers: &Callers, subject: &str) -> Consumers<'s> {
    let audience = callers.service(subject, CONSUME, "leads").await;
    let group = Group::new(audience, callers.topic("leads"), Name::parse("g").unwrap()).unwrap();
    Consumers { store, group }
}

fn ids(deliveries: &Deliveries) -> Vec<String> {
    delivered(deliveries).into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn a_tenant_whose_events_all_fail_does_not_keep_a_service_from_another_s() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        // One key, then the next.
        let failing = (0..60).map(|at| event(&format!("a{at}"), &format!("k{}", at / 30))).collect();
        publish(store, &callers, 1, "leads", failing).await;
        publish(store, &callers, 2, "leads", vec![event("b", "k")]).await;
        let service = service(store, &callers, "every").await;
        let delayed = Settle::Nack(DelayTime::new(12 * 3_600_000).unwrap());
        let mut told = Vec::new();
        for _ in 0..4 {
            let pulled = service.pull(10, 60_000).await;
            told.extend(ids(&pulled));
            if !pulled.deliveries.is_empty() {
                service.settle(&pulled, delayed).await;
            }
        }
        assert!(told.contains(&"b".to_owned()), "{name}: {told:?}");
    }
}

#[tokio::test]
async fn what_was_passed_over_comes_later_once_and_in_the_order_of_its_keys() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let of = |tenant: u128, from: usize, to: usize| {
            let event = move |at: usize| event(&format!("{tenant}.{at:03}"), &format!("k{}", at % 3));
            (from..to).map(event).collect::<Vec<_>>()
        };
        publish(store, &callers, 1, "leads", of(1, 0, 100)).await;
        publish(store, &callers, 2, "leads", of(2, 0, 5)).await;
        let service = service(store, &callers, "every").await;
        // One consumer holds what it has for a while.
        let held = service.pull(10, 600_000).await;
        assert_eq!(held.deliveries.len(), 10, "{name}");
        let mut told: Vec<String> = Vec::new();
        for round in 0..40 {
            let pulled = service.pull(7, 600_000).await;
            if round == 2 {
                assert!(told.contains(&"2.000".to_owned()), "{name}: {told:?}");
                publish(store, &callers, 1, "leads", of(1, 100, 120)).await;
                publish(store, &callers, 2, "leads", of(2, 5, 50)).await;
                service.settle(&held, Settle::Ack).await;
            }
            told.extend(ids(&pulled));
            if !pulled.deliveries.is_empty() {
                let all = pulled.deliveries.len();
                assert_eq!(service.settle(&pulled, Settle::Ack).await, (all, 0), "{name}");
            }
        }
        let mut all = [ids(&held), told.clone()].concat();
        let mut orders: HashMap<(String, usize), Vec<String>> = HashMap::new();
        for id in &all {
            let (tenant, at) = id.split_once('.').unwrap();
            let key = (tenant.to_owned(), at.parse::<usize>().unwrap() % 3);
            orders.entry(key).or_default().push(id.clone());
        }
        assert!(orders.values().all(|ids| ids.is_sorted()), "{name}: {all:?}");
        all.sort();
        let expected: Vec<String> =
            [of(1, 0, 120), of(2, 0, 50)].concat().iter().map(|event| event.id.to_string()).collect();
        assert_eq!(all, expected, "{name}: each once");
        assert!(service.pull(10, 60_000).await.deliveries.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_seek_forgets_who_was_passed_over() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    for (name, store) in stores.both() {
        let events = (0..30).map(|at| event(&format!("{at:02}"), &format!("k{at}"))).collect();
        publish(store, &callers, 1, "leads", events).await;
        publish(store, &callers, 2, "leads", vec![event("b", "k")]).await;
        let service = service(store, &callers, "two").await;
        service.pull(20, 600_000).await;
        let others = service.pull(20, 600_000).await;
        assert_eq!(ids(&others), ["b"], "{name}");
        service.group.seek(store, ReadFrom::Latest).await.unwrap();
        assert_eq!(ids(&service.pull(20, 600_000).await), [""; 0], "{name}");
        service.group.seek(store, ReadFrom::Earliest).await.unwrap();
        let again = service.pull(5, 600_000).await;
        assert_eq!(ids(&again), ["00", "01", "02", "03", "04"], "{name}");
    }
}
