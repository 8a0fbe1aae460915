//! A shard's next rows, looked for in steps: the log may have millions of other shards' between them.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::lanes::mark_of;
use super::super::{Row, Shard, number};
use super::{MAX_BYTES, read_row};
use crate::primitives::events::read::STEP;
use crate::primitives::events::{Position, postgres};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// The last event, of any shard, of the next so many positions that begin with an event, and the newest one of all.
const STEP_END: &str = "SELECT id, tenant_id, attributes, floor(extract(epoch FROM accepted_at) * 1000)::bigint, \
         (SELECT id FROM events WHERE id <= $2 ORDER BY id DESC LIMIT 1) AS newest \
     FROM events WHERE id > $1 AND id <= $2 \
         AND id < (SELECT id FROM events WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1) + $3 \
     ORDER BY id DESC LIMIT 1";
const ROWS: &str = "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, tenant_id, topic, lane, key, type, \
     attributes, form, data FROM ( \
         SELECT *, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
             - octet_length(attributes) - coalesce(octet_length(data), 0) AS before \
         FROM events WHERE id > $1 AND id <= $2 AND lane % $3 = $4 ORDER BY id LIMIT $5) next \
     WHERE before < $6 ORDER BY id";

/// An event of any shard, where a step ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepEnd {
    pub(super) position: Position,
    pub(super) mark: Uuid,
    pub(super) accepted_ms: i64,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) rows: Vec<Row>,
    /// How far the log was looked through where there are none; none where nothing has come.
    pub(super) passed: Option<StepEnd>,
    /// Positions of all shards behind what was looked through.
    pub(super) left: u64,
}

/// Looks after `from`: through one step where nothing of the shard is in it, and else through as many as there are shards,
/// of which a full transaction is where events are spread evenly.
pub(super) async fn look(
    tx: &mut PgTx,
    shard: Shard,
    mut from: Position,
    limit: usize,
) -> Result<Look, StoreError> {
    // In this transaction, before the rows: what another server said may hold for it alone.
    let readable = postgres::readable(tx).await?;
    let (mut look, mut bytes) = (Look::default(), 0);
    for _ in 0..shard.count() {
        let Some((end, newest)) = step_end(tx, from, readable).await? else {
            look.left = 0;
            break;
        };
        let most = limit.saturating_sub(look.rows.len());
        let found = rows(tx, shard, (from, end.position), most, MAX_BYTES - bytes).await?;
        bytes += found.iter().map(size).sum::<i64>();
        let is_cut = found.len() == most || bytes >= MAX_BYTES;
        let is_empty = found.is_empty();
        look.rows.extend(found);
        let last = look.rows.last().filter(|_| is_cut).map_or(end.position, |row| row.event.position);
        look.left = newest.number().saturating_sub(last.number()).max(0).unsigned_abs();
        if look.rows.is_empty() {
            look.passed = Some(end);
        }
        if is_cut || is_empty || look.left == 0 {
            break;
        }
        from = end.position;
    }
    Ok(look)
}

fn size(row: &Row) -> i64 {
    i64::try_from(row.event.attributes.len() + row.event.data.bytes().len()).unwrap_or(i64::MAX)
}

async fn step_end(
    tx: &mut PgTx,
    from: Position,
    readable: Position,
) -> Result<Option<(StepEnd, Position)>, StoreError> {
    let (from, to) = (from.number(), readable.number());
    let parameters: [Parameter<'_>; 3] = [(&from, Type::INT8), (&to, Type::INT8), (&STEP, Type::INT8)];
    let found = tx.query(STEP_END, &parameters).await?;
    let read = |row: &tokio_postgres::Row| -> Result<_, tokio_postgres::Error> {
        let (tenant, attributes): (Uuid, Vec<u8>) = (row.try_get(1)?, row.try_get(2)?);
        let position = Position::new(row.try_get(0)?);
        let end = StepEnd { position, mark: mark_of(tenant, &attributes), accepted_ms: row.try_get(3)? };
        Ok((end, Position::new(row.try_get(4)?)))
    };
    Ok(found.first().map(read).transpose().map_err(PgError::of_row)?)
}

async fn rows(
    tx: &mut PgTx,
    shard: Shard,
    (after, to): (Position, Position),
    max_rows: usize,
    max_bytes: i64,
) -> Result<Vec<Row>, StoreError> {
    let (after, to, max_rows) = (after.number(), to.number(), i64::try_from(max_rows).unwrap_or(i64::MAX));
    let (count, number) = (number(shard.count()), number(shard.number()));
    let parameters: [Parameter<'_>; 6] = [
        (&after, Type::INT8),
        (&to, Type::INT8),
        (&count, Type::INT2),
        (&number, Type::INT2),
        (&max_rows, Type::INT8),
        (&max_bytes, Type::INT8),
    ];
    tx.query(ROWS, &parameters).await?.iter().map(read_row).collect()
}
