//! Removing invalidated entries from Redis, in the background, so that their memory and their tenant's
//! bytes come back, and so that other readers of raw keys see the invalidation too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Semaphore;

use super::keys::Keys;
use super::values::{self, Old, array, bytes, integer};
use super::{Shared, unread};
use crate::pools::redis::Slot;
use crate::primitives::cache::CacheError;
use crate::primitives::cache::generation::{Generation, MAX_VERSIONS};
use crate::primitives::cache::key::{Address, Scope, version_of};
use crate::primitives::cache::policy::{Format, Namespace};

/// Sweeps at the same time.
const CONCURRENT: usize = 2;
/// Keys that one SCAN step looks at.
const STEP: &str = "512";
/// Times that a sweep begins anew when the cluster's shape changed under it.
const ROUNDS: usize = 3;

/// What is to be swept.
pub(super) struct Sweeps {
    waiting: Mutex<HashMap<Scope, Wanted>>,
    running: Semaphore,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { waiting: Mutex::default(), running: Semaphore::new(CONCURRENT) }
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

/// Asks for a sweep of the scope, or of one version in it; it begins as soon as there is a place for it.
pub(super) fn request(shared: &Arc<Shared>, scope: &Scope, rules: &Namespace, version: Option<&str>) {
    let mut waiting = shared.sweeps.waiting.lock();
    if let Some(wanted) = waiting.get_mut(scope) {
        wanted.versions = match (wanted.versions.take(), version) {
            (Some(mut versions), Some(version)) if versions.len() < MAX_VERSIONS => {
                versions.insert(version.to_owned());
                Some(versions)
            }
            _ => None,
        };
        return;
    }
    let versions = version.map(|version| BTreeSet::from([version.to_owned()]));
    let stale_ms = if rules.format == Format::Raw { 0 } else { rules.stale_ms };
    waiting.insert(scope.clone(), Wanted { format: rules.format, stale_ms, versions });
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
    async fn sweep(&self, scope: &Scope, wanted: &Wanted) -> Result<(), CacheError> {
        let generation = self.ask(scope, false, self.pool.command_timeout()).await?;
        for _ in 0..ROUNDS {
            let shape = self.shape().await?;
            for first in &shape {
                self.sweep_node(*first, scope, wanted, &generation).await?;
            }
            if self.shape().await? == shape {
                break;
            }
        }
        Ok(())
    }

    /// A slot of each primary, which stands for the node.
    async fn shape(&self) -> Result<Vec<Slot>, CacheError> {
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
        let mut slots: Vec<u16> = nodes.into_values().collect();
        slots.sort_unstable();
        Ok(slots.into_iter().filter_map(Slot::at).collect())
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
        loop {
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
