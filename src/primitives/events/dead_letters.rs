//! What a group gave up, to the dead letters of its topic: copied within the store, a portion in each transaction.
//!
//! A writer's floor holds readers back until its commit, and SQLite has one writer, so that a portion is small; the rest stays
//! dead in the group's state, and goes with the next one. An event and what says that it is buried commit together: it is a
//! dead letter once, and those of a key come in their order.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use uuid::Uuid;

use super::consumers::{Group, GroupError, Place, load};
use super::groups::{Dead, State};
use super::metrics::GivenUpMetrics;
use super::{Position, is_dead_letters, lane, postgres, sqlite};
use crate::fairness::Lines;
use crate::store::sqlite::Adds;
use crate::store::{Store, StoreError, Tx};
use crate::tasks::{Tasks, panic_text};

/// What one portion's events have together at the most, but for the first.
const MAX_BYTES: i64 = 4 * 1024 * 1024;
/// And how many they are.
const MAX_LETTERS: usize = 1000;

/// What became of what a group gave up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// These are among the dead letters now.
    pub letters: usize,
    /// These were dead letters already, and stay where they are: the group is done with them.
    pub ended: usize,
    /// These are not kept any more.
    pub gone: usize,
    /// These are dead, and wait for the next portion.
    pub left: usize,
}

/// An event that is dead, as far as it is known.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) position: Position,
    /// Whose it is, and its key; none where it is behind too many bytes of others.
    pub(super) of: Option<(Uuid, Box<str>)>,
}

/// An event that is copied to the dead letters.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) position: Position,
    pub(super) lane: i16,
    /// What follows the last of its attributes, the closing brace included.
    pub(super) more: String,
}

impl GivenUp {
    /// Whether something is left, and the last portion went well.
    fn goes_on(&self) -> bool {
        self.left > 0 && self.letters + self.ended + self.gone > 0
    }

    pub(super) fn and(self, later: Self) -> Self {
        let (letters, ended) = (self.letters + later.letters, self.ended + later.ended);
        Self { letters, ended, gone: self.gone + later.gone, left: later.left }
    }
}

impl Group {
    /// Takes a portion of what is dead to the dead letters.
    pub async fn bury(&self, store: &Store) -> Result<GivenUp, GroupError> {
        let adds = Adds::Moved(MAX_BYTES.unsigned_abs());
        let given_up =
            self.run(store, adds, |group, tx| Box::pin(async move { group.bury_in(tx).await })).await?;
        if given_up.ended > 0 {
            let (topic, group, count) = (self.audience.topic(), self.name(), given_up.ended);
            tracing::warn!(%topic, %group, count, "a group gave up dead letters: they stay where they are");
        }
        Ok(given_up)
    }

    /// The first portion of so many that a call left dead. Its answer stands, whatever becomes of this.
    pub(super) async fn bury_first(&self, store: &Store, left: usize) -> GivenUp {
        if left == 0 {
            return GivenUp::default();
        }
        self.bury(store).await.unwrap_or_else(|error| {
            let (topic, group) = (self.audience.topic(), self.name());
            tracing::warn!(%topic, %group, left, %error, "what a group gave up is not among the dead letters yet");
            GivenUp { left, ..GivenUp::default() }
        })
    }

    async fn bury_in(self, tx: &mut Tx<'_>) -> Result<GivenUp, GroupError> {
        let Some(bytes) = load(tx, &self.place).await?.state else { return Ok(GivenUp::default()) };
        let mut state = State::decode(&bytes)?;
        let dead: Vec<Dead> = state.dead().take(MAX_LETTERS).collect();
        let Some(last) = dead.last().map(|dead| dead.position) else { return Ok(GivenUp::default()) };
        let before = state.dead().count();
        let mut given_up = GivenUp::default();
        let mut letters = Vec::new();
        if is_dead_letters(self.place.topic.as_str()) {
            // A letter of a letter would come again to whoever gave it up, without an end.
            given_up.ended = dead.len();
            state.bury(last);
        } else {
            letters = self.portion(tx, &dead, &mut state).await?;
            given_up.letters = letters.len();
        }
        given_up.left = state.dead().count();
        given_up.gone = before - given_up.left - given_up.letters - given_up.ended;
        let bytes = state.encode();
        self.store(tx, &state, &bytes).await?;
        if !letters.is_empty() {
            // The last step: it makes the floor.
            let (from, to) = (self.place.topic.as_str(), self.topic.dead_letters.as_str());
            match tx {
                Tx::Postgres(tx) => postgres::copy(tx, &self.audience.sees(), from, to, &letters).await?,
                Tx::Sqlite(tx) => sqlite::copy(tx, from, to, &letters)?,
            }
        }
        Ok(given_up)
    }

