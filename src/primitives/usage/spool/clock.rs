//! What day it is. This machine's clock is asked first, and the store's where that matters: one that is wrong puts nothing aside.

use jiff::{SignedDuration, Timestamp};

use super::super::{Day, postgres};
use crate::store::{Reach, Store, StoreError, Tx};

/// This machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    /// By how much a test has it wrong.
    pub(super) wrong_by: SignedDuration,
}

impl Clock {
    fn now(self) -> Timestamp {
        Timestamp::now().saturating_add(self.wrong_by).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn today(self) -> Day {
        Day::of(self.now())
    }

    /// By the store's clock, which on SQLite is this machine's.
    pub(super) async fn today_of(self, store: &Store) -> Result<Day, StoreError> {
        let now: Option<Timestamp> = store
            .read(Reach::nobody(), |tx| {
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => postgres::now(tx).await.map(Some),
                        Tx::Sqlite(_) => Ok::<_, StoreError>(None),
                    }
                })
            })
            .await?;
        Ok(now.map_or(self.today(), Day::of))
    }
}
