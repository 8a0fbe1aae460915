mod waiting;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rig::PostgresRole;
use tokio::time::interval;

use super::*;
use crate::names::Name;
use crate::primitives::events::append_all;
use crate::primitives::events::bench::{Callers, event};
use crate::store::bench::Stores;

const TOPICS: &str = "  leads: {}\n";
const EVENTS: usize = 40;
const CALLERS: usize = 20;
/// Whoever works for the group waits for this.
const HOLD: &str = "BEGIN; SELECT FROM event_groups FOR UPDATE;";
const SESSIONS_THAT_WAIT: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

async fn group(callers: &Callers) -> Group {
    let consumer = callers.consumer(1, "leads").await;
    Group::new(consumer, callers.topic("leads"), Name::parse("many").unwrap()).unwrap()
}

async fn publish(store: &Store, callers: &Callers) {
    let events = (0..EVENTS).map(|at| event(&at.to_string(), &format!("k{at}"))).collect();
    let batch = Arc::new(vec![callers.batch(1, "leads", events).await]);
    let permit = callers.publisher(1, "leads").await;
    let appended: Result<_, crate::store::StoreError> = store
        .run(&permit, 0, move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move { append_all(tx, &batch).await.map(drop) })
        })
        .await;
    appended.unwrap();
}

fn few() -> (MaxDeliveries, LeaseTime) {
    (MaxDeliveries::new(2).unwrap(), LeaseTime::new(60_000).unwrap())
}

fn receipts(pulled: &Deliveries) -> Arc<[Box<str>]> {
    pulled.deliveries.iter().map(|one| one.lease.receipt.to_string().into()).collect()
}

/// Its task ends after its last answer.
async fn until_it_is_forgotten(turns: &Turns) {
    let mut ticks = interval(Duration::from_millis(5));
    let forgotten = async {
        while !turns.lines.lock().is_empty() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forgotten).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_a_group_share_transactions_and_each_gets_its_own_answer() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (max, lease) = few();
    for (name, store) in stores.both() {
        publish(store, &callers).await;
        let (turns, group) = (Turns::new(store.clone(), Tasks::default()), group(&callers).await);
        let pulls = join_all((0..CALLERS).map(|_| turns.pull(&group, max, lease))).await;
        let pulls: Vec<Deliveries> = pulls.into_iter().map(Result::unwrap).collect();
        let told: BTreeSet<i64> = pulls
            .iter()
            .flat_map(|pulled| &pulled.deliveries)
            .map(|one| one.lease.position.number())
            .collect();
        assert_eq!(told.len(), EVENTS, "{name}: each once, to one of them");
        let acks = join_all(pulls.iter().map(|pulled| turns.settle(&group, receipts(pulled), Settle::Ack)));
        let twice = turns.settle(&group, receipts(&pulls[0]), Settle::Ack);
        let (acks, twice) = tokio::join!(acks, twice);
        for ack in acks {
            assert_eq!(ack.unwrap().0, Outcome { done: 2, stale: Vec::new() }, "{name}");
        }
        assert_eq!(twice.unwrap().0, Outcome { done: 0, stale: vec![0, 1] }, "{name}: its own answer");
        assert!(turns.pull(&group, max, lease).await.unwrap().deliveries.is_empty(), "{name}");
        until_it_is_forgotten(&turns).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_a_group_hold_one_connection_and_who_left_is_leased_nothing() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (store, database) = (&stores.postgres, &stores._database.database);
    publish(store, &callers).await;
    let (turns, group) = (Turns::new(store.clone(), Tasks::default()), group(&callers).await);
    let (max, lease) = few();
    let first = turns.pull(&group, max, lease).await.unwrap();
    let held = tokio::task::block_in_place(|| database.hold(PostgresRole::Superuser, HOLD)).unwrap();
    let mut calls: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (turns, group) = (Arc::clone(&turns), group.clone());
            Box::pin(async move { turns.pull(&group, max, lease).await })
        })
        .collect();
    let sessions = || {
        let found = database.psql(PostgresRole::Superuser, &[SESSIONS_THAT_WAIT]).unwrap();
        found.trim().to_owned()
    };
    let is_held = async {
        let mut ticks = interval(Duration::from_millis(5));
        while tokio::task::block_in_place(sessions) == "0" || turns.lines.lock().is_empty() {
            ticks.tick().await;
        }
    };
    let calling = join_all(calls.iter_mut());
    // The calls begin first: looking takes this thread.
    tokio::select! {
        biased;
        ended = calling => panic!("{} calls ended while the row was held", ended.len()),
        () = is_held => {}
    }
    assert_eq!(tokio::task::block_in_place(sessions), "1", "one connection for all of them");
    drop(calls.split_off(CALLERS / 2));
    tokio::task::block_in_place(|| drop(held));
    let pulls = join_all(calls).await;
    let told: usize = pulls.iter().map(|pulled| pulled.as_ref().unwrap().deliveries.len()).sum();
    assert_eq!(told, CALLERS, "two each");
    // What is left was leased to nobody.
    let rest = turns.pull(&group, MaxDeliveries::new(1000).unwrap(), lease).await.unwrap();
    assert_eq!(rest.deliveries.len(), EVENTS - told - first.deliveries.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_defect_is_its_transaction_s_alone_and_the_group_goes_on() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (max, lease) = few();
    for (name, store) in stores.both() {
        publish(store, &callers).await;
        let (turns, group) = (Turns::new(store.clone(), Tasks::default()), group(&callers).await);
        turns.panics.store(true, Ordering::SeqCst);
        let calls = join_all((0..CALLERS).map(|_| turns.pull(&group, max, lease)));
        let ended = tokio::time::timeout(Duration::from_secs(10), calls).await.expect(name);
        let gone = ended.iter().filter(|call| matches!(call, Err(GroupError::Gone))).count();
        assert!((1..=MAX_PULLS).contains(&gone), "{name}: {gone} were of the transaction");
        let told: usize = ended.iter().flatten().map(|pulled| pulled.deliveries.len()).sum();
        assert_eq!(told, 2 * (CALLERS - gone), "{name}: who waited is served");
        until_it_is_forgotten(&turns).await;
        let later = tokio::time::timeout(Duration::from_secs(10), turns.pull(&group, max, lease)).await;
        assert_eq!(later.expect(name).unwrap().deliveries.len(), 2, "{name}");
    }
}
