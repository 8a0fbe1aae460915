//! What is counted by, as the file has it. One process has it: what its policy says is put into force once it is loaded, and by
//! the calls that come, but for the zone of days that have usage.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};
use uuid::Uuid;

use crate::primitives::usage::terms::{Kept, Terms, Wanted};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const KEPT: &str = "SELECT usage_time_zone, usage_close_after_ms FROM store";
const PUT: &str = "UPDATE store SET usage_time_zone = ?1, usage_close_after_ms = ?2";
const IS_USED: &str = "SELECT EXISTS (SELECT 1 FROM usage_daily)";
const TAGS: &str = "SELECT metric, tag FROM usage_tags";
const DECLARE: &str = "INSERT INTO usage_tags (metric, tag, since_us) VALUES (?1, ?2, ?3)";
const TAKE_AWAY: &str = "DELETE FROM usage_tags WHERE metric = ?1 AND tag = ?2";

/// The terms by which is counted in this transaction.
pub(in super::super) fn terms(tx: &mut SqliteTx<'_>, wanted: &Wanted<'_>) -> Result<Terms, StoreError> {
    let (kept, tags) = tx.run(|connection| {
        let kept = put(connection, wanted)?;
        let tags = if kept.0 == wanted.time_zone || wanted.any_zone {
            declare(connection, wanted)?
        } else {
            all_tags(connection)?
        };
        Ok((kept, tags))
    })?;
    let (zone, closes_ms) = kept;
    Ok(Terms::new(Uuid::nil(), (zone, closes_ms.map(i64::unsigned_abs)), tags))
}

/// The zone and the periods, after what is wanted is put into force.
fn put(connection: &Connection, wanted: &Wanted<'_>) -> rusqlite::Result<(String, Option<i64>)> {
    let columns = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get(1)?));
    let kept = connection.prepare_cached(KEPT)?.query_row([], columns)?;
    let wanted_ms = wanted.close_after_ms();
    let stays = match &kept {
        (None, _) => false,
        (Some(zone), closes_ms) if zone == wanted.time_zone => wanted.any_zone || *closes_ms == wanted_ms,
        (Some(_), _) => wanted.any_zone || is_used(connection)?,
    };
    if let ((Some(zone), closes_ms), true) = (kept, stays) {
        return Ok((zone, closes_ms));
    }
    connection.prepare_cached(PUT)?.execute((wanted.time_zone, wanted_ms))?;
    Ok((wanted.time_zone.to_owned(), wanted_ms))
}

/// Puts what a policy says into force, for the metrics of which something was counted: all that comes may have been accepted before it.
pub(in super::super) fn put_terms(tx: &mut SqliteTx<'_>, wanted: &Wanted<'_>) -> Result<(), StoreError> {
    Ok(tx.run(|connection| {
        let (zone, _) = put(connection, wanted)?;
        if zone == wanted.time_zone {
            let known: BTreeSet<String> =
                all_tags(connection)?.into_iter().map(|(metric, _)| metric).collect();
            let tags = wanted.tags.iter().filter(|(metric, _)| known.contains(*metric)).copied().collect();
            declare(connection, &Wanted { tags, ..*wanted })?;
        }
        Ok(())
    })?)
}

fn is_used(connection: &Connection) -> rusqlite::Result<bool> {
    connection.prepare_cached(IS_USED)?.query_row([], |row| row.get(0))
}

/// All tags, after those that are wanted are there, and no others of these metrics, unless their policy is one of an earlier time.
fn declare(connection: &Connection, wanted: &Wanted<'_>) -> rusqlite::Result<BTreeSet<(String, String)>> {
    let mut tags = all_tags(connection)?;
    let is_wanted = |of: &(String, String)| wanted.tags.contains(&(of.0.as_str(), of.1.as_str()));
    let of_wanted = |of: &(String, String)| wanted.tags.contains(&(of.0.as_str(), ""));
    let goes = |of: &&(String, String)| !wanted.any_zone && of_wanted(of) && !is_wanted(of);
    let gone: Vec<(String, String)> = tags.iter().filter(goes).cloned().collect();
    let known: BTreeSet<String> = tags.iter().map(|(metric, _)| metric.clone()).collect();
    for of in gone {
        connection.prepare_cached(TAKE_AWAY)?.execute((&of.0, &of.1))?;
        tags.remove(&of);
    }
    for (metric, tag) in &wanted.tags {
        let of = ((*metric).to_owned(), (*tag).to_owned());
        if !tags.contains(&of) {
            // Of a metric that was not counted yet all is in their sums.
            let since_us = if known.contains(*metric) { Timestamp::now().as_microsecond() } else { i64::MIN };
            connection.prepare_cached(DECLARE)?.execute((metric, tag, since_us))?;
            tags.insert(of);
        }
    }
    Ok(tags)
}

fn all_tags(connection: &Connection) -> rusqlite::Result<BTreeSet<(String, String)>> {
    let mut asked = connection.prepare_cached(TAGS)?;
    asked.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// What is there, and stays: a zone without usage gives way to another one.
pub(in super::super) fn kept_terms(tx: &mut SqliteTx<'_>) -> Result<Kept, StoreError> {
    let kept = tx.run(|connection| {
        let columns =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<i64>>(1)?));
        if is_used(connection)? {
            connection.prepare_cached(KEPT)?.query_row([], columns).optional()
        } else {
            Ok(None)
        }
    })?;
    Ok(kept.and_then(|(zone, closes_ms)| Some((zone?, closes_ms.map(i64::unsigned_abs)))))
}
