//! The policies alone give no permit.
//! error: E0599

use outrigger::names::Name;
use outrigger::policy::{Action, Permit, Policies};

pub fn forge(policies: &Policies, action: Action, name: &Name) -> Permit {
    policies.permit(action, name)
}
