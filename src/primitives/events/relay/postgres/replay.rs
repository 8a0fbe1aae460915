//! Events sent into Kafka again, by an operator: marked, without a number, and beside the relays, whose cursors stay where
//! they are.
//!
//! Only what its shard's relay is past is sent, so that no event comes marked before it came by itself, and nothing that
//! is parked or was given up.

use std::sync::Arc;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::record::replayed;
use super::super::{Row, number};
use super::ordered::ask;
use super::read_row;
use crate::pools::kafka::{Kafka, KafkaFailure, Republisher, TransactionFailure};
use crate::primitives::events::Position;
use crate::store::postgres::{Parameter, PgError, PgTx};
use crate::store::{Store, StoreError};

/// Rows of one transaction.
const ROWS: i64 = 1_000;
/// Their bytes at the most, beside one row.
const MAX_BYTES: i64 = 16 * 1024 * 1024;

const END: &str = "SELECT coalesce(max(position), 0) FROM event_relays";
const PAGE: &str = "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, tenant_id, topic, lane, key, type, \
     attributes, form, data FROM ( \
         SELECT *, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
             - octet_length(attributes) - coalesce(octet_length(data), 0) AS before \
         FROM events WHERE topic = $1 AND id > $2 AND id <= $3 \
             AND accepted_at >= to_timestamp($4::double precision / 1000) \
             AND ($5::uuid IS NULL OR tenant_id = $5) AND ($6::text IS NULL OR key = $6) \
             AND id <= (SELECT position FROM event_relays WHERE shard = lane % $7) \
             AND NOT EXISTS (SELECT FROM event_parked parked WHERE parked.shard = lane % $7 AND parked.id = events.id) \
             AND NOT EXISTS (SELECT FROM event_orders WHERE discards = events.id AND outcome = 'discarded') \
         ORDER BY id LIMIT $8) next \
     WHERE before < $9 ORDER BY id";

/// What is sent again.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Of this topic.
    pub topic: String,
    /// What was accepted then or later, in milliseconds since 1970.
    pub from_ms: i64,
    /// Of this tenant alone.
    pub tenant: Option<Uuid>,
    /// Of this key alone.
    pub key: Option<String>,
    /// Shards of the log.
    pub shards: u16,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events that Kafka has again.
    pub sent: u64,
    /// When the last one of them was accepted, in milliseconds since 1970.
    pub until_ms: Option<i64>,
}

/// Why a replay ended early. What was sent before stays sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Kafka cannot be reached as it is configured.
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    /// A transaction was not committed, or it is not known.
    #[error("a transaction of events {first} to {last}: {failure}")]
    Transaction {
        /// The first position in it.
        first: i64,
        /// The last one.
        last: i64,
        /// What Kafka said.
        failure: TransactionFailure,
    },
    /// An event cannot be written.
    #[error("event {0}: {1}")]
    Record(i64, String),
}

/// Sends them, and says after each transaction how far it is.
pub async fn republish(
    store: &Store,
    kafka: Arc<Kafka>,
    replay: Replay,
    mut says: impl FnMut(Progress),
) -> Result<Progress, ReplayError> {
    let prefix = kafka.config().prefix.clone();
    let end = ask(store, |tx| Box::pin(end(tx))).await?;
    let mut producer = Republisher::start(kafka, format!("{prefix}.relay.replay")).await?;
    let (mut progress, mut after) = (Progress::default(), Position::START);
    let replay = Arc::new(replay);
    loop {
        let asked = Arc::clone(&replay);
        let rows = ask(store, move |tx| {
            let asked = Arc::clone(&asked);
            Box::pin(async move { page(tx, &asked, after, end).await })
        })
        .await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(progress) };
        let (first, last, until_ms) =
            (first.event.position.number(), last.event.position, last.event.accepted_ms);
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            let made = replayed(&prefix, row);
            records.push(made.map_err(|reason| ReplayError::Record(row.event.position.number(), reason))?);
        }
        let failed = |failure| ReplayError::Transaction { first, last: last.number(), failure };
        producer = producer.send(records).await.map_err(failed)?;
        progress.sent += u64::try_from(rows.len()).unwrap_or(u64::MAX);
        progress.until_ms = Some(until_ms);
        after = last;
        says(progress);
    }
}

async fn end(tx: &mut PgTx) -> Result<Position, StoreError> {
    let rows = tx.query(END, &[]).await?;
    Ok(Position::new(rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?))
}

async fn page(
    tx: &mut PgTx,
    replay: &Replay,
    after: Position,
    end: Position,
) -> Result<Vec<Row>, StoreError> {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    let from = replay.from_ms as f64;
    let parameters: [Parameter<'_>; 9] = [
        (&replay.topic, Type::TEXT),
        (&after.number(), Type::INT8),
        (&end.number(), Type::INT8),
        (&from, Type::FLOAT8),
        (&replay.tenant, Type::UUID),
        (&replay.key, Type::TEXT),
        (&number(replay.shards), Type::INT2),
        (&ROWS, Type::INT8),
        (&MAX_BYTES, Type::INT8),
    ];
    tx.query(PAGE, &parameters).await?.iter().map(read_row).collect()
}
