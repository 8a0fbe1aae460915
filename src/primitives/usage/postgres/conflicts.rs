//! Records that were accepted to disk and not counted, written by the owner's function and read by their tenant.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::write::instant;
use crate::names::Name;
use crate::primitives::usage::Amount;
use crate::primitives::usage::conflicts::{Behind, Conflict, Listed};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const NOTE: &str = "SELECT outrigger_usage_note_conflicts($1, $2, $3, $4, $5, $6, $7, $8)";
const DROP_OLD: &str = "SELECT outrigger_drop_usage_conflicts()";
const LIST: &str = "SELECT (extract(epoch FROM found_at) * 1000000)::bigint, idempotency_key, fingerprint, \
     (extract(epoch FROM time) * 1000000)::bigint, trim_scale(value)::text, tags::text, metadata::text FROM usage_conflicts \
     WHERE tenant_id = $1 AND metric = $2 \
         AND (found_at, idempotency_key, fingerprint) > ($3, $4, $5) \
     ORDER BY found_at, idempotency_key, fingerprint LIMIT $6";

pub(in super::super) async fn note_conflicts(
    tx: &mut PgTx,
    found: &[Conflict<'_>],
) -> Result<(), StoreError> {
    let tenants: Vec<Uuid> = found.iter().map(|one| one.tenant).collect();
    let metrics: Vec<&str> = found.iter().map(|one| one.metric.as_str()).collect();
    let keys: Vec<&str> = found.iter().map(|one| one.key).collect();
    let fingerprints: Vec<i64> = found.iter().map(|one| one.point.fingerprint).collect();
    let times: Vec<_> = found.iter().map(|one| instant(one.point.time.as_microsecond())).collect();
    let values: Vec<Amount> = found.iter().map(|one| one.point.value).collect();
    let tags: Vec<Option<String>> = found.iter().map(|one| one.point.tags_text()).collect();
    let metadata: Vec<Option<&str>> = found.iter().map(|one| one.point.metadata.as_deref()).collect();
    tx.query(
        NOTE,
        &[
            (&tenants, Type::UUID_ARRAY),
            (&metrics, Type::TEXT_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&fingerprints, Type::INT8_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&values, Type::NUMERIC_ARRAY),
            (&tags, Type::TEXT_ARRAY),
            (&metadata, Type::TEXT_ARRAY),
        ],
    )
    .await?;
    Ok(())
}

/// Drops some of those that were kept long enough; whether there may be more.
pub(in super::super) async fn drop_old_conflicts(tx: &mut PgTx) -> Result<bool, StoreError> {
    let rows = tx.query(DROP_OLD, &[]).await?;
    Ok(rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?)
}

pub(in super::super) async fn conflicts(
    tx: &mut PgTx,
    tenant: Uuid,
    metric: &Name,
    behind: &Behind,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    let (metric, found, key) = (metric.as_str(), instant(behind.found_us), behind.key.as_str());
    let rows = tx
        .query(
            LIST,
            &[
                (&tenant, Type::UUID),
                (&metric, Type::TEXT),
                (&found, Type::TIMESTAMPTZ),
                (&key, Type::TEXT),
                (&behind.fingerprint, Type::INT8),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    rows.iter().map(listed).collect()
}

fn listed(row: &Row) -> Result<Listed, StoreError> {
    let read = || {
        let (found_us, time_us): (i64, i64) = (row.try_get(0)?, row.try_get(3)?);
        let (key, fingerprint, value) = (row.try_get(1)?, row.try_get(2)?, row.try_get(4)?);
        Ok((found_us, time_us, key, fingerprint, value, row.try_get(5)?, row.try_get(6)?))
    };
    let (found_us, time_us, key, fingerprint, value, tags, metadata) = read().map_err(PgError::of_row)?;
    let time =
        Timestamp::from_microsecond(time_us).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(Listed { found_us, key, fingerprint, time, value, tags, metadata })
}
