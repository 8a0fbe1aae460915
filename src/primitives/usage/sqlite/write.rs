//! Points and sums written. Sums are added here: SQLite has no exact decimals.

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension as _};

use crate::primitives::usage::count::Row;
use crate::primitives::usage::{Added, Rollup, Sum, SumKey};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HELD: &str = "SELECT fingerprint FROM usage_dedupe WHERE day = ?1 AND place = ?2 AND hash = ?3";
const TAKE: &str = "INSERT INTO usage_dedupe (day, place, hash, fingerprint) VALUES (?1, ?2, ?3, ?4)";
const INSERT: &str = "INSERT INTO usage_events (time_us, tenant, metric, value, tags, metadata) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// A table of sums, as it is read and written.
struct Sums {
    read: &'static str,
    write: &'static str,
}

const HOURLY: Sums = Sums {
    read: "SELECT value, count FROM usage_hourly WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start = ?4 AND tag_value = ?5",
    write: "INSERT OR REPLACE INTO usage_hourly (tenant, metric, tag, start, tag_value, value, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
};
const DAILY: Sums = Sums {
    read: "SELECT value, count FROM usage_daily WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start = ?4 AND tag_value = ?5",
    write: "INSERT OR REPLACE INTO usage_daily (tenant, metric, tag, start, tag_value, value, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
};

/// Writes rows where all keys are new; else nothing, and of each that is known its number among them and the fingerprint that
/// is kept.
pub(in super::super) fn insert(
    tx: &mut SqliteTx<'_>,
    rows: &[Row<'_>],
) -> Result<Vec<(usize, i64)>, StoreError> {
    let held = tx.run(|connection| {
        let mut look = connection.prepare_cached(HELD)?;
        let mut held = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let key = &row.point.key;
            let found = look
                .query_row((key.day.number(), key.place, key.hash.as_bytes()), |row| row.get(0))
                .optional()?;
            held.extend(found.map(|fingerprint| (number, fingerprint)));
        }
        Ok(held)
    })?;
    if held.is_empty() {
        tx.run(|connection| write(connection, rows))?;
    }
    Ok(held)
}

fn write(connection: &Connection, rows: &[Row<'_>]) -> rusqlite::Result<()> {
    let (mut take, mut insert) = (connection.prepare_cached(TAKE)?, connection.prepare_cached(INSERT)?);
    for Row { tenant, metric, point } in rows {
        let key = &point.key;
        take.execute((key.day.number(), key.place, key.hash.as_bytes(), point.fingerprint))?;
        insert.execute((
            point.time_us,
            tenant.as_bytes(),
            metric.name.as_str(),
            point.value.to_string(),
            point.tags_text(),
            point.metadata.as_deref(),
        ))?;
    }
    Ok(())
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
    let SumKey { tenant, metric, tag, tag_value } = key;
    let tenant = tenant.as_bytes().as_slice();
    let found: Option<(String, i64)> = tx.run(|connection| {
        connection
            .prepare_cached(table.read)?
            .query_row((tenant, metric, tag, start, tag_value), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    })?;
    let (mut value, mut count) = (added.value, added.count);
    if let Some((text, before)) = found {
        value += Sum::parse(&text).ok_or_else(|| StoreError::Corrupt(format!("the sum `{text}`")))?;
        count += before;
    }
    tx.run(|connection| {
        let values = (tenant, metric, tag, start, tag_value, value.to_string(), count);
        connection.prepare_cached(table.write)?.execute(values)
    })?;
    Ok(())
}
