//! A consumer group on a store: its row locked, the machine run, the row written, in one transaction.

mod redeliver;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_lc_rs::digest;
use uuid::Uuid;

use super::append::{Batch, append_all};
use super::audience::{Audience, Subscriber};
use super::groups::{
    Dead, DelayTime, KeyHash, Lease, LeaseTime, MaxDeliveries, OutOfBounds, OutOfOrder, Outcome, Policy,
    Receipts, State, StateError,
};
use super::push::AttemptRow;
use super::read::{self, Scan};
use super::{Event, Logged, Position, ReadFrom, Topic, postgres, sqlite};
use crate::error::ErrorKind;
use crate::names::Name;
use crate::store::{Store, StoreError, Tx};

/// What one pull's events have together at the most, but for the first: a reply is built in memory.
const MAX_BYTES: i64 = 4 * 1024 * 1024;

/// Which group.
#[derive(Debug, Clone)]
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
    /// A defect: a policy that its own schema refuses.
    #[error("the topic's policy: {0}")]
    Policy(#[from] OutOfBounds),
    /// A key has more events than are sent again at once.
    #[error("the key has more than {0} events from then on: name a later time")]
    TooMany(usize),
}

impl GroupError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::State(error) => error.kind(),
            Self::Order(error) => error.kind(),
            Self::Policy(_) => ErrorKind::Internal,
            Self::TooMany(_) => ErrorKind::Invalid,
        }
    }
}

