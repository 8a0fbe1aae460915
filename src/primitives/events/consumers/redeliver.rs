//! The events of one key again, for an operator.

use super::{Group, GroupError};
use crate::primitives::events::postgres;
use crate::store::sqlite::Adds;
use crate::store::{Store, StoreError, Tx};

/// Events of a key that are delivered again at once: a tenth of what a group may have outstanding at the most.
const MAX_EVENTS: usize = 1_000;

impl Group {
    /// Has the group's tenant's events of a key, accepted then or later, delivered again in their order; how many. Those
    /// that the group has not looked at come by themselves, and are not counted.
    pub(in super::super) async fn redeliver(
        &self,
        store: &Store,
        key: &str,
        from_ms: i64,
    ) -> Result<usize, GroupError> {
        let key: Box<str> = key.into();
        loop {
            let key = key.clone();
            let redelivering = self.run(store, Adds::Nothing, move |group, tx| {
                let key = key.clone();
                Box::pin(async move { group.redeliver_in(tx, &key, from_ms).await })
            });
            if let Some(events) = redelivering.await? {
                return Ok(events);
            }
            self.bury(store).await?;
        }
    }

    /// How many there were; none where something is dead.
    async fn redeliver_in(
        self,
        tx: &mut Tx<'_>,
        key: &str,
        from_ms: i64,
    ) -> Result<Option<usize>, GroupError> {
        let (mut state, row) = self.load(tx).await?;
        let Tx::Postgres(of_postgres) = &mut *tx else {
            return Err(StoreError::Corrupt("an embedded store is its process's alone".to_owned()).into());
        };
        let place = (self.place.owner, self.place.topic.as_str(), key);
        let found = postgres::of_key(of_postgres, place, state.position(), from_ms, MAX_EVENTS + 1).await?;
        if found.len() > MAX_EVENTS {
            return Err(GroupError::LongKey(MAX_EVENTS));
        }
        let key = self.hash_of(self.place.owner, key);
        let is_done = state.redeliver(row.now_ms, self.policy, key, &found);
        let after = state.encode();
        self.store(tx, &state, &after).await?;
        Ok(is_done.then_some(found.len()))
    }
}
