//! Records that were accepted to disk and not counted.

use jiff::Timestamp;
use uuid::Uuid;

use super::held::{self, length};
use crate::names::Name;
use crate::primitives::usage::conflicts::{Behind, Conflict, Listed};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const NOTE: &str = "INSERT INTO usage_conflicts (tenant, metric, idempotency_key, fingerprint, found_us, time_us, value, tags, metadata) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING";
const LIST: &str = "SELECT found_us, idempotency_key, fingerprint, time_us, value, tags, metadata FROM usage_conflicts \
     WHERE tenant = ?1 AND metric = ?2 AND (found_us, idempotency_key, fingerprint) > (?3, ?4, ?5) \
     ORDER BY found_us, idempotency_key, fingerprint LIMIT ?6";

pub(in super::super) fn note_conflicts(
    tx: &mut SqliteTx<'_>,
    found: &[Conflict<'_>],
    now: Timestamp,
) -> Result<(), StoreError> {
    for Conflict { tenant, metric, key, point } in found {
        let (tags, metadata) = (point.tags_text(), point.metadata.as_deref());
        let texts = key.len() + tags.as_ref().map_or(0, String::len) + metadata.map_or(0, str::len);
        let (now_us, time_us) = (now.as_microsecond(), point.time.as_microsecond());
        let value = point.value.to_string();
        let noted = tx.run(|connection| {
            let values = (
                tenant.as_bytes(),
                metric.as_str(),
                key,
                point.fingerprint,
                now_us,
                time_us,
                value,
                tags,
                metadata,
            );
            connection.prepare_cached(NOTE)?.execute(values)
        })?;
        if noted > 0 {
            tx.holds(*tenant, held::CONFLICT + length(texts));
        }
    }
    Ok(())
}

pub(in super::super) fn conflicts(
    tx: &mut SqliteTx<'_>,
    tenant: Uuid,
    metric: &Name,
    behind: &Behind,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    let Behind { found_us, key, fingerprint } = behind;
    let rows: Vec<(Listed, i64)> = tx.run(|connection| {
        let mut asked = connection.prepare_cached(LIST)?;
        let rows = asked.query_map(
            (tenant.as_bytes(), metric.as_str(), found_us, key, fingerprint, limit),
            |row| {
                let listed = Listed {
                    found_us: row.get(0)?,
                    key: row.get(1)?,
                    fingerprint: row.get(2)?,
                    time: Timestamp::UNIX_EPOCH,
                    value: row.get(4)?,
                    tags: row.get(5)?,
                    metadata: row.get(6)?,
                };
                Ok((listed, row.get(3)?))
            },
        )?;
        rows.collect()
    })?;
    let at = |(listed, time_us): (Listed, i64)| {
        let time =
            Timestamp::from_microsecond(time_us).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Listed { time, ..listed })
    };
    rows.into_iter().map(at).collect()
}
