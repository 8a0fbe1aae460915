//! Tokens that were verified, so that each is verified once.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::Principal;
use super::claims::Verified;

/// The SHA-256 of a token: the cache holds no token, and no two tokens have one digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Self(digest)
    }
}

/// A digest is as good as random, so that 8 bytes of it are its hash.
impl std::hash::Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

#[derive(Default)]
pub(super) struct FirstWord(u64);

impl Hasher for FirstWord {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// A token that was verified.
#[derive(Clone)]
pub(super) struct Entry {
    principal: Arc<Principal>,
    until_ms: i64,
    generation: Generation,
}

/// Which keys were in force. Read before the keys, and written after them, it makes an entry that was
/// verified with keys that are gone void, even if it comes after the flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Entry {
    /// Whom the token speaks for, just after it was verified.
    pub(super) fn into_principal(self) -> Arc<Principal> {
        self.principal
    }

    /// The same with a count of references of its own: on one that all connections of a token share, each call's
    /// count would move between the processors.
    pub(super) fn apart(&self) -> Self {
        Self { principal: Arc::new((*self.principal).clone()), ..self.clone() }
    }

    /// Whom the token speaks for, while it is accepted: at `now_ms`, with the keys in force.
    pub(super) fn principal(&self, now_ms: i64, generation: Generation) -> Option<Arc<Principal>> {
        (now_ms < self.until_ms && self.generation == generation).then(|| Arc::clone(&self.principal))
    }
}

/// Verified tokens, bounded, never used past `exp`, all void once any key set changes.
pub(super) struct TokenCache {
    entries: Cache<Digest, Entry, UnitWeighter, BuildHasherDefault<FirstWord>>,
    generation: AtomicU64,
}

impl TokenCache {
    /// A cache of so many tokens at the most.
    pub(super) fn new(capacity: usize) -> Self {
        let entries = Cache::with(
            capacity,
            capacity as u64,
            UnitWeighter,
            BuildHasherDefault::default(),
            DefaultLifecycle::default(),
        );
        Self { entries, generation: AtomicU64::new(0) }
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// A token that was verified with keys in force and is accepted at `now_ms`.
    pub(super) fn get(&self, digest: &Digest, now_ms: i64) -> Option<(Entry, Arc<Principal>)> {
        let entry = self.entries.get(digest)?;
        let principal = entry.principal(now_ms, self.generation())?;
        Some((entry, principal))
    }

    /// Keeps a verified token; `generation` is what it was before its keys were looked up.
    pub(super) fn insert(&self, digest: Digest, verified: Verified, generation: Generation) -> Entry {
        let principal = Arc::new(verified.principal);
        let entry = Entry { principal, until_ms: verified.until_ms, generation };
        self.entries.insert(digest, entry.clone());
        entry
    }

    /// Forgets everything; called after the new keys are in place.
    pub(super) fn flush(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.entries.clear();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::principal::Claims;
    use super::*;

    pub(in crate::identity) fn verified(until_ms: i64) -> Verified {
        let claims = Claims {
            issuer: Arc::from("users"),
            subject: Arc::from("somebody"),
            scopes: Box::default(),
            roles: Box::default(),
            tier: None,
        };
        Verified { principal: Principal::from_verified(None, claims), until_ms }
    }

    #[test]
    fn an_entry_is_used_until_its_time_and_by_its_own_token_only() {
        let cache = TokenCache::new(16);
        cache.insert(Digest::of(b"a"), verified(1000), cache.generation());
        assert!(cache.get(&Digest::of(b"a"), 999).is_some());
        assert!(cache.get(&Digest::of(b"a"), 1000).is_none());
        assert!(cache.get(&Digest::of(b"b"), 999).is_none());
    }

    #[test]
    fn what_was_verified_with_keys_that_are_gone_is_void_even_if_it_comes_late() {
        let cache = TokenCache::new(16);
        let before = cache.generation();
        cache.insert(Digest::of(b"a"), verified(1000), before);
        cache.flush();
        cache.insert(Digest::of(b"b"), verified(1000), before);
        assert!(cache.get(&Digest::of(b"a"), 0).is_none());
        assert!(cache.get(&Digest::of(b"b"), 0).is_none());
        cache.insert(Digest::of(b"b"), verified(1000), cache.generation());
        assert!(cache.get(&Digest::of(b"b"), 0).is_some());
    }

    #[test]
    fn it_holds_so_many_tokens_and_no_more() {
        let cache = TokenCache::new(64);
        for number in 0..10_000_u32 {
            cache.insert(Digest::of(&number.to_le_bytes()), verified(1000), cache.generation());
        }
        let held = (0..10_000_u32).filter(|n| cache.get(&Digest::of(&n.to_le_bytes()), 0).is_some()).count();
        assert!((1..=64).contains(&held), "{held}");
    }
}
