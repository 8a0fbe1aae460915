//! A principal's tenant cannot be changed.
//! error: E0616

use outrigger::identity::{Principal, TenantId};

pub fn steal(mut principal: Principal, tenant: TenantId) -> Principal {
    principal.tenant = Some(tenant);
    principal
}
