//! A permit's name cannot be changed.
//! error: E0616

use outrigger::names::Name;
use outrigger::policy::Permit;

pub fn widen(mut permit: Permit, name: Name) -> Permit {
    permit.name = name;
    permit
}
