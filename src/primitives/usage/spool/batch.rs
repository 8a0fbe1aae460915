//! Entries that were read, as what is to be counted.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::{Call, Day, KEYS_DAYS};
use super::entry::{self, Accepted};
use crate::store::spool::{Entry, Place, Read};

const TOO_OLD: &str =
    "it was in the spool for so long that it may have been counted, and its keys are no longer kept";

/// An entry that is to be counted.
pub(super) struct Waiting {
    pub(super) sequence: u64,
    pub(super) cost: u64,
    pub(super) payload: Vec<u8>,
    /// Shared with the transaction that counts it.
    pub(super) accepted: Arc<Accepted>,
    /// How many of its points are counted: of one that is too much for a transaction, parts are.
    pub(super) at: usize,
}

/// What was read.
pub(super) struct Batch {
    pub(super) waiting: Vec<Waiting>,
    /// Entries that cannot be counted, with their sequences, and why not.
    pub(super) wrong: Vec<(u64, Vec<u8>, String)>,
    pub(super) damaged_bytes: u64,
    pub(super) to: Place,
    pub(super) is_all: bool,
}

impl Batch {
    pub(super) fn of(read: Read) -> Self {
        let (mut waiting, mut wrong) = (Vec::with_capacity(read.entries.len()), Vec::new());
        for Entry { sequence, payload } in read.entries {
            match entry::read(&payload) {
                Ok(accepted) if is_too_old(&accepted.call) => {
                    wrong.push((sequence, payload, TOO_OLD.to_owned()));
                }
                Ok(accepted) => waiting.push(Waiting {
                    sequence,
                    cost: accepted.call.cost(),
                    payload,
                    accepted: Arc::new(accepted),
                    at: 0,
                }),
                Err(error) => wrong.push((sequence, payload, error.to_string())),
            }
        }
        Self { waiting, wrong, damaged_bytes: read.damaged_bytes, to: read.to, is_all: read.is_all }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.wrong.is_empty()
    }
}

/// Whether the keys of some of it may be gone.
fn is_too_old(call: &Call) -> bool {
    let oldest = Day::of(Timestamp::now()).number() - KEYS_DAYS;
    call.days().iter().any(|day| day.number() <= oldest)
}
