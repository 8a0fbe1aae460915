//! Partitions made ahead and dropped, by a function of the owner's.

use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const KEEP: &str = "SELECT made, dropped FROM outrigger_keep_partitions()";

pub(in super::super) async fn keep_partitions(tx: &mut PgTx) -> Result<(), StoreError> {
    let rows = tx.query(KEEP, &[]).await?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    if let Some((made, dropped)) = rows.first().map(read).transpose().map_err(PgError::of_row)? {
        let (made, dropped): (i32, i32) = (made, dropped);
        if made > 0 || dropped > 0 {
            tracing::info!(made, dropped, "partitions of events");
        }
    }
    Ok(())
}
