//! A principal's fields are private.
//! error: E0451

use outrigger::identity::{Principal, TenantId};

pub fn forge(tenant: TenantId, other: Principal) -> Principal {
    Principal { tenant: Some(tenant), claims: loop { drop(&other) } }
}
