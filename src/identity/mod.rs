//! Who is calling: tokens verified, principals made.
//!
//! The only way to a [`Principal`] is a token whose every check passed here.

mod principal;

pub use principal::{Principal, TenantId};

/// STUB until merge
pub struct Gate;
impl Gate {
    /// stub
    pub async fn principal(
        &self,
        _: &http::HeaderMap,
        _: crate::http::Deadline,
    ) -> Result<std::sync::Arc<Principal>, crate::http::Problem> {
        Err(crate::http::Problem::new(crate::error::ErrorKind::Unauthenticated, "x"))
    }
}
