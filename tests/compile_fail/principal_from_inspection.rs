//! What `token inspect` shows lets nobody swap the tenant: it gives a principal to look at.
//! error: E0616

use outrigger::identity::{Explanation, Principal};

pub fn steal(explanation: Explanation) -> Option<Principal> {
    explanation.principal
}
