//! Rounds of work on the store that nobody asks for.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::leases::{Lease, Leases};
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(600);
/// After a round that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// Of the fleet's lease: as long as a round may take.
const LEASE: Duration = Duration::from_secs(60);

/// A part of a round, in a transaction of its own; whether there may be more.
pub(super) type Part = for<'t> fn(&'t mut Tx<'_>, u32) -> BoxFuture<'t, Result<bool, StoreError>>;

/// Takes the fleet's lease of this name, where no other process has it, and does part after part until there is no more. The lease
/// is given back by who gets it.
pub(super) async fn round(
    store: &Store,
    leases: &Leases,
    name: &str,
    part: Part,
    retention_days: u32,
) -> Result<Option<Lease>, StoreError> {
    // One sidecar of the fleet does it; the others look again later.
    let Some(lease) = leases.take(name, LEASE).await? else { return Ok(None) };
    loop {
        let more: bool = store.run(Reach::nobody(), 0, move |tx| part(tx, retention_days)).await?;
        if !more || !lease.holds() {
            return Ok(Some(lease));
        }
    }
}

/// Runs a round every ten minutes, and soon again after one that failed.
pub(super) fn start(
    name: &'static str,
    tasks: &Tasks,
    round: impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync + 'static,
) {
    let stopping = tasks.stopping().clone();
    tasks.spawn(name, async move {
        loop {
            let pause = match round().await {
                Ok(()) => EVERY,
                Err(error) => {
                    tracing::warn!(%error, name, "what was kept long enough could not be dropped");
                    AGAIN
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}
