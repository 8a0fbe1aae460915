//! Leases in PostgreSQL, by its clock.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

/// `clock_timestamp`: a transaction that waited for another's row has the time at which it got it.
const TAKE: &str = "INSERT INTO leases AS held (name, owner, epoch, until) \
     VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 ms') \
     ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = clock_timestamp() + $3 * interval '1 ms', \
         epoch = held.epoch + CASE WHEN held.owner = excluded.owner AND held.until > clock_timestamp() THEN 0 ELSE 1 END \
     WHERE held.owner IS NULL OR held.owner = excluded.owner OR held.until <= clock_timestamp() \
     RETURNING epoch";
const RELEASE: &str = "UPDATE leases SET owner = NULL, until = clock_timestamp() \
                       WHERE name = $1 AND owner = $2 AND epoch = $3";

pub(super) async fn take(
    tx: &mut PgTx,
    name: &str,
    owner: Uuid,
    time_ms: i64,
) -> Result<Option<i64>, StoreError> {
    // A double, as `interval` is multiplied by.
    #[allow(clippy::cast_precision_loss, reason = "a lease's time is far below 2^53 ms")]
    let time = time_ms as f64;
    let rows = tx.query(TAKE, &[(&name, Type::TEXT), (&owner, Type::UUID), (&time, Type::FLOAT8)]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose().map_err(PgError::of_row)?)
}

pub(super) async fn release(tx: &mut PgTx, name: &str, owner: Uuid, epoch: i64) -> Result<(), StoreError> {
    tx.query(RELEASE, &[(&name, Type::TEXT), (&owner, Type::UUID), (&epoch, Type::INT8)]).await?;
    Ok(())
}
