//! Fill leases: on a miss one caller fills, the others wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use uuid::Uuid;

use super::key::{Address, Scope};
use super::policy::Namespace;
use super::{CacheBackend, CacheError, Found, LeaseAnswer};

/// The longest time between two looks of a waiter, for changes that nobody tells it of.
const POLL: Duration = Duration::from_millis(200);
/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 64;

/// Leases that a tenant's callers hold at once in a process at the most.
pub(super) const MAX_OF_TENANT: usize = 4096;
/// The same of all tenants.
pub(super) const MAX_LEASES: usize = 262_144;

/// What the filler shows with its PUT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseToken(Box<str>);

impl LeaseToken {
    pub(super) fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string().into())
    }

    /// A token as a header has it: 1 to 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= MAX_TOKEN_BYTES;
        (fits && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| Self(text.into()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who waits for which entry to change.
#[derive(Default)]
pub(crate) struct Waiters {
    entries: Mutex<HashMap<Box<[u8]>, Waiting>>,
    count: AtomicUsize,
}

struct Waiting {
    changed: Arc<Notify>,
    waiters: usize,
}

/// One waiter; it is forgotten when this is dropped.
struct Waiter<'w> {
    waiters: &'w Waiters,
    entry: Box<[u8]>,
    changed: Arc<Notify>,
}

impl Waiters {
    fn listen(&self, entry: &[u8]) -> Waiter<'_> {
        let mut entries = self.entries.lock();
        let waiting = entries
            .entry(entry.into())
            .or_insert_with(|| Waiting { changed: Arc::new(Notify::new()), waiters: 0 });
        waiting.waiters += 1;
        self.count.fetch_add(1, Relaxed);
        Waiter { waiters: self, entry: entry.into(), changed: Arc::clone(&waiting.changed) }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Tells the waiters of `entry` to look again.
    pub(super) fn changed(&self, entry: &[u8]) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        if let Some(waiting) = self.entries.lock().get(entry) {
            waiting.changed.notify_waiters();
        }
    }

    /// Tells the waiters of a scope to look again: one tenant's invalidations are no work for the others'.
    pub(super) fn scope_changed(&self, scope: &Scope) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let mut prefix = SmallVec::<[u8; 128]>::from_slice(b"cache:");
        scope.write_to(&mut prefix);
        prefix.push(b':');
        for (entry, waiting) in &*self.entries.lock() {
            if entry.starts_with(&prefix) {
                waiting.changed.notify_waiters();
            }
        }
    }

    /// Tells every waiter to look again.
    pub(super) fn all_changed(&self) {
        for waiting in self.entries.lock().values() {
            waiting.changed.notify_waiters();
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiters.count.fetch_sub(1, Relaxed);
        let mut entries = self.waiters.entries.lock();
        if let Some(waiting) = entries.get_mut(&self.entry) {
            waiting.waiters -= 1;
            if waiting.waiters == 0 {
                entries.remove(&self.entry);
            }
        }
    }
}

/// What a read of a namespace with fill leases comes to.
pub(crate) enum Read {
    /// The value, perhaps a stale one.
    Found(Found),
    /// Nothing, and this caller is to fill.
    Fill(LeaseToken),
    /// Nothing, and another fills.
    Wait,
}

/// Reads, takes the lease on a miss, or waits until `until` for what the lease's holder writes. A waiter
/// that finds the lease gone takes it, unless another was quicker. Without `until` a value past its time
/// is not looked at.
pub(crate) async fn read(
    backend: &dyn CacheBackend,
    address: &Address,
    rules: &Namespace,
    lease_ms: u64,
    until: Option<Instant>,
    budget: Duration,
) -> Result<Read, CacheError> {
    let mut waiter = None;
    loop {
        // Listening begins before the look, so that no change is missed between the two.
        let notified =
            waiter.as_ref().map(|waiter: &Waiter<'_>| Arc::clone(&waiter.changed).notified_owned());
        let mut notified = std::pin::pin!(notified);
        if let Some(notified) = notified.as_mut().as_pin_mut() {
            notified.enable();
        }
        let (for_ms, stale) = match backend.lease(address, rules, lease_ms, budget).await? {
            LeaseAnswer::Found(found) => return Ok(Read::Found(found)),
            LeaseAnswer::Granted(token) => return Ok(Read::Fill(token)),
            LeaseAnswer::Held { for_ms, stale } => (for_ms, stale),
        };
        let Some(until) = until else { return Ok(Read::Wait) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(stale.map_or(Read::Wait, Read::Found));
        }
        match notified.as_mut().as_pin_mut() {
            None => waiter = Some(backend.waiters().listen(address.entry())),
            Some(notified) => {
                let pause = left.min(POLL).min(Duration::from_millis(for_ms.saturating_add(1)));
                // Both ends of the wait lead to another look.
                tokio::time::timeout(pause, notified).await.unwrap_or(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::names::Key;

    #[test]
    fn an_invalidation_wakes_the_waiters_of_its_scope_only() {
        let waiters = Waiters::default();
        let scopes = [(1, "n"), (1, "n2"), (2, "n")].map(|(tenant, name)| Scope::for_test(tenant, name));
        let listening = scopes.clone().map(|scope| {
            let address = Address::new(scope, &Key::parse("k").unwrap(), None);
            waiters.listen(address.entry())
        });
        let mut notified =
            listening.each_ref().map(|waiter| Box::pin(Arc::clone(&waiter.changed).notified_owned()));
        notified.iter_mut().for_each(|notified| {
            notified.as_mut().enable();
        });
        waiters.scope_changed(&scopes[0]);
        let woken = notified.each_mut().map(|notified| notified.now_or_never().is_some());
        assert_eq!(woken, [true, false, false]);
    }
}
