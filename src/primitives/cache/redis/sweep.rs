//! Removing invalidated entries from Redis, in the background, so that their memory and their tenant's
//! bytes come back, and so that other readers of raw keys see the invalidation too. Until its end a raw value that has
//! no companion is a miss: it may be from before. A sweep says that it goes on; where none does another process begins.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Semaphore;

use super::keys::{self, Keys};
use super::values::{self, Old, array, bytes, integer};
use super::{Shared, unread};
use crate::pools::redis::Slot;
use crate::primitives::cache::CacheError;
use crate::primitives::cache::generation::{Generation, MAX_VERSIONS, Unswept};
use crate::primitives::cache::key::{Address, Scope, version_of};
use crate::primitives::cache::policy::{Format, Namespace};

/// Sweeps at the same time.
const CONCURRENT: usize = 2;
/// Keys that one SCAN step looks at.
const STEP: &str = "512";
/// Times that a sweep begins anew when the cluster's shape changed under it.
const ROUNDS: usize = 3;
/// A scope that is still to be swept this long after this process first saw that is swept here, unless a sweep goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a sweep says about itself holds so long, and is said anew this often.
const CLAIM_MS: u64 = 15_000;
const CLAIM_EVERY: Duration = Duration::from_secs(5);
/// How long a sweep waits for the replicas to have what it removed. A sweep that did not see it is begun again.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// Scopes of which that is remembered.
const MAX_UNFINISHED: usize = 1024;

/// A primary: a slot of it that stands for it, its host and its port.
type Primary = (Slot, Vec<u8>, i64);

/// What is to be swept.
pub(super) struct Sweeps {
    waiting: Mutex<HashMap<Scope, Wanted>>,
    running: Semaphore,
    /// Since when this process sees that a scope is to be swept.
    unfinished: Mutex<HashMap<Scope, Instant>>,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { waiting: Mutex::default(), running: Semaphore::new(CONCURRENT), unfinished: Mutex::default() }
    }
}

#[derive(Clone)]
struct Wanted {
    format: Format,
    stale_ms: u64,
    /// The versions that were invalidated; `None` for all.
    versions: Option<BTreeSet<String>>,
}

impl Wanted {
    fn covers(&self, version: Option<&str>) -> bool {
        match (&self.versions, version) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(versions), Some(version)) => versions.contains(version),
        }
    }
}

impl Sweeps {
    /// Remembers whether a scope is to be swept.
    pub(super) fn note(&self, scope: &Scope, unswept: &Unswept) {
        let mut unfinished = self.unfinished.lock();
        if unswept.is_empty() {
            unfinished.remove(scope);
        } else if unfinished.len() < MAX_UNFINISHED && !unfinished.contains_key(scope) {
            unfinished.insert(scope.clone(), Instant::now());
        }
    }

    /// The scopes that were to be swept `patience` ago, and for all that this process knows still are; each once.
    fn overdue(&self, patience: Duration) -> Vec<Scope> {
        let mut unfinished = self.unfinished.lock();
        unfinished.extract_if(|_, since| since.elapsed() >= patience).map(|(scope, _)| scope).collect()
    }
}

/// Begins the sweeps that others began and did not end.
pub(super) fn resume(shared: &Arc<Shared>) {
    resume_after(shared, PATIENCE);
}

pub(super) fn resume_after(shared: &Arc<Shared>, patience: Duration) {
    for scope in shared.sweeps.overdue(patience) {
        let this = Arc::clone(shared);
        shared.tasks.spawn("cache sweep", async move {
            let Ok(generation) = this.ask(&scope, false, this.pool.command_timeout()).await else { return };
            let unswept = generation.unswept();
            if unswept.is_empty() || !this.claim(&scope, true).await {
                return;
            }
            let versions = (!unswept.all).then(|| unswept.versions.iter().map(|v| v.to_string()).collect());
            start(&this, &scope, Wanted { format: Format::Raw, stale_ms: 0, versions });
        });
    }
}

/// Asks for a sweep of the scope, or of one version in it; it begins as soon as there is a place for it.
pub(super) fn request(shared: &Arc<Shared>, scope: &Scope, rules: &Namespace, version: Option<&str>) {
    let versions = version.map(|version| BTreeSet::from([version.to_owned()]));
    let stale_ms = if rules.format == Format::Raw { 0 } else { rules.stale_ms };
    start(shared, scope, Wanted { format: rules.format, stale_ms, versions });
}

