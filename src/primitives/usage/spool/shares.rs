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
    /// What was put aside of each.
    aside: Mutex<HashMap<Uuid, u64>>,
}

impl Shares {
    pub(super) fn new(most: u64) -> Self {
        Self { most, held: Mutex::default(), aside: Mutex::default() }
    }

    /// For an entry of so many bytes, where the tenant's part has room; one entry of a tenant that has no other always fits.
    pub(super) fn take(&self, tenant: Uuid, bytes: u64) -> bool {
        let mut held = self.held.lock();
        let own = of(&held, tenant);
        let there = own.saturating_add(self.aside(tenant));
        if there > 0 && there.saturating_add(bytes) > self.most {
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

    /// What a tenant has there that is not counted, in bytes.
    pub(super) fn of(&self, tenant: Uuid) -> u64 {
        of(&self.held.lock(), tenant)
    }

    /// What was put aside of a tenant's, in bytes.
    pub(super) fn aside(&self, tenant: Uuid) -> u64 {
        of(&self.aside.lock(), tenant)
    }

    /// Of an entry that is put aside.
    pub(super) fn add_aside(&self, tenant: Uuid, bytes: u64) {
        *self.aside.lock().entry(tenant).or_default() += bytes;
    }

    /// All that is put aside now: somebody may have removed some of it.
    pub(super) fn set_aside(&self, all: impl Iterator<Item = Owned>) {
        let mut aside: HashMap<Uuid, u64> = HashMap::new();
        all.for_each(|(tenant, bytes)| *aside.entry(tenant).or_default() += bytes);
        *self.aside.lock() = aside;
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

/// Who is not there has nothing.
fn of(bytes: &HashMap<Uuid, u64>, tenant: Uuid) -> u64 {
    bytes.get(&tenant).map_or(0, |bytes| *bytes)
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
        shares.note(a, 60);
        shares.add_aside(a, 40);
        assert!(!shares.take(a, 1));
        shares.set_aside([(b, 5)].into_iter());
        assert!(shares.take(a, 40) && !shares.take(a, 1));
    }
}
