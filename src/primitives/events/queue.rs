//! Publishers that wait: each tenant's in a line of its own, of which the next transaction takes one after the other, and each
//! with a share of the room for those that wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

/// Of each of a room's bounds, one tenant's part at the most is one in so many; one call of a tenant with no other always fits.
const SHARE: u8 = 4;

/// Lines of what waits, by tenant.
pub(super) struct Lines<J> {
    lines: HashMap<Uuid, VecDeque<(u64, J)>>,
    /// Whose turn it is; each tenant with a line once.
    turns: VecDeque<Uuid>,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<J> Lines<J> {
    /// Puts what is of so many bytes at the end of its tenant's line.
    pub(super) fn push(&mut self, tenant: Uuid, bytes: u64, job: J) {
        let line = self.lines.entry(tenant).or_default();
        if line.is_empty() {
            self.turns.push_back(tenant);
        }
        line.push_back((bytes, job));
    }

    /// Takes up to so many, of each line one in turn, until the next would be over the bound of bytes; the first goes whatever
    /// it has.
    pub(super) fn take(&mut self, max: usize, max_bytes: u64) -> Vec<J> {
        let (mut taken, mut bytes) = (Vec::new(), 0_u64);
        while let Some(tenant) = self.turns.front().copied() {
            let Some(line) = self.lines.get_mut(&tenant) else { break };
            let next = line.front().map_or(0, |(bytes, _)| *bytes);
            bytes = bytes.saturating_add(next);
            if !taken.is_empty() && (taken.len() == max || bytes > max_bytes) {
                break;
            }
            taken.extend(line.pop_front().map(|(_, job)| job));
            self.turns.rotate_left(1);
            if line.is_empty() {
                self.lines.remove(&tenant);
                self.turns.pop_back();
            }
        }
        taken
    }
}

/// Why there is no room for a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Its tenant's others have its share.
    OfTenant,
    /// Everyone's.
    OfAll,
}

/// What may wait at the most; more is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) calls: usize,
    /// Of what they carry, together.
    pub(super) bytes: u64,
}

/// The room for those that wait.
pub(super) struct Room {
    bounds: Bounds,
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
    fn has_room(self, bytes: u64, bounds: Bounds, part: u8) -> bool {
        let (max_calls, max_bytes) = (bounds.calls / usize::from(part), bounds.bytes / u64::from(part));
        self.calls == 0 || (self.calls < max_calls && self.bytes.saturating_add(bytes) <= max_bytes)
    }

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
pub(super) struct Place {
    room: Arc<Mutex<Taken>>,
    tenant: Uuid,
    bytes: u64,
}

impl Room {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, taken: Arc::default() }
    }

    /// Room for a tenant's call of so many bytes.
    pub(super) fn enter(&self, tenant: Uuid, bytes: u64) -> Result<Place, NoRoom> {
        let mut taken = self.taken.lock();
        let own = taken.tenants.get(&tenant).copied().unwrap_or_default();
        if !own.has_room(bytes, self.bounds, SHARE) {
            return Err(NoRoom::OfTenant);
        }
        if !taken.all.has_room(bytes, self.bounds, 1) {
            return Err(NoRoom::OfAll);
        }
        taken.all.add(bytes);
        taken.tenants.entry(tenant).or_default().add(bytes);
        Ok(Place { room: Arc::clone(&self.taken), tenant, bytes })
    }
}

impl Place {
    /// Of the call's events.
    pub(super) fn bytes(&self) -> u64 {
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
    fn tenants_take_turns_and_each_tenant_s_own_stay_in_order() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (A, "a4"), (C, "c1"), (B, "b2")] {
            lines.push(tenant, 10, name);
        }
        assert_eq!(lines.take(5, 1000), ["a1", "b1", "c1", "a2", "b2"]);
        lines.push(B, 10, "b3");
        assert_eq!(lines.take(5, 1000), ["a3", "b3", "a4"]);
        assert_eq!(lines.take(5, 1000), [""; 0]);
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
    }

    #[test]
    fn a_transaction_ends_at_its_bytes_and_who_did_not_fit_is_the_next() {
        let mut lines = Lines::default();
        for (tenant, bytes, name) in [(A, 500, "large"), (B, 60, "b1"), (C, 60, "c1"), (B, 10, "b2")] {
            lines.push(tenant, bytes, name);
        }
        assert_eq!(lines.take(9, 100), ["large"], "one's own always go");
        assert_eq!(lines.take(9, 100), ["b1"]);
        assert_eq!(lines.take(9, 100), ["c1", "b2"]);
    }

    #[test]
    fn a_tenant_has_a_share_of_the_room_and_leaves_nothing_behind() {
        let room = Room::new(Bounds { calls: 8192, bytes: 256 * 1024 * 1024 });
        let fill = |tenant, bytes| std::iter::from_fn(|| room.enter(tenant, bytes).ok()).collect::<Vec<_>>();
        let many = fill(A, 1);
        assert_eq!(many.len(), 2048);
        assert_eq!(room.enter(A, 1).err(), Some(NoRoom::OfTenant));
        let large = fill(B, 8 * 1024 * 1024);
        assert_eq!(large.len(), 8);
        assert_eq!(room.enter(B, 8 * 1024 * 1024).err(), Some(NoRoom::OfTenant));
        assert!(room.enter(B, 1).is_err(), "not a byte more");
        assert!(room.enter(C, 100 * 1024 * 1024).is_ok(), "one call always fits");
        drop((many, large));
        let others: Vec<_> = (10..14).map(|tenant| fill(Uuid::from_u128(tenant), 1)).collect();
        assert_eq!(room.enter(A, 1).err(), Some(NoRoom::OfAll));
        drop(others);
        assert!(room.taken.lock().tenants.is_empty());
        assert_eq!(room.taken.lock().all, Load::default());
    }
}
