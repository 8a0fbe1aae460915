//! Work on its way to a store that all tenants share: so much of each tenant that no other tenant waits long behind it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::CacheError;

/// What any write counts at least: 16 KiB.
const UNIT_BYTES: usize = 16 * 1024;
/// What a tenant may have under way: 4 MiB, or one value that is larger; some 30 ms of SQLite's writer or of a 1 Gbit/s link to Redis.
const UNITS: usize = 256;

/// What each tenant has under way.
#[derive(Default)]
pub(super) struct Pending(Mutex<HashMap<Uuid, Arc<Semaphore>>>);

/// A place in it, until it is dropped.
pub(super) struct Place {
    pending: Arc<Pending>,
    tenant: Uuid,
    permit: Option<OwnedSemaphorePermit>,
}

impl Pending {
    /// Waits for a place for so many bytes, in the order of asking.
    pub(super) async fn enter(
        self: &Arc<Self>,
        tenant: &Uuid,
        bytes: usize,
        budget: Duration,
    ) -> Result<Place, CacheError> {
        let mut place = Place { pending: Arc::clone(self), tenant: *tenant, permit: None };
        let of_tenant = {
            let mut tenants = self.0.lock();
            Arc::clone(tenants.entry(*tenant).or_insert_with(|| Arc::new(Semaphore::new(UNITS))))
        };
        let units = u32::try_from((bytes / UNIT_BYTES + 1).min(UNITS)).map_err(|_| CacheError::Overloaded)?;
        let permit = tokio::time::timeout(budget, of_tenant.acquire_many_owned(units)).await;
        place.permit =
            Some(permit.map_err(|_| CacheError::Overloaded)?.map_err(|_| CacheError::Unavailable)?);
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut tenants = self.pending.0.lock();
        if tenants.get(&self.tenant).is_some_and(|of_tenant| Arc::strong_count(of_tenant) == 1) {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_writes_only() {
        let pending = Arc::new(Pending::default());
        let (one, other, brief) = (Uuid::from_u128(1), Uuid::from_u128(2), Duration::from_millis(10));
        let large = pending.enter(&one, usize::MAX / 2, brief).await.unwrap();
        assert!(matches!(pending.enter(&one, 0, brief).await, Err(CacheError::Overloaded)));
        let small = pending.enter(&other, 0, brief).await.unwrap();
        drop(large);
        drop(pending.enter(&one, 0, brief).await.unwrap());
        assert_eq!(pending.0.lock().keys().copied().collect::<Vec<_>>(), [other]);
        drop(small);
        assert!(pending.0.lock().is_empty(), "who has nothing under way is forgotten");
    }
}
