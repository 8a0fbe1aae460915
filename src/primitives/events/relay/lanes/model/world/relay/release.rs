//! An operator's order: one parked event after the other, then the store forgets it.

use super::super::{Cursor, Mutation, Parked, Record, World};
use super::{Step, aborted, given_up};
use crate::primitives::events::Position;
use crate::primitives::events::relay::lanes::{Lanes, OrderedKey};

const ORDER: i64 = 1;

/// What a relay does first that has read the cursor.
pub(super) fn after_takeover(world: &World, who: usize) -> Step {
    let lanes = world.relays[who].lanes.as_ref();
    let position = lanes.and_then(Lanes::unsettled).map(|released| released.positions[0].number());
    position.map_or(Step::Ready, |position| Step::Settling { position })
}

/// Reads the order and the key's first parked event, with the lease; nothing where that is behind the cursor.
pub(super) fn begin(world: &World, who: usize, mutation: Mutation) -> Option<World> {
    let mut next = world.clone();
    let lanes = next.relays[who].lanes.as_mut()?;
    let Some(first) = of_key(world).next() else {
        next.ordered = false;
        return Some(next);
    };
    let cursor = lanes.position();
    if mutation == Mutation::ReleaseAheadOfCursor {
        lanes.committed.position = Position::new(first.max(cursor.number()));
    } else if first > cursor.number() {
        return None;
    }
    let row = World::real_row(first, &world.rows[&first]);
    let key = if world.order_is_all { OrderedKey::all_of(row.event.tenant) } else { OrderedKey::of(&row) };
    let mut plan = lanes.plan_release(ORDER, &key, vec![row]).unwrap();
    lanes.committed.position = cursor;
    plan.cursor.position = cursor;
    if mutation == Mutation::ReleaseNotInCursor {
        plan.cursor.released = None;
    }
    lanes.pending = Some(plan.cursor.clone());
    let send = &plan.sends[0];
    let lane = (send.row.topic.clone(), send.row.lane);
    let send = Record { position: first, key: send.row.event.key.clone(), lane, seq: send.seq };
    if mutation == Mutation::ReleaseSettledBeforeCommit {
        next.parked.retain(|parked| *parked != first);
    }
    next.relays[who].step = Step::Releasing { send, cursor: plan.cursor };
    Some(next)
}

/// As another transaction, and the one event may be refused again.
pub(super) fn deliver(
    world: &World,
    who: usize,
    send: &Record,
    cursor: &Cursor,
    mutation: Mutation,
    steps: &mut Vec<World>,
) {
    let mut next = world.clone();
    if !world.relays[who].unfenced {
        return steps.push(given_up(next, who, mutation));
    }
    if world.refuses && world.rows[&send.position].refused {
        // The order has ended; what it says of that needs the lease.
        if world.relays[who].leased {
            aborted(&mut next, who);
            next.ordered = false;
        } else {
            next = given_up(next, who, mutation);
        }
        return steps.push(next);
    }
    let mut committed = world.clone();
    committed.kafka.log.push(send.clone());
    committed.kafka.cursor = Some(cursor.clone());
    let mut unknown = committed.clone();
    committed.relays[who].lanes.as_mut().unwrap().committed();
    committed.relays[who].step = Step::Settling { position: send.position };
    steps.push(committed);
    unknown.relays[who].step = Step::Leased;
    unknown.relays[who].lanes = None;
    steps.push(unknown);
    aborted(&mut next, who);
    steps.push(next);
}

/// The store forgets what was delivered, where the lease is this relay's.
pub(super) fn settle(mut world: World, who: usize, position: i64, mutation: Mutation) -> World {
    if !world.relays[who].leased {
        return given_up(world, who, mutation);
    }
    world.parked.retain(|parked| *parked != position);
    let key = OrderedKey::of(&World::real_row(position, &world.rows[&position]));
    let nothing = Parked::new(Default::default(), world.most_of_tenant);
    let left = match mutation {
        Mutation::ReleasedKeyGoesOnAtOnce => nothing,
        Mutation::TenantGoesOnAtOnce if world.parked_keys().has_tenant(&key.tenant) => nothing,
        Mutation::TenantGoesOnWithoutKeys if !world.parked_keys().has_tenant(&key.tenant) => nothing,
        _ => world.parked_keys(),
    };
    let relay = &mut world.relays[who];
    relay.lanes.as_mut().unwrap().settled(&key, left);
    relay.step = Step::Ready;
    world
}

/// What is parked of the key that is ordered, or of all.
fn of_key(world: &World) -> impl Iterator<Item = i64> {
    let is_ordered = |position: &i64| world.order_is_all || world.rows[position].key == "a";
    world.parked.iter().copied().filter(is_ordered)
}
