//! A principal's fields are private.
//! error: E0451

use std::sync::Arc;

use outrigger::identity::{Principal, TenantId};

pub fn forge(tenant: TenantId) -> Principal {
    Principal {
        issuer: Arc::from("users"),
        subject: Arc::from("somebody"),
        tenant: Some(tenant),
        scopes: Box::default(),
        roles: Box::default(),
        tier: None,
    }
}
