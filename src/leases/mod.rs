//! One owner in a fleet.
//!
//! A lease is a row: a name, an owner, an end, and an epoch that grows with each new owner. Who has it may work until
//! its end, by a clock that is not behind the store's; what it sends elsewhere carries the epoch, so that what an
//! owner still sends after its end is refused there. It is renewed at a third of its time, and given back at SIGTERM.
//!
//! Times are the store's own: a sidecar's clock decides nothing. An owner counts from before it asked, and a hundredth
//! less, so that its own count ends no later than the store's though one clock is quicker, or is slewed (Gray and
//! Cheriton, Leases, 1989).

mod postgres;
mod sqlite;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::store::{Reach, Store, StoreError, Tx};

/// Who may own a lease: one process, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(Uuid);

impl Owner {
    /// A new one, which no process before this one was.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self(Uuid::new_v4())
    }
}

/// One part in this many is given up to clocks that do not run alike: NTP slews them by one in 2,000.
const CLOCKS_DIFFER: u32 = 100;

/// The right to be the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    name: String,
    owner: Owner,
    epoch: i64,
    until: Instant,
}

impl Lease {
    /// Of what.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Larger than every earlier owner's, and the same through renewals.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Until when, by this process's clock.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether it has not run out.
    #[must_use]
    pub fn holds(&self) -> bool {
        Instant::now() < self.until
    }
}

/// The leases of a store, as one process takes them.
#[derive(Clone)]
pub struct Leases {
    store: Store,
    owner: Owner,
}

impl Leases {
    /// The leases that `owner` takes.
    #[must_use]
    pub fn new(store: Store, owner: Owner) -> Self {
        Self { store, owner }
    }

    /// Who takes them.
    #[must_use]
    pub fn owner(&self) -> Uuid {
        self.owner.0
    }

    /// Takes the lease `name` for `time`, where nobody has it; renews it where this owner has. Nothing where another has.
    pub async fn take(&self, name: &str, time: Duration) -> Result<Option<Lease>, StoreError> {
        let before = Instant::now();
        let (asked, owner) = (name.to_owned(), self.owner);
        let time_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let taken = self.store.run(Reach::nobody(), 0, move |tx| {
            let name = asked.clone();
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::take(tx, &name, owner.0, time_ms).await,
                    Tx::Sqlite(tx) => sqlite::take(tx, &name, owner.0, time_ms),
                }
            })
        });
        let epoch: Option<i64> = taken.await?;
        Ok(epoch.map(|epoch| Lease {
            name: name.to_owned(),
            owner: self.owner,
            epoch,
            until: before + (time - time / CLOCKS_DIFFER),
        }))
    }

    /// Gives a lease back: who asks next has it at once. One that was lost stays its new owner's.
    pub async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.store
            .run(Reach::nobody(), 0, move |tx| {
                let lease = lease.clone();
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => {
                            postgres::release(tx, &lease.name, lease.owner.0, lease.epoch).await
                        }
                        Tx::Sqlite(tx) => sqlite::release(tx, &lease.name, lease.owner.0, lease.epoch),
                    }
                })
            })
            .await
    }
}
