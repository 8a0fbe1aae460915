//! Generations: how a whole namespace is invalidated without touching its entries.
//!
//! Each tenant's part of a namespace has a token; so has each version in it that was invalidated by
//! itself. An entry keeps the tokens that were current when it was written, and is valid only while they
//! are equal to the current ones. Tokens are random, so that a lost generation can only make misses.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::RwLock;

use super::key::Scope;

/// Versions of one scope that have a token of their own at the most; one more renews the whole scope.
pub(super) const MAX_VERSIONS: usize = 256;
/// Scopes whose generation is remembered; at one more all are forgotten and asked for again.
const MAX_SCOPES: usize = 8192;

/// A token; 0 stands for "never invalidated by itself".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct GenerationToken(u64);

impl GenerationToken {
    pub(super) fn random() -> Self {
        // 64 of a version 4 UUID's random bits, without its fixed ones.
        let bits = uuid::Uuid::new_v4().as_u128();
        #[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
        let low = (bits as u64) ^ ((bits >> 64) as u64).rotate_left(17);
        Self(low.max(1))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u64::from_be_bytes(bytes)))
    }

    pub(super) fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// The tokens that an entry keeps: the scope's, then its version's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp([u8; 16]);

impl Stamp {
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Of which entries those that other systems wrote may be from before the last invalidation: they have no stamp, and
/// the sweep that removes them is not at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unswept {
    pub(super) all: bool,
    /// Only these versions.
    pub(super) versions: BTreeSet<Box<str>>,
}

impl Unswept {
    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.versions.is_empty()
    }
}

/// The current tokens of one scope.
#[derive(Debug, Default)]
pub(super) struct Generation {
    all: GenerationToken,
    versions: HashMap<Box<str>, GenerationToken>,
    unswept: Unswept,
    /// They may have changed, or have: nothing that was read under them is good any more.
    void: AtomicBool,
    /// When they were read, by [`Known::voided`].
    read_at: u64,
}

impl Generation {
    pub(super) fn new(all: GenerationToken, versions: HashMap<Box<str>, GenerationToken>) -> Self {
        Self { all, versions, ..Self::default() }
    }

    pub(super) fn with_unswept(self, unswept: Unswept) -> Self {
        Self { unswept, ..self }
    }

    pub(super) fn unswept(&self) -> &Unswept {
        &self.unswept
    }

    /// Whether an entry of `version` that has no stamp may be valid.
    pub(super) fn admits_unstamped(&self, version: Option<&str>) -> bool {
        !self.unswept.all && version.is_none_or(|version| !self.unswept.versions.contains(version))
    }

    /// The token of the scope, or of one of its versions.
    pub(super) fn token(&self, version: Option<&str>) -> GenerationToken {
        version.map_or(self.all, |version| self.versions.get(version).copied().unwrap_or_default())
    }

    /// What an entry of `version` must keep to be valid.
    pub(super) fn stamp(&self, version: Option<&str>) -> Stamp {
        let of_version = version.and_then(|version| self.versions.get(version)).copied().unwrap_or_default();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.all.to_bytes());
        bytes[8..].copy_from_slice(&of_version.to_bytes());
        Stamp(bytes)
    }

    /// Whether these are tokens at all: a scope of which nothing is known has none, and nothing in it is valid.
    pub(super) fn exists(&self) -> bool {
        self.all != GenerationToken::default()
    }

    /// Whether it may not be relied on any more.
    pub(super) fn is_void(&self) -> bool {
        self.void.load(Relaxed)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.all == other.all && self.versions == other.versions && self.unswept == other.unswept
    }

    /// This generation as read by a process that does not hear of changes: good for the call that read it.
    pub(super) fn unheard(mut self, began: &ReadBegan) -> Arc<Self> {
        self.void.store(true, Relaxed);
        self.read_at = began.0;
        Arc::new(self)
    }
}

/// The generations that this process knows.
#[derive(Default)]
pub(super) struct Generations(RwLock<Known>);

#[derive(Default)]
struct Known {
    scopes: HashMap<Scope, Arc<Generation>>,
    /// Counts what was voided, so that a generation read before is not remembered after.
    voided: u64,
    /// Scopes that were invalidated, and the count then.
    invalidated: HashMap<Scope, u64>,
    /// The count when invalidations were last forgotten: what was read before may have missed one.
    forgotten: u64,
    /// The count when everything was last voided.
    lost: u64,
}

/// The moment before a generation was read.
pub(super) struct ReadBegan(u64);

impl Generations {
    pub(super) fn get(&self, scope: &Scope) -> Option<Arc<Generation>> {
        self.0.read().scopes.get(scope).cloned()
    }

    pub(super) fn begin_read(&self) -> ReadBegan {
        ReadBegan(self.0.read().voided)
    }

