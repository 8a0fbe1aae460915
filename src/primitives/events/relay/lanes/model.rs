//! Every order in which two writers, two relays, a crash and lost leases can meet, with [`Lanes`] itself as the relays'
//! memory. A mutation is a fault of the kind that random load does not find: each must be found here.

mod search;
mod world;

use std::time::Instant;

use search::{Found, search};
use world::{Event, Mutation, Scenario};

const fn event(key: &'static str, lane: u16) -> Event {
    Event { key, lane, refused: false }
}

const A: Event = event("a", 0);
const B: Event = event("b", 0);
const C: Event = event("c", 1);
const D: Event = event("d", 0);
const REFUSED_B: Event = Event { key: "b", lane: 0, refused: true };
const REFUSED: Event = Event { key: "a", lane: 0, refused: true };

const PLAIN: Scenario = Scenario {
    writers: [&[], &[]],
    crashes: 0,
    losses: 0,
    raise: false,
    orders: 0,
    shards: 1,
    step: i64::MAX,
    most_of_tenant: 10,
    order_is_all: false,
};

/// One transaction of two events beside one of one; a key that both write, in two lanes.
const ORDER: Scenario =
    Scenario { writers: [&[&[A, C]], &[&[A]]], crashes: 1, losses: 1, raise: false, orders: 0, ..PLAIN };
/// Kafka refuses the first event of a key that the other writer goes on with, beside another key in the same lane.
const REFUSAL: Scenario = Scenario {
    writers: [&[&[REFUSED]], &[&[A, B]]],
    crashes: 1,
    losses: 1,
    raise: false,
    orders: 0,
    ..PLAIN
};
/// A relay gets a shard back that another one had meanwhile.
const RETURN: Scenario =
    Scenario { writers: [&[&[A]], &[&[A]]], crashes: 1, losses: 2, raise: false, orders: 0, ..PLAIN };
/// As [`REFUSAL`], and an operator lets Kafka take larger events meanwhile.
const RAISED: Scenario =
    Scenario { writers: [&[&[REFUSED]], &[&[A]]], crashes: 0, losses: 1, raise: true, orders: 0, ..PLAIN };

/// As [`RAISED`], and an operator orders that the key's events are sent.
const RELEASED: Scenario =
    Scenario { writers: [&[&[REFUSED]], &[&[A]]], crashes: 0, losses: 1, raise: true, orders: 1, ..PLAIN };
/// The same with a relay that dies, and one more event of the key.
const RELEASED_BY_ANOTHER: Scenario = Scenario {
    writers: [&[&[REFUSED], &[A], &[A]], &[]],
    crashes: 1,
    losses: 0,
    raise: true,
    orders: 1,
    ..PLAIN
};

/// Two writers whose events are in turns of the shard and of another one, looked for by steps of one position.
const STEPS: Scenario =
    Scenario { writers: [&[&[C, A]], &[&[C], &[A]]], losses: 1, shards: 2, step: 1, ..PLAIN };
/// Kafka refuses two keys where a tenant may have one parked, so that another key of its is parked too, until an operator
/// has one of the two released.
const TENANT: Scenario = Scenario {
    writers: [&[&[REFUSED, REFUSED_B], &[D], &[D]], &[]],
    losses: 1,
    raise: true,
    orders: 1,
    most_of_tenant: 1,
    ..PLAIN
};
/// Only the two, and one more event of that which is not released.
const TENANT_OF_TWO: Scenario = Scenario { writers: [&[&[REFUSED, REFUSED_B], &[B]], &[]], ..TENANT };
/// As [`TENANT`] with a relay that dies, and all of the tenant's is ordered, in the order of the log.
const TENANT_RELEASED: Scenario = Scenario { order_is_all: true, crashes: 1, losses: 0, ..TENANT };

fn run(name: &str, scenario: &Scenario, mutation: Mutation) -> Result<usize, Found> {
    let begun = Instant::now();
    let result = search(scenario, mutation);
    let seconds = begun.elapsed().as_secs_f32();
    match &result {
        Ok(states) => println!("{name}: {states} states, nothing wrong, {seconds:.1} s"),
        Err(found) => println!(
            "{name}, {mutation:?}: {} after {} states, by {} steps, {seconds:.1} s",
            found.what, found.states, found.steps
        ),
    }
    result
}

fn holds(name: &str, scenario: &Scenario) {
    let states = run(name, scenario, Mutation::None).unwrap_or_else(|found| panic!("{found}"));
    assert!(states > 5_000, "{name}: only {states} states were seen");
}

#[test]
fn every_interleaving_keeps_order_and_delivers_each_event_once() {
    holds("order", &ORDER);
}

#[test]
fn every_interleaving_parks_a_refused_event_with_its_key_s_later_ones() {
    holds("refusal", &REFUSAL);
    holds("refusal that ends", &RAISED);
}

#[test]
fn every_interleaving_releases_a_parked_key_once_and_in_order() {
    holds("release", &RELEASED);
    holds("release by another", &RELEASED_BY_ANOTHER);
}

#[test]
fn every_interleaving_lets_a_shard_come_back_to_a_relay() {
    holds("return", &RETURN);
}

#[test]
fn every_interleaving_passes_what_is_another_shard_s_and_nothing_else() {
    holds("steps", &STEPS);
}

#[test]
fn every_interleaving_parks_a_tenant_as_a_whole_and_lets_its_keys_go_on_in_order() {
    holds("tenant", &TENANT);
    holds("tenant of two", &TENANT_OF_TWO);
    holds("tenant released", &TENANT_RELEASED);
}

fn is_found(mutations: &[Mutation], scenario: &Scenario) {
    for mutation in mutations {
        assert!(run("sown", scenario, *mutation).is_err(), "{mutation:?} was not found");
    }
}

#[test]
fn a_fault_in_reading_is_found() {
    is_found(
        &[Mutation::CursorAtLastNumber, Mutation::FloorsAfterRows, Mutation::FloorsBeforeLastNumber],
        &ORDER,
    );
}

#[test]
fn a_fault_in_taking_over_is_found() {
    is_found(&[Mutation::NoReadAfterTakeover], &RETURN);
    is_found(&[Mutation::CursorReadBeforeFencing], &ORDER);
}

#[test]
fn a_fault_in_committing_is_found() {
    is_found(&[Mutation::CursorOutsideTransaction, Mutation::UnknownCommitTakenForAborted], &ORDER);
}

#[test]
fn a_fault_in_parking_is_found() {
    is_found(&[Mutation::ParkedAfterCommit, Mutation::ParkedKeysForgotten], &REFUSAL);
    is_found(&[Mutation::ParkedWithoutLease, Mutation::TakenOverWithoutLease], &RAISED);
}

#[test]
fn a_fault_in_releasing_is_found() {
    is_found(
        &[Mutation::ReleaseNotInCursor, Mutation::ReleaseAheadOfCursor, Mutation::ReleaseSettledBeforeCommit],
        &RELEASED,
    );
    is_found(&[Mutation::ReleasedKeyGoesOnAtOnce], &RELEASED_BY_ANOTHER);
}

#[test]
fn a_fault_in_passing_is_found() {
    is_found(&[Mutation::PassedWithoutFloors, Mutation::PassedWhatWasRead], &STEPS);
}

#[test]
fn a_fault_in_parking_a_tenant_is_found() {
    is_found(&[Mutation::TenantGoesOnAtOnce], &TENANT);
    is_found(&[Mutation::TenantGoesOnWithoutKeys], &TENANT_OF_TWO);
}
