//! A permit is not read from a body.
//! error: E0277

use outrigger::http::Call;
use outrigger::policy::Permit;

pub async fn forge(call: &mut Call) -> Option<Permit> {
    call.json::<Permit>(1024).await.ok()
}
