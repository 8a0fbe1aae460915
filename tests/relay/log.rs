//! The store's half of the relay in memory: a log, a lease, parked rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use outrigger::primitives::events::relay::lanes::{MAX_PARKED_KEYS_OF_TENANT, OrderedKey, Parked, mark};
use outrigger::primitives::events::relay::{
    Batch, LogError, LogReader, Order, Origin, ParkedRow, Row, Settled, Shard,
};
use outrigger::primitives::events::{Data, Logged, Position};
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

pub(crate) const TENANT: Uuid = Uuid::from_u128(7);

/// What all relays share.
#[derive(Default)]
pub(crate) struct Log {
    rows: Mutex<Vec<Row>>,
    parked: Mutex<Vec<ParkedRow>>,
    /// Of each shard.
    leases: [AtomicU64; 2],
    last: AtomicI64,
}

/// The log as one holder of the lease sees it.
pub(crate) struct Reader {
    log: Arc<Log>,
    shard: Shard,
    lease: u64,
    /// While it is true, a read that has its rows does not return: the process is stopped.
    held: watch::Receiver<bool>,
}

impl Log {
    /// Adds events, each with its key, its lane and its payload; positions have gaps, as a sequence's have.
    pub(crate) fn append(&self, topic: &str, events: impl IntoIterator<Item = (String, u16, Data)>) {
        let mut rows = self.rows.lock();
        for (key, lane, data) in events {
            let position = self.last.fetch_add(1 + i64::from(lane % 2), Ordering::Relaxed) + 1;
            let attributes = format!(
                r#"{{"specversion":"1.0","id":"e{position}","source":"test","type":"t","tenantid":"{TENANT}"}}"#
            );
            rows.push(Row {
                topic: topic.into(),
                lane,
                event: event(position, &key, attributes.into(), data),
            });
        }
    }

    /// Spoils the attributes of the event that was added last.
    pub(crate) fn spoil_last(&self) {
        self.rows.lock().last_mut().unwrap().event.attributes = Bytes::from_static(b"not JSON");
    }

    /// Whoever had the lease has it no more.
    pub(crate) fn take_lease(self: &Arc<Self>, shard: Shard) -> (Reader, watch::Sender<bool>) {
        let lease = self.leases[usize::from(shard.number())].fetch_add(1, Ordering::SeqCst) + 1;
        let (hold, held) = watch::channel(false);
        (Reader { log: self.clone(), shard, lease, held }, hold)
    }

    /// As after a restore to an earlier time: the last events are gone.
    pub(crate) fn lose_last(&self, count: usize) {
        let mut rows = self.rows.lock();
        let left = rows.len() - count;
        rows.truncate(left);
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        self.rows.lock().clone()
    }

    pub(crate) fn parked(&self) -> Vec<ParkedRow> {
        self.parked.lock().clone()
    }
}

fn event(position: i64, key: &str, attributes: Bytes, data: Data) -> Logged {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Logged {
        position: Position::new(position),
        accepted_ms: i64::try_from(now.as_millis()).unwrap(),
        tenant: TENANT,
        key: key.into(),
        kind: "t".into(),
        attributes,
        data,
    }
}

impl Reader {
    /// Whether nobody else has taken the lease since.
    pub(crate) fn has_lease(&self) -> bool {
        self.log.leases[usize::from(self.shard.number())].load(Ordering::SeqCst) == self.lease
    }

    fn check_lease(&self) -> Result<(), LogError> {
        if self.has_lease() { Ok(()) } else { Err(LogError::LeaseLost) }
    }
}

#[async_trait]
impl LogReader for Reader {
    async fn origin(&self, position: Position) -> Result<Origin, LogError> {
        let rows = self.log.rows.lock();
        let at = rows.iter().find(|row| row.event.position == position);
        let last = rows.last().map_or(Position::START, |row| row.event.position);
        Ok(Origin { epoch: Uuid::from_u128(1), previous: None, last, mark: at.map(|row| mark(&row.event)) })
    }

    async fn read(&self, shard: Shard, after: Position, limit: usize) -> Result<Batch, LogError> {
        let batch = {
            let rows = self.log.rows.lock();
            let start = rows.partition_point(|row| row.event.position <= after);
            let mut ours = rows[start..].iter().filter(|row| shard.holds(row.lane));
            let rows = ours.by_ref().take(limit).cloned().collect();
            let behind = ours.count().try_into().unwrap();
            Batch { rows, behind, more: behind > 0 }
        };
        self.held.clone().wait_for(|held| !held).await.map_err(|_| LogError::LeaseLost)?;
        Ok(batch)
    }

    async fn parked(&self, shard: Shard) -> Result<Parked, LogError> {
        let parked = self.log.parked.lock();
        self.check_lease()?;
        let mut keys = BTreeMap::new();
        for row in parked.iter().map(|parked| &parked.row).filter(|row| shard.holds(row.lane)) {
            keys.entry(OrderedKey::of(row)).or_insert(row.event.position);
        }
        Ok(Parked::new(keys, MAX_PARKED_KEYS_OF_TENANT))
    }

    async fn park(&self, _: Shard, rows: &[ParkedRow]) -> Result<(), LogError> {
        let mut parked = self.log.parked.lock();
        self.check_lease()?;
        for new in rows {
            if !parked.iter().any(|kept| kept.row.event.position == new.row.event.position) {
                parked.push(new.clone());
            }
        }
        Ok(())
    }

    /// Nobody orders anything of this log: `tests/relaying.rs` does, of a real one.
    async fn order(&self, _: Shard, _: Position, _: usize) -> Result<Option<Order>, LogError> {
        Ok(None)
    }

    async fn settle(&self, _: Shard, order: i64, _: &OrderedKey, _: Settled) -> Result<Parked, LogError> {
        Err(LogError::Unavailable(format!("there was no order {order}")))
    }
}
