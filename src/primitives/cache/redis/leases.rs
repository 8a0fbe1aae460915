//! How many fill leases a tenant's callers hold here: each is a key in Redis, and none counts as the tenant's bytes.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::primitives::cache::lease::{LeaseToken, MAX_LEASES, MAX_OF_TENANT};

/// The leases that this process asked for and that are neither used nor given up here. One that another write voided
/// counts until its time is over.
#[derive(Default)]
pub(super) struct Leases(Mutex<Held>);

#[derive(Default)]
struct Held {
    tenants: HashMap<Uuid, HashMap<LeaseToken, Instant>>,
    count: usize,
}

impl Held {
    fn forget_ended(&mut self, tenant: &Uuid, now: Instant) {
        let Some(leases) = self.tenants.get_mut(tenant) else { return };
        let before = leases.len();
        leases.retain(|_, until| now < *until);
        self.count -= before - leases.len();
        if leases.is_empty() {
            self.tenants.remove(tenant);
        }
    }
}

impl Leases {
    /// Counts one more until then; false where the tenant, or all together, hold as many as they may.
    pub(super) fn add(&self, tenant: &Uuid, token: &LeaseToken, until: Instant) -> bool {
        let (mut held, now) = (self.0.lock(), Instant::now());
        let of_tenant = |held: &Held| held.tenants.get(tenant).map_or(0, HashMap::len);
        if of_tenant(&held) >= MAX_OF_TENANT {
            held.forget_ended(tenant, now);
        } else if held.count >= MAX_LEASES {
            for tenant in held.tenants.keys().copied().collect::<Vec<_>>() {
                held.forget_ended(&tenant, now);
            }
        }
        if of_tenant(&held) >= MAX_OF_TENANT || held.count >= MAX_LEASES {
            return false;
        }
        held.tenants.entry(*tenant).or_default().insert(token.clone(), until);
        held.count += 1;
        true
    }

    /// It is used, given up, or was not granted.
    pub(super) fn remove(&self, tenant: &Uuid, token: &LeaseToken) {
        let mut held = self.0.lock();
        let Some(leases) = held.tenants.get_mut(tenant) else { return };
        let removed = leases.remove(token).is_some();
        if leases.is_empty() {
            held.tenants.remove(tenant);
        }
        held.count -= usize::from(removed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tenant_that_holds_all_of_its_leases_leaves_others_theirs() {
        let (leases, one, two) = (Leases::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let (later, over) = (Instant::now() + Duration::from_secs(60), Instant::now());
        let tokens: Vec<_> = (0..MAX_OF_TENANT).map(|_| LeaseToken::random()).collect();
        for token in &tokens {
            assert!(leases.add(&one, token, later));
        }
        let more = LeaseToken::random();
        assert!(!leases.add(&one, &more, later));
        assert!(leases.add(&two, &more, later));
        leases.remove(&one, &tokens[7]);
        leases.remove(&one, &tokens[7]);
        assert!(leases.add(&one, &more, over), "it has room again");
        assert!(leases.add(&one, &tokens[7], later), "what ran out makes room");
        for token in tokens.iter().chain([&more]) {
            leases.remove(&one, token);
            leases.remove(&two, token);
        }
        let held = leases.0.lock();
        assert_eq!((held.count, held.tenants.len()), (0, 0));
    }
}
