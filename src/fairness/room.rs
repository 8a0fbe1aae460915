//! The room for those that wait, and a tenant's part of it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::Part;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Calls at the most; more are refused.
    pub calls: usize,
    /// What they bring together at the most, in bytes.
    pub bytes: u64,
    /// Of each of the two, the part of a tenant that is alone is one in so many ([`Part`]); one call of a tenant with no other always
    /// fits.
    pub share: u8,
}

/// Why there is no room for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// Its tenant's others have its share.
    OfTenant,
    /// Everyone's, or what the others leave.
    OfAll,
}

/// The room for those that wait.
pub struct Room {
    calls: Part,
    bytes: Part,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: Load,
    tenants: HashMap<Uuid, Load>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Load {
    calls: usize,
    bytes: u64,
}

impl Load {
    const NOTHING: Self = Self { calls: 0, bytes: 0 };

    fn add(&mut self, bytes: u64) {
        self.calls += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn take_away(&mut self, bytes: u64) {
        self.calls -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A caller's room; given back when it is dropped.
pub struct Place {
    room: Arc<Mutex<Taken>>,
    tenant: Uuid,
    bytes: u64,
}

impl Room {
    /// With nothing in it.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let Bounds { calls, bytes, share } = bounds;
        let (calls, bytes) = (Part::one_in(calls as u64, share), Part::one_in(bytes, share));
        Self { calls, bytes, taken: Arc::default() }
    }

    /// Room for a tenant's call of so many bytes.
    pub fn enter(&self, tenant: Uuid, bytes: u64) -> Result<Place, NoRoom> {
        let mut taken = self.taken.lock();
        let own = taken.tenants.get(&tenant).map_or(Load::NOTHING, |load| *load);
        self.calls.has_room(own.calls as u64, taken.all.calls as u64, 1)?;
        // A call that nobody else's are beside goes, whatever it brings.
        if taken.all.calls > 0 {
            // Who has calls that bring nothing has something.
            let own = if own.calls == 0 { 0 } else { own.bytes.max(1) };
            self.bytes.has_room(own, taken.all.bytes, bytes)?;
        }
        taken.all.add(bytes);
        taken.tenants.entry(tenant).or_default().add(bytes);
        Ok(Place { room: Arc::clone(&self.taken), tenant, bytes })
    }
}

impl Place {
    /// What the call brings.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.all.take_away(self.bytes);
        if let Some(own) = taken.tenants.get_mut(&self.tenant) {
            own.take_away(self.bytes);
            if own.calls == 0 {
                taken.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);
    const C: Uuid = Uuid::from_u128(3);

    #[test]
    fn a_tenant_has_a_share_of_the_room_and_leaves_nothing_behind() {
        let room = Room::new(Bounds { calls: 8192, bytes: 256 * 1024 * 1024, share: 4 });
        let fill = |tenant, bytes| std::iter::from_fn(|| room.enter(tenant, bytes).ok()).collect::<Vec<_>>();
        let many = fill(A, 1);
        assert_eq!(many.len(), 2048);
        assert_eq!(room.enter(A, 1).err(), Some(NoRoom::OfTenant));
        drop(many);
        let large = fill(B, 8 * 1024 * 1024);
        assert_eq!(large.len(), 8);
        assert_eq!(room.enter(B, 8 * 1024 * 1024).err(), Some(NoRoom::OfTenant));
        assert!(room.enter(B, 1).is_err(), "not a byte more");
        assert!(room.enter(C, 100 * 1024 * 1024).is_ok(), "one call always fits");
        assert_eq!(room.enter(C, 200 * 1024 * 1024).err(), Some(NoRoom::OfAll));
        drop(large);
        let others: Vec<_> = (10..14).map(|tenant| fill(Uuid::from_u128(tenant), 1)).collect();
        assert!(fill(A, 1).len() > 600, "four have not taken it all");
        drop(others);
        assert!(room.taken.lock().tenants.is_empty());
        assert_eq!(room.taken.lock().all, Load::default());
    }
}
