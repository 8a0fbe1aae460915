//! Rounds of work on the store that nobody asks for.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::store::StoreError;
use crate::tasks::Tasks;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(600);
/// After a round that failed.
const AGAIN: Duration = Duration::from_secs(10);

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
