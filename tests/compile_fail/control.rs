//! What is allowed compiles, so that the other files fail for what they do and not for how they are compiled.

use std::sync::Arc;

use outrigger::http::Call;
use outrigger::identity::{Principal, TenantId};
use outrigger::names::Name;
use outrigger::policy::{Action, Caller, Denied, Permit, Policies, TenantChoice};

pub fn honest(
    principal: Arc<Principal>,
    policies: Arc<Policies>,
    action: Action,
    name: &Name,
) -> Result<(TenantId, Name), Denied> {
    let caller = Caller::new(principal, TenantChoice::FromToken, policies)?;
    let permit: Permit = caller.permit(action, name)?;
    Ok((permit.tenant(), permit.name().clone()))
}

pub async fn body(call: &mut Call) -> Option<String> {
    call.json::<String>(1024).await.ok()
}
