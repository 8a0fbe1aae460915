//! A relay: lease, fencing, the committed cursor, then read, park, send, commit.

mod release;

use super::{Cursor, Event, Lanes, Mutation, Parked, Record, World};
use crate::primitives::events::Position;
use crate::primitives::events::relay::passed::Passed;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    Leased,
    Fenced,
    Ready,
    LastRead(i64),
    LimitKnown { last: i64, limit: i64 },
    RowsRead { last: i64, rows: Vec<(i64, Event)> },
    Planned { sends: Vec<Record>, refused: Option<i64>, parks: Vec<i64>, cursor: Cursor, to_park: bool },
    Releasing { send: Record, cursor: Cursor },
    Settling { position: i64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Relay {
    step: Step,
    /// It is the lease's owner; otherwise it may still believe that it is.
    leased: bool,
    /// Nobody has fenced its producer.
    unfenced: bool,
    lanes: Option<Lanes>,
    /// What it has looked through, as long as it has the lease.
    passed: Passed,
}

impl Default for Relay {
    fn default() -> Self {
        Self { step: Step::Idle, leased: false, unfenced: false, lanes: None, passed: Passed::NOTHING }
    }
}

impl Relay {
    pub(super) fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    pub(super) fn has_lease(&self) -> bool {
        self.leased
    }

    pub(super) fn lose_lease(&mut self) {
        self.leased = false;
    }

    /// Tells most relays apart.
    pub(super) fn rank(&self) -> u8 {
        let step = match &self.step {
            Step::Idle => 0,
            Step::Leased => 1,
            Step::Fenced => 2,
            Step::Ready => 3,
            Step::LastRead(_) => 4,
            Step::LimitKnown { .. } => 5,
            Step::RowsRead { .. } => 6,
            Step::Planned { .. } => 7,
            Step::Releasing { .. } => 8,
            Step::Settling { .. } => 9,
        };
        step * 4 + u8::from(self.leased) * 2 + u8::from(self.unfenced)
    }
}

/// Every state that one step of this relay leads to; the undisturbed one first.
pub(super) fn steps(world: &World, who: usize, mutation: Mutation, steps: &mut Vec<World>) {
    let relay = &world.relays[who];
    let mut next = world.clone();
    match &relay.step {
        Step::Idle if world.lease_free => {
            next.lease_free = false;
            next.relays[who].leased = true;
            next.relays[who].step = Step::Leased;
            steps.push(next);
        }
        Step::Idle => {}
        Step::Leased if mutation == Mutation::CursorReadBeforeFencing && relay.lanes.is_none() => {
            read_cursor(&mut next, who, mutation);
            next.relays[who].step = Step::Leased;
            steps.push(next);
        }
        Step::Leased => {
            next.relays.iter_mut().for_each(|relay| relay.unfenced = false);
            next.relays[who].unfenced = true;
            next.relays[who].step = Step::Fenced;
            steps.push(next);
        }
        // The parked keys are told to the lease's owner alone.
        Step::Fenced if !relay.leased && mutation != Mutation::TakenOverWithoutLease => {
            steps.push(given_up(next, who, mutation));
        }
        Step::Fenced => {
            let keeps = matches!(mutation, Mutation::NoReadAfterTakeover | Mutation::CursorReadBeforeFencing);
            if !(keeps && relay.lanes.is_some()) {
                read_cursor(&mut next, who, mutation);
            }
            next.relays[who].step = release::after_takeover(&next, who);
            steps.push(next);
        }
        Step::Ready if world.ordered && relay.leased => {
            steps.extend(release::begin(world, who, mutation));
            read(&mut next, who, mutation);
            steps.push(next);
        }
        Step::Releasing { send, cursor } => release::deliver(world, who, send, cursor, mutation, steps),
        Step::Settling { position } => steps.push(release::settle(next, who, *position, mutation)),
        Step::Ready | Step::LastRead(_) | Step::LimitKnown { .. } | Step::RowsRead { .. } => {
            read(&mut next, who, mutation);
            steps.push(next);
        }
        Step::Planned { .. } => deliver(world, who, mutation, steps),
    }
    if relay.step != Step::Idle && !relay.leased {
        steps.push(given_up(world.clone(), who, mutation));
    }
}

fn read_cursor(world: &mut World, who: usize, mutation: Mutation) {
    let parked = match mutation {
        Mutation::ParkedKeysForgotten => Parked::new(Default::default(), world.most_of_tenant),
        _ => world.parked_keys(),
    };
    let lanes = Lanes::take_over(world.shard, &world.origin(), world.kafka.cursor.clone(), parked);
    world.relays[who].lanes = Some(lanes.unwrap());
}

/// The lease is gone, or Kafka says so.
fn given_up(mut world: World, who: usize, mutation: Mutation) -> World {
    let lanes = world.relays[who].lanes.take();
    world.lease_free |= world.relays[who].leased;
    world.relays[who] = Relay::default();
    if mutation == Mutation::NoReadAfterTakeover {
        world.relays[who].lanes = lanes.map(|mut lanes| {
            lanes.aborted();
            lanes
        });
    }
    world
}

/// The sequence's last number, then the floors, then the rows.
fn read(world: &mut World, who: usize, mutation: Mutation) {
    let floor = world.floors.iter().flatten().copied().min().unwrap_or(i64::MAX);
    let position = world.relays[who].lanes.as_ref().map_or(0, |lanes| lanes.position().number());
    let from = world.relays[who].passed.go_on(Position::new(position)).number();
    // Of everyone, in the next step; the relay goes on behind it where nothing in it is its shard's.
    let seen = |limit: i64| -> Vec<(i64, Event)> {
        let next = world.rows.range(from + 1..).take_while(|(position, _)| **position <= limit);
        let end = next.clone().next().map_or(from, |(first, _)| first.saturating_add(world.step - 1));
        next.map(|(position, event)| (*position, *event))
            .take_while(|(position, _)| *position <= end)
            .collect()
    };
    let ours = |(_, event): &(i64, Event)| world.shard.holds(event.lane);
    let rows = |limit: i64| -> Vec<(i64, Event)> { seen(limit).into_iter().filter(ours).collect() };
    let step = match world.relays[who].step.clone() {
        Step::Ready if mutation == Mutation::FloorsBeforeLastNumber => Step::LastRead(floor),
        Step::Ready => Step::LastRead(world.last),
        Step::LastRead(last) if mutation == Mutation::FloorsAfterRows => {
            Step::RowsRead { last, rows: rows(last) }
        }
        // The value is the floor then.
        Step::LastRead(floor) if mutation == Mutation::FloorsBeforeLastNumber => {
            Step::LimitKnown { last: world.last, limit: world.last.min(floor) }
        }
        Step::LastRead(last) => Step::LimitKnown { last, limit: last.min(floor) },
        Step::LimitKnown { last, limit } => {
            let found = rows(limit);
            let passed = seen(if mutation == Mutation::PassedWithoutFloors { last } else { limit });
            if let Some((end, _)) = passed.last()
                && (found.is_empty() || mutation == Mutation::PassedWhatWasRead)
            {
                world.relays[who].passed.pass(Position::new(from), Position::new(*end));
            }
            plan(world, who, last, found, mutation)
        }
        Step::RowsRead { last, rows } => {
            let rows = rows.into_iter().filter(|(position, _)| *position <= floor).collect();
            plan(world, who, last, rows, mutation)
        }
        other => other,
    };
    world.relays[who].step = step;
}

fn plan(world: &mut World, who: usize, last: i64, rows: Vec<(i64, Event)>, mutation: Mutation) -> Step {
    let (false, Some(lanes)) = (rows.is_empty(), world.relays[who].lanes.as_mut()) else {
        return Step::Ready;
    };
    let real = rows.iter().map(|(position, event)| World::real_row(*position, event)).collect();
    let mut plan = lanes.plan(real).unwrap();
    if mutation == Mutation::CursorAtLastNumber {
        plan.cursor.position = Position::new(last);
        lanes.pending.as_mut().unwrap().position = plan.cursor.position;
    }
    let event = |position: i64| rows.iter().find(|(at, _)| *at == position).map(|(_, event)| event);
    let sends: Vec<Record> = (plan.sends.iter())
        .map(|send| Record {
            position: send.row.event.position.number(),
            key: send.row.event.key.clone(),
            lane: (send.row.topic.clone(), send.row.lane),
            seq: send.seq,
        })
        .collect();
    let parks: Vec<i64> = plan.parks.iter().map(|row| row.event.position.number()).collect();
    Step::Planned {
        refused: sends
            .iter()
            .map(|send| send.position)
            .find(|at| event(*at).is_some_and(|event| event.refused)),
        sends,
        to_park: !parks.is_empty() && mutation != Mutation::ParkedAfterCommit,
        parks,
        cursor: plan.cursor,
    }
}

fn deliver(world: &World, who: usize, mutation: Mutation, steps: &mut Vec<World>) {
    let Step::Planned { sends, refused, parks, cursor, to_park } = &world.relays[who].step else { return };
    let at = |to_park: bool| Step::Planned {
        sends: sends.clone(),
        refused: *refused,
        parks: parks.clone(),
        cursor: cursor.clone(),
        to_park,
    };
    let park_last = mutation == Mutation::ParkedAfterCommit;
    let mut next = world.clone();
    if *to_park {
        if mutation == Mutation::ParkedWithoutLease || world.relays[who].leased {
            park(&mut next, parks);
            next.relays[who].step = if park_last { Step::Ready } else { at(false) };
        } else {
            next = given_up(next, who, mutation);
        }
        return steps.push(next);
    }
    if !world.relays[who].unfenced {
        return steps.push(given_up(next, who, mutation));
    }
    if let Some(refused) = refused.filter(|_| world.refuses) {
        aborted(&mut next, who);
        let row = World::real_row(refused, &world.rows[&refused]);
        next.relays[who].lanes.as_mut().unwrap().refuse(&row).unwrap();
        return steps.push(next);
    }
    let mut committed = world.clone();
    committed.kafka.log.extend(sends.iter().cloned());
    committed.kafka.cursor = Some(cursor.clone());
    let mut unknown = committed.clone();
    committed.relays[who].lanes.as_mut().unwrap().committed();
    committed.relays[who].step = if park_last && !parks.is_empty() { at(true) } else { Step::Ready };
    steps.push(committed);
    // The answer was lost: begin as after a takeover.
    if mutation == Mutation::UnknownCommitTakenForAborted {
        aborted(&mut unknown, who);
    } else {
        unknown.relays[who].step = Step::Leased;
        unknown.relays[who].lanes = None;
    }
    steps.push(unknown);
    aborted(&mut next, who);
    if mutation == Mutation::CursorOutsideTransaction {
        next.kafka.cursor = Some(cursor.clone());
    }
    steps.push(next);
}

fn aborted(world: &mut World, who: usize) {
    world.relays[who].lanes.as_mut().unwrap().aborted();
    world.relays[who].step = Step::Ready;
}

/// Keeps rows as parked; the caller saw, in the same transaction, that the lease is its own.
fn park(world: &mut World, parks: &[i64]) {
    for position in parks {
        if !world.parked.contains(position) {
            world.parked.push(*position);
        }
    }
}
