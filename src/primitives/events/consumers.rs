//! A consumer group on a store: its row locked, the machine run, the row written, in one transaction.

mod redeliver;
mod taking;

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use uuid::Uuid;

use super::audience::{Audience, Subscriber};
use super::dead_letters::GivenUp;
use super::groups::{
    DelayTime, KeyHash, Lease, LeaseTime, MaxDeliveries, OutOfBounds, OutOfOrder, Outcome, Policy, Receipts,
    State, StateError,
};
use super::push::AttemptRow;
use super::read;
use super::turns::{Act, Acted, MAX_WAITING, ROW_BYTES, together};
use super::{Logged, Position, ReadFrom, Topic, postgres, sqlite};
use crate::error::ErrorKind;
use crate::fairness::NoRoom;
use crate::names::Name;
use crate::store::sqlite::Adds;
use crate::store::{Store, StoreError, Tx};

/// What one pull's events have together at the most, but for the first: a reply is built in memory.
const MAX_BYTES: i64 = 4 * 1024 * 1024;

/// Which group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// A tenant, or a service.
    pub(super) owner: Uuid,
    pub(super) topic: Name,
    /// As it is kept.
    pub(super) group: String,
}

/// A group's row as a transaction has it.
pub(super) struct GroupRow {
    /// None where there is no such group yet.
    pub(super) state: Option<Vec<u8>>,
    /// The store's time.
    pub(super) now_ms: i64,
    pub(super) readable: Position,
}

/// Why a group could not be worked with.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The row is of another release, or damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// A defect.
    #[error(transparent)]
    Order(#[from] OutOfOrder),
    /// Its owner has as many of the topic as policy gives it.
    #[error("{0} groups of this topic are there already (`groups.max_per_tenant`)")]
    TooMany(u32),
    /// A defect: a policy that its own schema refuses.
    #[error("the topic's policy: {0}")]
    Policy(#[from] OutOfBounds),
    /// Why the transaction of several calls failed.
    #[error(transparent)]
    Together(Arc<GroupError>),
    /// A defect: the group's task ended without a word.
    #[error("the group's task ended")]
    Gone,
    /// As many calls as may wait for the group already.
    #[error("{MAX_WAITING} calls wait for the group")]
    LongLine,
    /// As many calls of the tenant, or as much of its receipts, as may wait for its groups already.
    #[error("too many calls of the tenant wait for its groups")]
    ShareTaken,
    /// Everyone's.
    #[error("too many calls wait for groups")]
    Overloaded,
    /// A key has more events than are sent again at once.
    #[error("the key has more than {0} events from then on: name a later time")]
    LongKey(usize),
}

impl GroupError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::State(error) => error.kind(),
            Self::Order(error) => error.kind(),
            Self::TooMany(_) => ErrorKind::QuotaExhausted,
            Self::Policy(_) => ErrorKind::Internal,
            Self::LongKey(_) => ErrorKind::Invalid,
            Self::Together(error) => error.kind(),
            Self::Gone => ErrorKind::OutcomeUnknown,
            Self::LongLine | Self::ShareTaken | Self::Overloaded => ErrorKind::Overloaded,
        }
    }
}

impl From<NoRoom> for GroupError {
    fn from(error: NoRoom) -> Self {
        match error {
            NoRoom::OfTenant => Self::ShareTaken,
            NoRoom::OfAll => Self::Overloaded,
        }
    }
}

/// A group of consumers of a topic, of one tenant or, a service's, of several.
#[derive(Debug, Clone)]
pub struct Group {
    pub(super) audience: Audience,
    name: Name,
    pub(super) place: Place,
    pub(super) topic: Arc<Topic>,
    policy: Policy,
    /// Where it begins, where it is new.
    begins: Position,
}

/// A delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What settles it, and which attempt it is.
    pub lease: Lease,
    /// The event.
    pub event: Logged,
}

