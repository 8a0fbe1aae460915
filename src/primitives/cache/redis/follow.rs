//! Keeping L1 and the generations current: what tracking says, and what to do when it says nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::{Shared, keys, sweep};
use crate::pools::redis::{RedisPool, TrackingEvent};
use crate::primitives::cache::key::{Address, Scope};

/// How long after tracking was lost a copy may be served as stale. A loss is noticed 1.5 s after the last
/// answered ping at the latest, so that no deleted value is served 3 s after its end.
const STALE_FOR: Duration = Duration::from_millis(900);
/// Between two looks at whether tracking is current again.
const LOOK: Duration = Duration::from_millis(250);

/// When tracking was lost, while it is.
#[derive(Default)]
pub(super) struct Loss(Mutex<Option<Instant>>);

impl Loss {
    /// Whether what was read may still be served as stale.
    pub(super) fn is_recent(&self, pool: &RedisPool) -> bool {
        match *self.0.lock() {
            Some(since) => since.elapsed() < STALE_FOR,
            None => pool.tracking_is_current(),
        }
    }

    fn began(&self) {
        self.0.lock().get_or_insert_with(Instant::now);
    }

    fn ended(&self) {
        self.0.lock().take();
    }
}

/// What a removal changes in this process. Dropping it does so: the call may end in any way, its caller may leave.
pub(super) enum Removal<'a> {
    Entry(&'a Shared, &'a Address),
    Scope(&'a Shared, &'a Scope),
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        match self {
            Self::Entry(shared, address) => {
                shared.l1.invalidate(address.entry());
                shared.waiters.changed(address.entry());
            }
            Self::Scope(shared, scope) => {
                shared.generations.void(scope);
                shared.waiters.scope_changed(scope);
            }
        }
    }
}

/// Starts following.
pub(super) fn start(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let tasks = shared.tasks.clone();
    let mut events = shared.pool.track(keys::TRACKED);
    tasks.spawn("cache tracking", async move {
        let stopping = shared.tasks.stopping().clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut forget_at: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                event = events.recv() => match event {
                    Ok(TrackingEvent::Invalidated(changed)) => shared.changed(&changed),
                    Ok(TrackingEvent::Flush) | Err(RecvError::Lagged(_)) => {
                        shared.lost();
                        forget_at.get_or_insert_with(|| Instant::now() + STALE_FOR);
                    }
                    Err(RecvError::Closed) => return,
                },
                _ = look.tick() => {
                    if shared.pool.tracking_is_current() {
                        shared.loss.ended();
                    }
                    if forget_at.is_some_and(|at| at <= Instant::now()) {
                        forget_at = None;
                        shared.l1.flush();
                    }
                    sweep::resume(&shared);
                }
            }
        }
    });
}

impl Shared {
    fn changed(&self, changed: &[Box<[u8]>]) {
        for key in changed {
            if key.starts_with(keys::ENTRIES.as_bytes()) {
                self.l1.invalidate(key);
                self.waiters.changed(key);
            } else if let Some(scope) = key.strip_prefix(keys::GENERATIONS.as_bytes()).and_then(Scope::parse)
            {
                self.generations.void(&scope);
                self.waiters.scope_changed(&scope);
            }
        }
    }

    /// Nothing that is here may be served as it is: changes may have been missed. The values themselves go
    /// when they may not be served as stale either.
    pub(super) fn lost(&self) {
        self.metrics.tracking_flushes.inc();
        self.loss.began();
        self.generations.void_all();
        self.l1.void_fills();
        self.waiters.all_changed();
    }
}
