//! Which of a shard's events are parked: those of a key from one on, and of a tenant with too many such keys all.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{MAX_PARKED_KEYS, OrderedKey, Row, Stop};
use crate::primitives::events::Position;

/// Keys of a tenant in a shard that are parked each for itself. Beyond it all that comes of the tenant is parked unseen, so
/// that it costs no more aborted transactions of everybody's.
pub const MAX_PARKED_KEYS_OF_TENANT: usize = 100;

/// What is parked of a shard, or of one tenant in it.
///
/// Of a tenant that is parked as a whole no keys are known: the store has them. It is as many keys again only where the
/// store has so few, and then it says which they are; no key goes on of which an earlier event is parked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parked {
    /// From which event on a key's events are parked.
    keys: BTreeMap<OrderedKey, Position>,
    /// Those of which all that is not yet delivered is parked.
    tenants: BTreeSet<Uuid>,
    most_of_tenant: usize,
}

impl Parked {
    /// Of a store that has these keys parked, each from that position on; of a tenant that has more than `most_of_tenant`
    /// it need not be all.
    #[must_use]
    pub fn new(keys: BTreeMap<OrderedKey, Position>, most_of_tenant: usize) -> Self {
        let mut counts = BTreeMap::<Uuid, usize>::new();
        for key in keys.keys() {
            *counts.entry(key.tenant).or_default() += 1;
        }
        let mut parked = Self { keys, tenants: BTreeSet::new(), most_of_tenant };
        for (tenant, _) in counts.into_iter().filter(|(_, count)| *count > most_of_tenant) {
            parked.park_tenant(tenant);
        }
        parked
    }

    /// How many keys, at the least.
    pub(in super::super) fn len(&self) -> usize {
        self.keys.len() + self.tenants.len() * (self.most_of_tenant + 1)
    }

    /// Whether all that comes of a tenant is.
    pub(in super::super) fn has_tenant(&self, tenant: &Uuid) -> bool {
        self.tenants.contains(tenant)
    }

    pub(super) fn holds(&self, row: &Row) -> bool {
        // Most shards have none, and pay for no key then.
        self.has_tenant(&row.event.tenant)
            || !self.keys.is_empty()
                && self.keys.get(&OrderedKey::of(row)).is_some_and(|from| *from <= row.event.position)
    }

    pub(super) fn refuse(&mut self, row: &Row) -> Result<(), Stop> {
        let (position, tenant) = (row.event.position, row.event.tenant);
        if self.has_tenant(&tenant) {
            return Ok(());
        }
        let from = self.keys.entry(OrderedKey::of(row)).or_insert(position);
        *from = position.min(*from);
        if self.keys.keys().filter(|key| key.tenant == tenant).count() > self.most_of_tenant {
            self.park_tenant(tenant);
        }
        if self.keys.len() > MAX_PARKED_KEYS { Err(Stop::Parked) } else { Ok(()) }
    }

    /// Something of a tenant is parked no more, and the store has `left` of it; `passed` is the committed position.
    pub(super) fn settled(&mut self, tenant: Uuid, left: Self, passed: Position) {
        if left.has_tenant(&tenant) {
            return self.park_tenant(tenant);
        }
        self.tenants.remove(&tenant);
        // What was refused and is not yet parked in the store comes again. Of a tenant that was parked as a whole that is not
        // known any more: it is refused again.
        self.keys.retain(|key, from| key.tenant != tenant || *from > passed);
        self.keys.extend(left.keys);
    }

    fn park_tenant(&mut self, tenant: Uuid) {
        self.tenants.insert(tenant);
        self.keys.retain(|key, _| key.tenant != tenant);
    }
}
