//! What was accepted, counted: of the tenants in turn, and of each in order, the entries of many in a transaction.

mod refusals;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::Days;
use super::super::metrics::SpoolMetrics;
use super::ahead::Ahead;
use super::clock::Clock;
use super::settled::Settled;
use super::shares::Shares;
use super::transaction::{self, CountError, Portion};
use super::waiting::{Costs, Waiting, What};
use crate::store::spool::{AppendError, Spool};
use crate::store::sqlite::Full;
use crate::store::{Store, StoreError};

/// Entries of one transaction at the most.
const MAX_ENTRIES: usize = 256;
/// A transaction whose time ran out took that long: fewer such attempts than halves.
const SLOW_PARTS: usize = 16;
/// Between two attempts while the store or the disk is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Counts what is in a spool.
pub(super) struct Drain {
    spool: Arc<Spool>,
    store: Store,
    days: Days,
    clock: Clock,
    costs: Costs,
    shares: Arc<Shares>,
    metrics: Arc<SpoolMetrics>,
    /// Locked by one at a time: by this, or by the thread that reads for it.
    ahead: Arc<Mutex<Ahead>>,
    /// Entries of a transaction at the most: fewer where one of them may be what the store refuses.
    at_once: usize,
    /// Of one entry's points, likewise.
    points_at_once: usize,
    /// Tenants whose last entry was not taken: their next one goes alone.
    doubts: HashMap<Uuid, Doubt>,
    /// Tenants whose entries were refused since one was counted.
    refused_in_a_row: BTreeSet<Uuid>,
    /// Whether keys are looked up first: the last ones were counted before.
    repeats: bool,
}

/// Why a tenant's entry goes alone.
#[derive(Default)]
struct Doubt {
    /// The one that was refused last: the second time it is believed.
    refused: Option<u64>,
    /// For how long the tenant rested last.
    rest: Duration,
}

/// Why nothing is counted now.
#[derive(Debug, thiserror::Error)]
enum DrainError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the spool cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Spool(#[from] AppendError),
}

/// How a round ended.
enum Round {
    /// There may be more.
    Done,
    /// Everything is counted, but of tenants that rest.
    Empty,
}

impl Drain {
    pub(super) fn new(
        spool: Arc<Spool>,
        store: Store,
        shares: Arc<Shares>,
        metrics: Arc<SpoolMetrics>,
        clock: Clock,
    ) -> Self {
        let costs = match &store {
            Store::Sqlite(_) => Costs::EMBEDDED,
            Store::Postgres(_) => Costs::POSTGRES,
        };
        Self {
            days: Days::new(store.clone()),
            costs,
            ahead: Arc::new(Mutex::new(Ahead::new(Arc::clone(&spool)))),
            spool,
            store,
            clock,
            shares,
            metrics,
            at_once: MAX_ENTRIES,
            points_at_once: usize::MAX,
            doubts: HashMap::new(),
            refused_in_a_row: BTreeSet::new(),
            repeats: false,
        }
    }

    /// Tells what is done with.
    pub(super) fn settled(&self) -> watch::Receiver<Settled> {
        self.ahead.lock().settled()
    }

