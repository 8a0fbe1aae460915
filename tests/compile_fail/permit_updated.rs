//! A permit does not serve as the rest of another.
//! error: E0451

use outrigger::identity::TenantId;
use outrigger::policy::Permit;

pub fn steal(permit: Permit, tenant: TenantId) -> Permit {
    Permit { tenant, ..permit }
}
