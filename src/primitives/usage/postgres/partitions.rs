//! Partitions made ahead and dropped, by a function of the owner's.

use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const KEEP: &str = "SELECT made, dropped, kept FROM outrigger_keep_usage_partitions()";

pub(in super::super) async fn keep_partitions(tx: &mut PgTx) -> Result<(), StoreError> {
    let rows = tx.query(KEEP, &[]).await?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    if let Some((made, dropped, kept)) = rows.first().map(read).transpose().map_err(PgError::of_row)? {
        let (made, dropped, kept): (i32, i32, i32) = (made, dropped, kept);
        if made > 0 || dropped > 0 {
            tracing::info!(made, dropped, "partitions of usage");
        }
        if kept > 0 {
            tracing::warn!("an old partition of usage is in use, and is dropped at a later try");
        }
    }
    Ok(())
}
