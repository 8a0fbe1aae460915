//! Publishers, readers and a group of consumers, all at once, beside whatever is done to what serves them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::consumer::{Consumed, Consumer};
use crate::publisher::{Published, Publisher};
use crate::reader::{Reader, WAYS, Way};
use crate::support::doors::{Caller, Doors, Heard};
use crate::support::wait_until;
use crate::verdict::Verdict;

pub const TOPIC: &str = "leads";
pub const GROUP: &str = "faults";
/// Types of events; one reader wants the first only.
pub const KINDS: [&str; 3] = ["made", "changed", "gone"];
/// Keys that every publisher has.
pub const SHARED_KEYS: u64 = 4;
pub const LEASE_MS: u64 = 2000;
const PUBLISHERS: usize = 3;
const CONSUMERS: usize = 3;

/// What all of them share.
pub struct Load<'d> {
    pub doors: &'d Doors,
    /// How long a publisher rests after each publish.
    pub pace: Duration,
    clock: AtomicU64,
    /// Set where publishers are to end.
    pub published: AtomicBool,
    /// Set where readers are to end.
    pub read: AtomicBool,
    pub acknowledged: AtomicU64,
    /// How many events each reader has.
    pub readers: [AtomicUsize; WAYS.len()],
}

/// Ends everybody, also where somebody panicked.
struct EndOnDrop<'l, 'd>(&'l Load<'d>);

impl Drop for EndOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.published.store(true, Relaxed);
        self.0.read.store(true, Relaxed);
    }
}

impl<'d> Load<'d> {
    pub fn new(doors: &'d Doors) -> Self {
        Self {
            doors,
            pace: Duration::ZERO,
            clock: AtomicU64::new(0),
            published: AtomicBool::new(false),
            read: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            readers: Default::default(),
        }
    }

    /// Less of it, where much else has to run beside it.
    pub fn paced(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    /// A moment: later ones are larger, whoever asks.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }

    /// Waits until so many more events are acknowledged: a fault among nothing shows nothing.
    pub fn until_more_are_acknowledged(&self, more: u64, bound: Duration) -> Duration {
        let (began, enough) = (Instant::now(), self.acknowledged.load(Relaxed) + more);
        wait_until("events to be accepted", bound, || self.acknowledged.load(Relaxed) >= enough);
        began.elapsed()
    }

    /// Runs everybody while `faults` happen, and until everything was read and consumed.
    pub fn run(&self, seed: u64, faults: impl FnOnce(&Self)) -> Verdict {
        std::thread::scope(|scope| {
            let ends = EndOnDrop(self);
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|at| scope.spawn(move || Publisher::new(self, at, seed + at as u64).run()))
                .collect();
            let readers: Vec<_> = WAYS
                .map(|way| scope.spawn(move || Reader::new(self, way, seed + 100 + way as u64).run()))
                .into();
            let consumers: Vec<_> = (0..CONSUMERS)
                .map(|at| scope.spawn(move || Consumer::new(self, seed + 200 + at as u64).run()))
                .collect();
            faults(self);
            self.published.store(true, Relaxed);
            let published: Vec<Published> = publishers.into_iter().map(|one| one.join().unwrap()).collect();
            let log = self.log(seed);
            for way in WAYS {
                let expected = log.iter().filter(|event| way.wants(&event.kind)).count();
                wait_until(&format!("{way:?} to read what there is"), Duration::from_secs(30), || {
                    self.readers[way as usize].load(Relaxed) >= expected
                });
            }
            let consumed: Vec<Consumed> = consumers.into_iter().map(|one| one.join().unwrap()).collect();
            drop(ends);
            let read: Vec<(Way, Vec<String>, u64)> =
                readers.into_iter().map(|one| one.join().unwrap()).collect();
            assert!(self.dead_letters(seed).is_empty(), "an event was given up");
            Verdict { published, log, read, consumed }
        })
    }

    /// Everything that there is in the topic, in order.
    fn log(&self, seed: u64) -> Vec<Logged> {
        self.lines(seed, TOPIC).iter().map(Logged::of).collect()
    }

    fn dead_letters(&self, seed: u64) -> Vec<Value> {
        self.lines(seed, &format!("{TOPIC}.dlq"))
    }

    /// Until nothing comes: a reply ends, whole to all appearance, where its caller's time does.
    fn lines(&self, seed: u64, topic: &str) -> Vec<Value> {
        let mut caller = Caller::new(self.doors, seed).patient();
        let (mut lines, mut target): (Vec<Value>, _) = (Vec::new(), format!("/v1/events/{topic}"));
        for _ in 0..1000 {
            match caller.call("GET", &target, &[], "") {
                Heard::Reply(reply) if reply.status == 200 => {
                    let before = lines.len();
                    lines.extend(
                        reply.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()),
                    );
                    match lines.last() {
                        Some(last) if lines.len() > before => {
                            target = format!("/v1/events/{topic}?from={}", last["cursor"].as_str().unwrap());
                        }
                        _ => return lines,
                    }
                }
                _ => caller.rest(),
            }
        }
        panic!("the topic cannot be read");
    }
}

/// An event as it is in the log.
pub struct Logged {
    pub id: String,
    pub key: String,
    pub kind: String,
}

impl Logged {
    fn of(event: &Value) -> Self {
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        Self { id: text("id"), key: text("partitionkey"), kind: text("type") }
    }
}
