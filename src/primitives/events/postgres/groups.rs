//! The one row of a consumer group.

use tokio_postgres::types::Type;

use super::head::{self, STEPS};
use crate::primitives::events::Position;
use crate::primitives::events::consumers::{GroupRow, Place};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx, Statement};

const LOCK: &str =
    "SELECT state FROM event_groups WHERE tenant_id = $1 AND topic = $2 AND name = $3 FOR UPDATE";
/// After the lock: the time at which this transaction has the group.
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
const CREATE: &str = "INSERT INTO event_groups (tenant_id, topic, name, position, state) VALUES ($1, $2, $3, $4, $5) \
                      ON CONFLICT DO NOTHING";
const STORE: &str = "UPDATE event_groups SET position = $4, state = $5, changed_at = now() \
                     WHERE tenant_id = $1 AND topic = $2 AND name = $3";

/// Two that are made at the same time are counted one after the other, by the snapshot that each takes after the lock. Not in the
/// class of the writers' floors.
const ONE_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock(1869968500, hashtext($1::uuid::text || $2::text))";
/// Those of subscriptions are called so, and no other.
const COUNT: &str =
    "SELECT count(*) FROM event_groups WHERE tenant_id = $1 AND topic = $2 AND name NOT LIKE 'push.%'";
const DROP_IDLE: &str = "SELECT outrigger_drop_idle_groups()";

/// How many groups of the topic callers of this owner made. Nobody makes another one before this transaction ends.
pub(in super::super) async fn count(tx: &mut PgTx, place: &Place) -> Result<i64, StoreError> {
    let topic = place.topic.as_str();
    let own = [(&place.owner as _, Type::UUID), (&topic as _, Type::TEXT)];
    let found = tx.query_all(&[(ONE_AT_A_TIME, &own), (COUNT, &own)]).await?;
    let row = found.last().and_then(|rows| rows.first()).ok_or(PgError::Ended)?;
    Ok(row.try_get(0).map_err(PgError::of_row)?)
}

/// Drops some of the groups that nobody used for as long as events are kept, by a function of the owner's. How many.
pub(in super::super) async fn drop_idle(tx: &mut PgTx) -> Result<usize, StoreError> {
    let rows = tx.query(DROP_IDLE, &[]).await?;
    let dropped: i32 = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    usize::try_from(dropped).map_err(|_| StoreError::Corrupt(format!("{dropped} groups were dropped")))
}

/// The group's row, locked until the transaction ends, the time and how far the log may be read.
pub(in super::super) async fn load(tx: &mut PgTx, place: &Place) -> Result<GroupRow, StoreError> {
    let (topic, name) = (place.topic.as_str(), place.group.as_str());
    let own = [(&place.owner as _, Type::UUID), (&topic as _, Type::TEXT), (&name as _, Type::TEXT)];
    let [last, floors] = STEPS;
    let statements: [Statement<'_>; 4] = [(LOCK, &own), (NOW, &[]), last, floors];
    let found = tx.query_all(&statements).await?;
    let [rows, now, head @ ..] = found.as_slice() else { return Err(PgError::Ended.into()) };
    let state: Option<Vec<u8>> =
        rows.first().map(|row| row.try_get(0)).transpose().map_err(PgError::of_row)?;
    let now_ms = now.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(GroupRow { state, now_ms, readable: head::of_steps(head)? })
}

/// Makes the group, where another transaction has not.
pub(in super::super) async fn create(
    tx: &mut PgTx,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    write(tx, CREATE, place, position, state).await
}

/// Writes the row that [`load`] locked.
pub(in super::super) async fn store(
    tx: &mut PgTx,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    write(tx, STORE, place, position, state).await
}

async fn write(
    tx: &mut PgTx,
    statement: &'static str,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    let (topic, name, position) = (place.topic.as_str(), place.group.as_str(), position.number());
    let parameters = [
        (&place.owner as _, Type::UUID),
        (&topic as _, Type::TEXT),
        (&name as _, Type::TEXT),
        (&position as _, Type::INT8),
        (&state as _, Type::BYTEA),
    ];
    tx.query(statement, &parameters).await?;
    Ok(())
}
