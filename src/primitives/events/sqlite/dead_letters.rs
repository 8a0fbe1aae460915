//! What groups gave up, copied from one topic to another: nothing of it comes here.

use rusqlite::OptionalExtension as _;
use uuid::Uuid;

use super::held;
use super::read::{now_ms, tenant};
use crate::primitives::events::Position;
use crate::primitives::events::audience::Sees;
use crate::primitives::events::dead_letters::{Found, Letter};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

/// The length of a blob is known without reading it.
const FOUND: &str = "SELECT tenant, key, length(attributes) + coalesce(length(data), 0) + length(CAST(key AS BLOB)) \
                     FROM events WHERE id = ?1 AND topic = ?2";
const COPY: &str = "INSERT INTO events (accepted_ms, tenant, topic, key, type, attributes, form, data) \
                    SELECT ?3, tenant, ?4, key, type, \
                        CAST(substr(attributes, 1, length(attributes) - 1) || ?5 AS BLOB), form, data \
                    FROM events WHERE id = ?1 AND topic = ?2 \
                    RETURNING tenant, octet_length(attributes) + coalesce(octet_length(data), 0) + octet_length(key)";

/// Which of these are kept, in order; behind so many bytes of others no more than that.
pub(in super::super) fn found(
    tx: &mut SqliteTx<'_>,
    sees: &Sees,
    topic: &str,
    positions: &[Position],
    max_bytes: i64,
) -> Result<Vec<Found>, StoreError> {
    let found = tx.run(|connection| {
        let mut statement = connection.prepare_cached(FOUND)?;
        let (mut found, mut before) = (Vec::with_capacity(positions.len()), 0);
        for position in positions {
            let row = statement.query_row((position.number(), topic), |row| {
                Ok((tenant(row, 0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
            });
            let Some((tenant, key, bytes)): Option<(Uuid, _, _)> = row.optional()? else { continue };
            if !sees.covers(&tenant) {
                continue;
            }
            let of = (before < max_bytes).then(|| (tenant, key.into_boxed_str()));
            found.push(Found { position: *position, of });
            before += bytes;
        }
        Ok(found)
    });
    Ok(found?)
}

/// Copies these to another topic, in their order.
pub(in super::super) fn copy(
    tx: &mut SqliteTx<'_>,
    from: &str,
    to: &str,
    letters: &[Letter],
) -> Result<(), StoreError> {
    let now_ms = now_ms();
    let copied = tx.run(|connection| {
        let mut statement = connection.prepare_cached(COPY)?;
        let mut copied = Vec::with_capacity(letters.len());
        for letter in letters {
            let returned = statement.query((letter.position.number(), from, now_ms, to, &letter.more))?;
            copied.extend(held::rows(returned, held::EVENT)?);
        }
        Ok(copied)
    })?;
    if copied.len() == letters.len() {
        held::added(tx, copied);
        return Ok(());
    }
    // Committed it would be an event that nobody has any more.
    Err(StoreError::Corrupt("a defect: an event that was there could not be copied".to_owned()))
}
