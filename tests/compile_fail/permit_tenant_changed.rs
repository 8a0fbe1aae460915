//! A permit's tenant cannot be changed.
//! error: E0616

use outrigger::identity::TenantId;
use outrigger::policy::Permit;

pub fn steal(mut permit: Permit, tenant: TenantId) -> Permit {
    permit.tenant = tenant;
    permit
}
