//! Word that there may be something new to read: from this process at once, from others as soon as it is seen.
//!
//! On PostgreSQL one task looks how far the log may be read, for all who wait in this process, and only while somebody
//! does. (`NOTIFY` takes a lock of the whole database at each commit.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Position;
use super::read::readable;
use crate::store::{Reach, Store, StoreError};
use crate::tasks::Tasks;

/// Between two looks while events come.
const BUSY: Duration = Duration::from_millis(10);
/// Between two looks while none have come for a second.
const QUIET: Duration = Duration::from_millis(40);
/// After a look that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How long looking goes on when nobody waits: who pulls in a loop waits again soon.
const LINGER: Duration = Duration::from_secs(1);

/// What waiters look at: changes when there may be something new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    readable: Position,
    told: u64,
}

/// Arrivals in one store.
pub(super) struct Arrivals {
    store: Store,
    seen: watch::Sender<Seen>,
    look_now: Notify,
    looking: Mutex<bool>,
    tasks: Tasks,
}

/// One who waits: made before it looks for itself, so that nothing comes between.
pub(super) struct Waiter(watch::Receiver<Seen>);

impl Arrivals {
    pub(super) fn new(store: Store, tasks: Tasks) -> Arc<Self> {
        let seen = watch::Sender::new(Seen::default());
        Arc::new(Self { store, seen, look_now: Notify::new(), looking: Mutex::new(false), tasks })
    }

    /// How far the log may be read, as far as was seen: by statements that begin after this.
    pub(super) fn readable(&self) -> Position {
        self.seen.borrow().readable
    }

    /// Something was committed here.
    pub(super) fn tell(&self) {
        match &self.store {
            // With one writer, what is committed can be read.
            Store::Sqlite(_) => self.seen.send_modify(|seen| seen.told += 1),
            Store::Postgres(_) => self.look_now.notify_one(),
        }
    }

    /// Something may be delivered again: a consumer of this process gave it back.
    pub(super) fn tell_waiters(&self) {
        self.seen.send_modify(|seen| seen.told += 1);
    }

    /// Begins to wait: what comes from now on wakes the waiter.
    pub(super) fn waiter(self: &Arc<Self>) -> Waiter {
        let waiter = Waiter(self.seen.subscribe());
        if matches!(self.store, Store::Postgres(_)) && !std::mem::replace(&mut *self.looking.lock(), true) {
            let arrivals = Arc::clone(self);
            self.tasks.spawn("arrivals", async move { arrivals.look_while_somebody_waits().await });
        }
        waiter
    }

    async fn look_while_somebody_waits(&self) {
        let stopping = self.tasks.stopping();
        let (mut waited_for, mut changed) = (Instant::now(), Instant::now());
        loop {
            if self.seen.receiver_count() > 0 {
                waited_for = Instant::now();
            }
            {
                let mut looking = self.looking.lock();
                if waited_for.elapsed() > LINGER && self.seen.receiver_count() == 0 || stopping.is_cancelled()
                {
                    *looking = false;
                    return;
                }
            }
            let found: Result<Position, StoreError> =
                self.store.run(Reach::nobody(), 0, |tx| Box::pin(readable(tx))).await;
            let pause = match found {
                Ok(position) => {
                    let moved = self.seen.send_if_modified(|seen| {
                        // Backwards too: a promoted standby may know of fewer numbers.
                        let moved = position != seen.readable;
                        seen.readable = position;
                        moved
                    });
                    if moved {
                        changed = Instant::now();
                    }
                    if changed.elapsed() < Duration::from_secs(1) { BUSY } else { QUIET }
                }
                Err(error) => {
                    tracing::debug!(%error, "how far the log may be read is not known");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.look_now.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

impl Waiter {
    /// What came up to now is known.
    pub(super) fn looks(&mut self) {
        self.0.borrow_and_update();
    }

    /// Until something comes after [`Waiter::looks`].
    pub(super) async fn arrival(&mut self) {
        if self.0.changed().await.is_err() {
            // The store is gone, and nothing comes any more.
            std::future::pending::<()>().await;
        }
    }
}
