//! Three tenants with the same topics, ids, keys and groups, over one connection to the store: nobody ever gets another's
//! event, and everybody gets all of one's own.
//!
//! Each worker has a topic of its tenant to itself and keeps a model of it. A call that it closed in the middle it says
//! again, so that the model is exact after it. Every event names its tenant and topic, so that a crossing shows whatever
//! the model says.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rig::PgBouncerOptions;
use serde_json::{Value, json};
use support::client::{Client, Reply};
use support::postgres::OnPostgres;
use support::random::{Random, size};
use support::sidecar::Sidecar;
use support::workers::{seats, side_by_side};

const TOPICS: [&str; 2] = ["leads", "payments"];
const GROUPS: [&str; 2] = ["one", "two"];
const JSON: (&str, &str) = ("Content-Type", "application/json");
const BATCH: (&str, &str) = ("Content-Type", "application/cloudevents-batch+json");
const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
/// The shortest that there is.
const LEASE_MS: u64 = 1000;
/// Cursors that are remembered.
const CURSORS: usize = 16;

/// What each worker shows the others, who try to use it: the last cursor and the last receipt.
type Board = Mutex<BTreeMap<usize, (String, String)>>;

/// A group as its only consumer knows it, since it was moved last.
#[derive(Default)]
struct Group {
    /// Where it began.
    from: usize,
    acked: BTreeSet<usize>,
    /// With an acknowledgement of unknown outcome.
    maybe_acked: BTreeSet<usize>,
    held: Vec<(String, usize)>,
}

struct Worker<'a> {
    name: usize,
    tenant: String,
    topic: &'static str,
    bearer: String,
    sidecar: &'a Sidecar,
    client: Client,
    board: &'a Board,
    random: Random,
    /// The topic's ids, in order.
    log: Vec<String>,
    place: BTreeMap<String, usize>,
    /// Cursors of events by their place.
    cursors: Vec<(usize, String)>,
    groups: [Group; 2],
    counts: BTreeMap<&'static str, u64>,
}

