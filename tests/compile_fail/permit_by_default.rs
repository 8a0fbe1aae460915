//! There is no permit for nothing.
//! error: E0277

use outrigger::policy::Permit;

pub fn forge() -> Permit {
    Default::default()
}
