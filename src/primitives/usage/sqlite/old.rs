//! Rows that were kept long enough, dropped a few at a time: nobody's write waits long behind them.

use jiff::Timestamp;
use uuid::Uuid;

use super::held;
use crate::primitives::usage::{Day, KEYS_DAYS};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const AT_ONCE: i64 = 500;
const DAY_US: i64 = 86_400_000_000;
/// In the order in which they came: one that came late keeps those behind it for 90 days longer at the most.
const EVENTS: &str = "DELETE FROM usage_events WHERE rowid IN (SELECT rowid FROM usage_events ORDER BY rowid LIMIT ?2) AND time_us < ?1 \
                      RETURNING tenant, coalesce(octet_length(tags), 0) + coalesce(octet_length(metadata), 0)";
/// From when on all records are there.
const GONE: &str = "UPDATE store SET usage_records_from_us = max(coalesce(usage_records_from_us, ?1), ?1)";
const KEYS: &str = "DELETE FROM usage_dedupe WHERE (day, place, hash) IN \
                    (SELECT day, place, hash FROM usage_dedupe WHERE day < ?1 LIMIT ?2)";

const CONFLICTS: &str = "DELETE FROM usage_conflicts WHERE (tenant, metric, idempotency_key, fingerprint) IN \
                         (SELECT tenant, metric, idempotency_key, fingerprint FROM usage_conflicts WHERE found_us < ?1 LIMIT ?2) \
                         RETURNING tenant, octet_length(idempotency_key) + coalesce(octet_length(tags), 0) + coalesce(octet_length(metadata), 0)";

/// Whether there may be more.
pub(in super::super) fn drop_old(tx: &mut SqliteTx<'_>, retention_days: u32) -> Result<bool, StoreError> {
    let now = Timestamp::now();
    let before_us = now.as_microsecond().saturating_sub(i64::from(retention_days) * DAY_US);
    let (events, conflicts, keys) = tx.run(|connection| {
        let gone = |statement: &str, each: i64| {
            let mut statement = connection.prepare_cached(statement)?;
            let rows = statement.query_map((before_us, AT_ONCE), |row| {
                Ok((Uuid::from_bytes(row.get(0)?), each + row.get::<_, i64>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let events = gone(EVENTS, held::EVENT)?;
        if !events.is_empty() {
            connection.prepare_cached(GONE)?.execute([before_us])?;
        }
        let keys = connection.prepare_cached(KEYS)?.execute((Day::of(now).number() - KEYS_DAYS, AT_ONCE))?;
        Ok((events, gone(CONFLICTS, held::CONFLICT)?, keys))
    })?;
    let is_full =
        [events.len(), conflicts.len(), keys].into_iter().any(|rows| i64::try_from(rows) == Ok(AT_ONCE));
    for (tenant, bytes) in events.into_iter().chain(conflicts) {
        tx.holds(tenant, -bytes);
    }
    Ok(is_full)
}
