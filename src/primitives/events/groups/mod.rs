//! Consumer groups: which events of a topic a group has, and in which order its consumers get them.
//!
//! It is a pure machine: no clock, no store. A store locks the group's one row, decodes its [`State`], runs one call
//! on it, and writes the bytes back in the same transaction. What is [`Dead`] stays in the state until a store moved it
//! to the topic's dead letters, in the transaction that says so by [`State::bury`]: as much at once as a store likes. Bytes that are equal to those that were
//! read need no write, so that a pull that finds nothing costs none. The store gives the time, in milliseconds since
//! 1970, and it should be the database's own: sidecars whose clocks disagree would disagree on who has a lease.
//!
//! # A pull
//!
//! 1. [`State::pull`] settles what is over and leases again what may be delivered again.
//! 2. The store reads the rows of [`Pull::leases`], and the first [`Pull::wanted`] events of
//!    the topic after [`Pull::position`]: one statement. What was not there any more goes to [`Pull::forget`],
//!    the new events to [`Pull::take`], and where the rows are too many bytes for a reply, [`Pull::put_back`].
//! 3. While the topic had as many events as were wanted and [`Pull::wanted`] is not 0, the store may read on.
//!    A pull that leased nothing must do so, or begin again after it forgot something: else its caller waits for
//!    events that are there.
//! 4. Where tenants have shares, the store reads what [`Pull::behind`] says, for [`Pull::take_behind`], after the new events,
//!    or before them unless [`Pull::begins_with_new`].
//!
//! # What it promises
//!
//! - Events of a key are delivered in their order. While one is leased or delayed, no later event of its key is
//!   delivered outside the same pull; one pull may lease several of a key, in order.
//! - A lease fails when it expires or is nacked. A failure counts as an attempt, and voids the leases of later events
//!   of its key; for those it is none, so that one poisoned event does not take the events behind it into the dead
//!   letters. After the policy's attempts an event is dead: its key goes on, and it leaves the group with its burial.
//! - Leases of one key that expire in the same millisecond, and those that one call nacks, fail as one: the first is
//!   the failure, the others are void by it. Leases that end at different times fail in the order of these times.
//! - A receipt is good for the one lease it was made for. It is stale once that lease expired, whether or not anything
//!   looked at the group since: else the answer would depend on whether another consumer happened to pull in between.
//! - An ack is for its event alone. An acked event stays done when an earlier one of its key fails later.
//! - An extension is for its event alone, and never shortens a lease. Who extends the later events of a key and not the
//!   first loses them with the first.
//! - Every call first settles what is over at its time, so that an answer depends on times and calls only.
//!
//! # Keys
//!
//! A key is known by 64 bits of SHA-256 over tenant, topic and key. Two keys with the same bits share their order: an
//! event may wait for one of another key, and none is lost, doubled or delivered out of order.
//!
//! # The bound
//!
//! A group holds at most [`Policy`]'s `max_outstanding` events: those that are leased or delayed, those that wait
//! behind them, and those that are dead and not buried. At the bound no new event is looked at until some are done or dead; what is held is still delivered, so
//! that other keys' events among them go on. Redeliveries come before new events.
//!
//! One key cannot have a bound of its own: an event that was passed over has to be remembered, else it is lost, and
//! what is remembered is what the bound is for. So a key whose first event keeps failing, and that is most of the
//! traffic, holds the group up once `max_outstanding` of its events wait: until that event is dead, after its attempts
//! and their delays. SQS FIFO queues have the same bound for the same reason (they look at the first 120,000 messages).
//! [`Pulled::full`] and [`Summary::most_of_one_key`] show it.
//!
//! # Shares
//!
//! In a group of several tenants' events ([`Policy::with_shares`]) no tenant has more outstanding than there is room left: alone
//! half of the bound, beside another that has half a quarter, and so on, so that there is room for one that comes. (Choudhury and
//! Hahne's dynamic thresholds, 1998, for packets of queues that share a memory.) A tenant that has its share when an event of its
//! is looked at is *deferred*: the group remembers from where on, and its position goes on. While the tenant is deferred its new
//! events are passed over; as it has less than its share again, those that were passed over are looked for by its own index
//! ([`Pull::behind`]) up to the group's position, in their order, until there are none: then it is deferred no more. So of a tenant's
//! events none is looked at before an earlier one, and the order of keys holds. New events and those that were passed over take
//! turns to be the first, and so do the deferred tenants.
//!
//! [`MAX_DEFERRED`] tenants are deferred at once; an event of one more, and the log after it, waits.

