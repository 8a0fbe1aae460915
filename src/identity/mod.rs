//! Who is calling: tokens verified, principals made.
//!
//! The only way to a [`Principal`] is a token whose every check passed here (RFC 8725): `jws` takes it
//! apart and checks its header, `keys` and `jwks` find the key of its issuer, `claims` checks what it
//! says, `gate` puts them in order and remembers what passed.

mod cache;
mod claims;
pub mod dev;
mod explain;
mod fetch;
mod gate;
mod json;
mod jwks;
mod jws;
mod keys;
mod metrics;
mod principal;
mod recent;
mod refusal;

pub use explain::{Check, Explanation, Inspector, probe};
pub use gate::{AuthError, Gate, StartError};
pub use metrics::IdentityMetrics;
pub use principal::{Principal, TenantId};
pub use recent::Recent;

#[cfg(test)]
mod tests;
