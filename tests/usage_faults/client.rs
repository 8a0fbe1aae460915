//! One client of a tenant: what it sends, and what it knows to be counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};

use crate::support::doors::{Caller, Doors, Heard, JSON};

pub const METRICS: [&str; 2] = ["voice_minutes", "api_calls"];
/// How old a record is when it is sent, at the most: records are taken for 35 days.
const LATE_HOURS: u64 = 24 * 33;

/// What a record says, beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub metric: &'static str,
    /// In units of 10⁻⁹.
    pub nanos: i128,
    pub time: Timestamp,
    pub region: Option<&'static str>,
    /// A number in its metadata.
    pub note: Option<u64>,
    /// The key that it corrects.
    pub corrects: Option<String>,
}

/// A record with its key.
pub type Record = (String, Said);

/// When calls are answered, as the usage policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Once they are counted.
    Database,
    /// Once they are on the sidecar's disk.
    Spool,
}

/// What was seen, over all clients.
#[derive(Default, Debug)]
pub struct Counts {
    pub accepted: AtomicU64,
    pub duplicates: AtomicU64,
    pub lies: AtomicU64,
    pub cut: AtomicU64,
    pub refused: AtomicU64,
    pub unsure: AtomicU64,
    /// Calls of which every answer was that nothing was counted.
    pub given_up: AtomicU64,
}

/// A client, whose keys are its own.
pub struct Client<'d> {
    caller: Caller<'d>,
    name: String,
    made: u64,
    ack: Ack,
    /// What was answered 202, by key.
    pub counted: BTreeMap<String, Said>,
    /// Lies that were answered 202.
    pub lies: Vec<Record>,
    counts: &'d Counts,
}

impl<'d> Client<'d> {
    pub fn new(doors: &'d Doors, name: String, seed: u64, ack: Ack, counts: &'d Counts) -> Self {
        let (caller, counted, lies) = (Caller::new(doors, seed), BTreeMap::new(), Vec::new());
        Self { caller, name, made: 0, ack, counted, lies, counts }
    }

    /// One call, said until it is answered for good.
    pub fn act(&mut self) {
        let mut call: Vec<Record> = (0..1 + self.below(12)).map(|_| self.make()).collect();
        if self.below(6) == 0 {
            call.extend(self.correction());
        }
        let new = call.len();
        // What was counted comes again, among what is new and in any order.
        for _ in 0..self.below(6) {
            call.extend(self.known());
        }
        for at in (1..call.len()).rev() {
            let other = self.below(at as u64 + 1) as usize;
            call.swap(at, other);
        }
        if self.below(8) == 0
            && let Some((lie, place)) = self.with_a_lie(&call)
        {
            self.lie(&lie, place);
        }
        self.say(&call, new);
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.caller.random.below(bound)
    }

    fn make(&mut self) -> Record {
        self.made += 1;
        let key = format!("{}-{:06}", self.name, self.made);
        let late = if self.below(3) == 0 { self.below(LATE_HOURS * 3600) } else { self.below(60) };
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let nanos = i128::from(self.caller.random.next() >> self.below(60)) - (1 << 40);
        let region = [None, Some("eu"), Some("us")][self.below(3) as usize];
        let metric = METRICS[self.below(2) as usize];
        let note = (self.below(3) == 0).then(|| self.below(1000));
        let time = now - i64::try_from(late).unwrap().seconds();
        (key, Said { metric, nanos, time, region, note, corrects: None })
    }

    /// What takes back a part of a record that is counted.
    fn correction(&mut self) -> Option<Record> {
        let (corrected, said) = self.known().filter(|(_, said)| said.corrects.is_none())?;
        self.made += 1;
        let key = format!("{}-{:06}", self.name, self.made);
        let nanos = -1 - i128::from(self.below(1 << 30));
        Some((key, Said { nanos, note: None, corrects: Some(corrected), ..said }))
    }

    fn known(&mut self) -> Option<Record> {
        let at = self.below(self.counted.len() as u64 + 1) as usize;
        self.counted.iter().nth(at).map(|(key, said)| (key.clone(), said.clone()))
    }

    /// The call with a record among it that says something else than what was counted under its key; and where it is.
    fn with_a_lie(&mut self, call: &[Record]) -> Option<(Vec<Record>, usize)> {
        let (key, mut said) = self.known()?;
        match self.below(4) {
            0 => said.nanos -= 1,
            1 => said.region = if said.region.is_none() { Some("asia") } else { None },
            2 if said.corrects.is_none() => said.note = Some(said.note.map_or(1000, |note| note + 1)),
            // Of the same day: on another one the key is free.
            _ => {
                let second = said.time.as_second().div_euclid(86_400) * 86_400;
                let other = Timestamp::from_second(second + 43_200).unwrap();
                said.time = if other == said.time || other > Timestamp::now() { return None } else { other };
            }
        }
        let others = call.iter().filter(|(other, _)| *other != key).cloned();
        let mut lie: Vec<Record> = others.collect();
        let place = self.below(lie.len() as u64 + 1) as usize;
        lie.insert(place, (key, said));
        Some((lie, place))
    }

