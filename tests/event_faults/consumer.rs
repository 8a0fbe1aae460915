//! One of a group: pulls, acknowledges, gives back, forgets.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::load::{GROUP, LEASE_MS, Load, TOPIC};
use crate::support::doors::{Caller, Heard, JSON};

/// What a pull brought, and between which moments.
pub struct Pulled {
    pub began: u64,
    pub ended: u64,
    pub ids: Vec<String>,
}

/// What one consumer knows in the end. Moments are of the load's own clock.
#[derive(Default)]
pub struct Consumed {
    pub pulls: Vec<Pulled>,
    /// When an acknowledgement was first sent for it.
    pub ack_sent: BTreeMap<String, u64>,
    /// When one was first answered with "done".
    pub acked: BTreeMap<String, u64>,
    /// Acknowledgements whose answer did not come, or was that nobody knows.
    pub unsure: u64,
    /// Receipts that were stale.
    pub stale: u64,
    pub most_attempts: u64,
}

pub struct Consumer<'l> {
    load: &'l Load<'l>,
    caller: Caller<'l>,
    consumed: Consumed,
}

impl<'l> Consumer<'l> {
    pub fn new(load: &'l Load<'l>, seed: u64) -> Self {
        Self { load, caller: Caller::new(load.doors, seed), consumed: Consumed::default() }
    }

    /// Until nothing is left of what the publishers said: a pull that waited for longer than a lease brought nothing.
    pub fn run(mut self) -> Consumed {
        loop {
            if self.load.read.load(Relaxed) {
                return self.consumed;
            }
            let last = self.load.published.load(Relaxed);
            let max = 1 + self.caller.random.below(if last { 400 } else { 40 });
            let wait_ms = if last { LEASE_MS + 1000 } else { 200 };
            let body = json!({"group": GROUP, "max": max, "wait_ms": wait_ms, "lease_ms": LEASE_MS});
            let Some(reply) = self.verb("pull", &body) else {
                self.caller.rest();
                continue;
            };
            let (began, reply) = reply;
            let ended = self.load.now();
            let deliveries = reply["deliveries"].as_array().unwrap();
            match (deliveries.is_empty(), last) {
                (true, true) => return self.consumed,
                (true, false) => continue,
                (false, _) => {}
            }
            let ids = deliveries.iter().map(|one| one["event"]["id"].as_str().unwrap().to_owned()).collect();
            self.consumed.pulls.push(Pulled { began, ended, ids });
            let attempts = deliveries.iter().map(|one| one["attempt"].as_u64().unwrap()).max();
            self.consumed.most_attempts = self.consumed.most_attempts.max(attempts.unwrap_or(0));
            self.settle(deliveries, last);
        }
    }

    /// What is not acknowledged is given back, or forgotten until its lease is over.
    fn settle(&mut self, deliveries: &[Value], all: bool) {
        let done = match self.caller.random.below(if all { 7 } else { 10 }) {
            0..7 => deliveries.len(),
            _ => self.caller.random.below(deliveries.len() as u64 + 1) as usize,
        };
        let (done, rest) = deliveries.split_at(done);
        if !done.is_empty() {
            self.ack(done);
        }
        if !rest.is_empty() && self.caller.random.below(3) > 0 {
            let delay_ms = self.caller.random.below(2) * 100;
            let receipts: Vec<_> = rest.iter().map(|one| &one["receipt"]).collect();
            self.verb("nack", &json!({"group": GROUP, "receipts": receipts, "delay_ms": delay_ms}));
        }
    }

    fn ack(&mut self, done: &[Value]) {
        let receipts: Vec<_> = done.iter().map(|one| &one["receipt"]).collect();
        let sent = self.load.now();
        for one in done {
            let id = one["event"]["id"].as_str().unwrap().to_owned();
            self.consumed.ack_sent.entry(id).or_insert(sent);
        }
        let Some((_, reply)) = self.verb("ack", &json!({"group": GROUP, "receipts": receipts})) else {
            self.consumed.unsure += 1;
            return;
        };
        let (now, stale) = (self.load.now(), reply["stale"].as_array().unwrap());
        self.consumed.stale += stale.len() as u64;
        assert_eq!(reply["done"].as_u64().unwrap() as usize + stale.len(), done.len(), "{reply}");
        for one in done.iter().filter(|one| !stale.contains(&one["receipt"])) {
            let id = one["event"]["id"].as_str().unwrap().to_owned();
            self.consumed.acked.entry(id).or_insert(now);
        }
    }

    /// The answer, and when it was asked for; none where it is not known what was done.
    fn verb(&mut self, verb: &str, body: &Value) -> Option<(u64, Value)> {
        let began = self.load.now();
        let target = format!("/v1/events/{TOPIC}:{verb}");
        let Heard::Reply(reply) = self.caller.call("POST", &target, &[JSON], &body.to_string()) else {
            return None;
        };
        match reply.status {
            200 => Some((began, reply.json())),
            503 | 504 => None,
            _ => panic!("{verb} {body}: {}", reply.text()),
        }
    }
}