fn start(shared: &Arc<Shared>, scope: &Scope, more: Wanted) {
    let mut waiting = shared.sweeps.waiting.lock();
    if let Some(wanted) = waiting.get_mut(scope) {
        wanted.versions = match (wanted.versions.take(), more.versions) {
            (Some(mut versions), Some(more)) if versions.len() < MAX_VERSIONS => {
                versions.extend(more);
                Some(versions)
            }
            _ => None,
        };
        return;
    }
    waiting.insert(scope.clone(), more);
    drop(waiting);
    let (shared, scope) = (Arc::clone(shared), scope.clone());
    let tasks = shared.tasks.clone();
    tasks.spawn("cache sweep", async move {
        let stopping = shared.tasks.stopping().clone();
        let swept = async {
            let Ok(_place) = shared.sweeps.running.acquire().await else { return Ok(()) };
            let Some(wanted) = shared.sweeps.waiting.lock().remove(&scope) else { return Ok(()) };
            shared.sweep(&scope, &wanted).await
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            swept = swept => if let Err(error) = swept {
                tracing::warn!(%error, "invalidated cache entries could not be removed; they end by their time");
            }
        }
    });
}

impl Shared {
    /// Says that this process sweeps the scope; with `first` only where nobody said so lately.
    async fn claim(&self, scope: &Scope, first: bool) -> bool {
        let key = keys::sweep(scope);
        let mut command = redis::cmd("SET");
        command.arg(&*key).arg(1).arg("PX").arg(CLAIM_MS);
        if first {
            command.arg("NX");
        }
        let said = self.pool.command(Slot::of(&key), &command, self.pool.command_timeout()).await;
        matches!(said, Ok(Value::Okay))
    }

    async fn sweep(&self, scope: &Scope, wanted: &Wanted) -> Result<(), CacheError> {
        let generation = self.ask(scope, false, self.pool.command_timeout()).await?;
        for _ in 0..ROUNDS {
            let shape = self.shape().await?;
            for (slot, ..) in &shape {
                self.sweep_node(*slot, scope, wanted, &generation).await?;
            }
            if wanted.format == Format::Raw && !self.is_confirmed(&shape).await? {
                return Ok(());
            }
            if self.shape().await? == shape {
                return self.settle(scope, wanted, &generation).await;
            }
        }
        Ok(())
    }

