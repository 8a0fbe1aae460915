//! Whose events came, for all subscriptions of a process together. The log of everyone is looked through once, in steps, and
//! what was there before a subscription's endpoint began is looked for once, in steps too: no statement's work grows with
//! what is kept, or with what came meanwhile, and a step that was taken is not taken again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Line, Pending, Subscription};
use crate::names::Name;
use crate::primitives::events::read::{STEP, readable, span};
use crate::primitives::events::{Position, postgres, sqlite};
use crate::store::{Reach, Store, StoreError, Tx};

/// Topics of tenants that one statement names, by as many looks into the index.
const LINES: usize = 1000;
/// Further behind than so many positions, it is asked who has anything at all, and gone on from the head.
const FAR: i64 = 1_000_000;
/// On PostgreSQL, how often it is looked though nothing was drawn from the log's sequence: whether an operator had
/// something sent again.
const FULL: Duration = Duration::from_secs(2);

/// How much one statement looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// Positions of the log.
    pub(super) positions: i64,
    /// Topics of tenants.
    pub(super) lines: usize,
    /// What is too far behind, in positions.
    pub(super) far: i64,
}

impl Default for Steps {
    fn default() -> Self {
        Self { positions: STEP, lines: LINES, far: FAR }
    }
}

/// The looks of one process.
pub(super) struct Looks {
    store: Store,
    steps: Steps,
    state: tokio::sync::Mutex<State>,
}

/// How far they are.
#[derive(Default)]
struct State {
    /// The subscriptions whose endpoints were told what there was, or are by the sweep. An endpoint that begins anew has
    /// another `Arc`.
    known: HashMap<Name, Arc<Subscription>>,
    /// The event up to which the log was looked through; none before the first look.
    place: Option<Position>,
    /// The sequence's last value, where all that was drawn up to it was looked at.
    covered: Option<Position>,
    sweep: Option<Sweep>,
    /// How often each subscription was replayed by command.
    replays: Option<Vec<(String, i64)>>,
    full_at: Option<Instant>,
    /// Found by this look.
    found: Vec<Line>,
}

/// A look for all that there is.
struct Sweep {
    subscriptions: Vec<Arc<Subscription>>,
    /// The last of the index that was looked at.
    after: (Uuid, String),
}

impl Sweep {
    fn new(subscriptions: Vec<Arc<Subscription>>) -> Self {
        Self { subscriptions, after: (Uuid::nil(), String::new()) }
    }
}

/// What a step through the log saw.
struct Seen {
    limit: Position,
    place: Position,
    found: Vec<(String, Uuid)>,
    /// Whether more is to be looked at.
    more: bool,
    is_far: bool,
    replays: Option<Vec<(String, i64)>>,
}

impl Looks {
    pub(super) fn new(store: Store, steps: Steps) -> Self {
        Self { store, steps, state: tokio::sync::Mutex::default() }
    }

    /// The next step for these subscriptions: each line that may have something is told once, and to an endpoint that
    /// begins anew, again.
    pub(super) async fn look(&self, subscriptions: &[Arc<Subscription>]) -> Result<Pending, StoreError> {
        let mut state = self.state.lock().await;
        state.learn(subscriptions);
        if !self.is_due(&state).await {
            return Ok(Pending::default());
        }
        let stepped = self.step(&mut state, subscriptions).await;
        let swept = self.sweep(&mut state).await;
        let lines = std::mem::take(&mut state.found);
        match stepped.and_then(|more| swept.map(|()| more)) {
            Ok(more) => Ok(Pending { lines, more: more || state.sweep.is_some() }),
            Err(error) if lines.is_empty() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot look for all events to push");
                Ok(Pending { lines, more: false })
            }
        }
    }

    /// Whether anything may have come.
    async fn is_due(&self, state: &State) -> bool {
        let (Some(covered), None) = (state.covered, &state.sweep) else { return true };
        if state.full_at.is_none_or(|at| at.elapsed() >= FULL) {
            return true;
        }
        match &self.store {
            // It costs nothing there.
            Store::Sqlite(_) => true,
            Store::Postgres(store) => match postgres::last_value(store).await {
                Ok(last) => last != covered,
                Err(error) => {
                    tracing::debug!(%error, "what was drawn from the log's sequence is not known");
                    true
                }
            },
        }
    }

    /// Looks through the next part of the log; whether there is more.
    async fn step(&self, state: &mut State, subscriptions: &[Arc<Subscription>]) -> Result<bool, StoreError> {
        let topics: BTreeSet<&Name> = subscriptions.iter().map(|subscription| &subscription.topic).collect();
        let topics: Arc<[String]> = topics.into_iter().map(Name::to_string).collect();
        let asks_replays = state.covered.is_none() || state.full_at.is_none_or(|at| at.elapsed() >= FULL);
        let (steps, before) = (self.steps, state.place);
        let seen: Result<Seen, StoreError> = self
            .store
            .read(Reach::everyone(), move |tx| {
                let topics = Arc::clone(&topics);
                Box::pin(async move {
                    let mut seen = step(tx, &topics, before, steps).await?;
                    if asks_replays && let Tx::Postgres(tx) = tx {
                        seen.replays = Some(postgres::replays(tx).await?);
                    }
                    Ok(seen)
                })
            })
            .await;
        let seen = seen?;
        state.place = Some(seen.place);
        state.covered = (!seen.more).then_some(seen.limit);
        state.tell(seen.found, subscriptions);
        if asks_replays {
            state.full_at = Some(Instant::now());
        }
        let were_replayed = seen.replays.is_some_and(|replays| {
            state.replays.replace(replays.clone()).is_some_and(|before| before != replays)
        });
        if seen.is_far || were_replayed {
            state.sweep = Some(Sweep::new(subscriptions.to_vec()));
        }
        Ok(seen.more)
    }

    /// Looks at the next part of all that there is, where that is asked for.
    async fn sweep(&self, state: &mut State) -> Result<(), StoreError> {
        let Some(sweep) = &state.sweep else { return Ok(()) };
        let (subscriptions, after) = (sweep.subscriptions.clone(), sweep.after.clone());
        let found = self.all_after(after).await?;
        let next = found.last().cloned().filter(|_| found.len() >= self.steps.lines);
        state.tell(found, &subscriptions);
        state.sweep = next.map(|(topic, tenant)| Sweep { subscriptions, after: (tenant, topic) });
        Ok(())
    }

    /// Topics of tenants that have events, in the order of the index.
    async fn all_after(&self, after: (Uuid, String)) -> Result<Vec<(String, Uuid)>, StoreError> {
        let (after, limit) = (Arc::new(after), self.steps.lines);
        self.store
            .read(Reach::everyone(), move |tx| {
                let after = Arc::clone(&after);
                Box::pin(async move {
                    let after = (after.0, after.1.as_str());
                    match tx {
                        Tx::Postgres(tx) => postgres::topics_of_tenants(tx, after, limit).await,
                        Tx::Sqlite(tx) => sqlite::topics_of_tenants(tx, after, limit),
                    }
                })
            })
            .await
    }

    /// The tenants that have events of a topic.
    pub(super) async fn tenants(&self, topic: &Name) -> Result<BTreeSet<Uuid>, StoreError> {
        let (mut after, mut tenants) = ((Uuid::nil(), String::new()), BTreeSet::new());
        loop {
            let found = self.all_after(after).await?;
            let of_topic = found.iter().filter(|(held, _)| held == topic.as_str());
            tenants.extend(of_topic.map(|(_, tenant)| *tenant));
            match found.into_iter().nth(self.steps.lines - 1) {
                Some((topic, tenant)) => after = (tenant, topic),
                None => return Ok(tenants),
            }
        }
    }
}

