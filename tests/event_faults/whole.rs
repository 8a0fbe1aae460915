//! PostgreSQL with its standby, three brokers, two sidecars and two relays: whatever of them is killed, stopped or away,
//! a native consumer of committed records sees what was accepted, once, in its key's order.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rig::{BROKERS, KafkaCluster, KafkaOptions};
use rustix::process::Signal;
use serde_json::Value;

use crate::kafka::{Seen, read_committed};
use crate::load::{Load, Logged, TOPIC};
use crate::postgres::{Bench, Fault as Store, RECOVERS};
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::Sidecar;
use crate::support::wait_until;

/// Of the shipped policy.
const LANES: u16 = 16;
const PREFIX: &str = "faults";
/// Some hundreds of events a second, so that brokers, databases and relays find time on a small machine.
const PACE: Duration = Duration::from_millis(20);
/// A relay's lease, which a stopped one outlives.
const LEASE: Duration = Duration::from_secs(6);
/// After a fault a relay delivers again within this time.
const DELIVERS: Duration = Duration::from_secs(60);
/// All that was accepted is in Kafka within this time after the last fault.
const ARRIVES: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Of(Store),
    KillRelay,
    DrainRelay,
    /// It outlives its lease, and something else may happen meanwhile.
    StopRelay(Option<Store>),
    KillBroker,
    StopBroker,
    NoBrokers {
        seconds: u64,
    },
}

/// Each window once: what every change must pass.
const EACH: [Fault; 7] = [
    Fault::KillRelay,
    Fault::StopRelay(Some(Store::KillPrimary)),
    Fault::KillBroker,
    Fault::Of(Store::HoldSnapshot),
    Fault::DrainRelay,
    Fault::NoBrokers { seconds: 5 },
    Fault::Of(Store::KillSidecar),
];

/// The long size, in any order.
const MANY: [(Fault, usize); 17] = [
    (Fault::Of(Store::KillSidecar), 30),
    (Fault::Of(Store::StopSidecar), 20),
    (Fault::Of(Store::DrainSidecar), 10),
    (Fault::Of(Store::KillPrimary), 40),
    (Fault::Of(Store::StopPrimary), 15),
    (Fault::Of(Store::HoldSnapshot), 10),
    (Fault::Of(Store::HoldFloor), 3),
    (Fault::KillRelay, 50),
    (Fault::DrainRelay, 15),
    (Fault::StopRelay(None), 15),
    (Fault::StopRelay(Some(Store::KillSidecar)), 10),
    (Fault::StopRelay(Some(Store::KillPrimary)), 20),
    (Fault::StopRelay(Some(Store::HoldSnapshot)), 5),
    (Fault::KillBroker, 40),
    (Fault::StopBroker, 12),
    (Fault::NoBrokers { seconds: 20 }, 3),
    (Fault::NoBrokers { seconds: 60 }, 2),
];

struct Whole {
    // Dropped in this order: what is served goes before what serves it.
    relays: [Option<Sidecar>; 2],
    bench: Bench,
    kafka: KafkaCluster,
    longest: Duration,
}

impl Whole {
    fn new(seed: u64) -> Self {
        let kafka = KafkaCluster::start(KafkaOptions::default()).unwrap();
        let more =
            format!("kafka: {{brokers: {:?}, prefix: {PREFIX}, timeout_ms: 5000}}\n", kafka.addresses());
        let bench = Bench::new(false, seed, &more);
        let relays = [(); 2].map(|()| Some(bench.on.process("roles: [relay]\n")));
        Self { relays, bench, kafka, longest: Duration::ZERO }
    }

    fn relay(&mut self, at: usize) -> &mut Sidecar {
        self.relays[at].as_mut().unwrap()
    }

    fn start_relay_again(&mut self, at: usize) {
        let directory = self.relays[at].take().unwrap().kill();
        let config = directory.path().join("proxy.yaml");
        self.relays[at] = Some(Sidecar::serve_in(directory, &config));
    }

