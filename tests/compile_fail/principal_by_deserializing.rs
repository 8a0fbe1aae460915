//! A principal is not read from a body.
//! error: E0277

use outrigger::http::Call;
use outrigger::identity::Principal;

pub async fn forge(call: &mut Call) -> Option<Principal> {
    call.json::<Principal>(1024).await.ok()
}
