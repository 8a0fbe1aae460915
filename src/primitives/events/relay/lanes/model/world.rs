//! The store, its writers, the lease, Kafka's transactions and the relays, as small as they can be.

mod relay;

use std::collections::BTreeMap;

use uuid::Uuid;

use super::super::{Cursor, LaneName, Lanes, OrderedKey, Parked};
use crate::primitives::events::Position;
use crate::primitives::events::relay::rows::row;
use crate::primitives::events::relay::{Origin, Row, Shard};
use relay::Relay;

/// An event that a writer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) key: &'static str,
    pub(super) lane: u16,
    /// Kafka refuses it.
    pub(super) refused: bool,
}

pub(super) struct Scenario {
    /// Each writer's transactions.
    pub(super) writers: [&'static [&'static [Event]]; 2],
    /// Writers or relays that die.
    pub(super) crashes: u8,
    /// Leases that run out under their owner, who may go on without knowing.
    pub(super) losses: u8,
    /// At any time Kafka may begin to take what it refused.
    pub(super) raise: bool,
    /// Releases of the key `a` that an operator orders, at any time that something of it is parked.
    pub(super) orders: u8,
    /// Shards of the log; the model has the relays of the first.
    pub(super) shards: u16,
    /// Positions that a relay looks through at once.
    pub(super) step: i64,
    /// Keys that are parked each for itself, of all.
    pub(super) most_of_tenant: usize,
    /// Whether an order is for all that is parked.
    pub(super) order_is_all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    None,
    CursorAtLastNumber,
    NoReadAfterTakeover,
    FloorsAfterRows,
    FloorsBeforeLastNumber,
    CursorReadBeforeFencing,
    CursorOutsideTransaction,
    UnknownCommitTakenForAborted,
    ParkedAfterCommit,
    ParkedKeysForgotten,
    ParkedWithoutLease,
    TakenOverWithoutLease,
    ReleaseNotInCursor,
    ReleaseAheadOfCursor,
    ReleaseSettledBeforeCommit,
    ReleasedKeyGoesOnAtOnce,
    PassedWithoutFloors,
    PassedWhatWasRead,
    TenantGoesOnAtOnce,
    TenantGoesOnWithoutKeys,
}

/// A writer's place in `SELECT lock(last_value)`, `INSERT ... nextval`, `COMMIT`, transaction by transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writing {
    Nothing,
    LastRead(i64),
    Locked(Vec<i64>),
    /// Its rows can be read, its lock is not yet released.
    Visible,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    transaction: usize,
    writing: Writing,
}

/// A record in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    position: i64,
    key: Box<str>,
    lane: LaneName,
    seq: u64,
}

