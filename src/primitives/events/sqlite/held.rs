//! What rows take of the store, as it is counted for their tenants: their contents, and about so much for each in its table and
//! its indexes. A row is taken away with the bytes that it was added with.

use uuid::Uuid;

use crate::store::sqlite::SqliteTx;

pub(super) const EVENT: i64 = 160;
pub(super) const ID: i64 = 128;
pub(super) const GROUP: i64 = 128;
pub(super) const ATTEMPT: i64 = 160;

/// Says that these rows were added.
pub(super) fn added(tx: &mut SqliteTx<'_>, rows: Vec<(Uuid, i64)>) {
    for (tenant, bytes) in rows {
        tx.holds(tenant, bytes);
    }
}

/// Says that these rows are gone.
pub(super) fn removed(tx: &mut SqliteTx<'_>, rows: Vec<(Uuid, i64)>) {
    for (tenant, bytes) in rows {
        tx.holds(tenant, -bytes);
    }
}

/// A length in bytes.
pub(super) fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The tenant and the length of each row that a statement returns, and what such a row takes besides.
pub(super) fn rows(mut returned: rusqlite::Rows<'_>, each: i64) -> rusqlite::Result<Vec<(Uuid, i64)>> {
    let mut found = Vec::new();
    while let Some(row) = returned.next()? {
        found.push((super::read::tenant(row, 0)?, row.get::<_, i64>(1)?.saturating_add(each)));
    }
    Ok(found)
}
