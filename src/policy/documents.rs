//! The policies in force: one immutable value, swapped whole.

use std::any::{Any, TypeId};
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use schemars::{Schema, SchemaGenerator};
use serde_json::Value;

use super::{Access, Vocabulary};
use crate::config::Findings;

/// Every policy document of one generation.
///
/// The access policy is known here; each primitive keeps its own kind under its own type, so that
/// `policy` need not know the primitives.
#[derive(Default)]
pub struct Policies {
    generation: u64,
    access: Access,
    kinds: Vec<(TypeId, Arc<dyn Any + Send + Sync>)>,
}

impl Policies {
    /// Policies of this generation with this access policy and no other kind yet.
    #[must_use]
    pub fn new(generation: u64, access: Access) -> Self {
        Self { generation, access, kinds: Vec::new() }
    }

    /// These policies with a primitive's own kind.
    #[must_use]
    pub fn with<T: Any + Send + Sync>(mut self, kind: T) -> Self {
        self.insert(Arc::new(kind));
        self
    }

    /// Adds a primitive's own kind, replacing an earlier one of the same type.
    pub fn insert<T: Any + Send + Sync>(&mut self, kind: Arc<T>) {
        let id = TypeId::of::<T>();
        self.kinds.retain(|(held, _)| *held != id);
        self.kinds.push((id, kind));
    }

    /// The policy kind `T`, where its primitive is configured.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        self.kinds.iter().find(|(held, _)| *held == id).and_then(|(_, kind)| kind.downcast_ref())
    }

    /// Puts another access policy in.
    pub(super) fn set_access(&mut self, access: Access) {
        self.access = access;
    }

    /// The access policy.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// How many times policies were loaded when these were.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// The policies that were in force when a request came, for as long as it takes.
///
/// Most of these count no reference, so that requests on different processors do not change one count.
pub struct InForce(Guard<Arc<Policies>>);

impl Deref for InForce {
    type Target = Policies;

    fn deref(&self) -> &Policies {
        &self.0
    }
}

impl From<Arc<Policies>> for InForce {
    fn from(policies: Arc<Policies>) -> Self {
        Self(Guard::from_inner(policies))
    }
}

/// Where a request finds the policies in force.
#[derive(Clone)]
pub struct PolicySource(Arc<ArcSwap<Policies>>);

impl PolicySource {
    /// A source that starts with `policies`.
    #[must_use]
    pub fn new(policies: Policies) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(policies)))
    }

    /// The policies in force now.
    #[must_use]
    pub fn current(&self) -> InForce {
        InForce(self.0.load())
    }

    /// Puts `policies` in force for every request that comes from now on.
    pub fn replace(&self, policies: Policies) {
        self.0.store(Arc::new(policies));
    }
}

/// A kind of policy document that a primitive brings.
pub struct Kind {
    /// The `kind:` that documents of it carry.
    pub name: &'static str,
    /// The document's JSON Schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads a document that fits the schema (without its `kind` member), says what is wrong beyond the
    /// schema, and where nothing is, puts its own type into the policies.
    pub load: fn(document: Value, known: &Vocabulary, findings: &mut Findings, policies: &mut Policies),
}
