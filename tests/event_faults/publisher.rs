//! Publishes in batches and one by one with ids of its own, and says again what it is not sure of, as a user would.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::load::{KINDS, Load, SHARED_KEYS, TOPIC};
use crate::support::doors::{Caller, Heard, JSON};

const BATCH: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
/// Keys that only one publisher has.
const OWN_KEYS: u64 = 12;
const MAX_BATCH: u64 = 20;

/// What one publisher knows of its events in the end.
#[derive(Default)]
pub struct Published {
    /// Id and key, in the order in which it said them: each was acknowledged before the next was sent.
    pub acknowledged: Vec<(String, String)>,
    /// Given up after a try whose outcome it does not know: each may be there once.
    pub maybe: BTreeSet<String>,
    /// Given up after tries that were all answered with "nothing was kept".
    pub refused: BTreeSet<String>,
    /// Replies of `outcome_unknown` and `deadline_exceeded`.
    pub unknown: u64,
    /// Calls that were cut.
    pub cut: u64,
}

enum Answer {
    Accepted {
        accepted: u64,
        duplicates: u64,
    },
    /// Nothing was kept.
    Not,
    Unknown,
}

pub struct Publisher<'l> {
    load: &'l Load<'l>,
    caller: Caller<'l>,
    name: usize,
    said: u64,
    /// The last that was acknowledged.
    last: Vec<Value>,
    published: Published,
}

impl<'l> Publisher<'l> {
    pub fn new(load: &'l Load<'l>, name: usize, seed: u64) -> Self {
        let caller = Caller::new(load.doors, seed);
        Self { load, caller, name, said: 0, last: Vec::new(), published: Published::default() }
    }

    pub fn run(mut self) -> Published {
        while !self.load.published.load(Relaxed) {
            let events = self.next();
            self.publish(events);
            if self.caller.random.below(10) == 0 {
                self.say_the_last_again();
            }
            std::thread::park_timeout(self.load.pace);
        }
        self.published
    }

    fn next(&mut self) -> Vec<Value> {
        let random = &mut self.caller.random;
        let many = if random.below(3) == 0 { 1 } else { 1 + random.below(MAX_BATCH) };
        (0..many)
            .map(|_| {
                let random = &mut self.caller.random;
                self.said += 1;
                let key = match random.below(4) {
                    0 => format!("shared-{}", random.below(SHARED_KEYS)),
                    _ => format!("p{}-{}", self.name, random.below(OWN_KEYS)),
                };
                let kind = KINDS[random.below(KINDS.len() as u64) as usize];
                json!({"specversion": "1.0", "id": format!("p{}-{}", self.name, self.said), "source": "/faults",
                    "type": kind, "partitionkey": key, "data": {"n": self.said, "pad": "x".repeat(random.below(400) as usize)}})
            })
            .collect()
    }

    /// Until it is acknowledged, or sometimes until this caller loses its patience.
    fn publish(&mut self, events: Vec<Value>) {
        let (mut unsure, count) = (false, events.len() as u64);
        loop {
            match self.send(&events) {
                Answer::Accepted { accepted, duplicates } => {
                    assert_eq!(accepted + duplicates, count, "{events:?}");
                    assert!(
                        unsure || duplicates == 0,
                        "never sent before, and {duplicates} duplicates: {events:?}"
                    );
                    let said = events.iter().map(|event| (text(event, "id"), text(event, "partitionkey")));
                    self.published.acknowledged.extend(said);
                    self.load.acknowledged.fetch_add(count, Relaxed);
                    self.last = events;
                    return;
                }
                Answer::Not => {}
                Answer::Unknown => unsure = true,
            }
            if self.load.read.load(Relaxed) {
                // Nothing waits for it any more: the test has failed elsewhere.
                return;
            }
            let impatient = self.caller.random.below(if unsure { 6 } else { 60 }) == 0;
            if impatient && !self.load.published.load(Relaxed) {
                let ids = events.iter().map(|event| text(event, "id"));
                if unsure {
                    self.published.maybe.extend(ids);
                } else {
                    self.published.refused.extend(ids);
                }
                return;
            }
            self.caller.rest();
        }
    }

    /// A retry that comes late, of what was acknowledged.
    fn say_the_last_again(&mut self) {
        let events = std::mem::take(&mut self.last);
        if events.is_empty() {
            return;
        }
        if let Answer::Accepted { accepted, duplicates } = self.send(&events) {
            assert_eq!((accepted, duplicates), (0, events.len() as u64), "acknowledged before: {events:?}");
        }
    }

    fn send(&mut self, events: &[Value]) -> Answer {
        let target = format!("/v1/events/{TOPIC}");
        let heard = match events {
            [event] => self.caller.call("POST", &target, &[STRUCTURED], &event.to_string()),
            events => self.caller.call("POST", &target, &[BATCH], &json!(events).to_string()),
        };
        let reply = match heard {
            Heard::Reply(reply) => reply,
            Heard::NotSent => return Answer::Not,
            Heard::Cut => {
                self.published.cut += 1;
                return Answer::Unknown;
            }
        };
        let body = reply.json();
        match (reply.status, body["code"].as_str()) {
            (202, _) => Answer::Accepted {
                accepted: body["accepted"].as_u64().unwrap(),
                duplicates: body["duplicates"].as_u64().unwrap(),
            },
            (503, Some("backend_unavailable" | "overloaded")) => Answer::Not,
            (503, Some("outcome_unknown")) | (504, Some("deadline_exceeded")) => {
                self.published.unknown += 1;
                Answer::Unknown
            }
            _ => panic!("{JSON:?}: {}", reply.text()),
        }
    }
}

fn text(event: &Value, field: &str) -> String {
    event[field].as_str().unwrap().to_owned()
}
