//! A caller's fields are private.
//! error: E0451

use std::sync::Arc;

use outrigger::identity::{Principal, TenantId};
use outrigger::policy::{Caller, InForce};

pub fn forge(principal: Arc<Principal>, tenant: TenantId, policies: InForce) -> Caller {
    Caller { principal, tenant: Some(tenant), policies }
}
