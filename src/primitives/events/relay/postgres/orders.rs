//! Operators' orders, as the relay that has the shard reads and settles them.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::lanes::{OrderedKey, Parked};
use super::super::{Order, Settled, Shard, number};
use super::parked::parked;
use super::{MAX_BYTES, read_row};
use crate::primitives::events::Position;
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// An event beyond what was looked through comes again: it is given up after that.
const NEXT: &str = "SELECT number, topic, tenant_id, key, discards FROM event_orders \
     WHERE shard = $1 AND done_at IS NULL AND coalesce(discards, 0) <= $2 ORDER BY number LIMIT 1";
/// Of a key, or of all keys of a tenant, whose order has no topic and no key.
macro_rules! rows {
    ($whose:literal) => {
        concat!(
            "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, tenant_id, topic, lane, key, type, \
                 attributes, form, data FROM ( \
                 SELECT *, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
                     - octet_length(attributes) - coalesce(octet_length(data), 0) AS before FROM ( \
                     SELECT * FROM event_parked WHERE shard = $1 AND ", $whose, " AND id <= $5 ORDER BY id LIMIT $6) few) next \
             WHERE before < $7 ORDER BY id"
        )
    };
}
const ROWS: &str = rows!("topic = $2 AND tenant_id = $3 AND key = $4");
const ROWS_OF_TENANT: &str = rows!("tenant_id = $3 AND $2 = '' AND $4 = ''");
const FIRST: &str =
    "SELECT min(id) FROM event_parked WHERE shard = $1 AND topic = $2 AND tenant_id = $3 AND key = $4";
const FIRST_OF_TENANT: &str =
    "SELECT min(id) FROM event_parked WHERE shard = $1 AND tenant_id = $3 AND $2 = '' AND $4 = ''";
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
/// A replay sends no event that an order gave up: the order stays as long as the event.
const FORGET: &str = "DELETE FROM event_orders WHERE number IN ( \
         SELECT number FROM event_orders WHERE done_at < now() - interval '30 days' \
             AND NOT EXISTS (SELECT FROM events WHERE id = discards) ORDER BY number LIMIT $1) RETURNING number";
/// Orders that are forgotten in one transaction.
pub(super) const FORGET_AT_ONCE: usize = 500;

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
    let name = OrderedKey { topic: topic.as_str().into(), tenant, key: key.as_str().into() };
    let rows = match discards {
        None => {
            let rows = if name.is_all() { ROWS_OF_TENANT } else { ROWS };
            tx.query(rows, &parameters).await?.iter().map(read_row).collect::<Result<_, _>>()?
        }
        Some(_) => Vec::new(),
    };
    let key = name;
    let first = first(tx, shard, &key).await?;
    Ok(Some(Order { number: order, key, discards: discards.map(Position::new), rows, first }))
}

/// Forgets some of the orders that were done long ago; how many.
pub(super) async fn forget(tx: &mut PgTx) -> Result<usize, StoreError> {
    let most = i64::try_from(FORGET_AT_ONCE).unwrap_or(i64::MAX);
    Ok(tx.query(FORGET, &[(&most, Type::INT8)]).await?.len())
}

/// Keeps what became of an order; what is still parked of the key's tenant.
pub(super) async fn settle(
    tx: &mut PgTx,
    shard: Shard,
    order: i64,
    key: &OrderedKey,
    settled: &Settled,
) -> Result<Parked, StoreError> {
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
    parked(tx, shard, Some(key.tenant)).await
}

async fn first(tx: &mut PgTx, shard: i16, key: &OrderedKey) -> Result<Option<Position>, StoreError> {
    let (topic, name) = (&*key.topic, &*key.key);
    let parameters: [Parameter<'_>; 4] =
        [(&shard, Type::INT2), (&topic, Type::TEXT), (&key.tenant, Type::UUID), (&name, Type::TEXT)];
    let rows = tx.query(if key.is_all() { FIRST_OF_TENANT } else { FIRST }, &parameters).await?;
    let first: Option<i64> = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(first.map(Position::new))
}
