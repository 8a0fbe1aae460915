//! Calls of one group take turns at its row, and those that wait take theirs together.
//!
//! A transaction holds the row until its commit is on the disk and on the standby's. One after the other, the calls of a
//! group's consumers would each wait for all commits before them, every one with a connection of its own. Here a group has
//! one transaction of this process at a time, and what comes meanwhile goes into the next: in the order in which it came,
//! each call with its own answer.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::consumers::Place;
use super::groups::{LeaseTime, MaxDeliveries, Outcome, State};
use super::{Audience, Deliveries, GivenUp, Group, GroupError, Settle};
use crate::fairness::{self, Bounds, Room};
use crate::store::sqlite::Adds;
use crate::store::{Store, Tx};
use crate::tasks::Tasks;

/// Calls of one transaction at the most.
const MAX_CALLS: usize = 64;
/// Pulls among them: each may bring 4 MiB.
const MAX_PULLS: usize = 4;
/// Calls that wait for one group at the most; more are refused.
pub(super) const MAX_WAITING: usize = 256;
/// Calls of all groups at the most, those of a transaction with them, and their receipts.
const WAITING: Bounds = Bounds { calls: 8192, bytes: 64 * 1024 * 1024, share: 4 };
/// What a receipt takes beside its text.
const RECEIPT_BYTES: usize = 32;

/// Of a group that is made, in bytes.
pub(super) const ROW_BYTES: u64 = 512;

/// What a call asks of its group.
pub(super) enum Act {
    Pull(MaxDeliveries, LeaseTime),
    Settle(Arc<[Box<str>]>, Settle),
}

impl Act {
    /// What it adds to the group's state at the most, in bytes.
    fn state_bytes(&self) -> u64 {
        match self {
            Self::Pull(max, _) => State::MAX_ENTRY_BYTES * max.count() + ROW_BYTES,
            Self::Settle(..) => 0,
        }
    }
}

/// What came of it.
pub(super) enum Acted {
    Pulled(Deliveries),
    Settled(Outcome),
}

/// With how many events are dead in the group.
type Answer = Result<(Acted, usize), GroupError>;

struct Waiting {
    group: Group,
    act: Act,
    answer: oneshot::Sender<Answer>,
    /// Kept until it is answered: what it carries is here though its caller stopped waiting.
    place: fairness::Place,
}

/// The groups that calls of this process wait for.
pub(super) struct Turns {
    store: Store,
    tasks: Tasks,
    /// A group is here while a task works for it.
    lines: Mutex<HashMap<Place, VecDeque<Waiting>>>,
    room: Room,
    /// The next transaction is a defect.
    #[cfg(test)]
    panics: std::sync::atomic::AtomicBool,
}