impl State {
    /// Has what there is looked for, for those that are new.
    fn learn(&mut self, subscriptions: &[Arc<Subscription>]) {
        let is_known = |known: &HashMap<Name, Arc<Subscription>>, one: &Arc<Subscription>| {
            known.get(&one.name).is_some_and(|held| Arc::ptr_eq(held, one))
        };
        let new: Vec<_> =
            subscriptions.iter().filter(|one| !is_known(&self.known, one)).map(Arc::clone).collect();
        if new.is_empty() && self.known.len() == subscriptions.len() {
            return;
        }
        self.known = subscriptions.iter().map(|one| (one.name.clone(), Arc::clone(one))).collect();
        let mut sweep = self.sweep.take().unwrap_or_else(|| Sweep::new(Vec::new()));
        sweep.subscriptions.retain(|one| is_known(&self.known, one));
        if !new.is_empty() {
            sweep.subscriptions.extend(new);
            sweep = Sweep::new(sweep.subscriptions);
        }
        self.sweep = Some(sweep).filter(|sweep| !sweep.subscriptions.is_empty());
    }

    fn tell(&mut self, found: Vec<(String, Uuid)>, subscriptions: &[Arc<Subscription>]) {
        let mut by_topic: HashMap<&str, Vec<&Arc<Subscription>>> = HashMap::new();
        for subscription in subscriptions {
            by_topic.entry(subscription.topic.as_str()).or_default().push(subscription);
        }
        for (topic, tenant) in found {
            let of_topic = by_topic.get(topic.as_str()).into_iter().flatten();
            let concerned = of_topic.filter(|subscription| subscription.tenants.includes(tenant));
            self.found.extend(
                concerned.map(|subscription| Line { subscription: Arc::clone(subscription), tenant }),
            );
        }
    }
}

/// The place of the newest event of everyone's that may be read.
pub(super) async fn newest_event(tx: &mut Tx<'_>, limit: Position) -> Result<Position, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::newest_of_all(tx, limit).await,
        Tx::Sqlite(_) => Ok(limit),
    }
}

/// Looks whose events of these topics come next after a place, within a step.
async fn step(
    tx: &mut Tx<'_>,
    topics: &[String],
    before: Option<Position>,
    steps: Steps,
) -> Result<Seen, StoreError> {
    let limit = readable(tx).await?;
    let none = |place| Seen { limit, place, found: Vec::new(), more: false, is_far: false, replays: None };
    // At first, and where a promoted standby knows of fewer events.
    let Some(before) = before.filter(|before| *before <= limit) else {
        return Ok(none(newest_event(tx, limit).await?));
    };
    let Some(span) = span(tx, before, limit).await? else { return Ok(none(before)) };
    if span.last.number() - span.first.number() >= steps.far {
        return Ok(Seen { is_far: true, ..none(span.last) });
    }
    let to = span.last.min(Position::new(span.first.number().saturating_add(steps.positions - 1)));
    let found = match tx {
        Tx::Postgres(tx) => postgres::tenants_with_events(tx, topics, before, to).await?,
        Tx::Sqlite(tx) => sqlite::tenants_with_events(tx, topics, before, to)?,
    };
    Ok(Seen { place: to, found, more: to < span.last, ..none(to) })
}