    /// Until the process stops, and then until everything is counted, or cannot be now.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Said before the round: one that began earlier may have left what is removed at the end alone.
            let is_last = stopping.is_cancelled();
            let ended = self.round(is_last).await;
            let (oldest_s, (held, wakes)) = {
                let ahead = self.ahead.lock();
                (ahead.oldest_s(), ahead.resting())
            };
            self.metrics.bytes(self.spool.bytes());
            self.metrics.held(held);
            match (&ended, oldest_s) {
                (Err(_), None) => self.metrics.stuck(),
                _ => self.metrics.oldest(oldest_s),
            }
            match ended {
                Ok(Round::Done) => pause = FIRST_PAUSE,
                // What rests is counted by the next process.
                Ok(Round::Empty) if is_last => return,
                Ok(Round::Empty) => {
                    tokio::select! {
                        () = self.spool.appended() => {}
                        () = stopping.cancelled() => {}
                        () = until(wakes) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, bytes = self.spool.bytes(), "usage that was accepted to disk is not counted yet");
                    tokio::select! {
                        // What is left is counted by the next process.
                        () = stopping.cancelled() => return,
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
                    }
                }
            }
        }
    }

    async fn round(&mut self, is_last: bool) -> Result<Round, DrainError> {
        self.take().await?;
        let Some(next) = self.next() else {
            self.give_back_lost();
            let is_all = self.remove_finished(is_last).await?;
            return Ok(if is_all { Round::Empty } else { Round::Done });
        };
        match next {
            Next::Count(portion) => self.count(portion).await,
            Next::Ask => {
                self.ask().await?;
                Ok(Round::Done)
            }
            // What it is nobody's clock or right can change.
            Next::Refuse(why) => self.refuse_for_sure(&why).await,
            Next::Lost(bytes) => {
                tracing::error!(
                    bytes,
                    "a call of the usage spool can no longer be read from its disk, and is lost"
                );
                self.metrics.damaged(bytes);
                self.done(1);
                Ok(Round::Done)
            }
        }
    }

    /// Gives back what tenants have in the spool that is not there, where nothing that can be read is left of theirs.
    fn give_back_lost(&self) {
        let settled = self.ahead.lock().settled();
        let settled = settled.borrow();
        // What a later release wrote is there, and is not told by its tenants.
        if settled.oldest_later_s.is_none() {
            self.shares.give_back_lost(|tenant| settled.is_past(tenant, self.spool.next_sequence()));
        }
    }

    /// Takes what comes next, where nothing is taken.
    async fn take(&self) -> Result<(), DrainError> {
        if !self.ahead.lock().hand().is_empty() {
            return Ok(());
        }
        self.ahead.lock().take();
        if self.ahead.lock().hand().is_empty() {
            self.prepare().await?;
            self.ahead.lock().take();
        }
        Ok(())
    }

    /// Counts these, while what comes next is read.
    async fn count(&mut self, portion: Portion) -> Result<Round, DrainError> {
        let (entries, points) = (portion.entries.len(), portion.points());
        let has_more = self.ahead.lock().has_more();
        let prepared = async { if has_more { self.prepare().await } else { Ok(()) } };
        let counted = transaction::count(&self.store, &self.days, &portion);
        let (counted, prepared) = tokio::join!(counted, prepared);
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => return self.failed(error, entries, points).await,
        };
        self.repeats = counted.duplicates + counted.refused.len() > 0;
        self.at_once = (self.at_once * 2).min(MAX_ENTRIES);
        self.points_at_once = self.points_at_once.saturating_mul(2);
        self.refused_in_a_row.clear();
        self.metrics.counted(&counted);
        match portion.only {
            Some(part) if !portion.is_end => self.ahead.lock().counted_to(part.end),
            _ => self.done(entries),
        }
        self.remove_done().await;
        // What it failed at is tried again, and said, once nothing is prepared.
        prepared.map(|()| Round::Done)
    }

    /// Reads what was appended since, and entries whose turn it is.
    async fn prepare(&self) -> Result<(), DrainError> {
        let ahead = Arc::clone(&self.ahead);
        let most_cost = self.costs.together;
        // It is megabytes to read and to parse: not on a thread that serves calls.
        let read = tokio::task::spawn_blocking(move || {
            let mut ahead = ahead.lock();
            let found = ahead.look()?;
            ahead.prepare(MAX_ENTRIES, most_cost).map(|()| found)
        });
        let found = read.await.map_err(io::Error::other)??;
        if found.damaged_bytes > 0 {
            let bytes = found.damaged_bytes;
            tracing::error!(
                bytes,
                "what is on the usage spool's disk is damaged: unless it is an end that was torn off before it was answered, records are lost"
            );
            self.metrics.damaged(bytes);
        }
        if found.later > 0 {
            let calls = found.later;
            tracing::error!(
                calls,
                "a later release wrote calls of the usage spool: they stay where they are until it runs on this folder again"
            );
        }
        Ok(())
    }

    /// What is done with the first ones that were taken.
    fn next(&self) -> Option<Next> {
        let mut ahead = self.ahead.lock();
        let today = self.clock.today();
        let hand = ahead.hand();
        let first = hand.front()?;
        let is_asked = |one: &Waiting| !one.is_young && one.is_old(today);
        match &first.what {
            What::Wrong(why) => return Some(Next::Refuse(why.clone())),
            What::Lost => return Some(Next::Lost(first.bytes)),
            What::Call(_) if is_asked(first) => return Some(Next::Ask),
            What::Call(_) => {}
        }
        let is_alone = |one: &Waiting| {
            self.doubts.contains_key(&one.tenant) || !one.is_whole(self.costs) || is_asked(one)
        };
        let count = if is_alone(first) {
            1
        } else {
            hand.iter().take(self.at_once).take_while(|one| !is_alone(one)).count().max(1)
        };
        let part = first.part(if count == 1 { self.points_at_once } else { usize::MAX }, self.costs);
        let entries = hand.iter().take(count).map_while(|one| match &one.what {
            What::Call(read) => Some(Arc::clone(&read.accepted)),
            What::Wrong(_) | What::Lost => None,
        });
        let cost = match count {
            1 => first.cost() * part.len() as u64 / first.points().max(1) as u64,
            _ => hand.iter().take(count).map(Waiting::cost).sum(),
        };
        let is_of_before = |one: &Waiting| one.located.sequence < self.spool.begins();
        Some(Next::Count(Portion {
            entries: entries.collect(),
            cost,
            is_end: part.end == first.points(),
            only: Some(part).filter(|part| count == 1 && part.len() < first.points()),
            looks_first: self.repeats || hand.iter().take(count).any(is_of_before),
        }))
    }

    /// Goes on with less, lets the tenant rest whose entry is not taken, puts one aside that is refused for good, or waits.
    async fn failed(
        &mut self,
        error: CountError,
        entries: usize,
        points: usize,
    ) -> Result<Round, DrainError> {
        let (is_of_days, error) = match error {
            CountError::Days(error) => (true, error),
            CountError::Store(error) => (false, error),
        };
        let (is_slow, full) = (error.is_too_slow(), error.full());
        let is_much = is_slow || full.is_some();
        if entries > 1 && (is_much || error.is_of_data() || error.may_be_of_one()) {
            tracing::warn!(%error, entries, "usage that was accepted to disk is not taken: fewer entries at once");
            self.at_once = (if is_slow { entries / SLOW_PARTS } else { entries / 2 }).max(1);
            return Ok(Round::Done);
        }
        let first = self.ahead.lock().hand().front().map(|one| (one.tenant, one.located.sequence));
        let Some((tenant, sequence)) = first else { return Err(error.into()) };
        if is_much && points > 1 {
            tracing::warn!(%error, points, "usage that was accepted to disk is not taken: fewer records at once");
            self.points_at_once = points / 2;
            self.doubts.entry(tenant).or_default();
            self.ahead.lock().put_back(tenant);
            return Ok(Round::Done);
        }
        if error.is_of_data() {
            return self.refused(&error, is_of_days, (tenant, sequence)).await;
        }
        if is_slow || full == Some(Full::Share) || error.may_be_of_one() {
            self.rest(tenant, &error.to_string());
            return Ok(Round::Done);
        }
        Err(error.into())
    }

    /// Removes segments that are done with. One that cannot be removed now keeps nothing from being counted.
    async fn remove_done(&self) {
        if let Err(error) = self.remove_finished(false).await {
            tracing::warn!(%error, "a file of the usage spool whose calls are counted cannot be removed yet");
        }
    }

    /// So many of the first ones need no place any more.
    fn done(&mut self, count: usize) {
        let done = self.ahead.lock().done(count);
        for one in done {
            self.doubts.remove(&one.tenant);
            let adds = one.call().map_or(0, |call| super::adds(&self.store, call, one.bytes));
            self.shares.give_back((one.tenant, one.bytes), adds);
        }
    }

    /// Removes segments that are done with; whether there is nothing more in those at the end.
    async fn remove_finished(&self, is_last: bool) -> Result<bool, DrainError> {
        // One that is written to goes at the end alone: else each call would begin a file.
        let finished = self.ahead.lock().finished(is_last);
        let mut has_more = false;
        for (number, read_to, is_all) in finished {
            // One that was read as a whole cannot have more: it is gone.
            if self.spool.remove(read_to).await? || is_all {
                self.ahead.lock().removed(number);
            } else {
                has_more = true;
            }
        }
        Ok(!has_more)
    }
}

/// What is done with the first ones that were taken.
enum Next {
    Count(Portion),
    /// The store's clock says whether the first one is too old.
    Ask,
    /// The first one cannot be counted.
    Refuse(String),
    /// The first one, of so many bytes, cannot be read.
    Lost(u64),
}

/// Where there is such an instant.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Whose a file is that was put aside.
pub(super) fn tenant_of(name: &str) -> Option<Uuid> {
    name.split('.').next()?.parse().ok()
}
