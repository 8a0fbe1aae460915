//! A tenant's share of the connections: beyond it a tenant's transactions wait for each other, and the others' are served.
//!
//! What is nobody's in particular is not counted: publishers of several tenants share a transaction, and what looks at the
//! log for everyone, or at the schema, is this process's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::classify::PgError;

/// Who has how much of its share.
pub(super) struct Shares {
    /// Connections of one tenant at the most.
    each: usize,
    tenants: Arc<Mutex<HashMap<Uuid, Counted>>>,
}

/// A tenant with a transaction under way or waiting.
struct Counted {
    free: Arc<Semaphore>,
    /// How many have it or wait for it.
    users: usize,
}

/// A place within the share, or none where nobody counts; given back when it is dropped.
#[derive(Clone)]
pub(super) struct Share {
    _user: Option<Arc<User>>,
}

/// What a transaction takes: a place within its tenant's share, and one in the gauge of those in use.
pub(super) struct Place {
    _share: Share,
    in_use: IntGauge,
}

impl Place {
    pub(super) fn new(share: Share, in_use: &IntGauge) -> Self {
        in_use.inc();
        Self { _share: share, in_use: in_use.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_use.dec();
    }
}

struct User {
    tenant: Uuid,
    tenants: Arc<Mutex<HashMap<Uuid, Counted>>>,
    free: Arc<Semaphore>,
    has: bool,
}

impl Shares {
    /// Of so many for each.
    pub(super) fn new(each: usize) -> Self {
        Self { each: each.max(1), tenants: Arc::default() }
    }

    /// Of a transaction that is nobody's.
    pub(super) fn nobody() -> Share {
        Share { _user: None }
    }

    /// A place for a transaction of this tenant's, for which it waits for so long.
    pub(super) async fn enter(&self, tenant: Option<Uuid>, patience: Duration) -> Result<Share, PgError> {
        let Some(tenant) = tenant else { return Ok(Self::nobody()) };
        let mut user = self.user(tenant);
        let free = Arc::clone(&user.free);
        match tokio::time::timeout(patience, free.acquire()).await {
            Ok(Ok(permit)) => {
                // Given back by hand, so that the semaphore need not be owned twice.
                permit.forget();
                user.has = true;
                Ok(Share { _user: Some(Arc::new(user)) })
            }
            Ok(Err(_)) | Err(_) => Err(PgError::ShareTaken),
        }
    }

    fn user(&self, tenant: Uuid) -> User {
        let mut tenants = self.tenants.lock();
        let counted = tenants
            .entry(tenant)
            .or_insert_with(|| Counted { free: Arc::new(Semaphore::new(self.each)), users: 0 });
        counted.users += 1;
        User { tenant, tenants: Arc::clone(&self.tenants), free: Arc::clone(&counted.free), has: false }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut tenants = self.tenants.lock();
        if self.has {
            self.free.add_permits(1);
        }
        if let Some(counted) = tenants.get_mut(&self.tenant) {
            counted.users -= 1;
            if counted.users == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Option<Uuid> = Some(Uuid::from_u128(1));
    const B: Option<Uuid> = Some(Uuid::from_u128(2));
    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_transactions_alone_and_nothing_is_kept_of_it() {
        let shares = Shares::new(2);
        let (one, two) = (shares.enter(A, SOON).await.unwrap(), shares.enter(A, SOON).await.unwrap());
        assert!(matches!(shares.enter(A, SOON).await, Err(PgError::ShareTaken)));
        let other = shares.enter(B, SOON).await.unwrap();
        let nobody = [shares.enter(None, SOON).await.unwrap(), shares.enter(None, SOON).await.unwrap()];
        let waits = shares.enter(A, Duration::from_secs(20));
        let (third, ()) = tokio::join!(waits, async { drop(one) });
        drop((third.unwrap(), two, other, nobody));
        assert!(shares.tenants.lock().is_empty());
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_nothing_with_it() {
        let shares = Shares::new(1);
        let has = shares.enter(A, SOON).await.unwrap();
        let leaves = tokio::time::timeout(SOON, shares.enter(A, Duration::from_secs(20))).await;
        assert!(leaves.is_err());
        drop(has);
        drop(shares.enter(A, SOON).await.unwrap());
        assert!(shares.tenants.lock().is_empty());
    }
}