    /// Remembers what was read since `began`; where the scope was invalidated meanwhile, it is void from the start, good
    /// for the one call that read it. What others invalidate is nothing to it: who does so often would empty their L1.
    pub(super) fn learn(
        &self,
        scope: &Scope,
        mut generation: Generation,
        began: &ReadBegan,
    ) -> Arc<Generation> {
        generation.read_at = began.0;
        let mut known = self.0.write();
        if began.0 < known.invalidated_at(scope).max(known.lost) {
            generation.void.store(true, Relaxed);
            return Arc::new(generation);
        }
        // What L1 has under the tokens that are known stays good: writes ask for them often.
        if let Some(same) = known.scopes.get(scope).filter(|earlier| earlier.is_same(&generation)) {
            return Arc::clone(same);
        }
        let generation = Arc::new(generation);
        if known.scopes.len() >= MAX_SCOPES && !known.scopes.contains_key(scope) {
            known.forget_all();
        }
        if let Some(earlier) = known.scopes.insert(scope.clone(), Arc::clone(&generation)) {
            earlier.void.store(true, Relaxed);
        }
        generation
    }

    /// Forgets one scope: what was read under it is no longer usable.
    pub(super) fn void(&self, scope: &Scope) {
        let mut known = self.0.write();
        known.voided += 1;
        let voided = known.voided;
        if known.invalidated.len() >= MAX_SCOPES {
            known.invalidated.clear();
            known.forgotten = voided;
        }
        known.invalidated.insert(scope.clone(), voided);
        if let Some(generation) = known.scopes.remove(scope) {
            generation.void.store(true, Relaxed);
        }
    }

    /// Whether the scope was, or may have been, invalidated since `generation` was read.
    pub(super) fn is_invalidated(&self, scope: &Scope, generation: &Generation) -> bool {
        generation.read_at < self.0.read().invalidated_at(scope)
    }

    /// Forgets everything.
    pub(super) fn void_all(&self) {
        let mut known = self.0.write();
        known.voided += 1;
        known.lost = known.voided;
        known.forget_all();
    }
}

impl Known {
    /// The count when the scope was last invalidated, or may have been.
    fn invalidated_at(&self, scope: &Scope) -> u64 {
        self.invalidated.get(scope).copied().unwrap_or_default().max(self.forgotten)
    }

    fn forget_all(&mut self) {
        for (_, generation) in self.scopes.drain() {
            generation.void.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_that_an_invalidation_raced_is_void() {
        let (generations, scope) = (Generations::default(), Scope::for_test(1, "profiles"));
        let began = generations.begin_read();
        generations.void(&scope);
        assert!(generations.learn(&scope, Generation::default(), &began).is_void());
        assert!(generations.get(&scope).is_none());
        let began = generations.begin_read();
        let learnt = generations.learn(&scope, Generation::default(), &began);
        assert!(!learnt.is_void() && generations.get(&scope).is_some());
        generations.void_all();
        assert!(learnt.is_void() && generations.get(&scope).is_none());
    }

    #[test]
    fn another_scope_s_invalidation_lets_a_generation_be_remembered() {
        let (generations, scope) = (Generations::default(), Scope::for_test(1, "profiles"));
        let began = generations.begin_read();
        generations.void(&Scope::for_test(2, "profiles"));
        assert!(!generations.learn(&scope, Generation::default(), &began).is_void());
        assert!(generations.get(&scope).is_some());
        let began = generations.begin_read();
        generations.void_all();
        assert!(generations.learn(&scope, Generation::default(), &began).is_void());
        let began = generations.begin_read();
        for tenant in 0..=MAX_SCOPES as u128 {
            generations.void(&Scope::for_test(tenant + 2, "profiles"));
        }
        assert!(
            generations.learn(&scope, Generation::default(), &began).is_void(),
            "it may be among the forgotten"
        );
    }

    #[test]
    fn an_invalidation_reaches_what_was_read_before_it_and_nothing_else() {
        let (generations, scope) = (Generations::default(), Scope::for_test(1, "profiles"));
        let learn = || generations.learn(&scope, Generation::default(), &generations.begin_read());
        let before = learn();
        assert!(Arc::ptr_eq(&before, &learn()), "the same tokens are the same generation");
        generations.void_all();
        assert!(before.is_void() && !generations.is_invalidated(&scope, &before));
        generations.void(&Scope::for_test(2, "profiles"));
        assert!(!generations.is_invalidated(&scope, &before));
        generations.void(&scope);
        assert!(generations.is_invalidated(&scope, &before), "also what was lost before");
        assert!(!generations.is_invalidated(&scope, &learn()));
    }

    #[test]
    fn a_version_of_its_own_changes_its_own_stamp_only() {
        let all = GenerationToken::random();
        let before = Generation::new(all, HashMap::new());
        let after = Generation::new(all, HashMap::from([("v1".into(), GenerationToken::random())]));
        assert_ne!(before.stamp(Some("v1")), after.stamp(Some("v1")));
        assert_eq!(before.stamp(Some("v2")), after.stamp(Some("v2")));
        assert_eq!(before.stamp(None), after.stamp(None));
    }

    #[test]
    fn what_has_no_stamp_waits_for_the_sweep_of_its_version() {
        let unswept = |all, versions: &[&str]| {
            let versions = versions.iter().map(|version| Box::from(*version)).collect();
            Generation::default().with_unswept(Unswept { all, versions })
        };
        for (generation, one, two, none) in [
            (unswept(false, &[]), true, true, true),
            (unswept(false, &["1"]), false, true, true),
            (unswept(true, &[]), false, false, false),
        ] {
            let admits = [Some("1"), Some("2"), None].map(|version| generation.admits_unstamped(version));
            assert_eq!(admits, [one, two, none], "{generation:?}");
        }
    }
}
