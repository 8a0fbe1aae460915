//! What all count by, as `outrigger_store` has it.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::primitives::usage::terms::{Kept, Terms, Wanted};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const TERMS: &str =
    "SELECT edition, time_zone, close_after_ms, metrics, tags FROM outrigger_usage_terms($1, $2, $3, $4, $5)";
const KEPT: &str = "SELECT usage_time_zone, usage_close_after_ms FROM outrigger_store";

/// The terms by which is counted in this transaction; what is wanted and not there is put into force, where that may be.
pub(in super::super) async fn terms(tx: &mut PgTx, wanted: &Wanted<'_>) -> Result<Terms, StoreError> {
    let (metrics, tags): (Vec<&str>, Vec<&str>) = wanted.tags.iter().copied().unzip();
    let closes_ms = wanted.close_after_ms();
    let parameters = [
        (&wanted.time_zone as _, Type::TEXT),
        (&closes_ms as _, Type::INT8),
        (&metrics as _, Type::TEXT_ARRAY),
        (&tags as _, Type::TEXT_ARRAY),
        (&wanted.any_zone as _, Type::BOOL),
    ];
    let rows = tx.query(TERMS, &parameters).await?;
    let row = rows.first().ok_or(PgError::Ended)?;
    type Columns = (Uuid, String, Option<i64>, Vec<String>, Vec<String>);
    let columns = || -> Result<Columns, tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?))
    };
    let (edition, zone, closes_ms, metrics, tags) = columns().map_err(PgError::of_row)?;
    Ok(Terms::new(edition, (zone, closes_after(closes_ms)?), metrics.into_iter().zip(tags)))
}

/// What is there.
pub(in super::super) async fn kept_terms(tx: &mut PgTx) -> Result<Kept, StoreError> {
    let rows = tx.query(KEPT, &[]).await?;
    kept(rows.first().ok_or(PgError::Ended)?)
}

/// A row's first two columns.
pub(super) fn kept(row: &Row) -> Result<Kept, StoreError> {
    let columns = || -> Result<(Option<String>, Option<i64>), tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let (zone, closes_ms) = columns().map_err(PgError::of_row)?;
    let closes = closes_after(closes_ms)?;
    Ok(zone.map(|zone| (zone, closes)))
}

fn closes_after(ms: Option<i64>) -> Result<Option<u64>, StoreError> {
    ms.map(u64::try_from)
        .transpose()
        .map_err(|_| StoreError::Corrupt("months that close before their end".to_owned()))
}
