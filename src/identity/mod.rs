//! Who is calling: tokens verified, principals made.
//!
//! The only way to a [`Principal`] is a token whose every check passed here.

pub mod dev;
mod gate;
mod principal;

pub use gate::{AuthError, Gate, IdentityMetrics, StartError};
pub use principal::{Principal, TenantId};
