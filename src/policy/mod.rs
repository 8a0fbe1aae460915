//! What a caller may do.
//!
//! The policy documents of a directory make one immutable [`Policies`]; a request takes the one in
//! force when it arrives and keeps it to its end. [`Caller::permit`] is the only maker of a
//! [`Permit`], and a permit is the only way to name a tenant to a primitive.

mod access;
mod caller;
mod check;
mod documents;
mod fleet;
mod loader;
mod reload;
mod rules;

pub use access::{Access, AccessDocument, ActFor, Grant, Rule, RuleMatch, Service};
pub use caller::{Caller, DEFAULT_TIER, Denied, Permit, TenantChoice};
pub use check::{Checked, Vocabulary, check_documents, policy_schema};
pub use documents::{InForce, Kind, Policies, PolicySource};
pub use fleet::{FleetPermit, FleetTenants};
pub use loader::PolicyLoader;
pub use reload::Reloader;

use std::fmt;

/// Something a caller may be allowed to do: `primitive:verb`, as policies write it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Action {
    /// The primitive's name, as in `policies/` and in metrics.
    pub primitive: &'static str,
    /// The verb within the primitive.
    pub verb: &'static str,
}

impl Action {
    /// The action `primitive:verb`.
    #[must_use]
    pub const fn new(primitive: &'static str, verb: &'static str) -> Self {
        Self { primitive, verb }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.primitive, self.verb)
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
