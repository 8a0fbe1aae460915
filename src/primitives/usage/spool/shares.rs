//! What each tenant has in the spool: one has a part of it, and leaves the rest to the others.

use std::collections::HashMap;

use parking_lot::Mutex;
use uuid::Uuid;

use super::Owned;

/// What every tenant has there.
pub(super) struct Shares {
    /// Of one tenant at the most, in bytes.
    most: u64,
    held: Mutex<HashMap<Uuid, u64>>,
}

impl Shares {
    pub(super) fn new(most: u64) -> Self {
        Self { most, held: Mutex::default() }
    }

    /// For an entry of so many bytes, where the tenant's part has room; one entry of a tenant that has no other always fits.
    pub(super) fn take(&self, tenant: Uuid, bytes: u64) -> bool {
        let mut held = self.held.lock();
        let own = held.get(&tenant).copied().unwrap_or_default();
        if own > 0 && own.saturating_add(bytes) > self.most {
            return false;
        }
        held.insert(tenant, own.saturating_add(bytes));
        true
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.held.lock().is_empty()
    }

    /// Of an entry that was there before.
    pub(super) fn note(&self, tenant: Uuid, bytes: u64) {
        *self.held.lock().entry(tenant).or_default() += bytes;
    }

    /// Of an entry that is done with.
    pub(super) fn give_back(&self, (tenant, bytes): Owned) {
        let mut held = self.held.lock();
        if let Some(own) = held.get_mut(&tenant) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                held.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_part_and_another_the_rest() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let shares = Shares::new(100);
        assert!(shares.take(a, 150), "one always fits");
        assert!(!shares.take(a, 1));
        assert!(shares.take(b, 60) && shares.take(b, 40));
        assert!(!shares.take(b, 1));
        shares.give_back((b, 40));
        assert!(shares.take(b, 40) && !shares.take(b, 1));
        shares.give_back((a, 150));
        assert_eq!(shares.held.lock().len(), 1, "who has nothing is forgotten");
        shares.note(a, 100);
        assert!(!shares.take(a, 1));
    }
}
