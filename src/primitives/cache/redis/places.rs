//! What a tenant may have on its way to Redis at once: the few connections to a node, and its queue of removals, are all
//! tenants'.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use quick_cache::DefaultHashBuilder;
use redis::Value;

use super::Shared;
use crate::clock;
use crate::primitives::cache::CacheError;
use crate::primitives::cache::key::Scope;
use crate::primitives::cache::pending::{Pending, Place};
use crate::primitives::cache::policy::Namespace;

/// What a read counts whose size nobody knows, and the largest: a tenant has 32 of them under way.
const READ_BYTES: usize = 127 * 1024;
/// What any read counts: a tenant has 128 of them under way.
const SMALL_READ_BYTES: usize = 31 * 1024;
/// How long the largest answer of a scope stands for the next ones.
const REMEMBERED_S: u64 = 10;
/// Cells for the sizes of scopes; two scopes in one cell count as the larger.
const CELLS: usize = 1024;

#[derive(Default)]
pub(super) struct Places {
    pub(super) writes: Arc<Pending>,
    removals: Arc<Pending>,
    reads: Arc<Pending>,
    sizes: Sizes,
}

/// How large the answers to each scope's reads were lately: the size of the next one is known once it is there.
struct Sizes {
    /// Until when it stands, in seconds, above 32 bits of KiB.
    cells: Box<[AtomicU64]>,
    hasher: DefaultHashBuilder,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(), hasher: DefaultHashBuilder::default() }
    }
}

impl Sizes {
    fn cell(&self, scope: &Scope) -> Option<&AtomicU64> {
        #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
        let hash = self.hasher.hash_one(scope) as usize;
        self.cells.get(hash % CELLS)
    }

    /// What a read counts.
    fn expected_bytes(&self, scope: &Scope, now_s: u64) -> usize {
        let held = self.cell(scope).map_or(0, |cell| cell.load(Relaxed));
        if held >> 32 <= now_s {
            return READ_BYTES;
        }
        usize::try_from((held & 0xffff_ffff) * 1024).unwrap_or(READ_BYTES).clamp(SMALL_READ_BYTES, READ_BYTES)
    }

    /// Remembers an answer: a larger one stands for a while, so that many small ones do not hide it.
    fn note(&self, scope: &Scope, bytes: usize, now_s: u64) {
        let Some(cell) = self.cell(scope) else { return };
        let kib = (bytes as u64).div_ceil(1024).min(0xffff_ffff);
        let held = cell.load(Relaxed);
        let (until_s, largest) = (held >> 32, held & 0xffff_ffff);
        // Written once a second at the most, so that reads do not take the line from each other.
        if until_s <= now_s || kib > largest || (kib == largest && until_s < now_s + REMEMBERED_S) {
            cell.store((now_s + REMEMBERED_S) << 32 | kib, Relaxed);
        }
    }
}

impl Shared {
    /// A place among the tenant's removals, and what is left of the budget then: half of it at the least, since one whose
    /// time is over leaves its place, and what it sent still waits.
    pub(super) async fn enter_removal(
        &self,
        scope: &Scope,
        budget: Duration,
    ) -> Result<(Place, Duration), CacheError> {
        let end = Instant::now() + budget;
        let (place, _) = enter(&self.places.removals, scope, 0, budget / 2).await?;
        Ok((place, end.saturating_duration_since(Instant::now())))
    }

    /// The same among its reads.
    pub(super) async fn enter_read(
        &self,
        scope: &Scope,
        rules: &Namespace,
        budget: Duration,
    ) -> Result<(Place, Duration), CacheError> {
        let expected = self.places.sizes.expected_bytes(scope, clock::monotonic_ms() / 1000);
        enter(&self.places.reads, scope, rules.max_value_bytes.min(expected), budget).await
    }

    /// Remembers how large the answer to a read was.
    pub(super) fn note_read(&self, scope: &Scope, answer: &Value) {
        self.places.sizes.note(scope, bytes_of(answer), clock::monotonic_ms() / 1000);
    }
}

fn bytes_of(answer: &Value) -> usize {
    match answer {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(parts) => parts.iter().map(bytes_of).sum(),
        _ => 0,
    }
}

async fn enter(
    pending: &Arc<Pending>,
    scope: &Scope,
    bytes: usize,
    budget: Duration,
) -> Result<(Place, Duration), CacheError> {
    let end = Instant::now() + budget;
    let place = pending.enter(scope.tenant(), bytes, budget).await?;
    Ok((place, end.saturating_duration_since(Instant::now())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_counts_as_the_largest_of_its_scope_lately() {
        let (sizes, scope) = (Sizes::default(), Scope::for_test(1, "profiles"));
        assert_eq!(sizes.expected_bytes(&scope, 100), READ_BYTES, "nobody knows");
        sizes.note(&scope, 40, 100);
        assert_eq!(sizes.expected_bytes(&scope, 100), SMALL_READ_BYTES);
        sizes.note(&scope, 64 * 1024, 101);
        sizes.note(&scope, 40, 105);
        assert_eq!(sizes.expected_bytes(&scope, 110), 64 * 1024, "a small one hides no large one");
        assert_eq!(sizes.expected_bytes(&scope, 111), READ_BYTES, "for so long");
        sizes.note(&scope, 1 << 20, 111);
        assert_eq!(sizes.expected_bytes(&scope, 112), READ_BYTES);
        sizes.note(&scope, 40, 121);
        assert_eq!(sizes.expected_bytes(&scope, 130), SMALL_READ_BYTES);
    }
}
