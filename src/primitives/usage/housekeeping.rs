//! Records that were kept long enough go, and keys that are older than any record may be. Sums stay.

use super::{postgres, sqlite};
use crate::leases::Leases;
use crate::primitives::housekeeping;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

const KEEP: &str = "SELECT made, dropped, kept FROM outrigger_keep_usage_partitions()";
const LEASE_NAME: &str = "usage/housekeeping";

/// Starts it; `retention_days` counts in SQLite, and PostgreSQL has its own from `outrigger migrate`.
pub(super) fn start(store: Store, leases: Leases, retention_days: u32, tasks: &Tasks) {
    let stopping = tasks.stopping().clone();
    housekeeping::start("usage housekeeping", tasks, move || {
        let (store, leases, stopping) = (store.clone(), leases.clone(), stopping.clone());
        Box::pin(async move {
            // A round is as long as a lease; what it leaves is the next one's, at once.
            while !round(&store, &leases, retention_days).await? && !stopping.is_cancelled() {}
            Ok(())
        })
    });
}

/// Whether all is dropped that was kept long enough, or another process does it.
pub(super) async fn round(store: &Store, leases: &Leases, retention_days: u32) -> Result<bool, StoreError> {
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
    let round = housekeeping::round(store, leases, LEASE_NAME, part, retention_days);
    let Some(lease) = round.await? else { return Ok(true) };
    while lease.holds() {
        if !drop_old_conflicts(store).await? {
            leases.release(lease).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Drops some of them in a transaction; whether there may be more. On SQLite they are gone with the rest.
async fn drop_old_conflicts(store: &Store) -> Result<bool, StoreError> {
    store
        .run(Reach::nobody(), 0, |tx| {
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::drop_old_conflicts(tx).await,
                    Tx::Sqlite(_) => Ok(false),
                }
            })
        })
        .await
}
