//! What operators order for parked keys: to send them, now that Kafka takes them, or to give one event up.
//!
//! An order is a row. The relay that has the shard does it, between two of its transactions, so that nothing else is on
//! its way for that key. Who orders waits for what came of it.

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::super::Row;
use super::super::lanes::{MAX_PARKED_KEYS_OF_TENANT, OrderedKey};
use crate::primitives::events::Position;
use crate::store::postgres::{Parameter, PgError, PgTx};
use crate::store::{Reach, Store, StoreError, Tx};

/// An order, as the relay does it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its number.
    pub number: i64,
    /// The key, or all keys of a tenant.
    pub key: OrderedKey,
    /// The event that is given up; none where the key's are sent.
    pub discards: Option<Position>,
    /// What may be sent of the key, in order.
    pub rows: Vec<Row>,
    /// The first that is parked of it, wherever that is.
    pub first: Option<Position>,
}

/// What became of an order.
#[derive(Debug, Clone)]
pub enum Settled {
    /// Kafka has these, and they are parked no more. There may be others.
    Delivered(Vec<Position>),
    /// The event is given up. The order is done.
    Discarded(Position),
    /// Kafka refuses this one again, and says why. The order is done; that one and the later ones stay parked.
    Refused(Position, String),
    /// Nothing of the key is parked any more. The order is done.
    Released,
}

/// What came of an order, for who gave it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OrderState {
    /// Its number.
    pub order: i64,
    /// The topic of its key; empty where it is for all of a tenant's.
    pub topic: String,
    /// Whose the key is.
    pub tenant: uuid::Uuid,
    /// The key; empty where it is for all of a tenant's.
    pub key: String,
    /// Events that Kafka has taken by it.
    pub sent: i64,
    /// How it ended; none while it waits.
    pub outcome: Option<OrderDone>,
    /// What Kafka said.
    pub detail: Option<String>,
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderDone {
    /// Nothing of the key is parked any more.
    Released,
    /// The event is given up.
    Discarded,
    /// Kafka refused an event again: it and the later ones stay parked.
    Refused,
}

/// Why no order was given.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such event.
    #[error("no event is parked at position {0}: `outrigger outbox list` says what is")]
    NotParked(i64),
}

/// One for each key; a key whose release waits already gets no second one. Where all of a tenant's is ordered that has more
/// keys parked in a shard than are parked each for itself, it is one order for all of them, in the order of the log.
const RELEASE: &str = "WITH keys AS ( \
         SELECT DISTINCT shard, topic, tenant_id, key FROM event_parked WHERE ($1::text IS NULL OR topic = $1) \
             AND ($2::bigint IS NULL OR (shard, topic, tenant_id, key) IN ( \
                 SELECT shard, topic, tenant_id, key FROM event_parked WHERE id = $2))), \
     counted AS ( \
         SELECT *, $1 IS NULL AND $2 IS NULL AND count(*) OVER (PARTITION BY shard, tenant_id) > $3 AS is_all FROM keys), \
     wanted AS ( \
         SELECT shard, topic, tenant_id, key FROM counted WHERE NOT is_all \
         UNION ALL SELECT DISTINCT shard, '', tenant_id, '' FROM counted WHERE is_all), \
     waiting AS ( \
         SELECT number, shard, topic, tenant_id, key FROM event_orders WHERE done_at IS NULL AND discards IS NULL), \
     made AS ( \
         INSERT INTO event_orders (shard, topic, tenant_id, key) SELECT shard, topic, tenant_id, key FROM wanted \
         WHERE (shard, topic, tenant_id, key) NOT IN (SELECT shard, topic, tenant_id, key FROM waiting) RETURNING number) \
     SELECT number FROM made UNION ALL SELECT number FROM waiting JOIN wanted USING (shard, topic, tenant_id, key) \
     ORDER BY number";
const DISCARD: &str = "INSERT INTO event_orders (shard, topic, tenant_id, key, discards, reason) \
     SELECT shard, topic, tenant_id, key, id, $2 FROM event_parked WHERE id = $1 RETURNING number";
const STATES: &str = "SELECT number, topic, tenant_id, key, sent, outcome, detail FROM event_orders \
     WHERE number = ANY ($1) ORDER BY number";

/// Orders that the parked keys of a topic, or of all topics, or the key of one parked event be sent; the orders' numbers.
pub async fn release(
    store: &Store,
    topic: Option<String>,
    position: Option<i64>,
) -> Result<Vec<i64>, OrderError> {
    let numbers = ask(store, move |tx| {
        let topic = topic.clone();
        Box::pin(async move {
            let most = i64::try_from(MAX_PARKED_KEYS_OF_TENANT).unwrap_or(i64::MAX);
            let parameters: [Parameter<'_>; 3] =
                [(&topic, Type::TEXT), (&position, Type::INT8), (&most, Type::INT8)];
            numbers(&tx.query(RELEASE, &parameters).await?)
        })
    })
    .await?;
    match (position, numbers.is_empty()) {
        (Some(position), true) => Err(OrderError::NotParked(position)),
        _ => Ok(numbers),
    }
}

/// Orders that one parked event be given up; the order's number.
pub async fn discard(store: &Store, position: i64, reason: String) -> Result<i64, OrderError> {
    let made = ask(store, move |tx| {
        let reason = reason.clone();
        Box::pin(async move {
            let parameters = [(&position as _, Type::INT8), (&reason as _, Type::TEXT)];
            numbers(&tx.query(DISCARD, &parameters).await?)
        })
    })
    .await?;
    made.first().copied().ok_or(OrderError::NotParked(position))
}

/// What came of orders so far.
pub async fn orders(store: &Store, numbers: Vec<i64>) -> Result<Vec<OrderState>, StoreError> {
    ask(store, move |tx| {
        let numbers = numbers.clone();
        Box::pin(async move {
            let rows = tx.query(STATES, &[(&numbers, Type::INT8_ARRAY)]).await?;
            rows.iter().map(state).collect()
        })
    })
    .await
}

fn state(row: &tokio_postgres::Row) -> Result<OrderState, StoreError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let outcome: Option<String> = row.try_get(5)?;
        let state = OrderState {
            order: row.try_get(0)?,
            topic: row.try_get(1)?,
            tenant: row.try_get(2)?,
            key: row.try_get(3)?,
            sent: row.try_get(4)?,
            outcome: None,
            detail: row.try_get(6)?,
        };
        Ok((state, outcome))
    };
    let (state, outcome) = read().map_err(PgError::of_row)?;
    let outcome = match outcome.as_deref() {
        None => None,
        Some("released") => Some(OrderDone::Released),
        Some("discarded") => Some(OrderDone::Discarded),
        Some("refused") => Some(OrderDone::Refused),
        Some(_) => return Err(StoreError::Corrupt("an order's outcome".to_owned())),
    };
    Ok(OrderState { outcome, ..state })
}

fn numbers(rows: &[tokio_postgres::Row]) -> Result<Vec<i64>, StoreError> {
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}

/// Does `work` in the store, as the relay's role.
pub(super) async fn ask<T, F>(store: &Store, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: for<'t> Fn(&'t mut PgTx) -> futures_util::future::BoxFuture<'t, Result<T, StoreError>>
        + Send
        + Sync
        + 'static,
{
    let work = Arc::new(work);
    store
        .run(Reach::nobody(), 0, move |tx| {
            let work = Arc::clone(&work);
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => work(tx).await,
                    Tx::Sqlite(_) => Err(StoreError::Corrupt("a relay reads PostgreSQL".to_owned())),
                }
            })
        })
        .await
}
