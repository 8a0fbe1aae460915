//! Refusals that are no single call's business: Redis is full, or the ACL user lacks a right.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::ServerError;

use super::connect::Address;
use super::reply;

/// A refusal is shown this long after the last one.
const SHOWN_FOR: Duration = Duration::from_secs(10);

/// The last refusal of each kind that an operator can mend.
#[derive(Default)]
pub(super) struct Trouble {
    full: Mutex<Option<(Instant, String)>>,
    forbidden: Mutex<Option<(Instant, String)>>,
}

impl Trouble {
    /// Remembers it, if it is of that sort.
    pub(super) fn note(&self, error: &ServerError, from: &Address) {
        let place = match error.code() {
            "OOM" => &self.full,
            "NOPERM" => &self.forbidden,
            _ => return,
        };
        *place.lock() = Some((Instant::now(), format!("{} (from {from})", reply::text(error))));
    }

    /// What to do about what was refused lately.
    pub(super) fn advice(&self) -> Option<String> {
        let recent = |place: &Mutex<Option<(Instant, String)>>| {
            let noted = place.lock().clone();
            noted.filter(|(at, _)| at.elapsed() < SHOWN_FOR).map(|(_, text)| text)
        };
        if let Some(text) = recent(&self.full) {
            return Some(format!(
                "OOM: maxmemory reached: {text}: raise `maxmemory`, delete data, or give caches an instance that evicts"
            ));
        }
        recent(&self.forbidden).map(|text| {
            format!("{text}: give the ACL user the rights in docs/operations.md, section \"Redis ACL\"")
        })
    }
}
