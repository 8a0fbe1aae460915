//! Partitions that were made ahead.

use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const AHEAD: &str = "SELECT max(to_date(right(relname::text, 8), 'YYYYMMDD')) - (now() AT TIME ZONE 'UTC')::date \
                     FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
                     WHERE inhparent = to_regclass('public.events')";

/// For how many days after this one there is a partition.
pub(in super::super) async fn days_ahead(tx: &mut PgTx) -> Result<i64, StoreError> {
    let rows = tx.query(AHEAD, &[]).await?;
    let ahead: Option<i32> = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(i64::from(ahead.unwrap_or(-1)))
}
