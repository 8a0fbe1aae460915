//! L1: values in this process's memory, in front of the store.
//!
//! What is read from the store may be put here only if nobody invalidated it since the read began: a
//! [`Fill`] is taken before the read, and void once an invalidation of its key, or a flush, comes between.

use std::hash::BuildHasher;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};

use super::Stored;
use super::metrics::CacheMetrics;

/// Locks that order invalidations and fills; a key belongs to one of them.
const STRIPES: usize = 256;
/// What an entry costs beside its key and its value.
const ENTRY_BYTES: u64 = 192;

/// The cache. Bounded in bytes over all tenants; its policy (S3-FIFO's kin) keeps what is read again
/// before what was read once, so that a tenant that walks through its keys does not push out the others.
pub(super) struct L1 {
    values: Cache<Box<[u8]>, Arc<Stored>, ByBytes, DefaultHashBuilder, Evictions>,
    stripes: Box<[Mutex<u64>]>,
    hasher: DefaultHashBuilder,
    bytes: IntGauge,
}

/// The moment before a value was read from the store.
pub(super) struct Fill {
    stripe: usize,
    seen: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<[u8]>, Arc<Stored>> for ByBytes {
    fn weight(&self, key: &Box<[u8]>, stored: &Arc<Stored>) -> u64 {
        (key.len() + stored.body.len() + stored.content_type.len()) as u64 + ENTRY_BYTES
    }
}

#[derive(Clone)]
struct Evictions(IntCounter);

impl Lifecycle<Box<[u8]>, Arc<Stored>> for Evictions {
    type RequestState = ();

    fn on_evict(&self, _: &mut (), _: Box<[u8]>, _: Arc<Stored>) {
        self.0.inc();
    }
}

impl L1 {
    /// At most `max_bytes` of keys and values.
    pub(super) fn new(max_bytes: u64, metrics: &CacheMetrics) -> Self {
        let items = usize::try_from(max_bytes / 1024).unwrap_or(usize::MAX).clamp(64, 65_536);
        let evictions = Evictions(metrics.l1_evictions.clone());
        let hasher = DefaultHashBuilder::default();
        Self {
            values: Cache::with(items, max_bytes, ByBytes, hasher.clone(), evictions),
            stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            hasher,
            bytes: metrics.l1_bytes.clone(),
        }
    }

    /// The value, if it is still what the store would answer.
    pub(super) fn get(&self, entry: &[u8], now_ms: u64) -> Option<Arc<Stored>> {
        self.values.get(entry).filter(|stored| now_ms < stored.l1_until_ms && !stored.generation.is_void())
    }

    /// The value as it was when it was read, whatever happened since.
    pub(super) fn peek(&self, entry: &[u8]) -> Option<Arc<Stored>> {
        self.values.peek(entry)
    }

    pub(super) fn begin_fill(&self, entry: &[u8]) -> Fill {
        let stripe = self.stripe(entry);
        Fill { stripe, seen: *self.stripes[stripe].lock() }
    }

    /// Keeps what was read since `fill` began, unless it was invalidated meanwhile.
    pub(super) fn finish_fill(&self, fill: &Fill, entry: &[u8], stored: &Arc<Stored>) {
        let stripe = self.stripes[fill.stripe].lock();
        if *stripe == fill.seen {
            self.values.insert(Box::from(entry), Arc::clone(stored));
            self.show_bytes();
        }
    }

    /// Forgets one entry and voids the fills of it that are under way.
    pub(super) fn invalidate(&self, entry: &[u8]) {
        let mut stripe = self.stripes[self.stripe(entry)].lock();
        *stripe += 1;
        self.values.remove(entry);
    }

    /// Voids every fill under way; what is here stays until its generation says otherwise.
    pub(super) fn void_fills(&self) {
        for stripe in &self.stripes {
            *stripe.lock() += 1;
        }
    }

    /// Forgets everything.
    pub(super) fn flush(&self) {
        self.void_fills();
        self.values.clear();
        self.show_bytes();
    }

    fn stripe(&self, entry: &[u8]) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
        let hash = self.hasher.hash_one(entry) as usize;
        hash % STRIPES
    }

    fn show_bytes(&self) {
        self.bytes.set(i64::try_from(self.values.weight()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::super::generation::{Generation, Generations};
    use super::super::key::Scope;
    use super::*;
    use crate::telemetry::Registry;

    fn l1(max_bytes: u64) -> L1 {
        L1::new(max_bytes, &CacheMetrics::new(&Registry::default()).unwrap())
    }

    fn stored(until_ms: u64, generation: &Arc<Generation>) -> Arc<Stored> {
        Arc::new(Stored::for_test(b"value", until_ms, Arc::clone(generation)))
    }

    #[test]
    fn a_fill_that_an_invalidation_raced_is_discarded() {
        let (l1, generation) = (l1(1 << 20), Arc::default());
        let fill = l1.begin_fill(b"a");
        l1.invalidate(b"a");
        l1.finish_fill(&fill, b"a", &stored(10, &generation));
        assert!(l1.get(b"a", 0).is_none());
        let fill = l1.begin_fill(b"a");
        l1.flush();
        l1.finish_fill(&fill, b"a", &stored(10, &generation));
        assert!(l1.get(b"a", 0).is_none());
        let fill = l1.begin_fill(b"a");
        l1.finish_fill(&fill, b"a", &stored(10, &generation));
        assert_eq!(l1.get(b"a", 9).unwrap().body, "value");
        assert!(l1.get(b"a", 10).is_none(), "its time is over");
        l1.invalidate(b"a");
        assert!(l1.get(b"a", 0).is_none());
    }

    #[test]
    fn an_entry_of_a_void_generation_is_not_served() {
        let (l1, generations, scope) = (l1(1 << 20), Generations::default(), Scope::for_test(1, "profiles"));
        let generation = generations.learn(&scope, Generation::default(), &generations.begin_read());
        l1.finish_fill(&l1.begin_fill(b"a"), b"a", &stored(10, &generation));
        assert!(l1.get(b"a", 0).is_some());
        generations.void(&scope);
        assert!(l1.get(b"a", 0).is_none() && l1.peek(b"a").is_some());
    }

    #[test]
    fn it_stays_within_its_bytes() {
        let (l1, generation) = (l1(64 * 1024), Arc::default());
        for at in 0..2000_u32 {
            let key = at.to_be_bytes();
            l1.finish_fill(&l1.begin_fill(&key), &key, &stored(10, &generation));
        }
        assert!(l1.values.weight() <= 64 * 1024);
    }
}
