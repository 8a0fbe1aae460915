//! A fleet permit is no permit of one of its tenants.
//! error: E0308

use outrigger::policy::{FleetPermit, Permit};

pub fn narrow(fleet: FleetPermit) -> Permit {
    Permit::from(fleet)
}
