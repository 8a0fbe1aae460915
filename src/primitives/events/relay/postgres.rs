//! The log as a relay reads it: of every tenant, by the narrow role that may.

pub(super) mod ordered;
mod orders;
mod parked;
pub(super) mod replay;
pub(super) mod report;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::lanes::{OrderedKey, Parked, mark};
use super::passed::Passed;
use super::{Batch, LogError, LogReader, Order, Origin, ParkedRow, Row, Settled, Shard, number};
use crate::leases::Lease;
use crate::primitives::events::arrivals::Arrivals;
use crate::primitives::events::{Data, Logged, Position};
use crate::store::postgres::{Parameter, PgError, PgTx};
use crate::store::{Reach, Store, StoreError, Tx};
use steps::{StepEnd, look};

/// Of one read, in bytes.
const MAX_BYTES: i64 = 16 * 1024 * 1024;
/// How often a shard says how far it is, for the retention of the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A shard with nothing to read is looked at so often, whatever is said of the head of the log.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How much earlier than its neighbours in the log an event may have been accepted, in milliseconds.
const SLACK_MS: i64 = 60_000;

const EVENT: &str = "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, tenant_id, topic, lane, key, type, \
     attributes, form, data FROM events WHERE id = $1";
const STORE: &str =
    "SELECT id, epoch, previous_epoch_end, (SELECT last_value FROM events_id_seq) FROM outrigger_store";
/// Locked against a new owner until the transaction ends.
const LEASE: &str =
    "SELECT FROM leases WHERE name = $1 AND epoch = $2 AND until > clock_timestamp() FOR SHARE";
const PARK: &str = "INSERT INTO event_parked (shard, id, tenant_id, accepted_at, topic, lane, key, type, attributes, form, data, reason) \
     SELECT $1, id, tenant_id, accepted_at, topic, lane, key, type, attributes, form, data, reason \
     FROM unnest($2::bigint[], $3::text[]) AS refused (id, reason) JOIN events USING (id) ON CONFLICT DO NOTHING";
const PROGRESS: &str = "INSERT INTO event_relays (shard, position, delivered_until) \
     VALUES ($1, $2, to_timestamp($3::double precision / 1000)) \
     ON CONFLICT (shard) DO UPDATE SET position = excluded.position, delivered_until = excluded.delivered_until";

/// One shard's log, for as long as one lease.
pub(super) struct PostgresLog {
    store: Store,
    arrivals: Arc<Arrivals>,
    lease: Lease,
    scanned: Mutex<Scanned>,
}

/// What is known of the shard without asking.
struct Scanned {
    /// What of the log has nothing of the shard. It ends at an event, never at a mere number: the sequence goes back to what
    /// a promoted standby knows of it.
    passed: Passed,
    /// That event, and the store's epoch: by these another store is told.
    end: Option<StepEnd>,
    epoch: Option<Uuid>,
    /// What could be read when nothing was found up to there, and when that was.
    head: Option<Position>,
    looked: Instant,
    told: Instant,
}

impl Scanned {
    /// Forgets what is not of this store.
    fn keep_of(&mut self, epoch: Uuid, end: Option<Uuid>) {
        let is_same = self.epoch == Some(epoch) && self.end.map(|end| end.mark) == end;
        if !is_same {
            (self.passed, self.end) = (Passed::NOTHING, None);
        }
        (self.epoch, self.head) = (Some(epoch), None);
    }
}

impl PostgresLog {
    pub(super) fn new(store: Store, arrivals: Arc<Arrivals>, lease: Lease) -> Self {
        let now = Instant::now();
        let (passed, end, epoch, head) = (Passed::NOTHING, None, None, None);
        let scanned = Scanned { passed, end, epoch, head, looked: now, told: now };
        Self { store, arrivals, lease, scanned: Mutex::new(scanned) }
    }

