//! Rows that were kept long enough, dropped a few at a time: nobody's write waits long behind them.

use super::read::now_ms;
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const AT_ONCE: i64 = 500;
pub(super) const DAY_MS: i64 = 86_400_000;
const EVENTS: &str =
    "DELETE FROM events WHERE id IN (SELECT id FROM events ORDER BY id LIMIT ?2) AND accepted_ms < ?1";
const IDS: &str = "DELETE FROM event_dedupe WHERE (tenant, key) IN \
                   (SELECT tenant, key FROM event_dedupe WHERE until_ms < ?1 ORDER BY until_ms LIMIT ?2)";

const ATTEMPTS: &str = "DELETE FROM event_attempts WHERE rowid IN \
                        (SELECT rowid FROM event_attempts WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2)";

/// Whether there may be more.
pub(in super::super) fn drop_old(tx: &mut SqliteTx<'_>, retention_days: u32) -> Result<bool, StoreError> {
    let now_ms = now_ms();
    let before_ms = now_ms.saturating_sub(i64::from(retention_days) * DAY_MS);
    let dropped = tx.run(|connection| {
        let events = connection.prepare_cached(EVENTS)?.execute((before_ms, AT_ONCE))?;
        let ids = connection.prepare_cached(IDS)?.execute((now_ms, AT_ONCE))?;
        let attempts = connection.prepare_cached(ATTEMPTS)?.execute((before_ms, AT_ONCE))?;
        Ok(events.max(ids).max(attempts))
    })?;
    Ok(i64::try_from(dropped) == Ok(AT_ONCE))
}