/// A group of consumers of a topic, of one tenant or, a service's, of several.
#[derive(Debug, Clone)]
pub struct Group {
    audience: Audience,
    name: Name,
    place: Place,
    topic: Arc<Topic>,
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
    /// How many events went to the dead letters.
    pub dead: usize,
    /// Whether the group is at its bound of outstanding events.
    pub full: bool,
    /// Where the group is: what comes after it has not been looked at.
    pub position: Position,
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
        self.run(store, move |group, tx| Box::pin(async move { group.pull_in(tx, max, lease).await })).await
    }

    /// Settles deliveries by their receipts.
    pub async fn settle(
        &self,
        store: &Store,
        receipts: Arc<[Box<str>]>,
        what: Settle,
    ) -> Result<Outcome, GroupError> {
        self.run(store, move |group, tx| {
            let receipts = Arc::clone(&receipts);
            Box::pin(async move { group.settle_in(tx, &receipts, what).await })
        })
        .await
    }

    /// Settles each of several deliveries in its own way, and keeps what was tried, in one transaction.
    pub(super) async fn settle_each(
        &self,
        store: &Store,
        settled: Arc<[(Box<str>, Settle)]>,
        attempts: Arc<[AttemptRow]>,
    ) -> Result<(), GroupError> {
        self.run(store, move |group, tx| {
            let (settled, attempts) = (Arc::clone(&settled), Arc::clone(&attempts));
            Box::pin(async move {
                let (mut state, row) = group.load(tx).await?;
                for (receipt, what) in &*settled {
                    let outcome =
                        group.apply(&mut state, row.now_ms, std::slice::from_ref(receipt), *what)?;
                    group.bury(tx, &outcome.dead, &mut HashMap::new()).await?;
                }
                match tx {
                    Tx::Postgres(tx) => postgres::keep_attempts(tx, group.place.owner, &attempts).await?,
                    Tx::Sqlite(tx) => sqlite::keep_attempts(tx, group.place.owner, &attempts)?,
                }
                let bytes = state.encode();
                group.store(tx, &state, &bytes).await
            })
        })
        .await
    }

    /// Moves the group: what comes after the place is delivered next, whatever was before.
    pub async fn seek(&self, store: &Store, to: ReadFrom) -> Result<(), GroupError> {
        self.run(store, move |group, tx| Box::pin(async move { group.seek_in(tx, to).await })).await
    }

    async fn run<T, F>(&self, store: &Store, work: F) -> Result<T, GroupError>
    where
        T: Send + 'static,
        F: for<'t> Fn(Self, &'t mut Tx<'_>) -> futures_util::future::BoxFuture<'t, Result<T, GroupError>>
            + Send
            + Sync
            + 'static,
    {
        let group = self.clone();
        store.run(&self.audience, 0, move |tx| work(group.clone(), tx)).await
    }

    async fn pull_in(
        self,
        tx: &mut Tx<'_>,
        max: MaxDeliveries,
        lease: LeaseTime,
    ) -> Result<Deliveries, GroupError> {
        let (mut state, row) = self.load(tx).await?;
        let before = state.encode();
        let mut events: HashMap<Position, Logged> = HashMap::new();
        let (deliveries, dead, full) = loop {
            let mut pull = state.pull(row.now_ms, self.policy, max, lease);
            let mut wanted: Vec<Position> = pull.leases().iter().map(|lease| lease.position).collect();
            wanted.extend(pull.dead().iter().map(|dead| dead.position));
            wanted.sort_unstable();
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
            while pull.wanted() > 0 {
                let scan = Scan {
                    after: pull.position(),
                    max_rows: u32::try_from(pull.wanted()).unwrap_or(u32::MAX),
                    max_bytes: MAX_BYTES,
                    ..Scan::new(&self.audience)
                };
                let new = read::rows(tx, &scan, row.readable).await?;
                let none_left = new.len() < scan.max_rows as usize;
                let keys: Vec<_> = new.iter().map(|event| (event.position, self.key_hash(event))).collect();
                pull.take(&keys)?;
                events.extend(new.into_iter().map(|event| (event.position, event)));
                if none_left || !pull.leases().is_empty() {
                    break;
                }
            }
            let pulled = pull.finish();
            let begin_again = pulled.leases.is_empty() && pulled.forgotten > 0;
            self.bury(tx, &pulled.dead, &mut events).await?;
            if !begin_again {
                break (pulled.leases, pulled.dead.len(), pulled.full);
            }
        };
        let after = state.encode();
        if after != before {
            self.store(tx, &state, &after).await?;
        }
        let deliveries = deliveries
            .into_iter()
            .filter_map(|lease| Some(Delivery { lease, event: events.remove(&lease.position)? }))
            .collect();
        let due_in_ms =
            state.due_ms().map(|due| u64::try_from(due.saturating_sub(row.now_ms)).unwrap_or_default());
        Ok(Deliveries { deliveries, due_in_ms, dead, full, position: state.position() })
    }

    async fn settle_in(
        self,
        tx: &mut Tx<'_>,
        receipts: &[Box<str>],
        what: Settle,
    ) -> Result<Outcome, GroupError> {
        let found = load(tx, &self.place).await?;
        let Some(bytes) = &found.state else {
            // Nobody ever pulled: nothing is made for receipts that nobody was given.
            let stale = (0..receipts.len()).collect();
            return Ok(Outcome { done: 0, stale, dead: Vec::new() });
        };
        let (mut state, row) = (State::decode(bytes)?, found);
        let before = state.encode();
        let outcome = self.apply(&mut state, row.now_ms, receipts, what)?;
        self.bury(tx, &outcome.dead, &mut HashMap::new()).await?;
        let after = state.encode();
        if after != before {
            self.store(tx, &state, &after).await?;
        }
        Ok(outcome)
    }

    fn apply(
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

    async fn seek_in(self, tx: &mut Tx<'_>, to: ReadFrom) -> Result<(), GroupError> {
        let (mut state, row) = self.load(tx).await?;
        let (sees, topic) = (self.audience.sees(), self.place.topic.as_str());
        let position = match to {
            ReadFrom::Earliest => Position::START,
            ReadFrom::Latest => read::newest(tx, &sees, topic, row.readable).await?,
            ReadFrom::Cursor(cursor) => cursor.position,
            ReadFrom::Time(time_ms) => read::place_of_time(tx, &sees, topic, time_ms).await?,
        };
        let dead = state.seek(row.now_ms, self.policy, position);
        self.bury(tx, &dead, &mut HashMap::new()).await?;
        let after = state.encode();
        self.store(tx, &state, &after).await
    }

    /// The group's state, its row locked; made where there is none.
    async fn load(&self, tx: &mut Tx<'_>) -> Result<(State, GroupRow), GroupError> {
        let found = load(tx, &self.place).await?;
        if let Some(state) = &found.state {
            return Ok((State::decode(state)?, found));
        }
        let state = State::new(self.begins, fastrand::u32(..));
        create(tx, &self.place, state.position(), &state.encode()).await?;
        // Another transaction may have made it at the same time: its row counts.
        let found = load(tx, &self.place).await?;
        let state = found.state.as_deref().map_or(Ok(state), State::decode)?;
        Ok((state, found))
    }

    async fn store(&self, tx: &mut Tx<'_>, state: &State, bytes: &[u8]) -> Result<(), GroupError> {
        match tx {
            Tx::Postgres(tx) => postgres::store_group(tx, &self.place, state.position(), bytes).await?,
            Tx::Sqlite(tx) => sqlite::store_group(tx, &self.place, state.position(), bytes)?,
        }
        Ok(())
    }

    /// Appends what the group gave up to the topic's dead letters.
    async fn bury(
        &self,
        tx: &mut Tx<'_>,
        dead: &[Dead],
        read: &mut HashMap<Position, Logged>,
    ) -> Result<(), GroupError> {
        if dead.is_empty() {
            return Ok(());
        }
        let missing: Vec<Position> =
            dead.iter().map(|dead| dead.position).filter(|position| !read.contains_key(position)).collect();
        let sees = self.audience.sees();
        let kept = read::at(tx, &sees, self.place.topic.as_str(), &missing, i64::MAX).await?;
        read.extend(kept.events.into_iter().map(|event| (event.position, event)));
        let mut letters: BTreeMap<Uuid, Vec<Event>> = BTreeMap::new();
        for dead in dead {
            let Some(event) = read.remove(&dead.position) else { continue };
            let of_tenant = letters.entry(event.tenant).or_default();
            of_tenant.push(Event::of_dead(event, &self.place.topic, &self.name, dead.reason.as_str()));
        }
        if let (Audience::Fleet(_), Tx::Postgres(tx)) = (&self.audience, &mut *tx) {
            tx.write_for(&letters.keys().copied().collect::<Vec<_>>()).await.map_err(StoreError::from)?;
        }
        let letters = letters
            .into_iter()
            .map(|(tenant, events)| Batch::dead_letters(tenant, Arc::clone(&self.topic), events));
        append_all(tx, &letters.collect::<Vec<_>>()).await?;
        Ok(())
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

async fn load(tx: &mut Tx<'_>, place: &Place) -> Result<GroupRow, StoreError> {
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