/// What a pull brought.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// In order.
    pub deliveries: Vec<Delivery>,
    /// When something that is held may be delivered, in milliseconds from now; none where nothing is held.
    pub due_in_ms: Option<u64>,
    /// What became of what had its last failure.
    pub given_up: GivenUp,
    /// Whether the group is at its bound of outstanding events.
    pub full: bool,
    /// Where the group is: what comes after it has not been looked at.
    pub position: Position,
    /// Whether nothing was found in a part of the log, and there is more: the next pull goes on.
    pub more: bool,
}

/// What is done with receipts.
#[derive(Debug, Clone, Copy)]
pub enum Settle {
    /// Done.
    Ack,
    /// Again, after this time.
    Nack(DelayTime),
    /// Not yet done: leased for this time from now.
    Extend(LeaseTime),
}

impl Group {
    /// The group `name` of the audience's topic, under the policy that is in force.
    pub fn new(audience: Audience, topic: Arc<Topic>, name: Name) -> Result<Self, OutOfBounds> {
        let rules = topic.groups;
        let policy = Policy::new(u64::from(rules.max_attempts), u64::from(rules.max_outstanding))?;
        let policy = if matches!(audience, Audience::Fleet(_)) { policy.with_shares() } else { policy };
        let group = audience.group(&name);
        let place = Place { owner: audience.owner(), topic: audience.topic().clone(), group };
        Ok(Self { audience, name, place, topic, policy, begins: Position::START })
    }

    /// A subscription's group, which has attempts of its own and begins where the subscription did.
    pub(super) fn of_subscription(
        subscriber: Subscriber,
        topic: Arc<Topic>,
        name: Name,
        max_attempts: u32,
        begins: Position,
    ) -> Result<Self, OutOfBounds> {
        let max_outstanding = u64::from(topic.groups.max_outstanding);
        let group = Self::new(Audience::Subscription(subscriber), topic, name)?;
        Ok(Self { policy: Policy::new(u64::from(max_attempts), max_outstanding)?, begins, ..group })
    }

    /// Leases what may be delivered.
    pub async fn pull(
        &self,
        store: &Store,
        max: MaxDeliveries,
        lease: LeaseTime,
    ) -> Result<Deliveries, GroupError> {
        let (mut acted, left) = together(store, vec![(self.clone(), Act::Pull(max, lease))]).await?;
        let Some(Acted::Pulled(pulled)) = acted.pop() else { return Err(GroupError::Gone) };
        Ok(Deliveries { given_up: self.bury_first(store, left).await, ..pulled })
    }

    /// Settles deliveries by their receipts.
    pub async fn settle(
        &self,
        store: &Store,
        receipts: Arc<[Box<str>]>,
        what: Settle,
    ) -> Result<(Outcome, GivenUp), GroupError> {
        let (mut acted, left) = together(store, vec![(self.clone(), Act::Settle(receipts, what))]).await?;
        let Some(Acted::Settled(outcome)) = acted.pop() else { return Err(GroupError::Gone) };
        Ok((outcome, self.bury_first(store, left).await))
    }

    /// Settles each of several deliveries in its own way, and keeps what was tried, in one transaction.
    pub(super) async fn settle_each(
        &self,
        store: &Store,
        settled: Arc<[(Box<str>, Settle)]>,
        attempts: Arc<[AttemptRow]>,
    ) -> Result<GivenUp, GroupError> {
        let settling = self.run(store, Adds::Nothing, move |group, tx| {
            let (settled, attempts) = (Arc::clone(&settled), Arc::clone(&attempts));
            Box::pin(async move {
                let (mut state, row) = group.load(tx).await?;
                for (receipt, what) in &*settled {
                    group.apply(&mut state, row.now_ms, std::slice::from_ref(receipt), *what)?;
                }
                match tx {
                    Tx::Postgres(tx) => postgres::keep_attempts(tx, group.place.owner, &attempts).await?,
                    Tx::Sqlite(tx) => sqlite::keep_attempts(tx, group.place.owner, &attempts)?,
                }
                let bytes = state.encode();
                group.store(tx, &state, &bytes).await?;
                Ok(state.dead().count())
            })
        });
        let left = settling.await?;
        Ok(self.bury_first(store, left).await)
    }

