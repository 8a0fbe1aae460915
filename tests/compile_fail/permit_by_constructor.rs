//! A permit has no constructor: only `Caller::permit` makes one.
//! error: E0599

use outrigger::identity::TenantId;
use outrigger::names::Name;
use outrigger::policy::{Action, Permit};

pub fn forge(tenant: TenantId, action: Action, name: Name) -> Permit {
    Permit::new(tenant, action, name)
}