    /// Whether it is counted after it is answered: what is corrected is looked up first.
    fn is_pending(&self, call: &[Record]) -> bool {
        self.ack == Ack::Spool && call.iter().all(|(_, said)| said.corrects.is_none())
    }

    /// It must be a conflict that names this record alone, whatever happens meanwhile. On the disk nobody sees it yet.
    fn lie(&mut self, call: &[Record], place: usize) {
        let Some(((status, answer), _)) = self.until_answered(call) else { return };
        self.counts.lies.fetch_add(1, Ordering::Relaxed);
        if self.is_pending(call) {
            assert_eq!((status, &answer["pending"]), (202, &json!(true)), "{answer}");
            // What came with it counts, also where it is given up afterwards.
            let others = call.iter().enumerate().filter(|(at, _)| *at != place);
            self.counted.extend(others.map(|(_, record)| record.clone()));
            return self.lies.push(call[place].clone());
        }
        assert_eq!(status, 409, "a lie was taken: {answer}");
        let errors = answer["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{answer}");
        assert_eq!(errors[0]["pointer"], format!("/records/{place}/idempotency_key"), "{answer}");
    }

    fn say(&mut self, call: &[Record], new: usize) {
        // What was given up is in no sum: the model does not have it.
        let Some(((status, answer), was_unsure)) = self.until_answered(call) else { return };
        assert_eq!(status, 202, "{answer}");
        if self.is_pending(call) {
            assert_eq!(answer, json!({"accepted": call.len(), "duplicates": null, "pending": true}));
            self.counts.accepted.fetch_add(new as u64, Ordering::Relaxed);
            return self.counted.extend(call.iter().cloned());
        }
        let number = |name: &str| usize::try_from(answer[name].as_u64().unwrap()).unwrap();
        let (accepted, duplicates) = (number("accepted"), number("duplicates"));
        assert_eq!(accepted + duplicates, call.len());
        // An answer that was lost may have been that they are counted.
        assert!(accepted == new || (was_unsure && accepted == 0), "{accepted} of {new} new ones: {answer}");
        self.counts.accepted.fetch_add(new as u64, Ordering::Relaxed);
        self.counts.duplicates.fetch_add(duplicates as u64, Ordering::Relaxed);
        self.counts.unsure.fetch_add(u64::from(was_unsure && accepted == 0), Ordering::Relaxed);
        self.counted.extend(call.iter().cloned());
    }

    /// Says it until it is answered for good; and whether an answer before that is not known, or was that it is not. Now and then a call that
    /// was refused, and that nothing else was heard of, is given up.
    fn until_answered(&mut self, call: &[Record]) -> Option<((u16, Value), bool)> {
        let body = json!({"records": call.iter().map(as_json).collect::<Vec<_>>()}).to_string();
        let mut is_unsure = false;
        loop {
            match self.caller.call("POST", "/v1/usage", &[JSON], &body) {
                Heard::Reply(reply) if reply.status < 500 && reply.status != 429 => {
                    return Some(((reply.status, reply.json()), is_unsure));
                }
                Heard::Reply(reply) => {
                    self.counts.refused.fetch_add(1, Ordering::Relaxed);
                    let code = reply.json()["code"].clone();
                    assert!(reply.status != 500, "{}", reply.text());
                    // A call that was cut at its deadline may have been counted.
                    is_unsure |= code == "outcome_unknown" || code == "deadline_exceeded";
                    if !is_unsure && self.below(10) == 0 {
                        self.counts.given_up.fetch_add(1, Ordering::Relaxed);
                        return None;
                    }
                }
                Heard::Cut => {
                    self.counts.cut.fetch_add(1, Ordering::Relaxed);
                    is_unsure = true;
                }
                Heard::NotSent => {}
            }
            self.caller.rest();
        }
    }
}

fn as_json((key, said): &Record) -> Value {
    let mut record = json!({
        "metric": said.metric, "value": decimal(said.nanos), "time": said.time.to_string(), "idempotency_key": key,
    });
    if let Some(region) = said.region {
        record["tags"] = json!({"region": region});
    }
    if let Some(note) = said.note {
        record["metadata"] = json!({"note": note});
    }
    if let Some(corrects) = &said.corrects {
        record["corrects"] = json!(corrects);
    }
    record
}

/// As the API writes sums: no zeros at the end of the fraction.
pub fn decimal(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, fraction) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
