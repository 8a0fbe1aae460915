//! How many calls wait.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::*;
use crate::error::ErrorKind;

/// More than may wait for one group.
const MANY: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_bound_a_call_of_a_group_is_refused_and_who_left_gives_its_place() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (store, database) = (&stores.postgres, &stores._database.database);
    let (turns, group) = (Turns::new(store.clone(), Tasks::default()), group(&callers).await);
    let (max, lease) = few();
    turns.pull(&group, max, lease).await.unwrap();
    let held = tokio::task::block_in_place(|| database.hold(PostgresRole::Superuser, HOLD)).unwrap();
    let mut calls: FuturesUnordered<_> = (0..MANY).map(|_| turns.pull(&group, max, lease)).collect();
    let refusals = async {
        for _ in 0..MANY - MAX_PULLS - 256 {
            let refused = calls.next().await.unwrap().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refusals).await.expect("calls are refused");
    assert!(calls.len() <= MAX_PULLS + 256);
    drop(calls);
    let receipts: Arc<[Box<str>]> = ["none".into()].into();
    let others: FuturesUnordered<_> =
        (0..256).map(|_| turns.settle(&group, Arc::clone(&receipts), Settle::Ack)).collect();
    let after = tokio::task::spawn_blocking(move || drop(held));
    let settled: Vec<_> = others.collect().await;
    after.await.unwrap();
    assert!(settled.into_iter().all(|settled| settled.is_ok()), "who left has no place");
    until_it_is_forgotten(&turns).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_s_receipts_that_wait_have_a_bound_over_all_its_groups() {
    let (stores, callers) = (Stores::new(4).await, Callers::new(TOPICS));
    let (store, database) = (&stores.postgres, &stores._database.database);
    let turns = Turns::new(store.clone(), Tasks::default());
    let consumer = callers.consumer(1, "leads").await;
    let of = |name: usize| {
        let name = Name::parse(&format!("g{name}")).unwrap();
        Group::new(consumer.clone(), callers.topic("leads"), name).unwrap()
    };
    let (groups, (max, lease)) = ((0..10).map(of).collect::<Vec<_>>(), few());
    for group in &groups {
        turns.pull(group, max, lease).await.unwrap();
    }
    let held = tokio::task::block_in_place(|| database.hold(PostgresRole::Superuser, HOLD)).unwrap();
    let receipts: Arc<[Box<str>]> = (0..1000).map(|_| "x".repeat(1024).into()).collect();
    let mut calls: FuturesUnordered<_> =
        (0..40).map(|call| turns.settle(&groups[call % 10], Arc::clone(&receipts), Settle::Ack)).collect();
    // Of 16 MiB there is room for fifteen.
    let refusals = async {
        for _ in 0..25 {
            let refused = calls.next().await.unwrap().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refusals).await.expect("calls are refused");
    assert_eq!(calls.len(), 15);
    let other = callers.consumer(2, "leads").await;
    let other = Group::new(other, callers.topic("leads"), Name::parse("g").unwrap()).unwrap();
    assert!(
        turns.settle(&other, Arc::clone(&receipts), Settle::Ack).await.is_ok(),
        "another tenant has room"
    );
    let after = tokio::task::spawn_blocking(move || drop(held));
    // Some had no connection in time: their groups wait for the row too.
    let answered: Vec<_> = calls.collect().await;
    after.await.unwrap();
    assert_eq!(answered.len(), 15);
    assert!(turns.settle(&groups[0], receipts, Settle::Ack).await.is_ok(), "there is room again");
}
