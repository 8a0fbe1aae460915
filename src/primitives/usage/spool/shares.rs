//! What each tenant has in the spool: one has a part of it, the less the more the others have, so that there is always some left.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::Owned;
use crate::fairness::{NoRoom, Part};
use crate::store::Store;
use crate::store::sqlite::Sqlite;

/// What every tenant has there.
pub(super) struct Shares {
    /// Of one tenant, in bytes.
    part: Part,
    held: Mutex<All>,
    aside: Mutex<Aside>,
    /// Where there is a bound to what the store takes: it keeps room for what is here.
    embedded: Option<Arc<Sqlite>>,
}

/// What was put aside of each, and in all, in bytes.
#[derive(Debug, Default)]
struct Aside {
    of: HashMap<Uuid, u64>,
    all: u64,
}

impl Aside {
    fn add(&mut self, (tenant, bytes): Owned) {
        *self.of.entry(tenant).or_default() += bytes;
        self.all += bytes;
    }
}

/// What all have there.
#[derive(Debug, Default)]
struct All {
    of: HashMap<Uuid, Held>,
    bytes: u64,
    /// What that adds to the store in all.
    adds: u64,
}

/// What a tenant has there.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    bytes: u64,
    /// What that adds to the store at the most, in bytes.
    adds: u64,
    /// Entries of it that are on their way to the disk.
    on_their_way: u64,
}

impl Shares {
    pub(super) fn new(part: Part) -> Self {
        Self { part, held: Mutex::default(), aside: Mutex::default(), embedded: None }
    }

    /// Of what this store is to take.
    pub(super) fn for_store(self, store: &Store) -> Self {
        let embedded = match store {
            Store::Sqlite(sqlite) => Some(Arc::clone(sqlite)),
            Store::Postgres(_) => None,
        };
        Self { embedded, ..self }
    }

    /// For an entry of so many bytes, where the tenant's part has room, of a spool that has so much on its disk: what is done with
    /// stays there for a while, and what is on its way is not there yet.
    pub(super) fn take(&self, (tenant, bytes): Owned, adds: u64, on_disk: u64) -> Result<(), NoRoom> {
        let mut held = self.held.lock();
        let (own, all) = {
            let aside = self.aside.lock();
            (aside.of.get(&tenant).map_or(0, |bytes| *bytes), aside.all)
        };
        let (own, all) = (own.saturating_add(of(&held, tenant).bytes), all.saturating_add(held.bytes));
        self.part.has_room(own, all.max(on_disk), bytes)?;
        Self::add(&mut held, (tenant, bytes), adds).on_their_way += 1;
        self.promise(held.adds);
        Ok(())
    }

    /// One that was taken for is on the disk, or will not be, and then its part is given back.
    pub(super) fn landed(&self, owned: Owned, adds: u64, is_kept: bool) {
        let mut held = self.held.lock();
        if let Some(own) = held.of.get_mut(&owned.0) {
            own.on_their_way = own.on_their_way.saturating_sub(1);
        }
        if !is_kept {
            held.take_away(owned, adds);
            self.promise(held.adds);
        }
    }

    /// Gives back what tenants have of whom everything that is on the disk is done with: it became damage before it was read, or somebody removed
    /// its file. Not while something is done with and not yet given back.
    pub(super) fn give_back_lost(&self, is_done: impl Fn(Uuid) -> bool) {
        let All { of, bytes, adds } = &mut *self.held.lock();
        of.retain(|tenant, own| {
            let is_lost = own.on_their_way == 0 && is_done(*tenant);
            if is_lost {
                *bytes = bytes.saturating_sub(own.bytes);
                *adds = adds.saturating_sub(own.adds);
            }
            !is_lost
        });
        self.promise(*adds);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.held.lock().of.is_empty()
    }

    /// Of an entry that was there before.
    pub(super) fn note(&self, owned: Owned, adds: u64) {
        let mut held = self.held.lock();
        Self::add(&mut held, owned, adds);
        self.promise(held.adds);
    }

    fn add(held: &mut All, (tenant, bytes): Owned, adds: u64) -> &mut Held {
        held.bytes = held.bytes.saturating_add(bytes);
        held.adds = held.adds.saturating_add(adds);
        let own = held.of.entry(tenant).or_default();
        own.bytes = own.bytes.saturating_add(bytes);
        own.adds = own.adds.saturating_add(adds);
        own
    }

    /// The store keeps room for all of it.
    fn promise(&self, adds: u64) {
        if let Some(store) = &self.embedded {
            store.promise(adds);
        }
    }

