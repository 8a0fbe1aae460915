//! Transactions that want the same ids: how long each waits for another, and who has the id then.

use std::sync::Arc;
use std::time::Duration;

use rig::PostgresRole;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use crate::primitives::events::append::Appended;
use crate::primitives::events::bench::{Callers, event};
use crate::primitives::events::{Batch, append, append_all};
use crate::store::bench::Stores;
use crate::store::{Store, StoreError};

const TENANT: u128 = 1;
const BOUND: Duration = Duration::from_secs(20);
/// What one who waits for a transaction that is held open does not end within.
const LOOK: Duration = Duration::from_millis(300);

struct Bench {
    stores: Stores,
    callers: Callers,
}

/// A transaction that has appended, and commits when it is told.
struct Held {
    appended: oneshot::Receiver<Appended>,
    commits: oneshot::Sender<()>,
    ends: JoinHandle<Result<(), StoreError>>,
}

impl Bench {
    async fn new() -> Self {
        Self {
            stores: Stores::new(8).await,
            callers: Callers::new("  leads: {}\n  payments: {dedupe_ms: 604800000}\n"),
        }
    }

    fn store(&self) -> &Store {
        &self.stores.postgres
    }

    #[allow(clippy::disallowed_methods, reason = "a session of the script, which waits for it")]
    async fn begin(&self, ids: &[&str]) -> Held {
        let permit = self.callers.publisher(TENANT, "leads").await;
        let events = ids.iter().map(|id| event(id, "k")).collect();
        let batch: Arc<Batch> = Arc::new(self.callers.batch(TENANT, "leads", events).await);
        let (says, appended) = oneshot::channel();
        let (commits, told) = oneshot::channel();
        let script = Arc::new(Mutex::new(Some((says, told))));
        let store = self.store().clone();
        let ends = tokio::spawn(async move {
            store
                .run(&permit, 0, move |tx| {
                    let (batch, script) = (Arc::clone(&batch), Arc::clone(&script));
                    Box::pin(async move {
                        let done = append(tx, &batch).await?;
                        let (says, told) = script.lock().await.take().expect("it is run once");
                        says.send(done).ok();
                        told.await.ok();
                        Ok(())
                    })
                })
                .await
        });
        Held { appended, commits, ends }
    }

    async fn publish(&self, ids: &[&str]) -> Appended {
        let mut held = self.begin(ids).await;
        let appended = held.appended().await;
        held.commit().await;
        appended
    }

    fn expire(&self, id: &str) {
        let key = crate::primitives::events::dedupe_key("leads", "/test", id);
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let update = format!(
            "WITH gone AS (UPDATE event_dedupe SET until = now() - interval '1 s' WHERE key = '\\x{key}' RETURNING 1) \
             SELECT count(*) FROM gone"
        );
        let database = &self.stores._database.database;
        let changed = tokio::task::block_in_place(|| database.psql(PostgresRole::Superuser, &[&update]));
        assert_ne!(changed.unwrap().trim(), "0", "{id} is not known");
    }
}

impl Held {
    async fn appended(&mut self) -> Appended {
        let said = tokio::time::timeout(BOUND, &mut self.appended).await.expect("it waits for another");
        match said {
            Ok(appended) => appended,
            Err(_) => panic!("{:?}", (&mut self.ends).await),
        }
    }

    async fn waits(&mut self) -> bool {
        tokio::time::timeout(LOOK, &mut self.appended).await.is_err()
    }

    async fn commit(self) {
        self.commits.send(()).ok();
        self.ends.await.unwrap().unwrap();
    }
}

fn accepted(count: usize) -> Appended {
    Appended { accepted: count, ..Appended::default() }
}

