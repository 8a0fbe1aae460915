//! `ack: spool`: a call is answered once it is on this machine's disk, and counted soon after.
//!
//! What was accepted is counted once, as everything is, by its keys: after a kill it may be taken again. A record whose key is another one's
//! cannot be said to its caller any more: it is left out, and listed (`conflicts`).

mod ahead;
mod clock;
mod drain;
mod entry;
mod requeue;
mod settled;
mod shares;
#[cfg(test)]
mod tests;
mod transaction;
mod waiting;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use self::clock::Clock;
use self::drain::Drain;
pub use self::requeue::{Requeued, RequeuedCall, requeue};
use self::settled::Settled;
use self::shares::Shares;
use super::Call;
use super::metrics::SpoolMetrics;
use crate::error::ErrorKind;
use crate::fairness::{Bounds, NoRoom, Part, Room};
use crate::policy::Permit;
use crate::store::spool::{self, AppendError, OpenError, Spool};
use crate::store::sqlite::Adds;
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;

/// Of a segment: so much is taken again after a kill at the most, and found to be counted.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// The part of a tenant that is alone in the spool is one in so many.
const SHARE: u8 = 4;
/// How often a call that finds no room looks whether somebody removed what was put aside.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How the names of entries end that were put aside.
const ASIDE: &str = "entry";
/// Of calls that wait for the disk.
const WAITING: Bounds = Bounds { calls: 1024, bytes: 128 * 1024 * 1024, share: 4 };

/// Why a call was not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    /// Its tenant has as much there as one may.
    #[error("this tenant has its part of the spool")]
    ShareTaken,
    /// Too much waits for the disk.
    #[error("too many calls wait for the spool's disk")]
    Overloaded,
    /// The disk, or the spool's bound.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The embedded store, which the call's tenant must have room in.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect.
    #[error("a call that cannot be written down: {0}")]
    Unwritable(String),
}

impl SpoolError {
    /// What kind of error it is to the caller.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::ShareTaken | Self::Overloaded => ErrorKind::Overloaded,
            Self::Append(AppendError::Full | AppendError::Disk(_)) => ErrorKind::BackendUnavailable,
            Self::Append(AppendError::Unknown(_) | AppendError::Gone) => ErrorKind::OutcomeUnknown,
            Self::Append(AppendError::Large) => ErrorKind::TooLarge,
            Self::Store(error) => error.kind(),
            Self::Unwritable(_) => ErrorKind::Internal,
        }
    }
}

/// The spool of one process.
pub(super) struct Spooler {
    spool: Arc<Spool>,
    store: Store,
    shares: Arc<Shares>,
    looked_at_aside: Mutex<Option<Instant>>,
    room: Room,
    metrics: Arc<SpoolMetrics>,
    tasks: Tasks,
    /// What is done with.
    settled: watch::Receiver<Settled>,
}

impl Spooler {
    /// Opens the spool of this folder and starts to count what is in it.
    pub(super) fn start(
        directory: &Path,
        max_bytes: u64,
        store: &Store,
        metrics: Arc<SpoolMetrics>,
        tasks: &Tasks,
    ) -> Result<Self, OpenError> {
        Self::start_by(Clock::default(), directory, max_bytes, store, metrics, tasks)
    }

    fn start_by(
        clock: Clock,
        directory: &Path,
        max_bytes: u64,
        store: &Store,
        metrics: Arc<SpoolMetrics>,
        tasks: &Tasks,
    ) -> Result<Self, OpenError> {
        let spool = Spool::open(directory, spool::Bounds { max_bytes, segment_bytes: SEGMENT_BYTES })?;
        let (spool, shares) = (Arc::new(spool), Shares::new(Part::one_in(max_bytes, SHARE)).for_store(store));
        let shares = Arc::new(shares);
        note_what_is_there(&spool, &shares, store)?;
        metrics.bounds(max_bytes);
        metrics.bytes(spool.bytes());
        let drain =
            Drain::new(Arc::clone(&spool), store.clone(), Arc::clone(&shares), Arc::clone(&metrics), clock);
        // What is accepted while the process stops is counted too.
        let (served, settled) = (tasks.served().clone(), drain.settled());
        tasks.spawn("usage spool", async move { drain.run(served).await });
        Ok(Self {
            spool,
            store: store.clone(),
            shares,
            looked_at_aside: Mutex::default(),
            room: Room::new(WAITING),
            metrics,
            tasks: tasks.clone(),
            settled,
        })
    }

    /// Returns once all that was accepted of a tenant before is counted: what is counted at once comes after it, as it came.
    pub(super) async fn until_counted(&self, tenant: Uuid) {
        if !self.shares.has(tenant) {
            return;
        }
        let to = self.spool.next_sequence();
        let mut settled = self.settled.clone();
        if settled.wait_for(|settled| settled.is_past(tenant, to)).await.is_err() {
            tracing::debug!("usage is no longer counted from disk: the process stops");
        }
    }

