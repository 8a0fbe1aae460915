//! Records that were kept long enough go, and keys that are older than any record may be. Sums stay.

use super::sqlite;
use crate::leases::Leases;
use crate::primitives::housekeeping;
use crate::store::{Store, StoreError, Tx};
use crate::tasks::Tasks;

const KEEP: &str = "SELECT made, dropped, kept FROM outrigger_keep_usage_partitions()";
const LEASE_NAME: &str = "usage/housekeeping";

/// Starts it; `retention_days` counts in SQLite, and PostgreSQL has its own from `outrigger migrate`.
pub(super) fn start(store: Store, leases: Leases, retention_days: u32, tasks: &Tasks) {
    housekeeping::start("usage housekeeping", tasks, move || {
        let (store, leases) = (store.clone(), leases.clone());
        Box::pin(async move { round(&store, &leases, retention_days).await })
    });
}

pub(super) async fn round(store: &Store, leases: &Leases, retention_days: u32) -> Result<(), StoreError> {
    let part: housekeeping::Part = |tx, retention_days| {
        Box::pin(async move {
            match tx {
                Tx::Postgres(tx) => {
                    tx.keep_partitions(KEEP, "usage").await.map(|()| false).map_err(StoreError::from)
                }
                Tx::Sqlite(tx) => sqlite::drop_old(tx, retention_days),
            }
        })
    };
    match housekeeping::round(store, leases, LEASE_NAME, part, retention_days).await? {
        Some(lease) => leases.release(lease).await,
        None => Ok(()),
    }
}
