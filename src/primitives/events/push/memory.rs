//! Deliveries in memory, over the machine that the stores run, for tests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::names::Name;
use crate::primitives::events::groups::{
    DelayTime, KeyHash, LeaseTime, MaxDeliveries, New, Outcome as Done, Policy, Receipts, State, StateError,
};
use crate::primitives::events::{Data, Position};

/// A subscription's group of a tenant.
type Group = (Name, Uuid);

/// What there is, and what was told.
#[derive(Default)]
pub(super) struct Memory {
    kept: Mutex<Kept>,
    /// Whether settling fails.
    pub(super) refuses_to_settle: AtomicBool,
}

#[derive(Default)]
struct Kept {
    log: HashMap<Name, HashMap<Uuid, Vec<Logged>>>,
    groups: HashMap<Group, State>,
    attempts: HashMap<Name, Vec<Attempt>>,
    dead: HashMap<Name, Vec<(i64, &'static str)>>,
    pulls: HashMap<Name, usize>,
    looks: usize,
    asked: usize,
    last: i64,
}

impl Memory {
    /// Accepts an event whose data is `data`.
    pub(super) fn publish(&self, topic: &Name, tenant: Uuid, kind: &str, key: &str, data: &str) -> i64 {
        let mut kept = self.kept.lock();
        kept.last += 1;
        let position = kept.last;
        let attributes = format!(
            "{{\"specversion\":\"1.0\",\"id\":\"event-{position}\",\"source\":\"/test\",\"type\":\"{kind}\"}}"
        );
        kept.log.entry(topic.clone()).or_default().entry(tenant).or_default().push(Logged {
            position: Position::new(position),
            accepted_ms: now_ms(),
            tenant,
            key: key.into(),
            kind: kind.into(),
            attributes: attributes.into(),
            data: Data::Text(data.to_owned().into()),
        });
        position
    }

    pub(super) fn attempts(&self, subscription: &Name) -> Vec<Attempt> {
        self.kept.lock().attempts.get(subscription).cloned().unwrap_or_default()
    }

    pub(super) fn dead(&self, subscription: &Name) -> Vec<(i64, &'static str)> {
        self.kept.lock().dead.get(subscription).cloned().unwrap_or_default()
    }

    pub(super) fn pulls(&self, subscription: &Name) -> usize {
        self.kept.lock().pulls.get(subscription).copied().unwrap_or_default()
    }

    /// How often it was asked what is pending, and for how many subscriptions the last time.
    pub(super) fn looks(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.looks, kept.asked)
    }

    /// How many events of a subscription are leased or held back.
    pub(super) fn outstanding(&self, subscription: &Name) -> usize {
        let kept = self.kept.lock();
        kept.groups
            .iter()
            .filter(|((name, _), _)| name == subscription)
            .map(|(_, state)| state.outstanding())
            .sum()
    }
}

