//! What tenants hold, as it is counted, is what their rows are, whatever was done with them.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::held::{ATTEMPT, EVENT, GROUP, ID};
use crate::names::Name;
use crate::primitives::events::bench::{Callers, event};
use crate::primitives::events::groups::{DelayTime, LeaseTime, MaxDeliveries};
use crate::primitives::events::push::AttemptRow;
use crate::primitives::events::{Group, Settle, append};
use crate::store::sqlite::{Bound, Durability, Sqlite};
use crate::store::{DURABLE, Reach, Store, StoreError, Tx};

const TOPICS: &str = "  leads: {dedupe_ms: 1, groups: {max_attempts: 1}}\n";
const DRIFT: &str = "SELECT tenant, sum(bytes) FROM ( \
     SELECT tenant, octet_length(attributes) + coalesce(octet_length(data), 0) + octet_length(key) + ?1 AS bytes FROM events \
     UNION ALL SELECT tenant, ?2 FROM event_dedupe \
     UNION ALL SELECT tenant, octet_length(state) + octet_length(topic) + octet_length(name) + ?3 FROM event_groups \
     UNION ALL SELECT tenant, octet_length(subscription) + octet_length(event_id) + octet_length(message_id) + ?4 FROM event_attempts \
     UNION ALL SELECT tenant, -bytes FROM tenant_bytes) GROUP BY tenant HAVING sum(bytes) <> 0";

/// Asserts that every sum is that of the rows; how many tenants hold something.
async fn counted(sqlite: &Sqlite, after: &str) -> i64 {
    let (drift, tenants) = sqlite
        .read(|c| {
            let mut statement = c.prepare(DRIFT)?;
            let rows = statement.query_map((EVENT, ID, GROUP, ATTEMPT), |row| {
                Ok((Uuid::from_bytes(row.get(0)?), row.get::<_, i64>(1)?))
            })?;
            let drift: Vec<_> = rows.collect::<Result<_, _>>()?;
            let tenants = c.query_row("SELECT count(*) FROM tenant_bytes", [], |row| row.get::<_, i64>(0))?;
            Ok((drift, tenants))
        })
        .await
        .unwrap();
    assert_eq!(drift, [], "{after}: the rows have more, or fewer, than is counted");
    tenants
}

async fn publish(store: &Store, callers: &Callers, tenant: u128, ids: std::ops::Range<usize>) {
    let events = ids.map(|at| event(&at.to_string(), &format!("k{at}é"))).collect();
    let batch = Arc::new(callers.batch(tenant, "leads", events).await);
    let permit = callers.publisher(tenant, "leads").await;
    let appended: Result<_, StoreError> = store
        .run(&permit, batch.bytes(), move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move { append(tx, &batch).await })
        })
        .await;
    appended.unwrap();
}

/// When what was of this millisecond, and of the next, is over.
async fn a_little_later() {
    let now_ms = super::read::now_ms();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while super::read::now_ms() < now_ms + 3 {
        ticks.tick().await;
    }
}

async fn drop_all(store: &Store) {
    loop {
        let more: Result<bool, StoreError> = store
            .run(Reach::nobody(), 0, |tx| {
                Box::pin(async move {
                    let Tx::Sqlite(tx) = tx else { panic!("an embedded store") };
                    super::drop_old(tx, 0)
                })
            })
            .await;
        if !more.unwrap() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_is_what_the_rows_are_after_all_that_is_done_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let bound = Bound::of(1 << 30).with_tenant_percent(50);
    let path = directory.path().join("durable.db");
    let sqlite = Sqlite::open(&path, Durability::Normal, bound, DURABLE).unwrap();
    let (store, callers) = (Store::Sqlite(Arc::clone(&sqlite)), Callers::new(TOPICS));
    for tenant in [1, 2] {
        publish(&store, &callers, tenant, 0..600).await;
        a_little_later().await;
        // Their time is over, and they are written over.
        publish(&store, &callers, tenant, 300..700).await;
    }
    assert_eq!(counted(&sqlite, "publishing").await, 2);

    let consumer = callers.consumer(1, "leads").await;
    let group = Group::new(consumer, callers.topic("leads"), Name::parse("g").unwrap()).unwrap();
    let (max, lease) = (MaxDeliveries::new(50).unwrap(), LeaseTime::new(60_000).unwrap());
    let pulled = group.pull(&store, max, lease).await.unwrap();
    counted(&sqlite, "a pull").await;
    let receipts: Arc<[Box<str>]> =
        pulled.deliveries.iter().map(|one| one.lease.receipt.to_string().into()).collect();
    let nacked = Settle::Nack(DelayTime::new(0).unwrap());
    let (_, given_up) = group.settle(&store, receipts, nacked).await.unwrap();
    assert_eq!(given_up.letters, 50);
    counted(&sqlite, "dead letters").await;
    let tried = AttemptRow {
        at_ms: 1,
        subscription: "s".into(),
        event_id: "é".into(),
        message_id: "m".into(),
        attempt: 1,
        outcome: "failed",
        status: None,
        duration_ms: 1,
        next_at_ms: None,
    };
    group.settle_each(&store, Arc::from([]), Arc::from([tried])).await.unwrap();
    counted(&sqlite, "attempts").await;

    a_little_later().await;
    drop_all(&store).await;
    assert_eq!(counted(&sqlite, "retention").await, 1, "the group is left");
    let dropped: Result<usize, StoreError> = store
        .run(Reach::nobody(), 0, |tx| {
            Box::pin(async move {
                let Tx::Sqlite(tx) = tx else { panic!("an embedded store") };
                super::drop_idle_groups(tx, 0, 10)
            })
        })
        .await;
    assert_eq!(dropped.unwrap(), 1);
    assert_eq!(counted(&sqlite, "all of it").await, 0);
}