    /// Makes it happen among events that are accepted and delivered, and waits until both are so again.
    fn happens(&mut self, fault: Fault, load: &Load<'_>) {
        let random = &mut self.bench.random;
        let (relay, broker) = (random.below(2) as usize, random.below(BROKERS as u64) as usize);
        let later = Duration::from_millis(500 + random.below(2000));
        if !matches!(fault, Fault::Of(_)) {
            load.until_more_are_acknowledged(50 + random.below(200), RECOVERS);
            std::thread::park_timeout(Duration::from_micros(random.below(30_000)));
        }
        let began = Instant::now();
        match fault {
            Fault::Of(fault) => self.bench.happens(fault, load),
            Fault::KillRelay => self.start_relay_again(relay),
            Fault::DrainRelay => {
                self.relay(relay).signal(Signal::TERM);
                assert!(self.relay(relay).wait(RECOVERS).success());
                self.start_relay_again(relay);
            }
            Fault::StopRelay(meanwhile) => {
                self.relay(relay).signal(Signal::STOP);
                if let Some(fault) = meanwhile {
                    self.bench.happens(fault, load);
                }
                std::thread::park_timeout((LEASE + later).saturating_sub(began.elapsed()));
                self.relay(relay).signal(Signal::CONT);
            }
            Fault::KillBroker => {
                self.kafka.kill(broker).unwrap();
                load.until_more_are_acknowledged(200, RECOVERS);
                self.kafka.restart(broker).unwrap();
                self.kafka.wait_ok().unwrap();
            }
            Fault::StopBroker => {
                self.kafka.stop(broker).unwrap();
                std::thread::park_timeout(later * 2);
                self.kafka.cont(broker).unwrap();
            }
            Fault::NoBrokers { seconds } => {
                self.kafka.kill_all().unwrap();
                std::thread::park_timeout(Duration::from_secs(seconds));
                load.until_more_are_acknowledged(50, RECOVERS);
                self.kafka.start_all().unwrap();
            }
        }
        let took = began.elapsed();
        let again = self.until_more_are_delivered();
        self.longest = self.longest.max(again);
        println!("{fault:?}: {took:.1?}, and events were delivered {again:.1?} later");
    }

    fn until_more_are_delivered(&self) -> Duration {
        let delivered = || -> f64 {
            let relays = self.relays.iter().flatten();
            relays.map(|relay| relay.metric("outrigger_events_relay_delivered_total")).sum()
        };
        let (began, before) = (Instant::now(), delivered());
        wait_until("events to be delivered", DELIVERS, || delivered() > before);
        began.elapsed()
    }

    fn committed(&self, expected: usize) -> Vec<Seen> {
        read_committed(
            &self.kafka.bootstrap_servers(),
            &format!("{PREFIX}.{TOPIC}"),
            LANES,
            expected,
            ARRIVES,
        )
    }
}

/// Kafka has the log: each event once, each key in order, each lane's numbers without a gap.
fn kafka_has_the_log(log: &[Logged], seen: &[Seen]) {
    let mut place: HashMap<&str, usize> =
        log.iter().enumerate().map(|(at, event)| (&*event.id, at)).collect();
    let mut last: HashMap<&str, usize> = HashMap::new();
    let mut numbers: HashMap<i32, u64> = HashMap::new();
    for record in seen {
        let at = place
            .remove(record.id())
            .unwrap_or_else(|| panic!("{record:?} came twice, or is not in the log"));
        let data: Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
        assert!(record.id().ends_with(&format!("-{}", data["n"])), "{record:?} has another one's data");
        let key = &*log[at].key;
        assert!(record.key.ends_with(&format!("/{key}")), "{record:?} has the key {key} in the log");
        let before = last.insert(key, at);
        assert!(before.is_none_or(|before| before < at), "{record:?} came after a later one of its key");
        let number = numbers.entry(record.partition).or_insert(0);
        *number += 1;
        assert_eq!(record.headers["outrigger-seq"], number.to_string(), "{record:?}");
    }
    let lost: Vec<&&str> = place.keys().take(10).collect();
    assert!(place.is_empty(), "LOST in Kafka: {} events, of which {lost:?}", place.len());
}

fn shuffled(random: &mut Random) -> Vec<Fault> {
    let mut faults: Vec<Fault> =
        MANY.iter().flat_map(|(fault, times)| std::iter::repeat_n(*fault, *times)).collect();
    for at in (1..faults.len()).rev() {
        faults.swap(at, random.below(at as u64 + 1) as usize);
    }
    faults
}

#[test]
fn chaos_kafka_has_every_event_once_whatever_is_killed_stopped_promoted_or_away() {
    let seed = seed();
    let mut whole = Whole::new(seed);
    let faults = if size(0, 1) == 0 { EACH.to_vec() } else { shuffled(&mut whole.bench.random) };
    println!("seed {seed}, {} faults", faults.len());
    let doors = whole.bench.doors();
    let load = Load::new(&doors).paced(PACE);
    let verdict = load.run(seed, |load| faults.iter().for_each(|fault| whole.happens(*fault, load)));
    println!("{}", verdict.holds());
    let seen = whole.committed(verdict.log.len());
    kafka_has_the_log(&verdict.log, &seen);
    println!(
        "{} faults, {} records in kafka; delivered again within {:.1?}",
        faults.len(),
        seen.len(),
        whole.longest
    );
}
