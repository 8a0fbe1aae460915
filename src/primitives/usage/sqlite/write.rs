//! Points and sums written. Sums are added here: SQLite has no exact decimals.

use jiff::Timestamp;
use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension as _};
use uuid::Uuid;

use super::held::{self, length};

use crate::primitives::usage::count::Row;
use crate::primitives::usage::{Added, PointKey, Rollup, Sum, SumKey};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HELD: &str = "SELECT fingerprint FROM usage_dedupe WHERE day = ?1 AND place = ?2 AND hash = ?3";
const TAKE: &str = "INSERT INTO usage_dedupe (day, place, hash, fingerprint) VALUES (?1, ?2, ?3, ?4)";
const INSERT: &str = "INSERT INTO usage_events (time_us, tenant, metric, value, tags, metadata) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const ADJUST: &str = "INSERT INTO usage_adjustments (booked_us, time_us, tenant, metric, value, tags, metadata) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// A table of sums, as it is read and written.
struct Sums {
    read: &'static str,
    write: &'static str,
}

const HOURLY: Sums = Sums {
    read: "SELECT value, count FROM usage_hourly WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start = ?4 AND tag_value = ?5 AND adjusts = ?6",
    write: "INSERT OR REPLACE INTO usage_hourly (tenant, metric, tag, start, tag_value, adjusts, value, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
};
const DAILY: Sums = Sums {
    read: "SELECT value, count FROM usage_daily WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start = ?4 AND tag_value = ?5 AND adjusts = ?6",
    write: "INSERT OR REPLACE INTO usage_daily (tenant, metric, tag, start, tag_value, adjusts, value, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
};

/// Writes rows where all keys are new; else nothing, and of each that is known its number among them and the fingerprint that
/// is kept.
pub(in super::super) fn insert(
    tx: &mut SqliteTx<'_>,
    rows: &[Row<'_>],
) -> Result<Vec<(usize, i64)>, StoreError> {
    let held = held_keys(tx, rows.iter().map(|row| &row.point.key))?;
    if held.is_empty() {
        let written = tx.run(|connection| write(connection, rows))?;
        written.into_iter().for_each(|(tenant, bytes)| tx.holds(tenant, bytes));
    }
    Ok(held)
}

/// Of keys, the numbers of those that were counted, and the fingerprints of their points.
pub(in super::super) fn counted(
    tx: &mut SqliteTx<'_>,
    keys: &[PointKey],
) -> Result<Vec<(usize, i64)>, StoreError> {
    held_keys(tx, keys.iter())
}

fn held_keys<'k>(
    tx: &mut SqliteTx<'_>,
    keys: impl Iterator<Item = &'k PointKey>,
) -> Result<Vec<(usize, i64)>, StoreError> {
    let held = tx.run(|connection| {
        let mut look = connection.prepare_cached(HELD)?;
        let mut held = Vec::new();
        for (number, key) in keys.enumerate() {
            let found = look
                .query_row((key.day.number(), key.place, key.hash.as_bytes()), |row| row.get(0))
                .optional()?;
            held.extend(found.map(|fingerprint| (number, fingerprint)));
        }
        Ok(held)
    })?;
    Ok(held)
}

/// Notes points that are adjustments, booked now.
pub(in super::super) fn adjust(
    tx: &mut SqliteTx<'_>,
    rows: &[&Row<'_>],
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.run(|connection| {
        let mut adjust = connection.prepare_cached(ADJUST)?;
        for Row { tenant, metric, point, .. } in rows {
            let (tenant, name) = (tenant.as_bytes(), metric.name.as_str());
            let (value, metadata) = (point.value.to_string(), point.metadata.as_deref());
            let (now_us, time_us) = (now.as_microsecond(), point.time.as_microsecond());
            adjust.execute((now_us, time_us, tenant, name, value, point.tags_text(), metadata))?;
        }
        Ok(())
    })?;
    for Row { tenant, point, .. } in rows {
        tx.holds(*tenant, i64::try_from(point.bytes()).unwrap_or(i64::MAX));
    }
    Ok(())
}

/// What each of them takes of its tenant's part.
fn write(connection: &Connection, rows: &[Row<'_>]) -> rusqlite::Result<Vec<(Uuid, i64)>> {
    let mut written = Vec::with_capacity(rows.len());
    let (mut take, mut insert) = (connection.prepare_cached(TAKE)?, connection.prepare_cached(INSERT)?);
    for Row { tenant, metric, point, .. } in rows {
        let key = &point.key;
        take.execute((key.day.number(), key.place, key.hash.as_bytes(), point.fingerprint))?;
        let (tags, metadata) = (point.tags_text(), point.metadata.as_deref());
        let texts = tags.as_ref().map_or(0, String::len) + metadata.map_or(0, str::len);
        let name = metric.name.as_str();
        insert.execute((
            point.time.as_microsecond(),
            tenant.as_bytes(),
            name,
            point.value.to_string(),
            tags,
            metadata,
        ))?;
        written.push((*tenant, held::EVENT + length(texts)));
    }
    Ok(written)
}

/// Adds to sums.
pub(in super::super) fn add(tx: &mut SqliteTx<'_>, sums: &Rollup<'_>) -> Result<(), StoreError> {
    for ((key, hour), added) in &sums.hourly {
        add_one(tx, &HOURLY, key, hour, *added)?;
    }
    for ((key, day), added) in &sums.daily {
        add_one(tx, &DAILY, key, &day.to_string(), *added)?;
    }
    Ok(())
}

fn add_one(
    tx: &mut SqliteTx<'_>,
    table: &Sums,
    key: &SumKey<'_>,
    start: &dyn ToSql,
    added: Added,
) -> Result<(), StoreError> {
    let SumKey { tenant: owner, metric, tag, tag_value, adjusts } = key;
    let (tenant, adjusts) =
        (owner.as_bytes().as_slice(), adjusts.map_or_else(String::new, |month| month.to_string()));
    let found: Option<(String, i64)> = tx.run(|connection| {
        connection
            .prepare_cached(table.read)?
            .query_row((tenant, metric, tag, start, tag_value, &adjusts), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    })?;
    if found.is_none() {
        tx.holds(*owner, held::SUM + length(tag_value.len()));
    }
    let (mut value, mut count) = (added.value, added.count);
    if let Some((text, before)) = found {
        value += Sum::parse(&text).ok_or_else(|| StoreError::Corrupt(format!("the sum `{text}`")))?;
        count += before;
    }
    tx.run(|connection| {
        let values = (tenant, metric, tag, start, tag_value, &adjusts, value.to_string(), count);
        connection.prepare_cached(table.write)?.execute(values)
    })?;
    Ok(())
}
