//! Operators' orders, as the relay that has the shard reads and settles them.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::lanes::OrderedKey;
use super::super::{Order, Settled, Shard, number};
use super::{MAX_BYTES, read_row};
use crate::primitives::events::Position;
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// An event beyond what was looked through comes again: it is given up after that.
const NEXT: &str = "SELECT number, topic, tenant_id, key, discards FROM event_orders \
     WHERE shard = $1 AND done_at IS NULL AND coalesce(discards, 0) <= $2 ORDER BY number LIMIT 1";
const ROWS: &str = "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, tenant_id, topic, lane, key, type, \
     attributes, form, data FROM ( \
         SELECT *, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
             - octet_length(attributes) - coalesce(octet_length(data), 0) AS before \
         FROM event_parked WHERE shard = $1 AND topic = $2 AND tenant_id = $3 AND key = $4 AND id <= $5 \
         ORDER BY id LIMIT $6) next \
     WHERE before < $7 ORDER BY id";
const FIRST: &str =
    "SELECT min(id) FROM event_parked WHERE shard = $1 AND topic = $2 AND tenant_id = $3 AND key = $4";
/// Said again, it finds nothing to count.
const DELIVERED: &str = "WITH gone AS (DELETE FROM event_parked WHERE shard = $1 AND id = ANY ($2) RETURNING id) \
     UPDATE event_orders SET sent = sent + (SELECT count(*) FROM gone) WHERE number = $3";
const DISCARDED: &str = "WITH gone AS (DELETE FROM event_parked WHERE shard = $1 AND id = $2 RETURNING attributes) \
     UPDATE event_orders SET outcome = 'discarded', done_at = now(), attributes = (SELECT attributes FROM gone) \
     WHERE number = $3 AND done_at IS NULL";
const REFUSED: &str = "WITH told AS (UPDATE event_parked SET reason = $3 WHERE shard = $1 AND id = $2) \
     UPDATE event_orders SET outcome = 'refused', done_at = now(), detail = $3 WHERE number = $4 AND done_at IS NULL";
const RELEASED: &str =
    "UPDATE event_orders SET outcome = 'released', done_at = now() WHERE number = $1 AND done_at IS NULL";

/// The first order that waits, and what it is about.
pub(super) async fn next(
    tx: &mut PgTx,
    shard: Shard,
    through: Position,
    limit: usize,
) -> Result<Option<Order>, StoreError> {
    let (shard, through) = (number(shard.number()), through.number());
    let found = tx.query(NEXT, &[(&shard, Type::INT2), (&through, Type::INT8)]).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?))
    };
    let (order, topic, tenant, key, discards): (i64, String, Uuid, String, Option<i64>) =
        read().map_err(PgError::of_row)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let parameters: [Parameter<'_>; 7] = [
        (&shard, Type::INT2),
        (&topic, Type::TEXT),
        (&tenant, Type::UUID),
        (&key, Type::TEXT),
        (&through, Type::INT8),
        (&limit, Type::INT8),
        (&MAX_BYTES, Type::INT8),
    ];
    let rows = match discards {
        None => tx.query(ROWS, &parameters).await?.iter().map(read_row).collect::<Result<_, _>>()?,
        Some(_) => Vec::new(),
    };
    let key = OrderedKey { topic: topic.into(), tenant, key: key.into() };
    let first = first(tx, shard, &key).await?;
    Ok(Some(Order { number: order, key, discards: discards.map(Position::new), rows, first }))
}

/// Keeps what became of an order; the key's first position that is parked.
pub(super) async fn settle(
    tx: &mut PgTx,
    shard: Shard,
    order: i64,
    key: &OrderedKey,
    settled: &Settled,
) -> Result<Option<Position>, StoreError> {
    let shard = number(shard.number());
    match settled {
        Settled::Delivered(positions) => {
            let positions: Vec<i64> = positions.iter().map(|position| position.number()).collect();
            let parameters: [Parameter<'_>; 3] =
                [(&shard, Type::INT2), (&positions, Type::INT8_ARRAY), (&order, Type::INT8)];
            tx.query(DELIVERED, &parameters).await?;
        }
        Settled::Discarded(position) => {
            let parameters: [Parameter<'_>; 3] =
                [(&shard, Type::INT2), (&position.number(), Type::INT8), (&order, Type::INT8)];
            tx.query(DISCARDED, &parameters).await?;
        }
        Settled::Refused(position, reason) => {
            let parameters: [Parameter<'_>; 4] = [
                (&shard, Type::INT2),
                (&position.number(), Type::INT8),
                (reason, Type::TEXT),
                (&order, Type::INT8),
            ];
            tx.query(REFUSED, &parameters).await?;
        }
        Settled::Released => {
            tx.query(RELEASED, &[(&order, Type::INT8)]).await?;
        }
    }
    first(tx, shard, key).await
}

async fn first(tx: &mut PgTx, shard: i16, key: &OrderedKey) -> Result<Option<Position>, StoreError> {
    let (topic, name) = (&*key.topic, &*key.key);
    let parameters: [Parameter<'_>; 4] =
        [(&shard, Type::INT2), (&topic, Type::TEXT), (&key.tenant, Type::UUID), (&name, Type::TEXT)];
    let rows = tx.query(FIRST, &parameters).await?;
    let first: Option<i64> = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(first.map(Position::new))
}
