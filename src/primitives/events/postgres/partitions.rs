//! Partitions made ahead and dropped, by a function of the owner's.

use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const KEEP: &str = "SELECT made, dropped, kept FROM outrigger_keep_partitions()";
const AHEAD: &str = "SELECT max(to_date(right(relname::text, 8), 'YYYYMMDD')) - (now() AT TIME ZONE 'UTC')::date \
                     FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
                     WHERE inhparent = to_regclass('public.events')";

pub(in super::super) async fn keep_partitions(tx: &mut PgTx) -> Result<(), StoreError> {
    let rows = tx.query(KEEP, &[]).await?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    if let Some((made, dropped, kept)) = rows.first().map(read).transpose().map_err(PgError::of_row)? {
        let (made, dropped, kept): (i32, i32, i32) = (made, dropped, kept);
        if made > 0 || dropped > 0 {
            tracing::info!(made, dropped, "partitions of events");
        }
        if kept > 0 {
            tracing::warn!("an old partition of events is in use, and is dropped at a later try");
        }
    }
    Ok(())
}

/// For how many days after this one there is a partition.
pub(in super::super) async fn days_ahead(tx: &mut PgTx) -> Result<i64, StoreError> {
    let rows = tx.query(AHEAD, &[]).await?;
    let ahead: Option<i32> = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(i64::from(ahead.unwrap_or(-1)))
}
