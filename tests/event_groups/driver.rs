//! Drives two groups of one topic, each with its model, and checks what each must hold by itself.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use outrigger::primitives::events::Position;
use outrigger::primitives::events::groups::{
    Dead, DelayTime, KeyHash, Lease, LeaseTime, MaxDeliveries, New, Outcome, Policy, Pull, Receipts, State,
};
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::model::{self, Group, Read, tenant_of};
use super::steps::{Case, Pick, Seen, Step};

/// An event that a consumer has, or nacked, as its answers say.
#[derive(Debug)]
struct Held {
    key: u64,
    until: i64,
    pull: usize,
    receipt: Box<str>,
}

/// A group, its model, and what its consumers saw.
struct Side {
    row: Vec<u8>,
    model: Group,
    held: BTreeMap<i64, Held>,
    /// Acked, or dead, since the last seek.
    over: BTreeSet<i64>,
    /// Dead, and not buried.
    dead: BTreeSet<i64>,
    /// Delivered at any time since the last seek.
    told: BTreeSet<i64>,
    begins_after: i64,
    pulls: usize,
}

struct Driver<'s> {
    policy: Policy,
    has_shares: bool,
    max_attempts: u16,
    max_outstanding: usize,
    now: i64,
    latest: i64,
    /// Position to key.
    log: BTreeMap<i64, u64>,
    gone_through: i64,
    receipts: Vec<Box<str>>,
    unique: HashSet<Box<str>>,
    sides: [Side; 2],
    seen: &'s mut Seen,
}

fn policy(max_attempts: u16, max_outstanding: usize, has_shares: bool) -> Policy {
    let policy = Policy::new(u64::from(max_attempts), max_outstanding as u64).unwrap();
    if has_shares { policy.with_shares() } else { policy }
}

/// Runs a case; then everything is consumed.
pub fn run(case: &Case, seen: &mut Seen) -> Result<(), TestCaseError> {
    let side = |mark| Side {
        row: State::new(Position::START, mark).encode(),
        model: Group::new(case.max_attempts, case.max_outstanding, case.has_shares),
        held: BTreeMap::new(),
        over: BTreeSet::new(),
        dead: BTreeSet::new(),
        told: BTreeSet::new(),
        begins_after: 0,
        pulls: 0,
    };
    let mut driver = Driver {
        policy: policy(case.max_attempts, case.max_outstanding, case.has_shares),
        has_shares: case.has_shares,
        max_attempts: case.max_attempts,
        max_outstanding: case.max_outstanding,
        now: 1_800_000_000_000,
        latest: 1_800_000_000_000,
        log: BTreeMap::new(),
        gone_through: 0,
        receipts: Vec::new(),
        unique: HashSet::new(),
        sides: [side(1), side(2)],
        seen,
    };
    for (step, second) in &case.steps {
        let side = usize::from(*second);
        driver.step(step, side)?;
        driver.check(0)?;
        driver.check(1)?;
    }
    driver.consume_all(0)?;
    driver.consume_all(1)
}