    /// Moves the group: what comes after the place is delivered next, whatever was before. What is dead goes to the dead
    /// letters first.
    pub async fn seek(&self, store: &Store, to: ReadFrom) -> Result<GivenUp, GroupError> {
        // A look at the log by times may be long: it is nobody's wait but the caller's.
        let to = match to {
            ReadFrom::Latest => None,
            _ => Some(read::place(store, &self.audience, to).await?),
        };
        let mut given_up = GivenUp::default();
        loop {
            let sought = self.run(store, Adds::State(ROW_BYTES), move |group, tx| {
                Box::pin(async move { group.seek_in(tx, to).await })
            });
            if sought.await? {
                return Ok(given_up);
            }
            given_up = given_up.and(self.bury(store).await?);
        }
    }

    pub(super) async fn run<T, F>(&self, store: &Store, adds: Adds, work: F) -> Result<T, GroupError>
    where
        T: Send + 'static,
        F: for<'t> Fn(Self, &'t mut Tx<'_>) -> futures_util::future::BoxFuture<'t, Result<T, GroupError>>
            + Send
            + Sync
            + 'static,
    {
        let group = self.clone();
        store.run_adding(&self.audience, adds, move |tx| work(group.clone(), tx)).await
    }

    /// Leases in a transaction that has the row.
    pub(super) async fn pull_in(
        &self,
        tx: &mut Tx<'_>,
        state: &mut State,
        row: &GroupRow,
        max: MaxDeliveries,
        lease: LeaseTime,
    ) -> Result<Deliveries, GroupError> {
        let mut events: HashMap<Position, Logged> = HashMap::new();
        let mut more;
        let (deliveries, full) = loop {
            let mut pull = state.pull(row.now_ms, self.policy, max, lease);
            let wanted: Vec<Position> = pull.leases().iter().map(|lease| lease.position).collect();
            let sees = self.audience.sees();
            let kept = read::at(tx, &sees, self.place.topic.as_str(), &wanted, MAX_BYTES).await?;
            let is_kept = |position: &Position| {
                kept.unread.contains(position)
                    || kept.events.binary_search_by_key(position, |event| event.position).is_ok()
            };
            let gone: Vec<Position> = wanted.iter().filter(|position| !is_kept(position)).copied().collect();
            pull.forget(&gone);
            if let Some(first) = kept.unread.first() {
                pull.put_back(*first);
            }
            events.extend(kept.events.into_iter().map(|event| (event.position, event)));
            more = self.take(tx, &mut pull, row.readable, &mut events).await?;
            let pulled = pull.finish();
            if !pulled.leases.is_empty() || pulled.forgotten == 0 {
                break (pulled.leases, pulled.full);
            }
        };
        let deliveries = deliveries
            .into_iter()
            .filter_map(|lease| Some(Delivery { lease, event: events.remove(&lease.position)? }))
            .collect();
        let due_in_ms =
            state.due_ms().map(|due| u64::try_from(due.saturating_sub(row.now_ms)).unwrap_or_default());
        let (given_up, position) = (GivenUp::default(), state.position());
        Ok(Deliveries { deliveries, due_in_ms, given_up, full, position, more })
    }

    /// Settles in a transaction that has the row.
    pub(super) fn apply(
        &self,
        state: &mut State,
        now_ms: i64,
        receipts: &[Box<str>],
        what: Settle,
    ) -> Result<Outcome, GroupError> {
        let receipts = Receipts::new(receipts)?;
        Ok(match what {
            Settle::Ack => state.ack(now_ms, self.policy, receipts),
            Settle::Nack(delay) => state.nack(now_ms, self.policy, receipts, delay),
            Settle::Extend(lease) => state.extend(now_ms, self.policy, receipts, lease),
        })
    }

