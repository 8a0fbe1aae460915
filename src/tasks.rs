//! Background tasks: every one is named, told to stop, and waited for.

use std::any::Any;
use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// What a panic said, for the log.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<&str>().copied();
    said.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// The process's background tasks. Clones share them.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Of what serves callers.
    serving: TaskTracker,
    stop: CancellationToken,
    served: CancellationToken,
}

impl Tasks {
    /// Starts a task that ends by itself or when [`Tasks::stopping`] says so.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task.instrument(tracing::debug_span!("task", name)));
    }

    /// Starts a task that serves callers, or does for good what one of them was told.
    #[allow(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_serving(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.serving.spawn(task.instrument(tracing::debug_span!("task", name)));
    }

    /// Cancelled when the process stops and nobody is served any more. A task that works on what callers bring ends then.
    #[must_use]
    pub fn served(&self) -> &CancellationToken {
        &self.served
    }

    /// Cancelled once, when the process begins to stop. A task that holds unsaved state saves it then.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Tells every task to stop and waits for them; `false` where some were still running after `bound`.
    pub async fn stop(&self, bound: Duration) -> bool {
        self.stop.cancel();
        self.serving.close();
        self.tracker.close();
        let all_ended = async {
            self.serving.wait().await;
            self.served.cancel();
            self.tracker.wait().await;
        };
        tokio::time::timeout(bound, all_ended).await.is_ok()
    }
}