impl Driver<'_> {
    fn step(&mut self, step: &Step, side: usize) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(events) => self.publish(events),
            Step::Pull { max, lease, chunk, read_on, put_back } => {
                let read = Read { chunk: *chunk, on: *read_on };
                self.pull(side, *max, *lease, read, put_back.as_ref()).map(|_| ())?;
            }
            Step::Ack(picks) => {
                let texts = self.texts(side, picks);
                self.ack(side, &texts)?;
            }
            Step::Nack(picks, delay) => {
                let texts = self.texts(side, picks);
                self.nack(side, &texts, *delay)?;
            }
            Step::Extend(picks, lease) => {
                let texts = self.texts(side, picks);
                self.extend(side, &texts, *lease)?;
            }
            Step::Seek(to) => self.seek(side, to)?,
            Step::Bury(count) => self.bury(side, *count)?,
            Step::Drop(through) => {
                // What the log begins with is older than what it ends with; mostly some is left.
                let positions: Vec<_> = self.log.keys().copied().collect();
                if !positions.is_empty() {
                    self.gone_through = self.gone_through.max(positions[through.index(positions.len())] / 2);
                    self.sides.iter_mut().for_each(|side| side.model.drop_through(self.gone_through));
                }
            }
            Step::Wait(ms) => self.now += ms,
            Step::WaitUntilDue(offset) => {
                let due = State::decode(&self.sides[side].row).unwrap().due_ms();
                self.now = self.now.max(due.unwrap_or(0) + offset);
            }
            Step::Reload(max_attempts, max_outstanding) => self.reload(*max_attempts, *max_outstanding),
            Step::Back(ms) => self.now -= ms,
        }
        self.latest = self.latest.max(self.now);
        Ok(())
    }

    fn reload(&mut self, max_attempts: u16, max_outstanding: usize) {
        self.policy = policy(max_attempts, max_outstanding, self.has_shares);
        (self.max_attempts, self.max_outstanding) = (max_attempts, max_outstanding);
        self.sides.iter_mut().for_each(|side| side.model.set_policy(max_attempts, max_outstanding));
    }

    fn publish(&mut self, events: &[(u64, i64)]) {
        for (key, gap) in events {
            let position = self.log.keys().next_back().unwrap_or(&0) + gap;
            self.log.insert(position, *key);
            self.sides.iter_mut().for_each(|side| side.model.publish(position, *key));
        }
    }

    fn texts(&self, side: usize, picks: &[Pick]) -> Vec<Box<str>> {
        let given = self.receipts.len();
        let held: Vec<_> = self.sides[side].held.values().filter(|held| held.until > self.now).collect();
        let text = |pick: &Pick| match pick {
            Pick::Text(text) => text.as_str().into(),
            Pick::Held(index) if !held.is_empty() => held[index.index(held.len())].receipt.clone(),
            Pick::Held(_) | Pick::Recent(_) | Pick::Any(_) if given == 0 => "none was given".into(),
            Pick::Held(index) | Pick::Any(index) => self.receipts[index.index(given)].clone(),
            Pick::Recent(before) => self.receipts[given - 1 - before % given].clone(),
        };
        picks.iter().map(text).collect()
    }

    /// What both must hold after each step.
    fn check(&mut self, side: usize) -> Result<(), TestCaseError> {
        let side = &self.sides[side];
        let state = State::decode(&side.row).unwrap();
        let summary = state.summary(self.now);
        let oldest = summary.oldest.map(Position::number);
        let counts = (summary.leased, summary.delayed, summary.ready, summary.waiting, oldest);
        prop_assert_eq!(counts, side.model.counts(self.now));
        prop_assert_eq!(state.position().number(), side.model.position);
        prop_assert_eq!(state.outstanding(), side.model.outstanding());
        prop_assert_eq!(summary.deferred, side.model.deferred.len());
        let dead = |dead: Dead| (dead.position.number(), dead.reason.as_str(), dead.attempts);
        prop_assert_eq!(state.dead().map(dead).collect::<Vec<_>>(), side.model.dead());
        prop_assert_eq!(summary.dead, side.dead.len());
        prop_assert_eq!(state.encode(), side.row.as_slice());
        self.seen.waited_behind += usize::from(summary.waiting > 0);
        Ok(())
    }

    /// What died in the last call.
    fn died(&mut self, index: usize) -> Result<Vec<i64>, TestCaseError> {
        let (mut died, side) = (Vec::new(), &mut self.sides[index]);
        for dead in State::decode(&side.row).unwrap().dead() {
            let position = dead.position.number();
            if !side.dead.insert(position) {
                continue;
            }
            // More than these where the policy gave more when it failed before.
            prop_assert!(dead.attempts >= self.max_attempts);
            prop_assert!(side.over.insert(position), "{position} is over already");
            side.held.remove(&position);
            match dead.reason.as_str() {
                "expired" => self.seen.expired_dead += 1,
                _ => self.seen.nacked_dead += 1,
            }
            died.push(position);
        }
        Ok(died)
    }

    fn bury(&mut self, index: usize, count: usize) -> Result<(), TestCaseError> {
        let side = &mut self.sides[index];
        let mut state = State::decode(&side.row).unwrap();
        let buried: Vec<_> = state.dead().take(count).map(|dead| dead.position).collect();
        let Some(last) = buried.last() else { return Ok(()) };
        state.bury(*last);
        side.row = state.encode();
        side.model.bury(count);
        for position in &buried {
            prop_assert!(side.dead.remove(&position.number()), "{position:?} was not dead");
        }
        self.seen.buried += buried.len();
        self.seen.buried_in_part += usize::from(!side.dead.is_empty());
        Ok(())
    }
}