impl Worker<'_> {
    fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let bearer = self.bearer.clone();
        let mut all = vec![("Authorization", bearer.as_str())];
        all.extend(headers);
        let reply = self.client.send(method, target, &all, body.as_bytes());
        if reply.header("connection") == Some("close") {
            self.client = self.sidecar.client();
        }
        reply
    }

    /// Writes the call, or a part of it, and closes.
    fn cancel(&mut self, target: &str, kind: (&str, &str), body: &str) {
        let bearer = self.bearer.clone();
        let headers = [("Authorization", bearer.as_str()), kind];
        self.client.write_request("POST", target, &headers, body.as_bytes()).unwrap();
        std::thread::park_timeout(Duration::from_micros(self.random.below(4000)));
        self.client = self.sidecar.client();
    }

    /// Whether it is an answer of a store that is slow or away: what it did is not known.
    fn is_out(&mut self, reply: &Reply) -> bool {
        let out = matches!(reply.status, 503 | 504);
        if out {
            self.count("answered 503 or 504");
        }
        out
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn target(&self, rest: &str) -> String {
        format!("/v1/events/{}{rest}", self.topic)
    }

    fn event(&self, id: &str) -> Value {
        let mark = format!("{}|{}|{id}", self.tenant, self.topic);
        let key = format!("k{}", id.bytes().map(u64::from).sum::<u64>() % 7);
        json!({"specversion": "1.0", "id": id, "source": "/t", "type": "made", "partitionkey": key, "data": mark})
    }

    /// The place of an event that was read or delivered, which is this worker's and no one else's.
    fn own(&self, event: &Value) -> usize {
        let id = event["id"].as_str().unwrap();
        let mark = format!("{}|{}|{id}", self.tenant, self.topic);
        assert_eq!(
            (&event["data"], &event["tenantid"]),
            (&json!(mark), &json!(self.tenant)),
            "CROSSING: {event}"
        );
        *self.place.get(id).unwrap_or_else(|| panic!("{id} was never published: {event}"))
    }

    fn publish(&mut self) {
        let many = if self.random.below(2) == 0 { 1 } else { 1 + self.random.below(8) };
        let first = self.log.len();
        let ids: Vec<String> = (0..many as usize).map(|at| format!("e{}", first + at)).collect();
        let cancelled = self.random.below(12) == 0;
        if cancelled {
            let events: Vec<Value> = ids.iter().map(|id| self.event(id)).collect();
            self.cancel(&self.target(""), BATCH, &json!(events).to_string());
            self.count("publishes cancelled");
        }
        let (accepted, duplicates, retried) = self.say(&ids);
        assert_eq!(accepted + duplicates, many);
        assert!(cancelled || retried || duplicates == 0, "{ids:?} of {} were there before", self.tenant);
        for id in ids {
            self.place.insert(id.clone(), self.log.len());
            self.log.push(id);
        }
        self.count("publishes");
    }

    /// Until it is accepted; how many were new, how many were not, and whether it took more than one try.
    fn say(&mut self, ids: &[String]) -> (u64, u64, bool) {
        let mut retried = false;
        let events: Vec<Value> = ids.iter().map(|id| self.event(id)).collect();
        loop {
            let target = self.target("");
            let reply = match events.as_slice() {
                [event] => self.send("POST", &target, &[STRUCTURED], &event.to_string()),
                events => self.send("POST", &target, &[BATCH], &json!(events).to_string()),
            };
            if reply.status == 202 {
                let body = reply.json();
                return (body["accepted"].as_u64().unwrap(), body["duplicates"].as_u64().unwrap(), retried);
            }
            assert!(self.is_out(&reply), "{}", reply.text());
            retried = true;
        }
    }

    fn say_again(&mut self) {
        if self.log.is_empty() {
            return;
        }
        let from = self.random.below(self.log.len() as u64) as usize;
        let ids: Vec<String> = self.log[from..].iter().take(3).cloned().collect();
        let (accepted, duplicates, _) = self.say(&ids);
        assert_eq!((accepted, duplicates), (0, ids.len() as u64), "{ids:?} again");
        self.count("duplicates");
    }

    fn refused(&mut self) {
        let mut foreign = self.event("foreign");
        foreign["tenantid"] = json!("0190c7a8-3c5e-7f00-8000-00000000dead");
        let target = self.target("");
        let events = json!([self.event("whole"), foreign]).to_string();
        self.send("POST", &target, &[BATCH], &events).problem(403, "forbidden");
        self.count("refused");
    }

    /// From a cursor to the head: exactly what the model has.
    fn read(&mut self) {
        let (from, after) = match self.random.below(self.cursors.len() as u64 + 1) as usize {
            0 if self.log.len() < 400 => ("earliest".to_owned(), 0),
            at if at > 0 => {
                let (place, cursor) = &self.cursors[at - 1];
                (cursor.clone(), place + 1)
            }
            _ => return,
        };
        let target = self.target(&format!("?from={from}"));
        let reply = self.send("GET", &target, &[], "");
        if self.is_out(&reply) {
            return;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        let read: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let places: Vec<usize> = read.iter().map(|event| self.own(event)).collect();
        assert!(
            places.iter().copied().eq(after..self.log.len()),
            "{}: {places:?} after {after}",
            self.tenant
        );
        if let Some(last) = read.last() {
            self.remember(self.log.len() - 1, last["cursor"].as_str().unwrap().to_owned());
        }
        self.count("reads");
    }

    fn remember(&mut self, place: usize, cursor: String) {
        let receipt =
            self.groups[0].held.first().map_or_else(|| "none".to_owned(), |(receipt, _)| receipt.clone());
        self.board.lock().unwrap().insert(self.name, (cursor.clone(), receipt));
        if self.cursors.len() == CURSORS {
            self.cursors.remove(0);
        }
        self.cursors.push((place, cursor));
    }

    /// Follows from the last cursor, gets what is there and what comes, and leaves in the middle.
    fn follow(&mut self) {
        let Some((place, cursor)) = self.cursors.last().cloned() else { return };
        let mut stream = self.sidecar.client();
        let target = self.target(&format!("?follow=true&from={cursor}"));
        stream.write_request("GET", &target, &[("Authorization", &self.bearer)], b"").unwrap();
        let head = stream.read_head().unwrap();
        if self.is_out(&head) {
            return;
        }
        self.publish();
        let (mut next, mut text) = (place + 1, Vec::new());
        while next < self.log.len() {
            text.extend(stream.read_chunk().unwrap().expect("a stream goes on"));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if line.len() > 1 {
                    let event: Value = serde_json::from_slice(&line).unwrap();
                    assert_eq!(self.own(&event), next, "{event}");
                    next += 1;
                }
            }
        }
        self.count("follows");
    }

    /// What others hold is of no use here.
    fn others(&mut self) {
        let board = self.board.lock().unwrap().clone();
        let Some((_, (cursor, receipt))) =
            board.iter().filter(|(name, _)| **name != self.name).nth(self.random.below(5) as usize)
        else {
            return;
        };
        let read = self.target(&format!("?from={cursor}"));
        let reply = self.send("GET", &read, &[], "");
        if !self.is_out(&reply) {
            reply.problem(422, "invalid");
        }
        let group = GROUPS[self.random.below(2) as usize];
        let (seek, ack) = (self.target(":seek"), self.target(":ack"));
        let reply = self.send("POST", &seek, &[JSON], &json!({"group": group, "to": cursor}).to_string());
        if !self.is_out(&reply) {
            reply.problem(422, "invalid");
        }
        let body = json!({"group": group, "receipts": [receipt]}).to_string();
        let reply = self.send("POST", &ack, &[JSON], &body);
        if reply.status == 200 {
            assert_eq!(reply.json(), json!({"done": 0, "stale": [receipt]}), "CROSSING: another's receipt");
        }
        self.count("others' cursors and receipts");
    }

    /// How many were delivered.
    fn pull(&mut self, at: usize, max: u64, wait_ms: u64) -> usize {
        let body =
            json!({"group": GROUPS[at], "max": max, "wait_ms": wait_ms, "lease_ms": LEASE_MS}).to_string();
        let target = self.target(":pull");
        if wait_ms == 0 && self.random.below(20) == 0 {
            self.cancel(&target, JSON, &body);
            self.count("pulls cancelled");
            return 0;
        }
        let reply = self.send("POST", &target, &[JSON], &body);
        if self.is_out(&reply) {
            return 1;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        let reply = reply.json();
        let deliveries = reply["deliveries"].as_array().unwrap();
        for one in deliveries {
            let place = self.own(&one["event"]);
            let group = &mut self.groups[at];
            assert!(place >= group.from, "{place} is before {}, where the group was moved", group.from);
            assert!(!group.acked.contains(&place), "{place} again, after its acknowledgement");
            group.held.push((one["receipt"].as_str().unwrap().to_owned(), place));
        }
        self.count("pulls");
        deliveries.len()
    }

    fn settle(&mut self, at: usize, verb: &'static str) {
        let held = std::mem::take(&mut self.groups[at].held);
        if held.is_empty() {
            return;
        }
        let receipts: Vec<&str> = held.iter().map(|(receipt, _)| &**receipt).collect();
        let body = json!({"group": GROUPS[at], "receipts": receipts}).to_string();
        let target = self.target(&format!(":{verb}"));
        let acks = verb == "ack";
        if self.random.below(20) == 0 {
            self.cancel(&target, JSON, &body);
            if acks {
                self.groups[at].maybe_acked.extend(held.iter().map(|(_, place)| *place));
            }
            self.count("acknowledgements cancelled");
            return;
        }
        let reply = self.send("POST", &target, &[JSON], &body);
        let out = self.is_out(&reply);
        let group = &mut self.groups[at];
        if out {
            group.maybe_acked.extend(held.iter().filter(|_| acks).map(|(_, place)| *place));
            return;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        let reply = reply.json();
        let stale = reply["stale"].as_array().unwrap();
        let done = held.iter().filter(|(receipt, _)| !stale.contains(&json!(receipt)));
        if acks {
            group.acked.extend(done.map(|(_, place)| *place));
        }
        self.count(if acks { "acks" } else { "nacks" });
    }

    fn seek(&mut self, at: usize) {
        let (to, from) = match self.random.below(self.cursors.len() as u64 + 1) as usize {
            0 => ("latest".to_owned(), self.log.len()),
            at => (self.cursors[at - 1].1.clone(), self.cursors[at - 1].0 + 1),
        };
        let target = self.target(":seek");
        let body = json!({"group": GROUPS[at], "to": to}).to_string();
        loop {
            let reply = self.send("POST", &target, &[JSON], &body);
            if reply.status == 204 {
                break;
            }
            assert!(self.is_out(&reply), "{}", reply.text());
        }
        self.groups[at] = Group { from, ..Group::default() };
        self.count("seeks");
    }

    fn step(&mut self) {
        let at = self.random.below(2) as usize;
        match self.random.below(100) {
            0..30 => self.publish(),
            30..36 => self.say_again(),
            36..38 => self.refused(),
            38..53 => self.read(),
            53..56 => self.follow(),
            56..60 => self.others(),
            60..78 => {
                let max = 1 + self.random.below(20);
                self.pull(at, max, 0);
            }
            78..92 => self.settle(at, "ack"),
            92..97 => self.settle(at, "nack"),
            _ => self.seek(at),
        }
    }

    /// Everything is read, and what no group has done is delivered to it.
    fn end(&mut self) {
        let reply = self.send("GET", &self.target(""), &[], "");
        let read: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let places: Vec<usize> = read.iter().map(|event| self.own(event)).collect();
        assert!(
            places.iter().copied().eq(0..self.log.len()),
            "{}: the log is not what was published",
            self.tenant
        );
        for at in [0, 1] {
            let bound = Instant::now() + Duration::from_secs(120);
            while self.pull(at, 1000, LEASE_MS + 500) > 0 {
                self.settle(at, "ack");
                assert!(Instant::now() < bound, "the group is never done");
            }
            let group = &self.groups[at];
            for place in group.from..self.log.len() {
                let done = group.acked.contains(&place) || group.maybe_acked.contains(&place);
                assert!(done, "LOST: {place} of {} was never delivered to {}", self.log.len(), GROUPS[at]);
            }
        }
        let dead = self.send("GET", &self.target(".dlq"), &[], "");
        assert_eq!((dead.status, dead.text().as_str()), (200, ""), "an event was given up");
    }
}

fn run(sidecars: [&Sidecar; 2], operations: u64) {
    let (board, began) = (Board::default(), Instant::now());
    let seats = seats(sidecars, operations).into_iter();
    let workers = seats.map(|seat| Worker {
        name: seat.number,
        tenant: seat.tenant,
        topic: TOPICS[seat.number % 2],
        bearer: seat.bearer,
        sidecar: seat.sidecar,
        client: seat.sidecar.client(),
        board: &board,
        random: seat.random,
        log: Vec::new(),
        place: BTreeMap::new(),
        cursors: Vec::new(),
        groups: Default::default(),
        counts: BTreeMap::new(),
    });
    let counts = side_by_side(workers.collect(), |mut worker| {
        for _ in 0..operations / 6 {
            worker.step();
        }
        worker.end();
        *worker.counts.entry("events").or_default() += worker.log.len() as u64;
        worker.counts
    });
    println!("in {:?}: {counts:?}", began.elapsed());
    for what in ["publishes cancelled", "pulls cancelled", "follows", "others' cursors and receipts", "seeks"]
    {
        assert!(counts.contains_key(what), "{what}: none");
    }
}

#[test]
fn no_tenant_s_events_reach_another_embedded() {
    let sidecar = Sidecar::dev();
    run([&sidecar, &sidecar], size(6_000, 1_000_000));
}

#[test]
fn no_tenant_s_events_reach_another_through_one_connection_of_a_pooler() {
    let servers = rig::shared_postgres();
    let pooler = servers.bouncer(PgBouncerOptions { pool_size: 1, ..PgBouncerOptions::default() }).unwrap();
    let authority = &servers.access().certificate().authority;
    let direct = [servers.access().address(0)];
    let on = OnPostgres::at(servers.database().unwrap(), &direct, &[pooler.address()], authority)
        .with("  required: true\n", "  required: true\n  connections: 1\n  wait_ms: 20000\n");
    let (one, other) = (on.sidecar(), on.sidecar());
    run([&one, &other], size(900, 1_000_000));
}
