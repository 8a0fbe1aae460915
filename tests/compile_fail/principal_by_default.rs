//! There is no principal without a token.
//! error: E0277

use outrigger::identity::Principal;

pub fn forge() -> Principal {
    Default::default()
}
