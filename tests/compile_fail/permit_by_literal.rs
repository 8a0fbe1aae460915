//! A permit's fields are private.
//! error: E0451

use std::sync::Arc;

use outrigger::identity::{Principal, TenantId};
use outrigger::names::Name;
use outrigger::policy::{Action, Permit};

pub fn forge(tenant: TenantId, action: Action, name: Name, principal: Arc<Principal>) -> Permit {
    Permit { tenant, action, name, principal }
}
