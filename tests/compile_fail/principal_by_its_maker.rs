//! The maker of principals is not to be called from outside, and what it takes cannot be named.
//! error: E0624

use outrigger::identity::Principal;

pub fn forge() {
    let _ = Principal::from_verified;
}
