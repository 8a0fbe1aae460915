//! A consumer group's machine beside a plain model of the contract, through every kind of call in any order, with the
//! group's row written and read between all of them, as sidecars that share it do.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "test code")]

mod driver;
mod model;
#[allow(dead_code, reason = "proptest has a generator of its own")]
#[path = "../support/random.rs"]
mod random;
mod steps;

use driver::run;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use steps::{Case, Seen, case};

#[test]
fn the_machine_does_what_the_contract_says() {
    let seed = random::seed();
    let cases = random::size(1_000, 100_000);
    println!("seed {seed}, {cases} cases");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let seen = std::cell::RefCell::new(Seen::default());
    let result = runner.run(&case(), |case: Case| run(&case, &mut seen.borrow_mut()));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\nof {case:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    seen.assert_everything_happened();
}
