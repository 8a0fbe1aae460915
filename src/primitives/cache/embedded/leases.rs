//! Fill leases, in memory: one process, so one table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::primitives::cache::CacheError;
use crate::primitives::cache::key::{Address, Scope};
use crate::primitives::cache::lease::LeaseToken;

/// Leases held at once at the most.
const MAX_LEASES: usize = 65_536;

#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<Box<[u8]>, Lease>>);

struct Lease {
    token: LeaseToken,
    until: Instant,
    scope: Scope,
    version: Option<Box<str>>,
    /// Used by a write whose commit is under way: nobody's any more, and nobody else's yet.
    used: bool,
}

/// A lease on its way to its caller; it goes back if it does not get there.
pub(super) struct Taken<'l> {
    leases: &'l Leases,
    entry: &'l [u8],
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
            self.leases.give_up(self.entry, token);
        }
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
        let mut leases = self.0.lock();
        if let Some(held) = leases.get(address.entry()).filter(|lease| now < lease.until) {
            let left = held.until.saturating_duration_since(now).as_millis();
            return Ok(Err(u64::try_from(left).unwrap_or(u64::MAX)));
        }
        if leases.len() >= MAX_LEASES {
            leases.retain(|_, lease| now < lease.until);
            if leases.len() >= MAX_LEASES {
                return Err(CacheError::Overloaded);
            }
        }
        let token = LeaseToken::random();
        let lease = Lease {
            token: token.clone(),
            until: now + Duration::from_millis(lease_ms),
            scope: address.scope().clone(),
            version: address.version().map(Box::from),
            used: false,
        };
        leases.insert(address.entry().into(), lease);
        Ok(Ok(Taken { leases: self, entry: address.entry(), token: Some(token) }))
    }

    pub(super) fn holds(&self, entry: &[u8], token: &LeaseToken) -> bool {
        let leases = self.0.lock();
        leases
            .get(entry)
            .is_some_and(|lease| !lease.used && lease.token == *token && Instant::now() < lease.until)
    }

    /// Takes a key's lease from its holder; nobody gets the next one before [`Leases::void`].
    pub(super) fn use_up(&self, entry: &[u8]) {
        if let Some(lease) = self.0.lock().get_mut(entry) {
            lease.used = true;
        }
    }

    pub(super) fn void(&self, entry: &[u8]) {
        self.0.lock().remove(entry);
    }

    pub(super) fn give_up(&self, entry: &[u8], token: &LeaseToken) {
        let mut leases = self.0.lock();
        if leases.get(entry).is_some_and(|lease| !lease.used && lease.token == *token) {
            leases.remove(entry);
        }
    }

    /// Voids the leases of a scope, or of one version in it.
    pub(super) fn void_scope(&self, scope: &Scope, version: Option<&str>) {
        self.0.lock().retain(|_, lease| {
            lease.scope != *scope || version.is_some_and(|version| lease.version.as_deref() != Some(version))
        });
    }
}