    async fn run<T, F>(&self, work: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: for<'t> Fn(&'t mut PgTx) -> futures_util::future::BoxFuture<'t, Result<T, RelayError>>
            + Send
            + Sync
            + 'static,
    {
        let work = Arc::new(work);
        let ended: Result<T, RelayError> = self
            .store
            .run(Reach::nobody(), 0, move |tx| {
                let work = Arc::clone(&work);
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => work(tx).await,
                        Tx::Sqlite(_) => Err(corrupt("a relay reads PostgreSQL").into()),
                    }
                })
            })
            .await;
        ended.map_err(|error| match error {
            RelayError::Store(error) => LogError::Unavailable(error.to_string()),
            RelayError::LeaseLost => LogError::LeaseLost,
        })
    }

    /// Says how far the shard is, now and then: the log is not dropped before that.
    ///
    /// What was passed without finding anything of the shard is as good as delivered.
    async fn tell_progress(&self, shard: Shard, after: Position, batch: &Batch) -> Result<(), LogError> {
        let now = Instant::now();
        let (position, passed_ms) = {
            let mut scanned = self.scanned.lock();
            if now.duration_since(scanned.told) < PROGRESS_EVERY {
                return Ok(());
            }
            scanned.told = now;
            (scanned.passed.go_on(after).number(), scanned.end.map(|end| end.accepted_ms))
        };
        let now_ms = i64::try_from(crate::clock::since_1970_ms()).unwrap_or(i64::MAX);
        // Where more comes than was looked through, that may be as old as what was.
        let reached_ms = batch.rows.first().map(|row| row.event.accepted_ms);
        let reached_ms = reached_ms.or(passed_ms.filter(|_| batch.more)).unwrap_or(now_ms);
        #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
        let until = reached_ms.saturating_sub(SLACK_MS) as f64;
        let number = number(shard.number());
        self.run(move |tx| {
            Box::pin(async move {
                let parameters: [Parameter<'_>; 3] =
                    [(&number, Type::INT2), (&position, Type::INT8), (&until, Type::FLOAT8)];
                tx.query(PROGRESS, &parameters).await?;
                Ok(())
            })
        })
        .await
    }
}

#[async_trait]
impl LogReader for PostgresLog {
    async fn origin(&self, position: Position) -> Result<Origin, LogError> {
        let end = self.scanned.lock().end.map(|end| end.position.number());
        let asked = self.run(move |tx| {
            Box::pin(async move {
                let rows = tx.query(STORE, &[]).await?;
                let row = rows.first().ok_or(corrupt("`outrigger_store` is empty"))?;
                let read = || -> Result<_, tokio_postgres::Error> {
                    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
                };
                let (id, epoch, previous_end, last): (Uuid, i64, Option<i64>, i64) =
                    read().map_err(PgError::of_row)?;
                let named = |epoch: i64| Uuid::new_v5(&id, &epoch.to_be_bytes());
                let origin = Origin {
                    epoch: named(epoch),
                    previous: previous_end.map(|end| (named(epoch - 1), Position::new(end))),
                    last: Position::new(last),
                    mark: mark_at(tx, position.number()).await?,
                };
                let end = match end {
                    Some(end) => mark_at(tx, end).await?,
                    None => None,
                };
                Ok((origin, end))
            })
        });
        let (origin, end) = asked.await?;
        // The store may be another one than it was.
        self.scanned.lock().keep_of(origin.epoch, end);
        Ok(origin)
    }

    async fn read(&self, shard: Shard, after: Position, limit: usize) -> Result<Batch, LogError> {
        let (from, is_quiet) = {
            let scanned = self.scanned.lock();
            let same =
                scanned.head == Some(self.arrivals.readable()) && scanned.looked.elapsed() < LOOK_AGAIN;
            (scanned.passed.go_on(after), same)
        };
        let mut batch = Batch::default();
        if !is_quiet {
            let (head, looked) = (self.arrivals.readable(), Instant::now());
            let look =
                self.run(move |tx| Box::pin(async move { Ok(look(tx, shard, from, limit).await?) })).await?;
            (batch.more, batch.behind) = (look.left > 0, look.left / u64::from(shard.count()));
            // With rows in hand the next read is after them.
            if look.rows.is_empty() {
                let mut scanned = self.scanned.lock();
                if let Some(end) = look.passed {
                    scanned.passed.pass(from, end.position);
                    scanned.end = Some(end);
                }
                (scanned.head, scanned.looked) = (Some(head).filter(|_| !batch.more), looked);
            }
            batch.rows = look.rows;
        }
        self.tell_progress(shard, after, &batch).await?;
        Ok(batch)
    }

    async fn parked(&self, shard: Shard) -> Result<Parked, LogError> {
        let (lease, number) = (self.lease.clone(), number(shard.number()));
        self.run(move |tx| {
            let lease = lease.clone();
            Box::pin(async move {
                check_lease(tx, &lease).await?;
                Ok(parked::parked(tx, number, None).await?)
            })
        })
        .await
    }

