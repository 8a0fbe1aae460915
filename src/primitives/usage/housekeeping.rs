//! Records that were kept long enough go, and keys that are older than any record may be. Sums stay.

use std::time::Duration;

use super::{postgres, sqlite};
use crate::leases::Leases;
use crate::primitives::housekeeping;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

/// Of the fleet's lease: as long as a round may take.
const LEASE: Duration = Duration::from_secs(60);
const LEASE_NAME: &str = "usage/housekeeping";

/// Starts it; `retention_days` counts in SQLite, and PostgreSQL has its own from `outrigger migrate`.
pub(super) fn start(store: Store, leases: Leases, retention_days: u32, tasks: &Tasks) {
    housekeeping::start("usage housekeeping", tasks, move || {
        let (store, leases) = (store.clone(), leases.clone());
        Box::pin(async move { round(&store, &leases, retention_days).await })
    });
}

pub(super) async fn round(store: &Store, leases: &Leases, retention_days: u32) -> Result<(), StoreError> {
    // One sidecar of the fleet does it; the others look again later.
    let Some(lease) = leases.take(LEASE_NAME, LEASE).await? else { return Ok(()) };
    loop {
        let more: bool = store
            .run(Reach::nobody(), 0, move |tx| {
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => postgres::keep_partitions(tx).await.map(|()| false),
                        Tx::Sqlite(tx) => sqlite::drop_old(tx, retention_days),
                    }
                })
            })
            .await?;
        if !more || !lease.holds() {
            break;
        }
    }
    leases.release(lease).await
}
