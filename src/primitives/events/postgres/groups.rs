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
