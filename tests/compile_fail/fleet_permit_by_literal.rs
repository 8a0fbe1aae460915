//! A fleet permit's fields are private.
//! error: E0451

use outrigger::identity::TenantId;
use outrigger::names::Name;
use outrigger::policy::{Action, FleetPermit, FleetTenants};

pub fn forge(owner: TenantId, action: Action, name: Name) -> FleetPermit {
    FleetPermit { tenants: FleetTenants::Any, action, name, owner }
}
