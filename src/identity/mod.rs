//! Who is calling: tokens verified, principals made.
//!
//! The only way to a [`Principal`] is a token whose every check passed here.

mod principal;

pub use principal::{Principal, TenantId};