    /// Whether it was moved, to the newest event where no place is given; else something is dead.
    async fn seek_in(self, tx: &mut Tx<'_>, to: Option<Position>) -> Result<bool, GroupError> {
        let (mut state, row) = self.load(tx).await?;
        let (sees, topic) = (self.audience.sees(), self.place.topic.as_str());
        let position = match to {
            Some(position) => position,
            None => read::newest(tx, &sees, topic, row.readable).await?,
        };
        let is_moved = state.seek(row.now_ms, self.policy, position);
        let after = state.encode();
        self.store(tx, &state, &after).await?;
        Ok(is_moved)
    }

    /// The group's state, its row locked; none where there is none.
    pub(super) async fn find(&self, tx: &mut Tx<'_>) -> Result<Option<(State, GroupRow)>, GroupError> {
        let found = load(tx, &self.place).await?;
        let Some(bytes) = &found.state else { return Ok(None) };
        Ok(Some((State::decode(bytes)?, found)))
    }

    /// The group's state, its row locked; made where there is none.
    pub(super) async fn load(&self, tx: &mut Tx<'_>) -> Result<(State, GroupRow), GroupError> {
        if let Some(found) = self.find(tx).await? {
            return Ok(found);
        }
        // How many subscriptions and services there are, is policy's to say.
        if matches!(self.audience, Audience::Tenant(_)) {
            let there = match tx {
                Tx::Postgres(tx) => postgres::count_groups(tx, &self.place).await?,
                Tx::Sqlite(tx) => sqlite::count_groups(tx, &self.place)?,
            };
            let most = self.topic.groups.max_per_tenant;
            if there >= i64::from(most) {
                return Err(GroupError::TooMany(most));
            }
        }
        let state = State::new(self.begins, fastrand::u32(..));
        create(tx, &self.place, state.position(), &state.encode()).await?;
        // Another transaction may have made it at the same time: its row counts.
        let found = load(tx, &self.place).await?;
        let state = found.state.as_deref().map_or(Ok(state), State::decode)?;
        Ok((state, found))
    }

    pub(super) async fn store(&self, tx: &mut Tx<'_>, state: &State, bytes: &[u8]) -> Result<(), GroupError> {
        match tx {
            Tx::Postgres(tx) => postgres::store_group(tx, &self.place, state.position(), bytes).await?,
            Tx::Sqlite(tx) => sqlite::store_group(tx, &self.place, state.position(), bytes)?,
        }
        Ok(())
    }

    /// Lets a fleet's transaction write for these of its tenants.
    pub(super) async fn writes_for(&self, tx: &mut Tx<'_>, mut tenants: Vec<Uuid>) -> Result<(), StoreError> {
        if let (Audience::Fleet(_), Tx::Postgres(tx)) = (&self.audience, tx) {
            tenants.sort_unstable();
            tenants.dedup();
            tx.write_for(&tenants).await?;
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    fn key_hash(&self, event: &Logged) -> KeyHash {
        self.hash_of(event.tenant, &event.key)
    }

    fn hash_of(&self, tenant: Uuid, key: &str) -> KeyHash {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(tenant.as_bytes());
        context.update(self.place.topic.as_str().as_bytes());
        context.update(&[0]);
        context.update(key.as_bytes());
        let hash = context.finish();
        KeyHash::new(hash.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }
}

pub(super) async fn load(tx: &mut Tx<'_>, place: &Place) -> Result<GroupRow, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::load_group(tx, place).await,
        Tx::Sqlite(tx) => sqlite::load_group(tx, place),
    }
}

async fn create(tx: &mut Tx<'_>, place: &Place, position: Position, state: &[u8]) -> Result<(), StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::create_group(tx, place, position, state).await,
        Tx::Sqlite(tx) => sqlite::create_group(tx, place, position, state),
    }
}
