//! What subscriptions keep, and whose events there are.

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::primitives::events::Position;
use crate::primitives::events::push::AttemptRow;
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

const BEGIN: &str = "SELECT outrigger_begin_subscription($1, $2)";
const KEEP: &str = "INSERT INTO event_attempts \
         (tenant_id, at, subscription, event_id, message_id, attempt, outcome, status, duration_ms, next_at) \
     SELECT $1, to_timestamp(at_ms::double precision / 1000), subscription, event_id, message_id, attempt, outcome, status, \
         duration_ms, to_timestamp(next_ms::double precision / 1000) \
     FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::text[], $8::smallint[], \
         $9::integer[], $10::bigint[]) \
         AS tried (at_ms, subscription, event_id, message_id, attempt, outcome, status, duration_ms, next_ms)";
/// A step from topic to topic of each tenant along the index, for what was there before this process.
const ALL: &str = "WITH RECURSIVE lines AS ( \
         (SELECT tenant_id, topic, 1 AS number FROM events WHERE (tenant_id, topic) > ($1, $2) ORDER BY tenant_id, topic LIMIT 1) \
         UNION ALL \
         SELECT next.tenant_id, next.topic, lines.number + 1 FROM lines CROSS JOIN LATERAL ( \
             SELECT tenant_id, topic FROM events WHERE (tenant_id, topic) > (lines.tenant_id, lines.topic) \
             ORDER BY tenant_id, topic LIMIT 1) next \
         WHERE lines.number < $3) \
     SELECT topic, tenant_id FROM lines ORDER BY number";
const NEW: &str =
    "SELECT DISTINCT topic, tenant_id FROM events WHERE id > $2 AND id <= $3 AND topic = ANY ($1)";

const REPLAYS: &str = "SELECT name, replays FROM event_subscriptions WHERE replays > 0";
const REPLAYED: &str = "UPDATE event_subscriptions SET replays = replays + 1 WHERE name = $1";

/// Of a tenant's topic, and up to what its group has looked at.
const OF_KEY: &str = "SELECT id FROM events WHERE tenant_id = $1 AND topic = $2 AND key = $3 AND id <= $4 \
     AND accepted_at >= to_timestamp($5::double precision / 1000) ORDER BY id LIMIT $6";

/// The first `limit` positions of a key's events that were accepted then or later.
pub(in super::super) async fn of_key(
    tx: &mut PgTx,
    (tenant, topic, key): (Uuid, &str, &str),
    to: Position,
    from_ms: i64,
    limit: usize,
) -> Result<Vec<Position>, StoreError> {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    let (from, limit) = (from_ms as f64, i64::try_from(limit).unwrap_or(i64::MAX));
    let parameters: [Parameter<'_>; 6] = [
        (&tenant, Type::UUID),
        (&topic, Type::TEXT),
        (&key, Type::TEXT),
        (&to.number(), Type::INT8),
        (&from, Type::FLOAT8),
        (&limit, Type::INT8),
    ];
    let rows = tx.query(OF_KEY, &parameters).await?;
    let read = |row: &tokio_postgres::Row| Ok(Position::new(row.try_get(0)?));
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}

/// How often subscriptions were replayed; those that never were are not among them.
pub(in super::super) async fn replays(tx: &mut PgTx) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = tx.query(REPLAYS, &[]).await?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}

/// Says that a subscription was replayed.
pub(in super::super) async fn replayed(tx: &mut PgTx, name: &str) -> Result<(), StoreError> {
    tx.query(REPLAYED, &[(&name, Type::TEXT)]).await?;
    Ok(())
}

/// Where a subscription began; here, where nobody has begun it.
pub(in super::super) async fn begin_subscription(
    tx: &mut PgTx,
    name: &str,
    here: Position,
) -> Result<Position, StoreError> {
    let rows = tx.query(BEGIN, &[(&name, Type::TEXT), (&here.number(), Type::INT8)]).await?;
    let row = rows.first().ok_or(PgError::Ended)?;
    Ok(Position::new(row.try_get(0).map_err(PgError::of_row)?))
}

/// Keeps what was tried for a tenant.
pub(in super::super) async fn keep_attempts(
    tx: &mut PgTx,
    tenant: Uuid,
    attempts: &[AttemptRow],
) -> Result<(), StoreError> {
    if attempts.is_empty() {
        return Ok(());
    }
    let at: Vec<i64> = attempts.iter().map(|attempt| attempt.at_ms).collect();
    let subscriptions: Vec<&str> = attempts.iter().map(|attempt| &*attempt.subscription).collect();
    let events: Vec<&str> = attempts.iter().map(|attempt| &*attempt.event_id).collect();
    let messages: Vec<&str> = attempts.iter().map(|attempt| &*attempt.message_id).collect();
    let numbers: Vec<i32> = attempts.iter().map(|attempt| attempt.attempt).collect();
    let outcomes: Vec<&str> = attempts.iter().map(|attempt| attempt.outcome).collect();
    let status: Vec<Option<i16>> = attempts.iter().map(|attempt| attempt.status).collect();
    let durations: Vec<i32> = attempts.iter().map(|attempt| attempt.duration_ms).collect();
    let next: Vec<Option<i64>> = attempts.iter().map(|attempt| attempt.next_at_ms).collect();
    let parameters: [Parameter<'_>; 10] = [
        (&tenant, Type::UUID),
        (&at, Type::INT8_ARRAY),
        (&subscriptions, Type::TEXT_ARRAY),
        (&events, Type::TEXT_ARRAY),
        (&messages, Type::TEXT_ARRAY),
        (&numbers, Type::INT4_ARRAY),
        (&outcomes, Type::TEXT_ARRAY),
        (&status, Type::INT2_ARRAY),
        (&durations, Type::INT4_ARRAY),
        (&next, Type::INT8_ARRAY),
    ];
    tx.query(KEEP, &parameters).await?;
    Ok(())
}

/// The tenants that have events in these topics after a position and up to another: that many rows are looked at.
pub(in super::super) async fn tenants_with_events(
    tx: &mut PgTx,
    topics: &[String],
    after: Position,
    to: Position,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    let parameters: [Parameter<'_>; 3] =
        [(&topics, Type::TEXT_ARRAY), (&after.number(), Type::INT8), (&to.number(), Type::INT8)];
    lines(&tx.query(NEW, &parameters).await?)
}

/// The topics of tenants that have events, whatever they are, after one of them and in the order of the index.
pub(in super::super) async fn topics_of_tenants(
    tx: &mut PgTx,
    (tenant, topic): (Uuid, &str),
    limit: usize,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    let parameters: [Parameter<'_>; 3] = [(&tenant, Type::UUID), (&topic, Type::TEXT), (&limit, Type::INT4)];
    lines(&tx.query(ALL, &parameters).await?)
}

fn lines(rows: &[tokio_postgres::Row]) -> Result<Vec<(String, Uuid)>, StoreError> {
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}