fn duplicate() -> Appended {
    Appended { duplicates: 1, ..Appended::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_with_an_id_that_is_known_wait_for_nobody() {
    let bench = Bench::new().await;
    assert_eq!(bench.publish(&["known"]).await, accepted(1));
    let mut held = bench.begin(&["known", "first"]).await;
    assert_eq!(held.appended().await, Appended { accepted: 1, duplicates: 1, conflicting: 0 });
    let others = bench.publish(&["known", "second"]).await;
    assert_eq!(others, Appended { accepted: 1, duplicates: 1, conflicting: 0 });
    held.commit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_with_the_same_new_id_wait_for_the_first_one_s_commit_and_not_for_each_other() {
    let bench = Bench::new().await;
    let mut first = bench.begin(&["new"]).await;
    assert_eq!(first.appended().await, accepted(1));
    let (mut second, mut third) = (bench.begin(&["new"]).await, bench.begin(&["new"]).await);
    let (second_waits, third_waits) = tokio::join!(second.waits(), third.waits());
    assert!(second_waits && third_waits, "whether the first one commits is not known yet");
    first.commit().await;
    // Both stay open.
    assert_eq!(second.appended().await, duplicate());
    assert_eq!(third.appended().await, duplicate());
    second.commit().await;
    third.commit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_whose_time_is_over_is_taken_again_by_one_transaction() {
    let bench = Bench::new().await;
    assert_eq!(bench.publish(&["a", "b"]).await, accepted(2));
    assert_eq!(bench.publish(&["a"]).await, duplicate());
    bench.expire("a");
    let mut first = bench.begin(&["a", "c"]).await;
    assert_eq!(first.appended().await, accepted(2));
    let (mut second, mut third) = (bench.begin(&["a"]).await, bench.begin(&["a"]).await);
    let (second_waits, third_waits) = tokio::join!(second.waits(), third.waits());
    assert!(second_waits && third_waits, "two have it");
    first.commit().await;
    assert_eq!(second.appended().await, duplicate());
    assert_eq!(third.appended().await, duplicate());
    second.commit().await;
    third.commit().await;
    assert_eq!(bench.publish(&["a"]).await, duplicate());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_took_an_id_and_was_rolled_back_has_not_taken_it() {
    let bench = Bench::new().await;
    assert_eq!(bench.publish(&["a"]).await, accepted(1));
    bench.expire("a");
    let mut first = bench.begin(&["a", "new"]).await;
    assert_eq!(first.appended().await, accepted(2));
    let mut second = bench.begin(&["a", "new"]).await;
    assert!(second.waits().await);
    first.ends.abort();
    assert_eq!(second.appended().await, accepted(2));
    second.commit().await;
}

/// Its topic's window was seven days when the event came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_an_id_is_new_is_for_its_own_topic_s_window_to_say_whatever_shares_the_transaction() {
    let bench = Bench::new().await;
    let key = crate::primitives::events::dedupe_key("leads", "/test", "old");
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let kept = [
        "DO $$ DECLARE day date := current_date - 4; BEGIN EXECUTE format('CREATE TABLE event_dedupe_%s PARTITION OF event_dedupe \
         FOR VALUES FROM (%L) TO (%L)', to_char(day, 'YYYYMMDD'), day, day + 1); END $$"
            .to_owned(),
        format!(
            "INSERT INTO event_dedupe (tenant_id, key, day, until, fingerprint) \
             VALUES ('{}', '\\x{key}', current_date - 4, now() + interval '3 days', 1)",
            uuid::Uuid::from_u128(TENANT)
        ),
    ];
    let database = &bench.stores._database.database;
    tokio::task::block_in_place(|| database.psql(PostgresRole::Superuser, &[&kept[0], &kept[1]])).unwrap();
    let batches = Arc::new([
        bench.callers.batch(TENANT, "leads", vec![event("old", "k")]).await,
        bench.callers.batch(TENANT, "payments", vec![event("other", "k")]).await,
    ]);
    let permits =
        [bench.callers.publisher(TENANT, "leads").await, bench.callers.publisher(TENANT, "payments").await];
    let appended: Result<Vec<Appended>, StoreError> = bench
        .store()
        .run(&permits[..], 0, move |tx| {
            let batches = Arc::clone(&batches);
            Box::pin(async move { append_all(tx, &batches[..]).await })
        })
        .await;
    assert_eq!(appended.unwrap(), [accepted(1), accepted(1)]);
    assert_eq!(bench.publish(&["old"]).await, duplicate());
}
