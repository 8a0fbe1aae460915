//! What was tried, for operators: by the role that may see every tenant's.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::store::postgres::{Parameter, PgError};
use crate::store::{Reach, Store, StoreError, Tx};

const LIST: &str = "SELECT tenant_id, floor(extract(epoch FROM at) * 1000)::bigint, event_id, message_id, attempt, outcome, status, \
     duration_ms, floor(extract(epoch FROM next_at) * 1000)::bigint FROM event_attempts \
     WHERE subscription = $1 AND ($2::uuid IS NULL OR tenant_id = $2) AND (NOT $3 OR outcome <> 'delivered') \
     ORDER BY at DESC LIMIT $4";

/// Which attempts are listed.
#[derive(Debug, Clone)]
pub struct AttemptFilter {
    /// Of this subscription.
    pub subscription: String,
    /// Of this tenant alone.
    pub tenant: Option<Uuid>,
    /// Those alone that did not deliver.
    pub failed: bool,
    /// How many at the most.
    pub limit: u32,
}

/// An attempt as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ListedAttempt {
    /// Whose the event is.
    pub tenant: Uuid,
    /// When it began, in milliseconds since 1970.
    pub at_ms: i64,
    /// The event's `id`.
    pub event_id: String,
    /// The `webhook-id`.
    pub message_id: String,
    /// Which attempt of the event it was, from 1.
    pub attempt: i32,
    /// How it ended, as [`Outcome::label`](crate::primitives::events::push::Outcome::label) says it.
    pub outcome: String,
    /// The status of the answer, where there was one.
    pub status: Option<i16>,
    /// How long it took.
    pub duration_ms: i32,
    /// When the next one may be, in milliseconds since 1970; none after the last.
    pub next_at_ms: Option<i64>,
}

/// What was tried for a subscription, the newest first.
pub async fn attempts(store: &Store, filter: AttemptFilter) -> Result<Vec<ListedAttempt>, StoreError> {
    store
        .run(Reach::nobody(), 0, move |tx| {
            let filter = filter.clone();
            Box::pin(async move {
                let Tx::Postgres(tx) = tx else { return Ok(Vec::new()) };
                let limit = i64::from(filter.limit);
                let parameters: [Parameter<'_>; 4] = [
                    (&filter.subscription, Type::TEXT),
                    (&filter.tenant, Type::UUID),
                    (&filter.failed, Type::BOOL),
                    (&limit, Type::INT8),
                ];
                let rows = tx.query(LIST, &parameters).await?;
                Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
            })
        })
        .await
}

fn read(row: &tokio_postgres::Row) -> Result<ListedAttempt, tokio_postgres::Error> {
    Ok(ListedAttempt {
        tenant: row.try_get(0)?,
        at_ms: row.try_get(1)?,
        event_id: row.try_get(2)?,
        message_id: row.try_get(3)?,
        attempt: row.try_get(4)?,
        outcome: row.try_get(5)?,
        status: row.try_get(6)?,
        duration_ms: row.try_get(7)?,
        next_at_ms: row.try_get(8)?,
    })
}