    /// The first of what is dead, and that is kept, as far as it is not too much; the state has it no more.
    async fn portion(
        &self,
        tx: &mut Tx<'_>,
        dead: &[Dead],
        state: &mut State,
    ) -> Result<Vec<Letter>, GroupError> {
        let positions: Vec<Position> = dead.iter().map(|dead| dead.position).collect();
        let (sees, topic) = (self.audience.sees(), self.place.topic.as_str());
        let found = match tx {
            Tx::Postgres(tx) => postgres::found(tx, &sees, topic, &positions, MAX_BYTES).await?,
            Tx::Sqlite(tx) => sqlite::found(tx, &sees, topic, &positions, MAX_BYTES)?,
        };
        let (mut letters, mut tenants) = (Vec::with_capacity(found.len()), Vec::new());
        let mut found = found.into_iter().peekable();
        for dead in dead {
            // What is not kept any more is passed over.
            if let Some(event) = found.next_if(|event| event.position == dead.position) {
                let Some((tenant, key)) = event.of else { break };
                let lane = i16::try_from(lane(tenant, &key, self.topic.lanes));
                let lane = lane.map_err(|_| StoreError::Corrupt("a defect: too many lanes".to_owned()))?;
                // All of it is of characters that JSON takes as they are.
                let (group, reason) = (self.name(), dead.reason.as_str());
                let more = format!(",\"dlqgroup\":\"{group}\",\"dlqreason\":\"{reason}\"}}");
                letters.push(Letter { position: dead.position, lane, more });
                tenants.push(tenant);
            }
            state.bury(dead.position);
        }
        self.writes_for(tx, tenants).await?;
        Ok(letters)
    }
}

/// Goes on with what calls left dead, one portion at a time: of the tenants in turn, and of each one's groups in turn. It counts
/// what was given up. What fails waits for the group's next call.
pub(super) struct Undertaker {
    store: Store,
    metrics: GivenUpMetrics,
    tasks: Tasks,
    agenda: Mutex<Agenda>,
    /// The next portion is a defect.
    #[cfg(test)]
    panics: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Agenda {
    lines: Lines<Group>,
    /// The groups in a line, and the one at work: whether a call left something since its last portion was begun.
    under_way: HashMap<Place, bool>,
    running: bool,
}

impl Undertaker {
    pub(super) fn new(store: Store, metrics: GivenUpMetrics, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            store,
            metrics,
            tasks,
            agenda: Mutex::default(),
            #[cfg(test)]
            panics: std::sync::atomic::AtomicBool::default(),
        })
    }

    /// A call of a group gave this up.
    pub(super) fn gave_up(self: &Arc<Self>, group: &Group, given_up: GivenUp) {
        self.metrics.count(given_up);
        if !given_up.goes_on() {
            return;
        }
        let starts = {
            let mut agenda = self.agenda.lock();
            if agenda.under_way.insert(group.place.clone(), true).is_none() {
                agenda.lines.push(group.place.owner, 0, group.clone());
            }
            !std::mem::replace(&mut agenda.running, true)
        };
        if starts {
            let undertaker = Arc::clone(self);
            self.tasks.spawn("dead letters", async move {
                while let Some(group) = undertaker.next() {
                    let portion = AssertUnwindSafe(undertaker.portion(&group)).catch_unwind().await;
                    let goes_on = match portion {
                        Ok(goes_on) => goes_on,
                        Err(panic) => {
                            // As a failure: what the group gave up stays in it, and goes with its next call.
                            let panic = panic_text(&*panic);
                            tracing::error!(panic, "a defect: a portion of dead letters panicked");
                            false
                        }
                    };
                    undertaker.ended(group, goes_on);
                }
            });
        }
    }

    /// Whose portion is next; none where nothing is left, or the process stops.
    fn next(&self) -> Option<Group> {
        let mut agenda = self.agenda.lock();
        let is_stopping = self.tasks.stopping().is_cancelled();
        let next = if is_stopping { None } else { agenda.lines.take(1, u64::MAX).pop() };
        match &next {
            Some(group) => drop(agenda.under_way.insert(group.place.clone(), false)),
            None => agenda.running = false,
        }
        next
    }

    /// A portion went, and whether the group has more of what went well.
    fn ended(&self, group: Group, goes_on: bool) {
        let mut agenda = self.agenda.lock();
        if goes_on || agenda.under_way.get(&group.place) == Some(&true) {
            agenda.lines.push(group.place.owner, 0, group);
        } else {
            agenda.under_way.remove(&group.place);
        }
    }

    /// Whether there is more, and this went well.
    async fn portion(&self, group: &Group) -> bool {
        #[cfg(test)]
        assert!(!self.panics.swap(false, std::sync::atomic::Ordering::SeqCst), "a test wants a defect");
        // The group's own policy may be another by now: it says nothing of what is dead.
        match group.bury(&self.store).await {
            Ok(given_up) => {
                self.metrics.count(given_up);
                given_up.goes_on()
            }
            Err(error) => {
                let (topic, group) = (group.audience.topic(), group.name());
                tracing::warn!(%topic, %group, %error, "what a group gave up is not among the dead letters yet");
                false
            }
        }
    }
}
