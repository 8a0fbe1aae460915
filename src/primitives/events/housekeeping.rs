//! What was kept long enough goes: partitions on PostgreSQL, rows in SQLite.

use prometheus::IntGauge;

use super::{postgres, sqlite};
use crate::leases::Leases;
use crate::primitives::housekeeping;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;
use crate::telemetry::{MetricError, Registry};

pub(super) const KEEP: &str = "SELECT made, dropped, kept FROM outrigger_keep_partitions()";
const LEASE_NAME: &str = "events/housekeeping";

/// Groups that are dropped in one transaction; `outrigger_drop_idle_groups` has the same number.
const GROUPS_AT_ONCE: usize = 500;

/// Starts it; `retention_days` counts in SQLite, and PostgreSQL has its own from `outrigger migrate`.
pub(super) fn start(
    store: Store,
    leases: Leases,
    retention_days: u32,
    registry: &Registry,
    tasks: &Tasks,
) -> Result<(), MetricError> {
    let days_ahead = match &store {
        Store::Postgres(_) => Some(registry.gauge(
            "outrigger_events_partitions_ahead_days",
            "For how many days after this one PostgreSQL has a partition of events; without one for today nothing is accepted.",
        )?),
        Store::Sqlite(_) => None,
    };
    housekeeping::start("events housekeeping", tasks, move || {
        let (store, leases, days_ahead) = (store.clone(), leases.clone(), days_ahead.clone());
        Box::pin(async move {
            round(&store, &leases, retention_days).await?;
            look_ahead(&store, days_ahead.as_ref()).await
        })
    });
    Ok(())
}

async fn look_ahead(store: &Store, days_ahead: Option<&IntGauge>) -> Result<(), StoreError> {
    let Some(gauge) = days_ahead else { return Ok(()) };
    let look = store.read(Reach::nobody(), |tx| {
        Box::pin(async move {
            match tx {
                Tx::Postgres(tx) => postgres::days_ahead(tx).await,
                Tx::Sqlite(_) => Ok(0),
            }
        })
    });
    gauge.set(look.await?);
    Ok(())
}

async fn round(store: &Store, leases: &Leases, retention_days: u32) -> Result<(), StoreError> {
    let part: housekeeping::Part = |tx, retention_days| {
        Box::pin(async move {
            match tx {
                Tx::Postgres(tx) => {
                    tx.keep_partitions(KEEP, "events").await.map(|()| false).map_err(StoreError::from)
                }
                Tx::Sqlite(tx) => sqlite::drop_old(tx, retention_days),
            }
        })
    };
    let round = housekeeping::round(store, leases, LEASE_NAME, part, retention_days);
    let Some(lease) = round.await? else { return Ok(()) };
    while lease.holds() && drop_idle_groups(store, retention_days).await? == GROUPS_AT_ONCE {}
    leases.release(lease).await
}

/// Drops some of the groups that nobody used for as long as events are kept: a group that begins goes on where they were.
/// How many.
pub(super) async fn drop_idle_groups(store: &Store, retention_days: u32) -> Result<usize, StoreError> {
    store
        .run(Reach::nobody(), 0, move |tx| {
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::drop_idle_groups(tx).await,
                    Tx::Sqlite(tx) => sqlite::drop_idle_groups(tx, retention_days, GROUPS_AT_ONCE),
                }
            })
        })
        .await
}