mod machine;
mod pull;
mod receipt;
mod state;
mod summary;

pub use pull::{Behind, New, OutOfOrder, Pull};
pub use receipt::Receipt;
pub use state::{State, StateError};
pub use summary::Summary;

use super::Position;
use crate::error::ErrorKind;

/// Deliveries that one pull can ask for.
pub const MAX_DELIVERIES: u64 = 1000;
/// Receipts that one call can name.
pub const MAX_RECEIPTS: usize = 1000;
/// The shortest lease: an ack needs a round trip, and a shorter one would only make redeliveries.
pub const MIN_LEASE_MS: u64 = 1000;
/// The longest lease, and the longest extension: 12 hours.
pub const MAX_LEASE_MS: u64 = 12 * 3_600_000;
/// The longest delay of a nack: 12 hours.
pub const MAX_DELAY_MS: u64 = 12 * 3_600_000;
/// Attempts that a policy can give an event.
pub const MAX_ATTEMPTS: u64 = 1000;
/// Outstanding events that a policy can give a group; its row has about 15 bytes for each, 30 at the most.
pub const MAX_OUTSTANDING: u64 = 10_000;

/// Tenants that a group passes over at once.
pub const MAX_DEFERRED: usize = 256;

/// A number that a caller or a policy gave is out of its bounds. The text says what would be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// `max`.
    #[error("max is 1 to {MAX_DELIVERIES}")]
    Deliveries,
    /// `receipts`.
    #[error("receipts are 1 to {MAX_RECEIPTS}")]
    Receipts,
    /// `lease_ms`.
    #[error("lease_ms is {MIN_LEASE_MS} to {MAX_LEASE_MS} (12 hours)")]
    Lease,
    /// `delay_ms`.
    #[error("delay_ms is 0 to {MAX_DELAY_MS} (12 hours)")]
    Delay,
    /// `max_attempts`.
    #[error("max_attempts is 1 to {MAX_ATTEMPTS}")]
    Attempts,
    /// `max_outstanding`.
    #[error("max_outstanding is 1 to {MAX_OUTSTANDING}")]
    Outstanding,
}

impl OutOfBounds {
    /// The field that is wrong.
    #[must_use]
    pub fn pointer(self) -> &'static str {
        match self {
            Self::Deliveries => "/max",
            Self::Receipts => "/receipts",
            Self::Lease => "/lease_ms",
            Self::Delay => "/delay_ms",
            Self::Attempts => "/max_attempts",
            Self::Outstanding => "/max_outstanding",
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// `number`, where it is in `bounds`.
fn bounded<T: TryFrom<u64>>(
    number: u64,
    bounds: std::ops::RangeInclusive<u64>,
    error: OutOfBounds,
) -> Result<T, OutOfBounds> {
    if !bounds.contains(&number) {
        return Err(error);
    }
    T::try_from(number).map_err(|_| error)
}

/// What the topic's policy gives each of its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    max_attempts: u16,
    max_outstanding: usize,
    has_shares: bool,
}

impl Policy {
    /// An event is dead after `max_attempts` failures; a group holds `max_outstanding` events at most.
    pub fn new(max_attempts: u64, max_outstanding: u64) -> Result<Self, OutOfBounds> {
        Ok(Self {
            max_attempts: bounded(max_attempts, 1..=MAX_ATTEMPTS, OutOfBounds::Attempts)?,
            max_outstanding: bounded(max_outstanding, 1..=MAX_OUTSTANDING, OutOfBounds::Outstanding)?,
            has_shares: false,
        })
    }