    /// Room for an entry.
    async fn take(&self, owned: Owned, adds: u64) -> Result<(), SpoolError> {
        let take = || self.shares.take(owned, adds, self.spool.bytes());
        let mut taken = take();
        if taken.is_err() && self.sees_aside_anew().await {
            taken = take();
        }
        taken.map_err(|error| match error {
            NoRoom::OfTenant => SpoolError::ShareTaken,
            NoRoom::OfAll => AppendError::Full.into(),
        })
    }

    /// Looks at what was put aside, of which somebody may have removed some, where there was anything and that is a while ago.
    async fn sees_aside_anew(&self) -> bool {
        if !self.spool.has_aside() {
            return false;
        }
        {
            let (mut looked, now) = (self.looked_at_aside.lock(), Instant::now());
            if looked.is_some_and(|looked| now.duration_since(looked) < LOOK_AGAIN) {
                return false;
            }
            *looked = Some(now);
        }
        let (spool, shares) = (Arc::clone(&self.spool), Arc::clone(&self.shares));
        let looked = tokio::task::spawn_blocking(move || look_at_aside(&spool, &shares)).await;
        match looked.map_err(io::Error::other).flatten() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "what was put aside of the usage spool cannot be looked at");
                false
            }
        }
    }

    /// Accepts a call whose records came as this body; how many they are. It is on the disk then.
    pub(super) async fn accept(
        &self,
        permit: &Permit,
        call: &Call,
        body: &[u8],
    ) -> Result<usize, SpoolError> {
        let written = entry::write(call, Timestamp::now(), body);
        let payload = written.map_err(|error| SpoolError::Unwritable(error.to_string()))?;
        let (tenant, bytes) = (call.tenant(), payload.len() as u64);
        let place = self.room.enter(tenant, bytes).map_err(|error| match error {
            NoRoom::OfTenant => SpoolError::ShareTaken,
            NoRoom::OfAll => SpoolError::Overloaded,
        })?;
        let adds = adds(&self.store, call, bytes);
        self.take((tenant, bytes), adds).await?;
        let mut taken =
            Taken { shares: Arc::clone(&self.shares), owned: (tenant, bytes), adds, is_kept: false };
        if let Store::Sqlite(_) = &self.store {
            // The store has bounds: what it would not take with all that waits for it is not promised.
            let promise = Adds::Promise(self.shares.adds(tenant));
            self.store.run_adding(permit, promise, |_| Box::pin(async { Ok::<(), StoreError>(()) })).await?;
        }
        let (answer, answered) = oneshot::channel();
        let spool = Arc::clone(&self.spool);
        // To its end though the caller leaves: what it takes of the room and of its tenant's part is what it has there.
        self.tasks.spawn_serving("usage to disk", async move {
            let _place = place;
            let appended = spool.append(payload).await;
            taken.is_kept =
                !matches!(appended, Err(AppendError::Full | AppendError::Disk(_) | AppendError::Large));
            drop(taken);
            if answer.send(appended).is_err() {
                tracing::trace!("a caller of the usage spool stopped waiting");
            }
        });
        let appended = answered.await.map_err(|_| AppendError::Gone)?;
        self.metrics.bytes(self.spool.bytes());
        appended?;
        let points = call.points().len();
        self.metrics.spooled(points);
        Ok(points)
    }
}

/// What a call takes of its tenant's part, given back unless it is kept.
struct Taken {
    shares: Arc<Shares>,
    owned: Owned,
    adds: u64,
    is_kept: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shares.landed(self.owned, self.adds, self.is_kept);
    }
}

/// What an entry of so many bytes adds to a store that has a bound: its records, and what it takes of the disk until it is counted.
fn adds(store: &Store, call: &Call, bytes: u64) -> u64 {
    match store {
        Store::Sqlite(_) => call.cost().saturating_add(bytes),
        Store::Postgres(_) => 0,
    }
}

/// Whose the entries are that were there before.
fn note_what_is_there(spool: &Spool, shares: &Shares, store: &Store) -> io::Result<()> {
    spool.visit(|found| {
        if let Ok(head) = entry::head(&found.payload) {
            let bytes = found.payload.len() as u64;
            let adds = match store {
                Store::Sqlite(_) => {
                    entry::read(&found.payload).map_or(0, |read| adds(store, &read.call, bytes))
                }
                Store::Postgres(_) => 0,
            };
            shares.note((head.tenant, bytes), adds);
        }
    })?;
    look_at_aside(spool, shares)
}

fn look_at_aside(spool: &Spool, shares: &Shares) -> io::Result<()> {
    let all = spool.aside()?;
    shares.set_aside(all.iter().filter_map(|one| Some((drain::tenant_of(&one.name)?, one.bytes))));
    Ok(())
}

/// Of a tenant's entry.
type Owned = (Uuid, u64);