/// What consumers see. A transaction's records are added at its commit: until then nobody sees them, and fencing its
/// producer between a send and the commit comes to the same as fencing it before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kafka {
    log: Vec<Record>,
    cursor: Option<Cursor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    last: i64,
    floors: [Option<i64>; 2],
    rows: BTreeMap<i64, Event>,
    parked: Vec<i64>,
    writers: [Writer; 2],
    lease_free: bool,
    relays: [Relay; 2],
    kafka: Kafka,
    crashes: u8,
    losses: u8,
    refuses: bool,
    raise: bool,
    orders: u8,
    /// An order waits for a relay.
    ordered: bool,
    shard: Shard,
    step: i64,
    most_of_tenant: usize,
    order_is_all: bool,
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let writer = Writer { transaction: 0, writing: Writing::Nothing };
        Self {
            // One number is drawn when the sequence is made.
            last: 1,
            floors: [None; 2],
            rows: BTreeMap::new(),
            parked: Vec::new(),
            writers: [writer.clone(), writer],
            lease_free: true,
            relays: [Relay::default(), Relay::default()],
            kafka: Kafka { log: Vec::new(), cursor: None },
            crashes: scenario.crashes,
            losses: scenario.losses,
            refuses: true,
            raise: scenario.raise,
            orders: scenario.orders,
            ordered: false,
            shard: Shard::new(0, scenario.shards),
            step: scenario.step,
            most_of_tenant: scenario.most_of_tenant,
            order_is_all: scenario.order_is_all,
        }
    }

    /// Every state that one step leads to.
    pub(super) fn steps(&self, scenario: &Scenario, mutation: Mutation) -> Vec<Self> {
        let mut steps = Vec::new();
        for who in 0..2 {
            steps.extend(self.writer_step(scenario, who));
            relay::steps(self, who, mutation, &mut steps);
        }
        if self.losses > 0 && !self.lease_free {
            let mut lost = Self { lease_free: true, losses: self.losses - 1, ..self.clone() };
            lost.relays.iter_mut().for_each(Relay::lose_lease);
            steps.push(lost);
        }
        if self.raise {
            steps.push(Self { refuses: false, raise: false, ..self.clone() });
        }
        if self.orders > 0 && !self.parked.is_empty() {
            steps.push(Self { orders: self.orders - 1, ordered: true, ..self.clone() });
        }
        if self.crashes > 0 {
            for who in 0..2 {
                let crashed = Self { crashes: self.crashes - 1, ..self.clone() };
                steps.push(crashed.clone().without_relay(who));
                steps.extend(crashed.without_writer(who));
            }
        }
        steps.iter_mut().for_each(Self::normalize);
        steps
    }

    /// Relays are alike: which of them is which does not matter.
    fn normalize(&mut self) {
        if self.relays[1].rank() > self.relays[0].rank() {
            self.relays.swap(0, 1);
        }
    }

    fn writer_step(&self, scenario: &Scenario, who: usize) -> Option<Self> {
        let events: &[Event] = scenario.writers[who].get(self.writers[who].transaction)?;
        let mut world = self.clone();
        match &self.writers[who].writing {
            Writing::Nothing => world.writers[who].writing = Writing::LastRead(self.last),
            Writing::LastRead(last) => {
                world.floors[who] = Some(*last);
                world.writers[who].writing = Writing::Locked(Vec::new());
            }
            Writing::Locked(drawn) if drawn.len() < events.len() => {
                world.last += 1;
                let mut drawn = drawn.clone();
                drawn.push(world.last);
                world.writers[who].writing = Writing::Locked(drawn);
            }
            Writing::Locked(drawn) => {
                world.rows.extend(drawn.iter().copied().zip(events.iter().copied()));
                world.writers[who].writing = Writing::Visible;
            }
            Writing::Visible => {
                world.floors[who] = None;
                world.writers[who] =
                    Writer { transaction: self.writers[who].transaction + 1, writing: Writing::Nothing };
            }
        }
        Some(world)
    }

    /// The writer's connection broke: what was not committed is gone, and so is its lock. It writes nothing more.
    fn without_writer(mut self, who: usize) -> Option<Self> {
        if self.writers[who].writing == Writing::Nothing {
            return None;
        }
        self.floors[who] = None;
        self.writers[who] = Writer { transaction: usize::MAX, writing: Writing::Nothing };
        Some(self)
    }

    /// The relay died, and its lease ran out.
    fn without_relay(mut self, who: usize) -> Self {
        self.lease_free |= self.relays[who].has_lease();
        self.relays[who] = Relay::default();
        self
    }

    /// Whether the writers have ended and no relay works.
    pub(super) fn at_rest(&self, scenario: &Scenario) -> bool {
        (0..2).all(|who| {
            self.writers[who].transaction >= scenario.writers[who].len() && self.relays[who].is_idle()
        })
    }

    /// What one relay makes of it that nothing disturbs.
    pub(super) fn drained(&self, scenario: &Scenario, mutation: Mutation) -> Result<Self, String> {
        let mut world = Self { lease_free: true, losses: 0, crashes: 0, ..self.clone() };
        for _ in 0..200 {
            let mut steps = Vec::new();
            relay::steps(&world, 0, mutation, &mut steps);
            match steps.into_iter().next() {
                Some(next) if next != world => world = next,
                _ => return Ok(world),
            }
            world.check(scenario)?;
            if world.complete(scenario).is_ok() {
                return Ok(world);
            }
        }
        Err("a relay that nothing disturbs does not come to an end".to_owned())
    }

    /// Whether every event is delivered or parked.
    pub(super) fn complete(&self, _: &Scenario) -> Result<(), String> {
        if self.ordered {
            return Err("an order waits for ever".to_owned());
        }
        match self.rows.keys().find(|position| !self.is_settled(**position)) {
            Some(lost) => Err(format!("event {lost} stays where it is")),
            None => Ok(()),
        }
    }

    /// The promises, in any state.
    pub(super) fn check(&self, _: &Scenario) -> Result<(), String> {
        let (mut seqs, mut keys) = (BTreeMap::new(), BTreeMap::new());
        for record in &self.kafka.log {
            let position = record.position;
            let event = self.rows.get(&position).ok_or(format!("event {position} was never committed"))?;
            let seq = seqs.entry(&record.lane).or_insert(0);
            *seq += 1;
            if record.seq != *seq {
                return Err(format!("event {position} has the number {} instead of {seq}", record.seq));
            }
            if keys.insert(&record.key, position).is_some_and(|before| before >= position) {
                return Err(format!("event {position} came again, or after a later one of its key"));
            }
            if self.refuses && event.refused || self.still_parked().any(|parked| parked == position) {
                return Err(format!("event {position} is delivered and was refused or parked"));
            }
            let first_parked = self.still_parked().find(|parked| self.rows[parked].key == &*record.key);
            if first_parked.is_some_and(|parked| parked < position) {
                return Err(format!("event {position} overtook a parked one of its key"));
            }
        }
        if !self.parked.is_sorted() {
            return Err(format!("parked in the order {:?}", self.parked));
        }
        let cursor = self.kafka.cursor.as_ref().map_or(0, |cursor| cursor.position.number());
        match self.rows.range(..=cursor).find(|(position, _)| !self.is_settled(**position)) {
            Some((lost, _)) => Err(format!("event {lost} is lost: the cursor is at {cursor}")),
            None => Ok(()),
        }
    }

    /// What is parked and not on its way out of there.
    fn still_parked(&self) -> impl Iterator<Item = i64> {
        let released = self.kafka.cursor.as_ref().and_then(|cursor| cursor.released.as_ref());
        let is_out = move |position: i64| {
            released.is_some_and(|released| released.positions.contains(&Position::new(position)))
        };
        self.parked.iter().copied().filter(move |position| !is_out(*position))
    }

    fn is_settled(&self, position: i64) -> bool {
        let is_ours = self.rows.get(&position).is_none_or(|event| self.shard.holds(event.lane));
        !is_ours
            || self.parked.contains(&position)
            || self.kafka.log.iter().any(|record| record.position == position)
    }

    fn real_row(position: i64, event: &Event) -> Row {
        row(position, event.lane, event.key)
    }

    fn origin(&self) -> Origin {
        Origin { epoch: Uuid::nil(), previous: None, last: Position::new(self.last), mark: None }
    }

    fn parked_keys(&self) -> Parked {
        let mut keys = BTreeMap::new();
        for position in &self.parked {
            let key = OrderedKey::of(&Self::real_row(*position, &self.rows[position]));
            keys.entry(key).or_insert(Position::new(*position));
        }
        Parked::new(keys, self.most_of_tenant)
    }
}
