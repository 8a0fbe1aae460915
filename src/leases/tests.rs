//! What a lease promises, on both stores.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{Lease, Leases, Owner};
use crate::store::bench::Stores;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

fn two(store: &crate::store::Store) -> [Leases; 2] {
    [0, 1].map(|_| Leases::new(store.clone(), Owner::of_this_process()))
}

#[tokio::test]
async fn one_owner_has_it_renews_it_and_gives_it_back() {
    let stores = Stores::new(2).await;
    for (name, store) in stores.both() {
        let [one, other] = two(store);
        let taken = one.take("shard/1", LONG).await.unwrap().unwrap();
        assert!(taken.holds() && taken.epoch() == 1 && taken.name() == "shard/1", "{name}: {taken:?}");
        assert_eq!(other.take("shard/1", LONG).await.unwrap(), None, "{name}");
        assert!(other.take("shard/2", LONG).await.unwrap().is_some(), "{name}: another lease is free");
        let renewed = one.take("shard/1", LONG).await.unwrap().unwrap();
        assert!(renewed.epoch() == 1 && renewed.until() > taken.until(), "{name}: {renewed:?}");
        one.release(renewed.clone()).await.unwrap();
        let next = other.take("shard/1", LONG).await.unwrap().unwrap();
        assert_eq!(next.epoch(), 2, "{name}");
        // A second release, late, takes nothing from the new owner.
        one.release(renewed).await.unwrap();
        assert_eq!(one.take("shard/1", LONG).await.unwrap(), None, "{name}");
    }
}

/// Takes it as soon as it is free.
async fn wait_for(leases: &Leases) -> Lease {
    let end = Instant::now() + Duration::from_secs(10);
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    loop {
        if let Some(lease) = leases.take("l", SHORT).await.unwrap() {
            return lease;
        }
        assert!(Instant::now() < end, "it is never free");
        ticks.tick().await;
    }
}

#[tokio::test]
async fn what_ran_out_is_another_s_with_a_larger_epoch_and_no_two_have_it_at_once() {
    let stores = Stores::new(2).await;
    for (name, store) in stores.both() {
        let [one, other] = two(store);
        let first = wait_for(&one).await;
        let second = wait_for(&other).await;
        assert!(!first.holds(), "{name}: the first owner knows that it is over when another has it");
        assert!(second.epoch() > first.epoch(), "{name}");
        // The first one's own renewal is a new taking, since another was between.
        let third = wait_for(&one).await;
        assert!(third.epoch() > second.epoch() && !second.holds(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_ask_at_once_one_has_it() {
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let owners = (0..16).map(|_| Leases::new(store.clone(), Owner::of_this_process()));
        let taken = join_all(owners.map(|leases| async move { leases.take("l", LONG).await.unwrap() })).await;
        assert_eq!(taken.iter().flatten().count(), 1, "{name}: {taken:?}");
    }
}
