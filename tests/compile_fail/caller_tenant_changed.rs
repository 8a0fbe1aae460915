//! A caller's tenant is chosen once, where policy allows the choice.
//! error: E0616

use outrigger::identity::TenantId;
use outrigger::policy::Caller;

pub fn steal(mut caller: Caller, tenant: TenantId) -> Caller {
    caller.tenant = Some(tenant);
    caller
}
