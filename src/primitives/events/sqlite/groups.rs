//! The one row of a consumer group.

use rusqlite::OptionalExtension as _;

use super::held::{self, length};
use super::old::DAY_MS;
use super::read::{now_ms, readable};
use crate::primitives::events::Position;
use crate::primitives::events::consumers::{GroupRow, Place};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const LOAD: &str = "SELECT state FROM event_groups WHERE tenant = ?1 AND topic = ?2 AND name = ?3";
const CREATE: &str = "INSERT INTO event_groups (tenant, topic, name, position, state, changed_ms) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const STORE: &str = "UPDATE event_groups SET position = ?4, state = ?5, changed_ms = ?6 \
                     WHERE tenant = ?1 AND topic = ?2 AND name = ?3";
const LENGTH: &str =
    "SELECT octet_length(state) FROM event_groups WHERE tenant = ?1 AND topic = ?2 AND name = ?3";
/// Those of subscriptions are called so, and no other.
const COUNT: &str =
    "SELECT count(*) FROM event_groups WHERE tenant = ?1 AND topic = ?2 AND name NOT LIKE 'push.%'";
/// What was looked at is gone, so that one that begins anew goes on at the same place.
const DROP_IDLE: &str = "DELETE FROM event_groups WHERE (tenant, topic, name) IN (SELECT tenant, topic, name FROM event_groups \
                         WHERE changed_ms < ?1 AND position < coalesce((SELECT min(id) FROM events), ?3) LIMIT ?2) \
                         RETURNING tenant, octet_length(state) + octet_length(topic) + octet_length(name)";

/// The group's row, which no other caller changes meanwhile: there is one writer.
pub(in super::super) fn load(tx: &mut SqliteTx<'_>, place: &Place) -> Result<GroupRow, StoreError> {
    let (topic, name) = (place.topic.as_str(), place.group.as_str());
    let state = tx.run(|connection| {
        let mut statement = connection.prepare_cached(LOAD)?;
        statement.query_row((place.owner.as_bytes(), topic, name), |row| row.get(0)).optional()
    })?;
    Ok(GroupRow { state, now_ms: now_ms(), readable: readable(tx)? })
}

/// How many groups of the topic callers of this owner made.
pub(in super::super) fn count(tx: &mut SqliteTx<'_>, place: &Place) -> Result<i64, StoreError> {
    let own = (place.owner.as_bytes(), place.topic.as_str());
    Ok(tx.run(|connection| connection.prepare_cached(COUNT)?.query_row(own, |row| row.get(0)))?)
}

/// Drops so many of the groups that nobody used for so many days, and whose events are not kept any more. How many.
pub(in super::super) fn drop_idle(
    tx: &mut SqliteTx<'_>,
    retention_days: u32,
    at_once: usize,
) -> Result<usize, StoreError> {
    let before_ms = now_ms().saturating_sub(i64::from(retention_days) * DAY_MS);
    let at_once = i64::try_from(at_once).unwrap_or(i64::MAX);
    let dropped = tx.run(|connection| {
        let mut statement = connection.prepare_cached(DROP_IDLE)?;
        held::rows(statement.query((before_ms, at_once, i64::MAX))?, held::GROUP)
    })?;
    let count = dropped.len();
    held::removed(tx, dropped);
    Ok(count)
}

pub(in super::super) fn create(
    tx: &mut SqliteTx<'_>,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    write(tx, CREATE, place, position, state)?;
    let bytes = length(state.len() + place.topic.as_str().len() + place.group.len());
    tx.holds(place.owner, held::GROUP + bytes);
    Ok(())
}

pub(in super::super) fn store(
    tx: &mut SqliteTx<'_>,
    place: &Place,
    position: Position,
    state: &[u8],
) -> Result<(), StoreError> {
    let own = (place.owner.as_bytes(), place.topic.as_str(), place.group.as_str());
    let before: Option<i64> =
        tx.run(|connection| connection.prepare_cached(LENGTH)?.query_row(own, |row| row.get(0)).optional())?;
    write(tx, STORE, place, position, state)?;
    // Without a row nothing was written.
    if let Some(before) = before {
        tx.holds(place.owner, length(state.len()) - before);
    }
    Ok(())
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
        connection.prepare_cached(statement)?.execute((
            place.owner.as_bytes(),
            topic,
            name,
            position,
            state,
            now_ms(),
        ))
    })?;
    Ok(())
}