    /// The same for a group of several tenants' events, in which each has a share.
    #[must_use]
    pub fn with_shares(self) -> Self {
        Self { has_shares: true, ..self }
    }
}

/// How many deliveries a pull asks for at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxDeliveries(usize);

impl MaxDeliveries {
    /// `max` of them.
    pub fn new(max: u64) -> Result<Self, OutOfBounds> {
        bounded(max, 1..=MAX_DELIVERIES, OutOfBounds::Deliveries).map(Self)
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u64 {
        self.0 as u64
    }
}

/// How long a lease is, from the call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTime(i64);

impl LeaseTime {
    /// `lease_ms` milliseconds.
    pub fn new(lease_ms: u64) -> Result<Self, OutOfBounds> {
        bounded(lease_ms, MIN_LEASE_MS..=MAX_LEASE_MS, OutOfBounds::Lease).map(Self)
    }
}

/// How long a nacked event is held back, from the call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DelayTime(i64);

impl DelayTime {
    /// `delay_ms` milliseconds.
    pub fn new(delay_ms: u64) -> Result<Self, OutOfBounds> {
        bounded(delay_ms, 0..=MAX_DELAY_MS, OutOfBounds::Delay).map(Self)
    }
}

/// The receipts of one call.
#[derive(Debug, Clone, Copy)]
pub struct Receipts<'a>(&'a [Box<str>]);

impl<'a> Receipts<'a> {
    /// Those of `texts`; any text is safe to give, and one that is no receipt of the group is stale.
    pub fn new(texts: &'a [Box<str>]) -> Result<Self, OutOfBounds> {
        if (1..=MAX_RECEIPTS).contains(&texts.len()) { Ok(Self(texts)) } else { Err(OutOfBounds::Receipts) }
    }
}

/// What orders an event among others of its topic: 64 bits of SHA-256 over tenant, topic and key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// These bits.
    #[must_use]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }
}

/// An event that a pull delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which event.
    pub position: Position,
    /// What acks, nacks and extends it.
    pub receipt: Receipt,
    /// 1, and 1 more for each failure of its own.
    pub attempt: u16,
}

/// An event that leaves the group for the dead letters. Where its row is not kept any more there is nothing to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead {
    /// Which event.
    pub position: Position,
    /// What its last failure was.
    pub reason: DeadReason,
    /// How many there were.
    pub attempts: u16,
}

/// How the last attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Its lease expired.
    Expired,
    /// It was nacked.
    Nacked,
}

impl DeadReason {
    /// As in the extension `dlqreason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Nacked => "nacked",
        }
    }
}

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What it delivers, in the order of positions.
    pub leases: Vec<Lease>,
    /// How many new events were looked at, those that were passed over before among them: leased, or put behind an earlier one
    /// of their key.
    pub looked_at_new: usize,
    /// How many outstanding events were given up, since they are not kept any more.
    pub forgotten: usize,
    /// Whether the group is at its bound, of what is outstanding or of deferred tenants, so that no new event is looked at.
    pub full: bool,
}

/// What an ack, a nack or an extension did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How many receipts were good. One that is named twice is good once for an ack and a nack, else twice.
    pub done: usize,
    /// Which were not: places in the call's list.
    pub stale: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_its_bounds_is_told_its_bounds() {
        assert!(MaxDeliveries::new(1).is_ok() && MaxDeliveries::new(1000).is_ok());
        assert!(LeaseTime::new(1000).is_ok() && LeaseTime::new(43_200_000).is_ok());
        assert!(DelayTime::new(0).is_ok() && DelayTime::new(43_200_000).is_ok());
        assert!(Policy::new(1, 1).is_ok() && Policy::new(1000, 10_000).is_ok());
        let receipts = |count: usize| Receipts::new(&vec!["r".into(); count]).map(|_| ());
        assert_eq!((receipts(1), receipts(1000)), (Ok(()), Ok(())));
        let table = [
            (MaxDeliveries::new(0).err(), "/max: max is 1 to 1000"),
            (MaxDeliveries::new(1001).err(), "/max: max is 1 to 1000"),
            (LeaseTime::new(999).err(), "/lease_ms: lease_ms is 1000 to 43200000 (12 hours)"),
            (LeaseTime::new(43_200_001).err(), "/lease_ms: lease_ms is 1000 to 43200000 (12 hours)"),
            (DelayTime::new(43_200_001).err(), "/delay_ms: delay_ms is 0 to 43200000 (12 hours)"),
            (Policy::new(0, 1).err(), "/max_attempts: max_attempts is 1 to 1000"),
            (Policy::new(1001, 1).err(), "/max_attempts: max_attempts is 1 to 1000"),
            (Policy::new(1, 0).err(), "/max_outstanding: max_outstanding is 1 to 10000"),
            (Policy::new(1, 10_001).err(), "/max_outstanding: max_outstanding is 1 to 10000"),
            (receipts(0).err(), "/receipts: receipts are 1 to 1000"),
            (receipts(1001).err(), "/receipts: receipts are 1 to 1000"),
        ];
        for (error, text) in table {
            assert_eq!(error.map(|error| format!("{}: {error}", error.pointer())).as_deref(), Some(text));
        }
    }
}