    /// Whether every replica that could take over has what was removed until now: also what a sweep removed that did
    /// not come so far. A value without a stamp that a failover brought back after the end would be taken for new.
    async fn is_confirmed(&self, shape: &[Primary]) -> Result<bool, CacheError> {
        for (slot, ..) in shape {
            let key = keys::sweep_end(*slot);
            let script = &self.scripts.confirm;
            let written = self.pool.confirmed_script(*slot, script, &[&key], &[], CONFIRMED_WITHIN).await;
            if !written.map_err(|failure| unread(&failure))?.is_confirmed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says that what was to be swept when the sweep began is swept: what has no stamp is from after it.
    async fn settle(
        &self,
        scope: &Scope,
        wanted: &Wanted,
        generation: &Generation,
    ) -> Result<(), CacheError> {
        let unswept = generation.unswept();
        let swept = unswept.versions.iter().filter(|version| wanted.covers(Some(&**version)));
        let mut fields: Vec<(String, [u8; 8])> = swept
            .map(|version| (format!("v:{version}"), generation.token(Some(&**version)).to_bytes()))
            .collect();
        if unswept.all && wanted.covers(None) {
            fields.push(("all".to_owned(), generation.token(None).to_bytes()));
        }
        if fields.is_empty() {
            return Ok(());
        }
        let pairs = fields.iter().flat_map(|(field, token)| [field.as_bytes(), token]);
        let arguments: Vec<&[u8]> = std::iter::once(keys::UNSWEPT).chain(pairs).collect();
        let key = keys::generation(scope);
        let budget = self.pool.command_timeout();
        let (slot, script) = (Slot::of(&key), &self.scripts.settle);
        let settled = self.pool.script(slot, script, &[&key], &arguments, budget).await;
        settled.map(drop).map_err(|failure| unread(&failure))
    }

    /// The primaries, by their slots. One that took another's place is another: it may lack what was removed there.
    async fn shape(&self) -> Result<Vec<Primary>, CacheError> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let answer = self.pool.command(Slot::of(b""), &command, self.pool.command_timeout()).await;
        let mut nodes: HashMap<(Vec<u8>, i64), u16> = HashMap::new();
        for range in array(answer.map_err(|failure| unread(&failure))?) {
            let mut parts = array(range).into_iter();
            let first = parts.next().and_then(integer).and_then(|slot| u16::try_from(slot).ok());
            let mut primary = array(parts.nth(1).unwrap_or(Value::Nil)).into_iter();
            let address = (primary.next().and_then(bytes), primary.next().and_then(integer));
            if let (Some(first), (Some(host), Some(port))) = (first, address) {
                let slot = nodes.entry((host, port)).or_insert(first);
                *slot = first.min(*slot);
            }
        }
        let mut primaries: Vec<_> =
            nodes.into_iter().map(|((host, port), slot)| (slot, host, port)).collect();
        primaries.sort_unstable();
        let primaries = primaries.into_iter();
        Ok(primaries.filter_map(|(slot, host, port)| Some((Slot::at(slot)?, host, port))).collect())
    }

    async fn sweep_node(
        &self,
        node: Slot,
        scope: &Scope,
        wanted: &Wanted,
        generation: &Generation,
    ) -> Result<(), CacheError> {
        let pattern = format!("cache:{}:{}:*", scope.tenant().hyphenated(), scope.namespace());
        let mut cursor = b"0".to_vec();
        let mut claimed: Option<Instant> = None;
        loop {
            if claimed.is_none_or(|at| at.elapsed() >= CLAIM_EVERY) {
                // Another that sweeps beside this one does no harm.
                self.claim(scope, false).await;
                claimed = Some(Instant::now());
            }
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(STEP);
            let answer = self.pool.command(node, &scan, self.pool.command_timeout()).await;
            let mut parts = array(answer.map_err(|failure| unread(&failure))?).into_iter();
            cursor = parts.next().and_then(bytes).ok_or(CacheError::Unavailable)?;
            for entry in array(parts.next().unwrap_or(Value::Nil)).into_iter().filter_map(bytes) {
                self.sweep_entry(&entry, scope, wanted, generation).await?;
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    async fn sweep_entry(
        &self,
        entry: &[u8],
        scope: &Scope,
        wanted: &Wanted,
        generation: &Generation,
    ) -> Result<(), CacheError> {
        let Some(version) = version_of(entry) else { return Ok(()) };
        let foreign: &[u8] = if wanted.covers(version.as_deref()) { b"1" } else { b"0" };
        let stamp = generation.stamp(version.as_deref());
        let look = async |seen: &[u8]| {
            let arguments: [&[u8]; 4] = [values::name(wanted.format), stamp.as_bytes(), foreign, seen];
            let (keys, script) = (Keys::of(entry), &self.scripts.sweep);
            let budget = self.pool.command_timeout();
            let answer = self.pool.script(keys.slot, script, &keys.all(), &arguments, budget).await;
            Ok::<_, CacheError>(array(answer.map_err(|failure| unread(&failure))?).into_iter())
        };
        let mut parts = look(b"").await?;
        let mut ending = parts.next().and_then(bytes);
        if ending.as_deref() == Some(b"over") {
            // Another invalidation may have come, and the entry be of the generation after it: one that is
            // asked for after the entry was seen tells.
            let Some(seen) = parts.next().and_then(bytes) else { return Ok(()) };
            let current = self.ask(scope, false, self.pool.command_timeout()).await?;
            if seen == *current.stamp(version.as_deref()).as_bytes() {
                return Ok(());
            }
            parts = look(&seen).await?;
            ending = parts.next().and_then(bytes);
        }
        if ending.as_deref() != Some(b"removed") {
            return Ok(());
        }
        let address = Address::of_entry(scope.clone(), entry);
        self.forget(&address, Old::of(&mut parts), wanted.stale_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BUDGET, address, is_found, open, put, rules, tenant};
    use super::*;
    use crate::primitives::cache::CacheBackend as _;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_sweep_that_is_late_leaves_what_was_written_after_the_next_invalidation() {
        let (cache, pool) = open().await;
        let rules = rules(Format::Envelope, 0);
        let address = address(tenant(), "k");
        let (scope, entry) = (address.scope(), address.entry());
        put(&cache, &address, "first").await;
        cache.invalidate(scope, &rules, None, BUDGET).await.unwrap();
        // A sweep begins here, with the generation of now, and comes to the entry after all of the below.
        let began_with = cache.0.ask(scope, false, BUDGET).await.unwrap();
        let wanted = Wanted { format: Format::Envelope, stale_ms: 0, versions: None };
        cache.invalidate(scope, &rules, None, BUDGET).await.unwrap();
        put(&cache, &address, "second").await;
        cache.0.sweep_entry(entry, scope, &wanted, &began_with).await.unwrap();
        assert!(is_found(&cache, &address, &rules).await, "an acknowledged write was removed");

        // And what is over by now is removed, by a sweep that began before it was written.
        cache.invalidate(scope, &rules, None, BUDGET).await.unwrap();
        cache.0.sweep_entry(entry, scope, &wanted, &began_with).await.unwrap();
        let mut exists = redis::cmd("EXISTS");
        exists.arg(entry);
        let left = pool.command(Slot::of(entry), &exists, BUDGET).await.unwrap();
        assert_eq!(left, Value::Int(0));
    }
}
