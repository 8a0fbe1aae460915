//! What a caller hears of a store that failed; what the store said is in the log.

use crate::error::ErrorKind;
use crate::http::Problem;
use crate::store::sqlite::Full;
use crate::store::{GroupCommitError, StoreError};

/// A primitive's words.
pub(super) struct StoreAnswer {
    /// Its store: `the event store`.
    pub(super) store: &'static str,
    /// What was not done to anything: `kept`.
    pub(super) done: &'static str,
    /// Why it may be sent again.
    pub(super) again: &'static str,
    /// When there is room again for a tenant that has its part.
    pub(super) room: &'static str,
}

impl StoreAnswer {
    /// Of a transaction.
    pub(super) fn of(&self, error: &StoreError) -> Problem {
        match error.kind() {
            ErrorKind::Internal => tracing::error!(%error, "the store refused a call"),
            _ => tracing::debug!(%error, "the store failed"),
        }
        if error.is_share_taken() { self.share_taken() } else { self.failed(error.kind(), error.full()) }
    }

    /// Of one that several callers share.
    pub(super) fn of_group(&self, error: &GroupCommitError) -> Problem {
        match error.kind() {
            ErrorKind::Internal => tracing::error!(%error, "the store refused a call"),
            _ => tracing::debug!(%error, "the store failed"),
        }
        match error {
            GroupCommitError::Store { kind, full, .. } => self.failed(*kind, *full),
            GroupCommitError::ShareTaken => self.share_taken(),
            GroupCommitError::Overloaded | GroupCommitError::Gone => self.failed(error.kind(), None),
        }
    }

    fn share_taken(&self) -> Problem {
        let Self { store, done, .. } = self;
        let detail = format!("too many calls of this tenant wait for {store}: nothing was {done}");
        Problem::new(ErrorKind::Overloaded, detail)
    }

    fn failed(&self, kind: ErrorKind, full: Option<Full>) -> Problem {
        let Self { store, done, again, room } = self;
        let detail = match (kind, full) {
            (_, Some(Full::Disk)) => {
                format!("the disk of {store} is full: nothing was {done}; what is there can be read")
            }
            (_, Some(Full::Database)) => {
                format!(
                    "{store} has reached `limits.durable_db_bytes`: nothing was {done}; what is there can be read"
                )
            }
            (_, Some(Full::Share)) => format!(
                "this tenant keeps as much as one may (`limits.durable_db_tenant_percent` of `limits.durable_db_bytes`, and less \
                 where others keep much): nothing was {done}; what is there can be read, and {room}"
            ),
            (ErrorKind::OutcomeUnknown, None) => {
                format!("{store} did not say whether this was done: send it again; {again}")
            }
            (ErrorKind::Internal, None) => {
                format!("{store} refused this, which is a defect: nothing was {done}")
            }
            (ErrorKind::Overloaded, None) => format!("too many calls wait for {store}: nothing was {done}"),
            _ => format!("{store} does not answer: nothing was {done}; send it again"),
        };
        Problem::new(kind, detail)
    }
}
