//! Leases in SQLite: of use to one process alone, which finds them as it does in a fleet.

use rusqlite::OptionalExtension as _;
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

// One millisecond more than asked for: `unixepoch` rounds down, and a lease is never over before its owner says so.
const TAKE: &str = "INSERT INTO leases AS held (name, owner, epoch, until_ms) VALUES (?1, ?2, 1, unixepoch('subsec') * 1000 + ?3 + 1) \
     ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until_ms = excluded.until_ms, \
         epoch = held.epoch + (held.owner IS NOT excluded.owner OR held.until_ms <= unixepoch('subsec') * 1000) \
     WHERE held.owner IS NULL OR held.owner = excluded.owner OR held.until_ms <= unixepoch('subsec') * 1000 \
     RETURNING epoch";
const RELEASE: &str =
    "UPDATE leases SET owner = NULL, until_ms = 0 WHERE name = ?1 AND owner = ?2 AND epoch = ?3";

pub(super) fn take(
    tx: &mut SqliteTx<'_>,
    name: &str,
    owner: Uuid,
    time_ms: i64,
) -> Result<Option<i64>, StoreError> {
    let taken = tx.run(|connection| {
        let mut statement = connection.prepare_cached(TAKE)?;
        statement.query_row((name, owner.as_bytes(), time_ms), |row| row.get(0)).optional()
    });
    Ok(taken?)
}

pub(super) fn release(tx: &mut SqliteTx<'_>, name: &str, owner: Uuid, epoch: i64) -> Result<(), StoreError> {
    tx.run(|connection| connection.prepare_cached(RELEASE)?.execute((name, owner.as_bytes(), epoch)))?;
    Ok(())
}
