//! A tenant and a name are no permit.
//! error: E0308

use outrigger::identity::TenantId;
use outrigger::names::Name;
use outrigger::policy::Permit;

pub fn forge(tenant: TenantId, name: Name) -> Permit {
    Permit::from((tenant, name))
}
