//! A tenant that publishes more than the store takes: it is told so, and the others are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rig::PostgresRole;

use super::arrivals::Arrivals;
use super::bench::{Callers, event};
use super::metrics::EventsMetrics;
use super::push::{Dispatcher, PushMetrics, StoreDeliveries, Timing};
use super::{Batch, Publisher};
use crate::error::ErrorKind;
use crate::store::GroupCommitError;
use crate::store::bench::Stores;
use crate::tasks::Tasks;
use crate::telemetry::Registry;

/// Holds every publisher of PostgreSQL up.
const HOLD: &str = "BEGIN; LOCK TABLE event_dedupe IN ACCESS EXCLUSIVE MODE;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_floods_the_publishers_is_refused_alone_and_the_others_go_between() {
    let (stores, callers, registry) =
        (Stores::new(4).await, Callers::new("  leads: {}\n"), Registry::default());
    let tasks = Tasks::default();
    let metrics = Arc::new(EventsMetrics::new(&registry).unwrap());
    let arrivals = Arrivals::new(stores.postgres.clone(), 0, tasks.clone());
    let pushed = PushMetrics::new(&registry).unwrap();
    let nothing = Arc::new(StoreDeliveries::new(stores.postgres.clone(), callers.source.clone(), None));
    let dispatcher = Dispatcher::start(nothing, pushed, Timing::default(), &tasks).unwrap();
    let publisher =
        Publisher::new(stores.postgres.clone(), (arrivals, dispatcher), Arc::clone(&metrics), tasks.clone());
    let permits = [callers.publisher(1, "leads").await, callers.publisher(2, "leads").await];
    let publish = |tenant: u8, at: usize| {
        let permit = permits[usize::from(tenant == 2)].clone();
        let batch = Batch::new(&permit, callers.topic("leads"), vec![event(&at.to_string(), "k")]);
        let publisher = Arc::clone(&publisher);
        async move { (publisher.publish(permit, batch).await, Instant::now()) }
    };
    assert!(publish(2, 0).await.0.is_ok());
    let database = &stores._database.database;
    let held = tokio::task::block_in_place(|| database.hold(PostgresRole::Superuser, HOLD)).unwrap();
    // It waits before the flood comes, which is told of its own part all the same.
    let early = publish(2, 2);
    let flood = join_all((0..3000).map(|at| publish(1, at)));
    let other = async {
        // While the flood waits.
        until(&registry, 3000 - 2047).await;
        let published = publish(2, 1);
        let (published, ()) = tokio::join!(published, async {
            tokio::task::yield_now().await;
            tokio::task::block_in_place(|| drop(held));
        });
        published
    };
    let ((early, _), flood, (other, other_ended)) = tokio::join!(early, flood, other);
    let refused =
        flood.iter().filter(|(ended, _)| matches!(ended, Err(GroupCommitError::ShareTaken))).count();
    assert_eq!(refused, 3000 - 2047, "a quarter of the room is a tenant's, and less for what another has");
    assert_eq!(GroupCommitError::ShareTaken.kind(), ErrorKind::Overloaded);
    assert!(early.is_ok() && other.is_ok(), "{early:?} {other:?}");
    let later = flood.iter().filter(|(ended, at)| ended.is_ok() && *at > other_ended).count();
    assert!(later > 1000, "the other tenant went before {later} of the flood that had come earlier");
    assert_eq!(failures(&registry, "tenant_share"), 953);
    assert!(publish(1, 5000).await.0.is_ok(), "there is room again");
}

/// Waits until so many were refused for their tenant's share.
async fn until(registry: &Registry, refused: u64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while failures(registry, "tenant_share") < refused {
        ticks.tick().await;
    }
}

/// How often publishing failed with this meaning.
fn failures(registry: &Registry, meaning: &str) -> u64 {
    let name = format!("outrigger_events_publish_failures_total{{meaning=\"{meaning}\"}} ");
    let text = registry.render().unwrap();
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}
