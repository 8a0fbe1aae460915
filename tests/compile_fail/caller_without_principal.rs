//! A caller needs a principal, not a tenant.
//! error: E0308

use std::sync::Arc;

use outrigger::identity::TenantId;
use outrigger::policy::{Caller, Denied, Policies, TenantChoice};

pub fn forge(tenant: TenantId, policies: Arc<Policies>) -> Result<Caller, Denied> {
    Caller::new(tenant, TenantChoice::FromToken, policies)
}