impl Kept {
    /// Runs a call on a group as a store does: decoded from its row, and written back.
    fn with<T>(
        &mut self,
        line: &Line,
        call: impl FnOnce(&mut State, &[Logged]) -> T,
    ) -> Result<T, GroupError> {
        let group = (line.subscription.name.clone(), line.tenant);
        let kept = self
            .groups
            .entry(group.clone())
            .or_insert_with(|| State::new(Position::START, fastrand::u32(..)));
        let mut state = State::decode(&kept.encode())?;
        let value = call(
            &mut state,
            self.log
                .get(&line.subscription.topic)
                .and_then(|log| log.get(&line.tenant))
                .map_or(&[], Vec::as_slice),
        );
        let dead = state.dead().map(|dead| (dead.position.number(), dead.reason.as_str()));
        self.dead.entry(group.0).or_default().extend(dead);
        state.bury(state.position());
        *kept = state;
        Ok(value)
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn policy(line: &Line) -> Result<Policy, GroupError> {
    Ok(Policy::new(u64::from(line.subscription.max_attempts), 1000)?)
}

#[async_trait]
impl Deliveries for Memory {
    async fn pending(&self, subscriptions: &[Arc<Subscription>]) -> Result<Pending, GroupError> {
        let mut kept = self.kept.lock();
        kept.looks += 1;
        kept.asked = subscriptions.len();
        let mut lines = Vec::new();
        for subscription in subscriptions {
            for (tenant, events) in kept.log.get(&subscription.topic).into_iter().flatten() {
                if !subscription.tenants.includes(*tenant) {
                    continue;
                }
                let last = events.last().map_or(Position::START, |event| event.position);
                let has = |state: &State| {
                    state.position() < last
                        || state.outstanding() > 0 && state.due_ms().is_none_or(|due_ms| due_ms <= now_ms())
                };
                if kept.groups.get(&(subscription.name.clone(), *tenant)).is_none_or(has) {
                    lines.push(Line { subscription: Arc::clone(subscription), tenant: *tenant });
                }
            }
        }
        Ok(Pending { lines, more: false })
    }

    async fn pull(&self, line: &Line, max: usize, lease_ms: u64) -> Result<Pulled, GroupError> {
        let (policy, now_ms) = (policy(line)?, now_ms());
        let (max, lease) = (MaxDeliveries::new(max as u64)?, LeaseTime::new(lease_ms)?);
        let mut kept = self.kept.lock();
        *kept.pulls.entry(line.subscription.name.clone()).or_default() += 1;
        kept.with(line, |state, log| {
            let mut pull = state.pull(now_ms, policy, max, lease);
            loop {
                let after = log.partition_point(|event| event.position <= pull.position());
                let new: Vec<_> = log[after..].iter().take(pull.wanted()).map(keyed).collect();
                pull.take(&new).unwrap_or_else(|error| panic!("{error}"));
                if new.is_empty() || !pull.leases().is_empty() {
                    break;
                }
            }
            let pulled = pull.finish();
            let leased = pulled.leases.iter().map(|lease| {
                let at = log.partition_point(|event| event.position < lease.position);
                Leased {
                    receipt: lease.receipt.to_string().into(),
                    attempt: u32::from(lease.attempt),
                    event: log[at].clone(),
                }
            });
            let leased = leased.collect();
            let due_in_ms = state.due_ms().map(|due_ms| (due_ms - now_ms).max(0).unsigned_abs());
            Pulled { leased, due_in_ms }
        })
    }

    async fn extend(&self, line: &Line, receipts: &[Box<str>], lease_ms: u64) -> Result<bool, GroupError> {
        let (policy, lease, receipts) = (policy(line)?, LeaseTime::new(lease_ms)?, Receipts::new(receipts)?);
        self.kept.lock().with(line, |state, _| {
            let Done { stale, .. } = state.extend(now_ms(), policy, receipts, lease);
            stale.is_empty()
        })
    }

    async fn settle(&self, line: &Line, settled: &[Settled]) -> Result<(), GroupError> {
        if self.refuses_to_settle.load(Ordering::SeqCst) {
            return Err(StateError::Short.into());
        }
        let policy = policy(line)?;
        let mut kept = self.kept.lock();
        for settled in settled {
            let receipt = [settled.receipt.clone()];
            let receipts = Receipts::new(&receipt)?;
            let delay = match settled.verdict {
                Verdict::Done => None,
                Verdict::Again { delay_ms } => Some(DelayTime::new(delay_ms)?),
            };
            kept.with(line, |state, _| match delay {
                None => state.ack(now_ms(), policy, receipts),
                Some(delay) => state.nack(now_ms(), policy, receipts, delay),
            })?;
            kept.attempts.entry(line.subscription.name.clone()).or_default().extend(settled.attempt.clone());
        }
        Ok(())
    }
}

fn keyed(event: &Logged) -> New {
    let hash =
        event.key.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    (event.position, KeyHash::new(hash), Uuid::nil())
}
