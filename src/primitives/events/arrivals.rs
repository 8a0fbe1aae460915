//! Word that there may be something new to read: from this process at once, from others as soon as it is seen.
//!
//! Who waits says for what, and is woken for that alone: one tenant's events cost nobody else's readers a look. On
//! PostgreSQL one task looks how far the log may be read and whose events came, for all who wait in this process, and only
//! while somebody does. (`NOTIFY` takes a lock of the whole database at each commit.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::audience::{Audience, Sees};
use super::read::{STEP, readable};
use super::{Position, postgres};
use crate::names::Name;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

/// Between two looks while events come.
const BUSY: Duration = Duration::from_millis(10);
/// Between two looks while none have come for a second.
const QUIET: Duration = Duration::from_millis(40);
/// After a look that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How long looking goes on when nobody waits: who pulls in a loop waits again soon.
const LINGER: Duration = Duration::from_secs(1);

/// Arrivals in one store.
pub(super) struct Arrivals {
    store: Store,
    /// How far the log may be read, as far as was seen.
    readable: watch::Sender<Position>,
    look_now: Notify,
    waiting: Mutex<Waiting>,
    /// Pulls of one owner that wait at once, at the most.
    most_pulls: usize,
    tasks: Tasks,
}

/// Those who wait.
#[derive(Default)]
struct Waiting {
    is_looked: bool,
    next: u64,
    waiters: HashMap<u64, Entry>,
    /// How many of them are pulls, for each owner that has one.
    pulls: HashMap<Uuid, usize>,
}

/// One who waits.
struct Entry {
    /// None where it is only the head of the log that matters.
    interest: Option<Interest>,
    told: Arc<Notify>,
}

/// What somebody waits for.
struct Interest {
    topic: Name,
    sees: Sees,
    owner: Uuid,
    /// Of those that wait for one group one is woken: it takes what there is, and tells the next.
    group: Option<String>,
}