    async fn park(&self, shard: Shard, rows: &[ParkedRow]) -> Result<(), LogError> {
        let (lease, number) = (self.lease.clone(), number(shard.number()));
        let ids: Arc<[i64]> = rows.iter().map(|parked| parked.row.event.position.number()).collect();
        let reasons: Arc<[String]> = rows.iter().map(|parked| parked.reason.clone()).collect();
        self.run(move |tx| {
            let (lease, ids, reasons) = (lease.clone(), Arc::clone(&ids), Arc::clone(&reasons));
            Box::pin(async move {
                check_lease(tx, &lease).await?;
                let (ids, reasons) = (&*ids, &*reasons);
                let parameters: [Parameter<'_>; 3] =
                    [(&number, Type::INT2), (&ids, Type::INT8_ARRAY), (&reasons, Type::TEXT_ARRAY)];
                tx.query(PARK, &parameters).await?;
                Ok(())
            })
        })
        .await
    }

    async fn order(&self, shard: Shard, through: Position, limit: usize) -> Result<Option<Order>, LogError> {
        let lease = self.lease.clone();
        self.run(move |tx| {
            let lease = lease.clone();
            Box::pin(async move {
                let found = orders::next(tx, shard, through, limit).await?;
                // Mostly there is none, and no row is locked then.
                if found.is_some() {
                    check_lease(tx, &lease).await?;
                }
                Ok(found)
            })
        })
        .await
    }

    async fn settle(
        &self,
        shard: Shard,
        order: i64,
        key: &OrderedKey,
        settled: Settled,
    ) -> Result<Parked, LogError> {
        let asked = Arc::new((self.lease.clone(), key.clone(), settled));
        self.run(move |tx| {
            let asked = Arc::clone(&asked);
            Box::pin(async move {
                let (lease, key, settled) = &*asked;
                check_lease(tx, lease).await?;
                Ok(orders::settle(tx, shard, order, key, settled).await?)
            })
        })
        .await
    }
}

const LIST: &str = "SELECT id, tenant_id, topic, lane, key, type, reason, \
     floor(extract(epoch FROM parked_at) * 1000)::bigint FROM event_parked ORDER BY id LIMIT $1";

/// What waits for an operator: the first `limit` parked events, by position.
pub async fn parked_events(store: &Store, limit: u32) -> Result<Vec<ParkedEvent>, StoreError> {
    store
        .run(Reach::nobody(), 0, move |tx| {
            Box::pin(async move {
                let Tx::Postgres(tx) = tx else { return Ok(Vec::new()) };
                let rows = tx.query(LIST, &[(&i64::from(limit), Type::INT8)]).await?;
                let read = |row: &tokio_postgres::Row| -> Result<_, tokio_postgres::Error> {
                    Ok(ParkedEvent {
                        position: row.try_get(0)?,
                        tenant: row.try_get(1)?,
                        topic: row.try_get(2)?,
                        lane: row.try_get(3)?,
                        key: row.try_get(4)?,
                        kind: row.try_get(5)?,
                        reason: row.try_get(6)?,
                        parked_ms: row.try_get(7)?,
                    })
                };
                Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
            })
        })
        .await
}

/// An event that Kafka refused, or a later one of its key.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ParkedEvent {
    /// Its place in the log.
    pub position: i64,
    /// Whose it is.
    pub tenant: Uuid,
    /// Its topic.
    pub topic: String,
    /// Its lane there.
    pub lane: i16,
    /// What orders it.
    pub key: String,
    /// `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What Kafka said.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub parked_ms: i64,
}

async fn check_lease(tx: &mut PgTx, lease: &Lease) -> Result<(), RelayError> {
    let (name, epoch) = (lease.name(), lease.epoch());
    let held = tx.query(LEASE, &[(&name, Type::TEXT), (&epoch, Type::INT8)]).await?;
    if held.is_empty() { Err(RelayError::LeaseLost) } else { Ok(()) }
}

async fn mark_at(tx: &mut PgTx, position: i64) -> Result<Option<Uuid>, StoreError> {
    let rows = tx.query(EVENT, &[(&position, Type::INT8)]).await?;
    Ok(rows.first().map(read_row).transpose()?.map(|row| mark(&row.event)))
}

pub(super) fn read_row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let (lane, form, data): (i16, i16, Option<Vec<u8>>) =
            (row.try_get(4)?, row.try_get(8)?, row.try_get(9)?);
        let event = Logged {
            position: Position::new(row.try_get(0)?),
            accepted_ms: row.try_get(1)?,
            tenant: row.try_get(2)?,
            key: row.try_get::<_, String>(5)?.into(),
            kind: row.try_get::<_, String>(6)?.into(),
            attributes: Bytes::from(row.try_get::<_, Vec<u8>>(7)?),
            data: Data::None,
        };
        Ok((row.try_get::<_, String>(3)?, lane, event, form, data.unwrap_or_default()))
    };
    let (topic, lane, event, form, data) = read().map_err(PgError::of_row)?;
    let data = Data::of_form(form, data.into()).ok_or_else(|| corrupt("an event's form"))?;
    let lane = u16::try_from(lane).map_err(|_| corrupt("an event's lane"))?;
    Ok(Row { topic: topic.into(), lane, event: Logged { data, ..event } })
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

/// Why a transaction of a relay's did not end well.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the lease is another owner's")]
    LeaseLost,
}

impl From<PgError> for RelayError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}
