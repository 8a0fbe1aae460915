//! Fill leases, in memory: one process, so one table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::primitives::cache::CacheError;
use crate::primitives::cache::key::{Address, Scope};
use crate::primitives::cache::lease::{LeaseToken, MAX_LEASES, MAX_OF_TENANT};

#[derive(Default)]
pub(super) struct Leases(Mutex<Held>);

/// By tenant: what one tenant holds is no other's bound, and is all that its invalidations look at.
#[derive(Default)]
struct Held {
    tenants: HashMap<Uuid, HashMap<Box<[u8]>, Lease>>,
    count: usize,
}

struct Lease {
    token: LeaseToken,
    until: Instant,
    namespace: Box<str>,
    version: Option<Box<str>>,
    /// Used by a write whose commit is under way: nobody's any more, and nobody else's yet.
    used: bool,
}

/// A lease on its way to its caller; it goes back if it does not get there.
pub(super) struct Taken<'l> {
    leases: &'l Leases,
    address: &'l Address,
    token: Option<LeaseToken>,
}

impl Taken<'_> {
    pub(super) fn hand_over(mut self) -> Option<LeaseToken> {
        self.token.take()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(token) = &self.token {
            self.leases.give_up(self.address, token);
        }
    }
}

impl Held {
    fn get(&mut self, scope: &Scope, entry: &[u8]) -> Option<&mut Lease> {
        self.tenants.get_mut(scope.tenant())?.get_mut(entry)
    }

    fn retain(&mut self, tenant: &Uuid, keep: impl FnMut(&Box<[u8]>, &mut Lease) -> bool) {
        let Some(leases) = self.tenants.get_mut(tenant) else { return };
        let before = leases.len();
        leases.retain(keep);
        self.count -= before - leases.len();
        if leases.is_empty() {
            self.tenants.remove(tenant);
        }
    }

    fn remove(&mut self, scope: &Scope, entry: &[u8]) {
        let Some(leases) = self.tenants.get_mut(scope.tenant()) else { return };
        self.count -= usize::from(leases.remove(entry).is_some());
        if leases.is_empty() {
            self.tenants.remove(scope.tenant());
        }
    }

    /// Whether there is room for one more of the tenant's.
    fn has_room(&mut self, tenant: &Uuid, now: Instant) -> bool {
        let of_tenant = |held: &Self| held.tenants.get(tenant).map_or(0, HashMap::len);
        if of_tenant(self) >= MAX_OF_TENANT {
            self.retain(tenant, |_, lease| now < lease.until);
        } else if self.count >= MAX_LEASES {
            for tenant in self.tenants.keys().copied().collect::<Vec<_>>() {
                self.retain(&tenant, |_, lease| now < lease.until);
            }
        }
        of_tenant(self) < MAX_OF_TENANT && self.count < MAX_LEASES
    }
}

impl Leases {
    /// The lease of a key; where another holds it, for how many milliseconds yet.
    pub(super) fn take<'l>(
        &'l self,
        address: &'l Address,
        lease_ms: u64,
    ) -> Result<Result<Taken<'l>, u64>, CacheError> {
        let now = Instant::now();
        let mut held = self.0.lock();
        let scope = address.scope();
        if let Some(lease) = held.get(scope, address.entry()).filter(|lease| now < lease.until) {
            let left = lease.until.saturating_duration_since(now).as_millis();
            return Ok(Err(u64::try_from(left).unwrap_or(u64::MAX)));
        }
        // One that ran out gives its place to its successor.
        held.remove(scope, address.entry());
        if !held.has_room(scope.tenant(), now) {
            return Err(CacheError::Overloaded);
        }
        let token = LeaseToken::random();
        let lease = Lease {
            token: token.clone(),
            until: now + Duration::from_millis(lease_ms),
            namespace: scope.namespace().into(),
            version: address.version().map(Box::from),
            used: false,
        };
        held.tenants.entry(*scope.tenant()).or_default().insert(address.entry().into(), lease);
        held.count += 1;
        Ok(Ok(Taken { leases: self, address, token: Some(token) }))
    }

    pub(super) fn holds(&self, scope: &Scope, entry: &[u8], token: &LeaseToken) -> bool {
        let mut held = self.0.lock();
        held.get(scope, entry)
            .is_some_and(|lease| !lease.used && lease.token == *token && Instant::now() < lease.until)
    }

    /// Takes a key's lease from its holder; nobody gets the next one before [`Leases::void`].
    pub(super) fn use_up(&self, scope: &Scope, entry: &[u8]) {
        if let Some(lease) = self.0.lock().get(scope, entry) {
            lease.used = true;
        }
    }

    pub(super) fn void(&self, scope: &Scope, entry: &[u8]) {
        self.0.lock().remove(scope, entry);
    }

    pub(super) fn give_up(&self, address: &Address, token: &LeaseToken) {
        let (mut held, scope) = (self.0.lock(), address.scope());
        if held.get(scope, address.entry()).is_some_and(|lease| !lease.used && lease.token == *token) {
            held.remove(scope, address.entry());
        }
    }

    /// Voids the leases of a scope, or of one version in it.
    pub(super) fn void_scope(&self, scope: &Scope, version: Option<&str>) {
        self.0.lock().retain(scope.tenant(), |_, lease| {
            *lease.namespace != *scope.namespace()
                || version.is_some_and(|version| lease.version.as_deref() != Some(version))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Key;

    #[test]
    fn a_tenant_that_holds_all_of_its_leases_leaves_others_theirs() {
        let leases = Leases::default();
        let address = |tenant, key: usize| {
            Address::new(Scope::for_test(tenant, "n"), &Key::parse(&key.to_string()).unwrap(), None)
        };
        let take =
            |tenant, key, ms| leases.take(&address(tenant, key), ms).map(|taken| taken.unwrap().hand_over());
        for key in 0..MAX_OF_TENANT {
            assert!(take(1, key, 60_000).unwrap().is_some());
        }
        assert!(matches!(take(1, MAX_OF_TENANT, 60_000), Err(CacheError::Overloaded)));
        assert!(take(2, 0, 60_000).unwrap().is_some());
        leases.void(&Scope::for_test(1, "n"), address(1, 7).entry());
        assert!(take(1, MAX_OF_TENANT, 0).unwrap().is_some(), "it has room again");
        assert!(take(1, 7, 60_000).unwrap().is_some(), "what ran out makes room");
        leases.void_scope(&Scope::for_test(1, "n"), None);
        assert_eq!(leases.0.lock().count, 1);
    }
}
