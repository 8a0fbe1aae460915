//! The embedded store: `kill -9`, SIGTERM, and a disk that is full.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::client::Ack;
use crate::load::{Ways, policy, run};
use crate::support::disk::SmallDisk;
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::{Sidecar, embedded_config, with_own_policy};
use crate::verdict::reconciles;

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn embedded_counts_every_record_once_through_kills_and_full_disks() {
    through(size(10, 200), Ack::Database);
}

#[test]
fn embedded_counts_every_record_once_that_it_took_to_disk_through_kills_and_full_disks() {
    through(size(10, 200), Ack::Spool);
}

/// The embedded store on this disk, with this policy of usage.
pub fn configured(directory: &Path, disk: &SmallDisk, usage: &str, more: &str) -> PathBuf {
    let config = embedded_config(directory, &format!("store: embedded\nusage: {{}}\n{more}"));
    let text = std::fs::read_to_string(&config).unwrap();
    let data = format!("data_dir: {}", disk.path().join("data").display());
    std::fs::write(&config, text.replace("data_dir: data", &data)).unwrap();
    with_own_policy(&config, "usage.yaml", usage);
    config
}

fn through(faults: u64, ack: Ack) {
    let seed = seed();
    println!("seed {seed}, {faults} faults, {ack:?}");
    let disk = SmallDisk::of_mib(192);
    let directory = tempfile::tempdir().unwrap();
    let config = configured(directory.path(), &disk, &policy(ack), "");
    let mut running = Some(Sidecar::serve_in(directory, &config));
    let ways = match (ack, running.as_ref().unwrap()) {
        (Ack::Database, sidecar) => Ways::of(&[sidecar]),
        (Ack::Spool, sidecar) => Ways::spooled([sidecar, sidecar]),
    };
    let mut random = Random::new(seed);
    let model = run(&ways, seed, |load| {
        for _ in 0..faults {
            load.until_more_are_accepted(100 + random.below(500), BOUND);
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
            load.ways.moved(1, &sidecar);
            running = Some(sidecar);
        }
        load.until_more_are_accepted(100, BOUND);
    });
    let sidecar = running.unwrap();
    if ack == Ack::Spool {
        println!("all are counted after {:?}", model.until_counted(&sidecar, BOUND));
        model.lists_every_lie(&sidecar);
    }
    model.holds(&sidecar);
    let directory = sidecar.kill();
    reconciles(&directory.path().join("proxy.yaml"));
}
