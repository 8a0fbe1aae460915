//! The relay: carries the log to Kafka, each event once, in the order of its key.
//!
//! `lanes.rs` decides what goes into a transaction (pure; checked exhaustively on a small model), `record.rs` how an
//! event is written, `kafka.rs` delivers through the pool's producer, `run.rs` drives a shard for as long as its lease
//! is held. The store's half is behind [`LogReader`].

mod cursor;
mod fleet;
mod kafka;
pub mod lanes;
mod metrics;
mod passed;
mod postgres;
mod record;
#[cfg(test)]
mod rows;
mod run;

pub use cursor::CursorError;
pub(super) use fleet::Relay;
pub use kafka::{RESERVED_TOPIC, topics};
pub use metrics::RelayMetrics;
pub use postgres::ordered::{Order, OrderDone, OrderError, OrderState, Settled, discard, orders, release};
pub use postgres::replay::{Progress, Replay, ReplayError, republish};
pub(super) use postgres::report::{FleetMetrics, Report};
pub use postgres::{ParkedEvent, parked_events};
pub(super) use record::{batch_bytes, letter_batch_bytes};
pub use run::{MAX_ROWS, ShardEnd, run_shard};

use async_trait::async_trait;
use uuid::Uuid;

use super::{Logged, Position};
use lanes::{OrderedKey, Parked};

/// A fixed group of lanes, delivered by one relay at a time: the lanes whose number leaves this remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shard {
    number: u16,
    count: u16,
}

impl Shard {
    /// Shard `number` of `count`; a count of 0 is 1.
    #[must_use]
    pub fn new(number: u16, count: u16) -> Self {
        let count = count.max(1);
        Self { number: number % count, count }
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(self) -> u16 {
        self.number
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u16 {
        self.count
    }

    /// Whether a lane is one of its.
    #[must_use]
    pub fn holds(self, lane: u16) -> bool {
        lane % self.count == self.number
    }
}

/// A lane's or a shard's number as the store has it.
fn number(number: u16) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

/// An event of the log, with its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The topic, as policy names it.
    pub topic: Box<str>,
    /// Its lane there: the partition.
    pub lane: u16,
    /// The event.
    pub event: Logged,
}

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Made anew when positions no longer mean what they meant.
    pub epoch: Uuid,
    /// The epoch before, and the last position that was given away in it: where an operator said that all that Kafka
    /// has is of the store, up to there.
    pub previous: Option<(Uuid, Position)>,
    /// The last position that was given away.
    pub last: Position,
    /// The [`mark`](lanes::mark) of the event at the position that was asked for; none where it is no longer kept.
    pub mark: Option<Uuid>,
}

/// A row that waits for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedRow {
    /// The row.
    pub row: Row,
    /// Why, for the operator.
    pub reason: String,
}

/// Rows behind a position.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub rows: Vec<Row>,
    /// How many readable rows of the shard may lie behind these: an estimate, for the metric.
    pub behind: u64,
    /// Whether the log goes on behind what was looked through: it is read on at once.
    pub more: bool,
}

/// The store as a relay sees it.
///
/// `origin` and `read` may be called by anyone. The others are refused with [`LogError::LeaseLost`] when the
/// shard's lease has gone to another owner, checked in the statement that reads and in the transaction that writes. Two
/// fences, the lease and Kafka's, could otherwise have different owners: one would park an event that the other
/// delivers. So `parked` is asked after Kafka has fenced the predecessor (the model finds both faults).
#[async_trait]
pub trait LogReader: Send + Sync {
    /// What the store says of itself, and of the event at `position`.
    async fn origin(&self, position: Position) -> Result<Origin, LogError>;

    /// At most `limit` rows of the shard behind `after`, fewer where their bytes are many or they are far from each other,
    /// and perhaps none where there is more to look through; in order of position, without a gap: no row that becomes readable later has a position up to the last
    /// one of these. Rows of topics that are not relayed, such as dead letters, are left out: a topic that Kafka has not
    /// holds its shard up until it is made.
    async fn read(&self, shard: Shard, after: Position, limit: usize) -> Result<Batch, LogError>;

    /// What is parked of the shard.
    async fn parked(&self, shard: Shard) -> Result<Parked, LogError>;

    /// Keeps rows as parked, in the order of their positions among all that are; one that is kept already stays as it
    /// is. Durable when it returns.
    async fn park(&self, shard: Shard, rows: &[ParkedRow]) -> Result<(), LogError>;

    /// The first order of an operator for the shard that waits, with at most `limit` of the key's parked rows up to
    /// `through`, in order.
    async fn order(&self, shard: Shard, through: Position, limit: usize) -> Result<Option<Order>, LogError>;

    /// Keeps what became of an order, and says what is parked now of its key's tenant in the shard. It may be said again.
    async fn settle(
        &self,
        shard: Shard,
        order: i64,
        key: &OrderedKey,
        settled: Settled,
    ) -> Result<Parked, LogError>;
}

/// Why the store did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// It may answer later. Text for the log.
    #[error("the store: {0}")]
    Unavailable(String),
    /// Another owner has the shard.
    #[error("the shard's lease has gone to another owner")]
    LeaseLost,
}
