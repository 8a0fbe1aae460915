//! A principal does not serve as the rest of another.
//! error: E0451

use outrigger::identity::{Principal, TenantId};

pub fn steal(principal: Principal, tenant: TenantId) -> Principal {
    Principal { tenant: Some(tenant), ..principal }
}
