//! The embedded store: `kill -9` of `outrigger dev`, and a start in the same data directory.

use std::time::Duration;

use rustix::process::Signal;

use crate::load::Load;
use crate::support::doors::Doors;
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::Sidecar;

#[test]
fn sqlite_keeps_every_event_that_was_accepted_through_kills() {
    let (seed, kills) = (seed(), size(12, 200));
    println!("seed {seed}, {kills} kills");
    let mut running = Some(Sidecar::dev());
    let doors = Doors::of(&[running.as_ref().unwrap()]);
    let load = Load::new(&doors);
    let mut random = Random::new(seed);
    let verdict = load.run(seed, |load| {
        for _ in 0..kills {
            load.until_more_are_acknowledged(20 + random.below(200), Duration::from_secs(30));
            // A moment that has nothing to do with the answers of before.
            std::thread::park_timeout(Duration::from_micros(random.below(30_000)));
            let mut sidecar = running.take().unwrap();
            // Now and then it is asked to end, and drains.
            if random.below(5) == 0 {
                sidecar.signal(Signal::TERM);
                assert!(sidecar.wait(Duration::from_secs(20)).success());
            }
            let directory = sidecar.kill();
            let sidecar = Sidecar::dev_in(directory, &[]);
            doors.moved(0, &sidecar);
            running = Some(sidecar);
        }
    });
    println!("{}", verdict.holds());
}