    /// Whether a tenant has anything there that is not done with.
    pub(super) fn has(&self, tenant: Uuid) -> bool {
        of(&self.held.lock(), tenant).bytes > 0
    }

    /// What a tenant has there adds so much to the store, in bytes.
    pub(super) fn adds(&self, tenant: Uuid) -> u64 {
        of(&self.held.lock(), tenant).adds
    }

    /// Of an entry that is put aside.
    pub(super) fn add_aside(&self, tenant: Uuid, bytes: u64) {
        self.aside.lock().add((tenant, bytes));
    }

    /// All that is put aside now: somebody may have removed some of it.
    pub(super) fn set_aside(&self, all: impl Iterator<Item = Owned>) {
        let mut aside = Aside::default();
        all.for_each(|owned| aside.add(owned));
        *self.aside.lock() = aside;
    }

    /// Of an entry that is done with. A tenant that has nothing adds nothing.
    pub(super) fn give_back(&self, owned: Owned, adds: u64) {
        let mut held = self.held.lock();
        held.take_away(owned, adds);
        self.promise(held.adds);
    }
}

impl All {
    fn take_away(&mut self, (tenant, bytes): Owned, adds: u64) {
        if let Some(own) = self.of.get_mut(&tenant) {
            let bytes = bytes.min(own.bytes);
            own.bytes -= bytes;
            let given = if own.bytes == 0 { own.adds } else { adds.min(own.adds) };
            own.adds -= given;
            if own.bytes == 0 {
                self.of.remove(&tenant);
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            self.adds = self.adds.saturating_sub(given);
        }
    }
}

/// Who is not there has nothing.
fn of(held: &All, tenant: Uuid) -> Held {
    held.of.get(&tenant).map_or(Held { bytes: 0, adds: 0, on_their_way: 0 }, |own| *own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_part_and_another_the_rest() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let shares = Shares::new(Part::one_in(400, 4));
        let takes = |owned| shares.take(owned, 0, 0).is_ok();
        assert!(takes((a, 150)), "one always fits");
        assert!(!takes((a, 1)));
        assert!(takes((b, 40)) && takes((b, 22)), "a quarter of what is left beside the other");
        assert!(!takes((b, 1)));
        shares.give_back((b, 22), 0);
        assert!(takes((b, 22)) && !takes((b, 1)));
        shares.give_back((a, 150), 0);
        assert_eq!(shares.held.lock().of.len(), 1, "who has nothing is forgotten");
        shares.note((a, 60), 3);
        shares.note((b, 0), 5);
        assert_eq!((shares.adds(a), shares.adds(b), shares.held.lock().adds), (3, 5, 8));
        shares.give_back((a, 10), 1);
        shares.note((a, 10), 1);
        shares.give_back((b, 100), 2);
        assert_eq!(shares.held.lock().adds, 3, "a tenant that has nothing adds nothing");
        assert_eq!(shares.held.lock().bytes, 60);
        shares.add_aside(a, 40);
        assert_eq!(shares.take((a, 1), 0, 0), Err(NoRoom::OfTenant));
        shares.set_aside([(b, 5)].into_iter());
        assert!(takes((a, 38)) && !takes((a, 1)));
    }

    #[test]
    fn what_was_lost_is_given_back_and_what_is_on_its_way_is_not() {
        let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let shares = Shares::new(Part::one_in(400, 4));
        shares.note((a, 20), 2);
        shares.note((b, 30), 3);
        shares.take((c, 40), 4, 0).unwrap();
        let is_done = |tenant| tenant != b;
        shares.give_back_lost(is_done);
        assert_eq!((shares.has(a), shares.has(b), shares.has(c)), (false, true, true));
        shares.landed((c, 40), 4, true);
        shares.give_back_lost(is_done);
        let held = shares.held.lock();
        assert_eq!((held.of.len(), held.bytes, held.adds), (1, 30, 3));
    }

    #[test]
    fn however_many_fill_it_there_is_some_left_for_one_more() {
        let shares = Shares::new(Part::one_in(1000, 4));
        let fill = |tenant| (0..).find(|_| shares.take((Uuid::from_u128(tenant), 1), 0, 0).is_err()).unwrap();
        for _ in 0..100 {
            (1..=4).for_each(|tenant| assert!(fill(tenant) <= 250));
        }
        assert!(fill(5) > 75, "four have not taken it all");
        assert_eq!(
            shares.take((Uuid::from_u128(6), 100), 0, 950),
            Err(NoRoom::OfAll),
            "the disk is what is full"
        );
    }
}
