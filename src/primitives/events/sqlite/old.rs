//! Rows that were kept long enough, dropped a few at a time: nobody's write waits long behind them.

use super::held;
use super::read::now_ms;
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const AT_ONCE: i64 = 500;
pub(super) const DAY_MS: i64 = 86_400_000;
const EVENTS: &str = "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?2) AND accepted_ms < ?1 \
     RETURNING tenant, octet_length(attributes) + coalesce(octet_length(data), 0) + octet_length(key)";
const IDS: &str = "DELETE FROM event_dedupe WHERE (tenant, key) IN \
                   (SELECT tenant, key FROM event_dedupe WHERE until_ms < ?1 ORDER BY until_ms LIMIT ?2) \
                   RETURNING tenant, 0";

const ATTEMPTS: &str = "DELETE FROM event_attempts WHERE rowid IN \
                        (SELECT rowid FROM event_attempts WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2) \
                        RETURNING tenant, octet_length(subscription) + octet_length(event_id) + octet_length(message_id)";

/// Whether there may be more.
pub(in super::super) fn drop_old(tx: &mut SqliteTx<'_>, retention_days: u32) -> Result<bool, StoreError> {
    let now_ms = now_ms();
    let before_ms = now_ms.saturating_sub(i64::from(retention_days) * DAY_MS);
    let dropped = tx.run(|connection| {
        let mut dropped = Vec::with_capacity(3);
        for (statement, end_ms, each) in
            [(EVENTS, before_ms, held::EVENT), (IDS, now_ms, held::ID), (ATTEMPTS, before_ms, held::ATTEMPT)]
        {
            dropped.push(held::rows(connection.prepare_cached(statement)?.query((end_ms, AT_ONCE))?, each)?);
        }
        Ok(dropped)
    })?;
    let is_full = dropped.iter().any(|rows| i64::try_from(rows.len()) == Ok(AT_ONCE));
    for rows in dropped {
        held::removed(tx, rows);
    }
    Ok(is_full)
}