impl Interest {
    fn of(audience: &Audience, group: Option<&Name>) -> Self {
        Self {
            topic: audience.topic().clone(),
            sees: audience.sees(),
            owner: audience.owner(),
            group: group.map(|name| audience.group(name)),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.owner == other.owner && self.topic == other.topic && self.group == other.group
    }
}

/// One who waits: made before it looks for itself, so that nothing comes between.
pub(super) struct Waiter {
    arrivals: Arc<Arrivals>,
    number: u64,
    told: Arc<Notify>,
}

impl Arrivals {
    pub(super) fn new(store: Store, most_pulls: usize, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            store,
            readable: watch::Sender::new(Position::START),
            look_now: Notify::new(),
            waiting: Mutex::default(),
            most_pulls,
            tasks,
        })
    }

    /// How far the log may be read, as far as was seen.
    pub(super) fn readable(&self) -> Position {
        *self.readable.borrow()
    }

    /// Events of a tenant were committed, and can be read.
    pub(super) fn tell(&self, topic: &Name, tenant: Uuid) {
        self.wake(&[(topic.to_string(), tenant)]);
    }

    /// Events were committed here: it is looked whether they can be read, and whose they are.
    pub(super) fn look_soon(&self) {
        self.look_now.notify_one();
    }

    /// Something of a topic's groups may be delivered: a consumer of this process gave it back, or left some.
    pub(super) fn tell_group(&self, audience: &Audience, group: &Name) {
        self.tell_interest(&Interest::of(audience, Some(group)));
    }

    fn tell_interest(&self, one: &Interest) {
        let waiting = self.waiting.lock();
        let same = waiting
            .waiters
            .values()
            .find(|entry| entry.interest.as_ref().is_some_and(|other| other.is_same(one)));
        if let Some(entry) = same {
            entry.told.notify_one();
        }
    }

    fn wake(&self, came: &[(String, Uuid)]) {
        let mut told = HashSet::new();
        for entry in self.waiting.lock().waiters.values() {
            let Some(interest) = &entry.interest else { continue };
            let concerns = |(topic, tenant): &(String, Uuid)| {
                interest.topic.as_str() == topic && interest.sees.covers(tenant)
            };
            if came.iter().any(concerns) && is_first(interest, &mut told) {
                entry.told.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        for entry in self.waiting.lock().waiters.values() {
            entry.told.notify_one();
        }
    }

    /// Begins to wait for an audience's events: what comes from now on wakes the waiter.
    pub(super) fn waiter(self: &Arc<Self>, audience: &Audience) -> Waiter {
        self.enter(Some(Interest::of(audience, None)))
    }

    /// Begins to wait for what one of an audience's groups may deliver; none where its owner has as many pulls that wait as
    /// it may.
    pub(super) fn pull(self: &Arc<Self>, audience: &Audience, group: &Name) -> Option<Waiter> {
        {
            let mut waiting = self.waiting.lock();
            let pulls = waiting.pulls.entry(audience.owner()).or_default();
            if *pulls >= self.most_pulls {
                return None;
            }
            *pulls += 1;
        }
        Some(self.enter(Some(Interest::of(audience, Some(group)))))
    }

    /// Pulls of one owner that wait at once, at the most.
    pub(super) fn most_pulls(&self) -> usize {
        self.most_pulls
    }

    /// Has the head of the log looked at, for as long as this is kept.
    pub(super) fn watcher(self: &Arc<Self>) -> Waiter {
        self.enter(None)
    }

    fn enter(self: &Arc<Self>, interest: Option<Interest>) -> Waiter {
        let told = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.waiters.insert(number, Entry { interest, told: Arc::clone(&told) });
        if matches!(self.store, Store::Postgres(_)) && !std::mem::replace(&mut waiting.is_looked, true) {
            let arrivals = Arc::clone(self);
            self.tasks.spawn("arrivals", async move { arrivals.look_while_somebody_waits().await });
        }
        Waiter { arrivals: Arc::clone(self), number, told }
    }

    async fn look_while_somebody_waits(&self) {
        let stopping = self.tasks.stopping();
        let (mut waited_for, mut changed, mut newest) = (Instant::now(), Instant::now(), None);
        loop {
            let topics = {
                let mut waiting = self.waiting.lock();
                if !waiting.waiters.is_empty() {
                    waited_for = Instant::now();
                }
                if waited_for.elapsed() > LINGER || stopping.is_cancelled() {
                    waiting.is_looked = false;
                    return;
                }
                let interests = waiting.waiters.values().filter_map(|entry| entry.interest.as_ref());
                interests.map(|interest| interest.topic.to_string()).collect::<BTreeSet<_>>()
            };
            let pause = match self.look(topics, newest).await {
                Ok(seen) => {
                    self.readable.send_replace(seen.readable);
                    if newest != Some(seen.newest) {
                        changed = Instant::now();
                        // At first, and where a promoted standby knows of fewer events, nobody knows what was missed.
                        match seen.came {
                            Some(came) => self.wake(&came),
                            None => self.wake_all(),
                        }
                        newest = Some(seen.newest);
                    }
                    if changed.elapsed() < Duration::from_secs(1) { BUSY } else { QUIET }
                }
                Err(error) => {
                    tracing::debug!(%error, "how far the log may be read is not known");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.look_now.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look(&self, topics: BTreeSet<String>, before: Option<Position>) -> Result<Seen, StoreError> {
        let topics: Arc<[String]> = topics.into_iter().collect();
        self.store
            .read(Reach::everyone(), move |tx| {
                let topics = Arc::clone(&topics);
                Box::pin(async move {
                    let readable = readable(tx).await?;
                    let Tx::Postgres(tx) = tx else {
                        return Ok(Seen { readable, newest: readable, came: None });
                    };
                    let newest = postgres::newest_of_all(tx, readable).await?;
                    let came = match before.filter(|before| *before <= newest) {
                        None => None,
                        Some(before) if before == newest => Some(Vec::new()),
                        // After an hour without the database it is dearer to ask whose it all is than to wake everyone.
                        Some(before) if newest.number() - before.number() > STEP => None,
                        Some(before) => {
                            Some(postgres::tenants_with_events(tx, &topics, before, newest).await?)
                        }
                    };
                    Ok(Seen { readable, newest, came })
                })
            })
            .await
    }
}

/// What a look saw.
struct Seen {
    readable: Position,
    newest: Position,
    /// Whose events came in which topics; none where that is not known.
    came: Option<Vec<(String, Uuid)>>,
}

/// Whether this is the first of its group to be told, or is of no group.
fn is_first(interest: &Interest, told: &mut HashSet<(Uuid, String, Name)>) -> bool {
    let group = interest.group.as_ref();
    group.is_none_or(|group| told.insert((interest.owner, group.clone(), interest.topic.clone())))
}

impl Waiting {
    fn leave(&mut self, number: u64) -> Option<Interest> {
        let interest = self.waiters.remove(&number)?.interest?;
        if interest.group.is_some()
            && let Some(pulls) = self.pulls.get_mut(&interest.owner)
        {
            *pulls -= 1;
            if *pulls == 0 {
                self.pulls.remove(&interest.owner);
            }
        }
        Some(interest)
    }
}

impl Waiter {
    /// What came up to now is known.
    pub(super) fn looks(&mut self) {
        let _came: Option<()> = self.told.notified().now_or_never();
    }

    /// Until something comes after [`Waiter::looks`].
    pub(super) async fn arrival(&mut self) {
        self.told.notified().await;
    }

    /// How many wait for the same group, this one among them.
    pub(super) fn companions(&self) -> usize {
        let waiting = self.arrivals.waiting.lock();
        let own = waiting.waiters.get(&self.number).and_then(|entry| entry.interest.as_ref());
        let others = waiting.waiters.values().filter_map(|entry| entry.interest.as_ref());
        others.filter(|other| own.is_some_and(|own| own.is_same(other))).count()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let left = self.arrivals.waiting.lock().leave(self.number);
        // It was told, and looks no more: the next of its group does.
        if self.told.notified().now_or_never().is_some()
            && let Some(interest) = left.filter(|left| left.group.is_some())
        {
            self.arrivals.tell_interest(&interest);
        }
    }
}