impl Driver<'_> {
    fn pull(
        &mut self,
        index: usize,
        max: usize,
        lease: i64,
        read: Read,
        put_back: Option<&Index>,
    ) -> Result<Vec<Lease>, TestCaseError> {
        let mut state = State::decode(&self.sides[index].row).unwrap();
        let ask = (MaxDeliveries::new(max as u64).unwrap(), LeaseTime::new(lease.unsigned_abs()).unwrap());
        let mut pull = state.pull(self.now, self.policy, ask.0, ask.1);
        let again = pull.leases().iter().map(|lease| lease.position);
        let gone: Vec<_> = again.filter(|position| position.number() <= self.gone_through).collect();
        self.seen.redelivered += pull.leases().len();
        pull.forget(&gone);
        if pull.begins_with_new() {
            self.take_new(&mut pull, read);
            self.take_behind(&mut pull, read);
        } else {
            self.take_behind(&mut pull, read);
            self.take_new(&mut pull, read);
        }
        self.seen.deferred += usize::from(!pull.deferred().is_empty());
        let cut = put_back.filter(|_| !pull.leases().is_empty());
        let cut = cut.map(|cut| pull.leases()[cut.index(pull.leases().len())].position);
        if let Some(first) = cut {
            pull.put_back(first);
            prop_assert_eq!((pull.wanted(), pull.behind()), (0, None));
            self.seen.put_back += 1;
        }
        let pulled = pull.finish();
        self.sides[index].row = state.encode();
        self.seen.full += usize::from(pulled.full);
        self.seen.forgotten += pulled.forgotten;
        self.seen.delivered += pulled.leases.len();

        let mut expected = self.sides[index].model.pull(self.now, max, lease, read);
        if let Some(first) = cut {
            self.sides[index].model.put_back(first.number());
            expected.deliveries.retain(|(position, _)| *position < first.number());
        }
        let actual = model::Pulled {
            deliveries: pulled.leases.iter().map(|lease| (lease.position.number(), lease.attempt)).collect(),
            looked_at_new: pulled.looked_at_new,
            forgotten: pulled.forgotten,
        };
        prop_assert_eq!(actual, expected);
        self.died(index)?;
        prop_assert_eq!(pulled.full, self.sides[index].model.outstanding() >= self.max_outstanding);
        prop_assert!(pulled.leases.len() <= max);
        prop_assert!(pulled.looked_at_new == 0 || state.outstanding() <= self.max_outstanding);
        gone.iter().for_each(|position| drop(self.sides[index].held.remove(&position.number())));
        self.delivered(index, &pulled.leases, lease)?;
        Ok(pulled.leases)
    }

    fn event(&self, position: i64, key: u64) -> New {
        let tenant = if self.has_shares { Uuid::from_u128(tenant_of(key).into()) } else { Uuid::nil() };
        (Position::new(position), KeyHash::new(key), tenant)
    }

    fn take_new(&self, pull: &mut Pull<'_>, read: Read) {
        loop {
            let from = pull.position().number().max(self.gone_through);
            let left_out = if read.on { pull.deferred() } else { Vec::new() };
            let new: Vec<_> = self
                .log
                .range(from + 1..)
                .map(|(position, key)| self.event(*position, *key))
                .filter(|(_, _, tenant)| !left_out.contains(tenant))
                .take(read.chunk.min(pull.wanted()))
                .collect();
            pull.take(&new).unwrap();
            if new.is_empty() || !read.on {
                break;
            }
        }
    }

    fn take_behind(&mut self, pull: &mut Pull<'_>, read: Read) {
        while let Some(behind) = pull.behind() {
            let from = behind.after.number().max(self.gone_through);
            let found: Vec<_> = self
                .log
                .range(from + 1..=pull.position().number().max(from + 1))
                .map(|(position, key)| self.event(*position, *key))
                .filter(|(position, _, tenant)| *tenant == behind.tenant && *position <= pull.position())
                .map(|(position, key, _)| (position, key))
                .take(read.chunk.min(behind.max))
                .collect();
            let are_all = found.len() < behind.max && found.len() < read.chunk;
            pull.take_behind(&behind, &found, are_all).unwrap();
            self.seen.caught_up += usize::from(!found.is_empty());
            self.seen.caught_up_in_part += usize::from(!are_all);
        }
    }

    /// What no delivery may break, by what consumers saw alone.
    fn delivered(&mut self, index: usize, leases: &[Lease], lease: i64) -> Result<(), TestCaseError> {
        let side = &mut self.sides[index];
        side.pulls += 1;
        prop_assert!(leases.is_sorted_by(|a, b| a.position < b.position));
        for Lease { position, receipt, .. } in leases {
            let position = position.number();
            let receipt: Box<str> = receipt.to_string().into();
            prop_assert!(self.unique.insert(receipt.clone()), "{receipt} was given before");
            prop_assert!(position > side.begins_after);
            prop_assert!(!side.over.contains(&position), "{position} is over");
            side.model.gave(position, &receipt);
            let key = self.log[&position];
            let held = Held { key, until: self.now + lease, pull: side.pulls, receipt: receipt.clone() };
            side.held.insert(position, held);
            side.told.insert(position);
            self.receipts.push(receipt);
        }
        for Lease { position, .. } in leases {
            let (position, key) = (position.number(), self.log[&position.number()]);
            let kept = side.begins_after.max(self.gone_through).min(position - 1);
            for (earlier, _) in self.log.range(kept + 1..position).filter(|(_, of)| **of == key) {
                prop_assert!(side.told.contains(earlier), "{position} came before {earlier}");
            }
        }
        for Lease { position, .. } in leases {
            let key = self.log[&position.number()];
            for (earlier, held) in side.held.range(..position.number()) {
                let is_held = held.key == key && held.pull != side.pulls && held.until > self.latest;
                prop_assert!(!is_held, "{} passed {earlier}", position.number());
            }
        }
        Ok(())
    }

    /// Compares an answer, and returns the positions that it was for.
    fn answered(
        &mut self,
        index: usize,
        texts: &[Box<str>],
        outcome: &Outcome,
        expected: &model::Answer,
    ) -> Result<Vec<i64>, TestCaseError> {
        self.seen.stale += outcome.stale.len();
        let held = &self.sides[index].held;
        let mut done = Vec::new();
        for (place, text) in texts.iter().enumerate() {
            if !outcome.stale.contains(&place) {
                let Some((position, of)) = held.iter().find(|(_, held)| held.receipt == *text) else {
                    return Err(TestCaseError::fail(format!("{text} is of nothing that is held")));
                };
                // Its lease runs, and so do those of all that is before it in its key: else it is void.
                for (earlier, before) in held.range(..=position).filter(|(_, before)| before.key == of.key) {
                    prop_assert!(before.until > self.now, "{position} was not void with {earlier}");
                }
                done.push(*position);
            }
        }
        let actual = model::Answer { done: outcome.done, stale: outcome.stale.clone() };
        prop_assert_eq!(&actual, expected);
        let dead = self.died(index)?;
        done.retain(|position| !dead.contains(position));
        Ok(done)
    }

    fn ack(&mut self, index: usize, texts: &[Box<str>]) -> Result<(), TestCaseError> {
        let mut state = State::decode(&self.sides[index].row).unwrap();
        let outcome = state.ack(self.now, self.policy, Receipts::new(texts).unwrap());
        self.sides[index].row = state.encode();
        let expected = self.sides[index].model.ack(self.now, texts);
        for position in self.answered(index, texts, &outcome, &expected)? {
            self.seen.acked += 1;
            self.sides[index].held.remove(&position);
            prop_assert!(self.sides[index].over.insert(position), "{position} is over already");
        }
        Ok(())
    }

    fn nack(&mut self, index: usize, texts: &[Box<str>], delay: i64) -> Result<(), TestCaseError> {
        let mut state = State::decode(&self.sides[index].row).unwrap();
        let delay_time = DelayTime::new(delay.unsigned_abs()).unwrap();
        let outcome = state.nack(self.now, self.policy, Receipts::new(texts).unwrap(), delay_time);
        self.sides[index].row = state.encode();
        let expected = self.sides[index].model.nack(self.now, texts, delay);
        for position in self.answered(index, texts, &outcome, &expected)? {
            self.seen.nacked += 1;
            let held = self.sides[index].held.get_mut(&position).unwrap();
            held.until = self.now + delay;
            held.receipt = "".into();
        }
        Ok(())
    }

    fn extend(&mut self, index: usize, texts: &[Box<str>], lease: i64) -> Result<(), TestCaseError> {
        let mut state = State::decode(&self.sides[index].row).unwrap();
        let lease_time = LeaseTime::new(lease.unsigned_abs()).unwrap();
        let outcome = state.extend(self.now, self.policy, Receipts::new(texts).unwrap(), lease_time);
        self.sides[index].row = state.encode();
        let expected = self.sides[index].model.extend(self.now, texts, lease);
        for position in self.answered(index, texts, &outcome, &expected)? {
            self.seen.extended += 1;
            let held = self.sides[index].held.get_mut(&position).unwrap();
            held.until = held.until.max(self.now + lease);
        }
        Ok(())
    }

    fn seek(&mut self, index: usize, to: &Index) -> Result<(), TestCaseError> {
        let end = self.log.keys().next_back().copied().unwrap_or(0);
        let to = i64::try_from(to.index(usize::try_from(end).unwrap() + 1)).unwrap();
        let mut state = State::decode(&self.sides[index].row).unwrap();
        let moved = state.seek(self.now, self.policy, Position::new(to));
        self.sides[index].row = state.encode();
        prop_assert_eq!(moved, self.sides[index].model.seek(self.now, to));
        self.died(index)?;
        if !moved {
            self.check(index)?;
            self.bury(index, usize::MAX)?;
            let mut state = State::decode(&self.sides[index].row).unwrap();
            prop_assert!(state.seek(self.now, self.policy, Position::new(to)), "nothing is dead");
            self.sides[index].row = state.encode();
            prop_assert!(self.sides[index].model.seek(self.now, to));
        }
        self.seen.sought += 1;
        let side = &mut self.sides[index];
        side.held.clear();
        side.over.clear();
        side.told.clear();
        side.begins_after = to;
        Ok(())
    }

    /// In the end every event since the last seek was acked or is dead, unless it is not kept any more.
    fn consume_all(&mut self, index: usize) -> Result<(), TestCaseError> {
        let rounds = self.log.len() + 2;
        for _ in 0..rounds {
            self.now = self.latest + 100_000;
            self.latest = self.now;
            let leases = self.pull(index, 1000, 1000, Read { chunk: 1000, on: true }, None)?;
            self.check(index)?;
            let texts: Vec<Box<str>> = leases.iter().map(|lease| lease.receipt.to_string().into()).collect();
            if !texts.is_empty() {
                self.ack(index, &texts)?;
            }
            self.bury(index, usize::MAX)?;
        }
        let side = &self.sides[index];
        prop_assert_eq!(State::decode(&side.row).unwrap().outstanding(), 0);
        let kept_after = side.begins_after.max(self.gone_through);
        for position in self.log.range(kept_after + 1..).map(|(position, _)| position) {
            prop_assert!(side.over.contains(position), "{position} is lost");
        }
        Ok(())
    }
}
