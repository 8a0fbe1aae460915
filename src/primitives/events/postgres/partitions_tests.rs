//! Partitions beside those who use them.

use rig::{Database, PostgresRole};

use super::partitions::days_ahead;
use crate::primitives::events::housekeeping::KEEP;
use crate::store::bench::Stores;
use crate::store::{Reach, Store, StoreError, Tx};

const OLD: &[&str] = &[
    "CREATE TABLE events_20200101 (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
    "ALTER TABLE events ATTACH PARTITION events_20200101 FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')",
];
const PARTITIONS: &str = "SELECT min(relname), max(relname) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
                          WHERE inhparent = 'events'::regclass";

fn owner(database: &Database, statements: &[&str]) -> String {
    let ended = tokio::task::block_in_place(|| database.psql(PostgresRole::Owner, statements));
    ended.unwrap().trim().to_owned()
}

/// Makes and drops, as a sidecar does, and says for how many days there are partitions then.
async fn keep(store: &Store) -> i64 {
    let kept: Result<i64, StoreError> = store
        .run(Reach::nobody(), 0, |tx| {
            Box::pin(async move {
                let Tx::Postgres(tx) = tx else { panic!("a transaction of PostgreSQL") };
                tx.keep_partitions(KEEP, "events").await?;
                days_ahead(tx).await
            })
        })
        .await;
    kept.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_partition_that_somebody_uses_keeps_no_new_one_from_being_made() {
    let stores = Stores::new(2).await;
    let database = &stores._database.database;
    let before = owner(database, &[PARTITIONS]);
    let (first, last) = before.split_once('|').unwrap();
    owner(database, OLD);
    owner(database, &[&format!("DROP TABLE {last}")]);
    let reads = tokio::task::block_in_place(|| {
        database.hold(PostgresRole::Superuser, "BEGIN; SELECT count(*) FROM events;").unwrap()
    });
    assert_eq!(keep(&stores.postgres).await, 7);
    assert_eq!(owner(database, &[PARTITIONS]), format!("events_20200101|{last}"));
    tokio::task::block_in_place(|| drop(reads));
    assert_eq!(keep(&stores.postgres).await, 7);
    assert_eq!(owner(database, &[PARTITIONS]), format!("{first}|{last}"));
}
