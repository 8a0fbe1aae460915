//! Breadth first through every state that can be reached, each once.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};

use aws_lc_rs::digest::{SHA256, digest};

use super::world::{Mutation, Scenario, World};

/// A state that must not be.
pub(super) struct Found {
    pub(super) what: String,
    pub(super) states: usize,
    pub(super) steps: usize,
    pub(super) state: Box<World>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, states, steps, state } = self;
        write!(f, "{what} after {states} states, by {steps} steps: {state:#?}")
    }
}

/// How many states there are, or the first one that breaks a promise, with the fewest steps to it.
pub(super) fn search(scenario: &Scenario, mutation: Mutation) -> Result<usize, Found> {
    let start = World::new(scenario);
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut next = VecDeque::from([(start, 0)]);
    while let Some((world, steps)) = next.pop_front() {
        let found =
            |what: String, states: usize| Found { what, states, steps, state: Box::new(world.clone()) };
        world.check(scenario).map_err(|what| found(what, seen.len()))?;
        if world.at_rest(scenario) {
            let ended = world.drained(scenario, mutation);
            ended.and_then(|end| end.complete(scenario)).map_err(|what| found(what, seen.len()))?;
        }
        for step in world.steps(scenario, mutation) {
            if seen.insert(fingerprint(&step)) {
                next.push_back((step, steps + 1));
            }
        }
    }
    Ok(seen.len())
}

/// 128 bits: among ten million states two share one with a probability of 10^-25.
fn fingerprint(world: &World) -> [u8; 16] {
    let mut bytes = Bytes::default();
    world.hash(&mut bytes);
    let digest = digest(&SHA256, &bytes.0);
    let mut half = [0; 16];
    half.copy_from_slice(&digest.as_ref()[..16]);
    half
}

/// What a value feeds to a hasher.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the bytes are the result")
    }
}
