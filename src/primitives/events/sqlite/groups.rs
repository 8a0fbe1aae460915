//! The one row of a consumer group.

use rusqlite::OptionalExtension as _;

use super::read::{now_ms, readable};
use crate::primitives::events::Position;
use crate::primitives::events::consumers::{GroupRow, Place};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const LOAD: &str = "SELECT state FROM event_groups WHERE tenant = ?1 AND topic = ?2 AND name = ?3";
const CREATE: &str =
    "INSERT INTO event_groups (tenant, topic, name, position, state) VALUES (?1, ?2, ?3, ?4, ?5)";
const STORE: &str =
    "UPDATE event_groups SET position = ?4, state = ?5 WHERE tenant = ?1 AND topic = ?2 AND name = ?3";

/// The group's row, which no other caller changes meanwhile: there is one writer.
pub(in super::super) fn load(tx: &mut SqliteTx<'_>, place: &Place) -> Result<GroupRow, StoreError> {
    let (topic, name) = (place.topic.as_str(), place.group.as_str());
    let state = tx.run(|connection| {
        let mut statement = connection.prepare_cached(LOAD)?;
        statement.query_row((place.owner.as_bytes(), topic, name), |row| row.get(0)).optional()
    })?;
    Ok(GroupRow { state, now_ms: now_ms(), readable: readable(tx)? })
}

pub(in super::super) fn create(
    tx: &mut SqliteTx<'_>,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    write(tx, CREATE, place, position, state)
}

pub(in super::super) fn store(
    tx: &mut SqliteTx<'_>,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    write(tx, STORE, place, position, state)
}

fn write(
    tx: &mut SqliteTx<'_>,
    statement: &'static str,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    let (topic, name, position) = (place.topic.as_str(), place.group.as_str(), position.number());
    tx.run(|connection| {
        connection.prepare_cached(statement)?.execute((place.owner.as_bytes(), topic, name, position, state))
    })?;
    Ok(())
}
