//! The embedded store: `kill -9`, SIGTERM, and a disk that is full.

use std::time::Duration;

use rustix::process::Signal;

use crate::load::{Ways, run};
use crate::support::disk::SmallDisk;
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::{Sidecar, embedded_config};
use crate::verdict::reconciles;

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn embedded_counts_every_record_once_through_kills_and_full_disks() {
    let (seed, faults) = (seed(), size(10, 200));
    println!("seed {seed}, {faults} faults");
    let disk = SmallDisk::of_mib(192);
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "store: embedded\nusage: {}\n");
    let text = std::fs::read_to_string(&config).unwrap();
    let data = format!("data_dir: {}", disk.path().join("data").display());
    std::fs::write(&config, text.replace("data_dir: data", &data)).unwrap();
    let mut running = Some(Sidecar::serve_in(directory, &config));
    let ways = Ways::of(&[running.as_ref().unwrap()]);
    let mut random = Random::new(seed);
    let model = run(&ways, seed, |load| {
        for _ in 0..faults {
            load.until_more_are_counted(100 + random.below(500), BOUND);
            std::thread::park_timeout(Duration::from_micros(random.below(30_000)));
            if random.below(4) == 0 {
                let filled = disk.fill();
                load.until_calls_are_refused(3, BOUND);
                std::fs::remove_file(filled).unwrap();
                continue;
            }
            let mut sidecar = running.take().unwrap();
            if random.below(5) == 0 {
                sidecar.signal(Signal::TERM);
                assert!(sidecar.wait(BOUND).success());
            }
            let directory = sidecar.kill();
            let config = directory.path().join("proxy.yaml");
            let sidecar = Sidecar::serve_in(directory, &config);
            load.ways.moved(0, &sidecar);
            running = Some(sidecar);
        }
        load.until_more_are_counted(100, BOUND);
    });
    let sidecar = running.unwrap();
    model.holds(&sidecar);
    let directory = sidecar.kill();
    reconciles(&directory.path().join("proxy.yaml"));
}