impl Turns {
    pub(super) fn new(store: Store, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            store,
            tasks,
            lines: Mutex::default(),
            room: Room::new(WAITING),
            #[cfg(test)]
            panics: std::sync::atomic::AtomicBool::default(),
        })
    }

    /// As [`Group::pull`].
    pub(super) async fn pull(
        self: &Arc<Self>,
        group: &Group,
        max: MaxDeliveries,
        lease: LeaseTime,
    ) -> Result<Deliveries, GroupError> {
        // What a service may see can differ from one call to the next: its calls share no transaction.
        if !matches!(group.audience, Audience::Tenant(_)) {
            let _place = self.room.enter(group.place.owner, 0)?;
            return group.pull(&self.store, max, lease).await;
        }
        let (Acted::Pulled(pulled), left) = self.turn(group, Act::Pull(max, lease)).await? else {
            return Err(GroupError::Gone);
        };
        Ok(Deliveries { given_up: group.bury_first(&self.store, left).await, ..pulled })
    }

    /// As [`Group::settle`].
    pub(super) async fn settle(
        self: &Arc<Self>,
        group: &Group,
        receipts: Arc<[Box<str>]>,
        what: Settle,
    ) -> Result<(Outcome, GivenUp), GroupError> {
        if !matches!(group.audience, Audience::Tenant(_)) {
            let _place = self.room.enter(group.place.owner, bytes(&receipts))?;
            return group.settle(&self.store, receipts, what).await;
        }
        let (Acted::Settled(outcome), left) = self.turn(group, Act::Settle(receipts, what)).await? else {
            return Err(GroupError::Gone);
        };
        Ok((outcome, group.bury_first(&self.store, left).await))
    }

    async fn turn(self: &Arc<Self>, group: &Group, act: Act) -> Answer {
        let bytes = match &act {
            Act::Pull(..) => 0,
            Act::Settle(receipts, _) => bytes(receipts),
        };
        let place = self.room.enter(group.place.owner, bytes)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { group: group.clone(), act, answer, place };
        let is_first = {
            let mut lines = self.lines.lock();
            let is_first = !lines.contains_key(&group.place);
            let line = lines.entry(group.place.clone()).or_default();
            if line.len() >= MAX_WAITING {
                line.retain(|waiting| !waiting.answer.is_closed());
            }
            if line.len() >= MAX_WAITING {
                return Err(GroupError::LongLine);
            }
            line.push_back(waiting);
            is_first
        };
        if is_first {
            let (turns, place) = (Arc::clone(self), group.place.clone());
            self.tasks.spawn("group", async move {
                while let Some(turn) = turns.next(&place) {
                    // A defect is its transaction's alone: those calls get no answer, and who waits is served.
                    if AssertUnwindSafe(turns.run(turn)).catch_unwind().await.is_err() {
                        tracing::error!("a defect: a transaction of a consumer group panicked");
                    }
                }
            });
        }
        answered.await.unwrap_or(Err(GroupError::Gone))
    }

    /// The calls of the next transaction; none where nobody waits any more, and the group is forgotten. Who left is passed
    /// over, so that nothing is leased to nobody.
    fn next(&self, place: &Place) -> Option<Vec<Waiting>> {
        let mut lines = self.lines.lock();
        let line = lines.get_mut(place)?;
        let (mut turn, mut pulls) = (Vec::new(), 0);
        while turn.len() < MAX_CALLS {
            let Some(first) = line.pop_front() else { break };
            if first.answer.is_closed() {
                continue;
            }
            let is_pull = matches!(first.act, Act::Pull(..));
            if is_pull && pulls == MAX_PULLS {
                line.push_front(first);
                break;
            }
            pulls += usize::from(is_pull);
            turn.push(first);
        }
        if turn.is_empty() {
            lines.remove(place);
            return None;
        }
        Some(turn)
    }

    async fn run(&self, turn: Vec<Waiting>) {
        #[cfg(test)]
        assert!(!self.panics.swap(false, std::sync::atomic::Ordering::SeqCst), "a test wants a defect");
        let (calls, answers): (Vec<_>, Vec<_>) = turn
            .into_iter()
            .map(|waiting| ((waiting.group, waiting.act), (waiting.answer, waiting.place)))
            .unzip();
        let acted = match together(&self.store, calls).await {
            Ok((acted, left)) => {
                // One of them sees to what is dead.
                let lefts = std::iter::once(left).chain(std::iter::repeat(0));
                acted.into_iter().zip(lefts).map(Ok).collect::<Vec<Answer>>()
            }
            Err(error) => {
                let error = Arc::new(error);
                answers.iter().map(|_| Err(GroupError::Together(Arc::clone(&error)))).collect()
            }
        };
        for ((answer, _place), acted) in answers.into_iter().zip(acted) {
            if answer.send(acted).is_err() {
                // What was leased to it is delivered again when the lease is over.
                tracing::debug!("a consumer left before its answer");
            }
        }
    }
}

/// What receipts take while they wait.
fn bytes(receipts: &[Box<str>]) -> u64 {
    receipts.iter().map(|text| (text.len() + RECEIPT_BYTES) as u64).sum()
}

/// Does what calls of one group ask, in one transaction; what came of each, and how many events are dead.
pub(super) async fn together(
    store: &Store,
    calls: Vec<(Group, Act)>,
) -> Result<(Vec<Acted>, usize), GroupError> {
    let Some((group, _)) = calls.first() else { return Ok((Vec::new(), 0)) };
    let adds = calls.iter().map(|(_, act)| act.state_bytes()).sum::<u64>();
    // Nothing where nobody pulls: what settles must get through.
    let adds = if adds > 0 { Adds::State(adds) } else { Adds::Nothing };
    let (group, calls) = (group.clone(), Arc::new(calls));
    group
        .run(store, adds, move |group, tx| {
            let calls = Arc::clone(&calls);
            Box::pin(async move { all_in(&group, tx, &calls).await })
        })
        .await
}

async fn all_in(
    group: &Group,
    tx: &mut Tx<'_>,
    calls: &[(Group, Act)],
) -> Result<(Vec<Acted>, usize), GroupError> {
    let has_pull = calls.iter().any(|(_, act)| matches!(act, Act::Pull(..)));
    let found = if has_pull { Some(group.load(tx).await?) } else { group.find(tx).await? };
    let Some((mut state, row)) = found else {
        // Nobody ever pulled: nothing is made for receipts that nobody was given.
        let stale = |(_, act): &(Group, Act)| match act {
            Act::Pull(..) => Acted::Pulled(Deliveries::default()),
            Act::Settle(receipts, _) => {
                Acted::Settled(Outcome { done: 0, stale: (0..receipts.len()).collect() })
            }
        };
        return Ok((calls.iter().map(stale).collect(), 0));
    };
    let before = state.encode();
    let mut acted = Vec::with_capacity(calls.len());
    for (own, act) in calls {
        acted.push(match act {
            Act::Pull(max, lease) => Acted::Pulled(own.pull_in(tx, &mut state, &row, *max, *lease).await?),
            Act::Settle(receipts, what) => {
                Acted::Settled(own.apply(&mut state, row.now_ms, receipts, *what)?)
            }
        });
    }
    let after = state.encode();
    if after != before {
        group.store(tx, &state, &after).await?;
    }
    Ok((acted, state.dead().count()))
}
