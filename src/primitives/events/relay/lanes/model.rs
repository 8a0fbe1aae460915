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
const REFUSED: Event = Event { key: "a", lane: 0, refused: true };

/// One transaction of two events beside one of one; a key that both write, in two lanes.
const ORDER: Scenario =
    Scenario { writers: [&[&[A, C]], &[&[A]]], crashes: 1, losses: 1, raise: false, orders: 0 };
/// Kafka refuses the first event of a key that the other writer goes on with, beside another key in the same lane.
const REFUSAL: Scenario =
    Scenario { writers: [&[&[REFUSED]], &[&[A, B]]], crashes: 1, losses: 1, raise: false, orders: 0 };
/// A relay gets a shard back that another one had meanwhile.
const RETURN: Scenario =
    Scenario { writers: [&[&[A]], &[&[A]]], crashes: 1, losses: 2, raise: false, orders: 0 };
/// As [`REFUSAL`], and an operator lets Kafka take larger events meanwhile.
const RAISED: Scenario =
    Scenario { writers: [&[&[REFUSED]], &[&[A]]], crashes: 0, losses: 1, raise: true, orders: 0 };

/// As [`RAISED`], and an operator orders that the key's events are sent.
const RELEASED: Scenario =
    Scenario { writers: [&[&[REFUSED]], &[&[A]]], crashes: 0, losses: 1, raise: true, orders: 1 };
/// The same with a relay that dies, and one more event of the key.
const RELEASED_BY_ANOTHER: Scenario =
    Scenario { writers: [&[&[REFUSED], &[A], &[A]], &[]], crashes: 1, losses: 0, raise: true, orders: 1 };

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
