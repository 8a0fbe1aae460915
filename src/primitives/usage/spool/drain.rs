//! What was accepted, counted: in order, the entries of many tenants in a transaction.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::conflicts::{self, Conflict};
use super::super::count::{Counted, count_each, defect};
use super::super::metrics::SpoolMetrics;
use super::super::{Call, Day, Days};
use super::batch::{Batch, Waiting};
use super::entry::{self, Accepted};
use super::shares::Shares;
use crate::digest;
use crate::store::spool::{AppendError, Place, Spool};
use crate::store::sqlite::Adds;
use crate::store::{Reach, Store, StoreError, Tx};

/// What the calls of one transaction cost at the most, beside one that costs more.
const MAX_COST: u64 = 8 * 1024 * 1024;
/// The same on SQLite, whose transactions are others' to wait for.
const MAX_COST_EMBEDDED: u64 = 1024 * 1024;
/// Entries of one transaction at the most.
const MAX_ENTRIES: usize = 256;
/// Of a file whose tenant cannot be read.
const UNKNOWN: &str = "unknown";
/// Between two attempts while the store or the disk is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Counts what is in a spool.
pub(super) struct Drain {
    spool: Arc<Spool>,
    store: Store,
    days: Days,
    shares: Arc<Shares>,
    metrics: Arc<SpoolMetrics>,
    settled: watch::Sender<u64>,
    /// What was read, and up to where.
    waiting: VecDeque<Waiting>,
    read_to: Option<Place>,
    /// Entries of a transaction at the most: fewer where one of them may be what the store refuses.
    at_once: usize,
    /// Of one entry's points, likewise.
    points_at_once: usize,
    /// The entry that was refused last: the second time it is believed.
    refused: Option<u64>,
    /// Whether keys are looked up first: the last ones were counted before.
    repeats: bool,
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
    /// Everything is counted.
    Empty,
}

impl Drain {
    pub(super) fn new(
        spool: Arc<Spool>,
        store: Store,
        shares: Arc<Shares>,
        metrics: Arc<SpoolMetrics>,
    ) -> Self {
        let days = Days::new(store.clone());
        Self {
            spool,
            store,
            days,
            shares,
            metrics,
            settled: watch::Sender::new(0),
            waiting: VecDeque::new(),
            read_to: None,
            at_once: MAX_ENTRIES,
            points_at_once: usize::MAX,
            refused: None,
            repeats: false,
        }
    }

    /// Tells up to which sequence all are done with.
    pub(super) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// Until the process stops, and then until everything is counted, or cannot be now.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = self.round(stopping.is_cancelled()).await;
            self.metrics.bytes(self.spool.bytes());
            match (&ended, self.waiting.front()) {
                (Err(_), None) => self.metrics.stuck(),
                (_, first) => self.metrics.oldest(first.map(|entry| entry.accepted.accepted_ms)),
            }
            match ended {
                Ok(Round::Done) => pause = FIRST_PAUSE,
                Ok(Round::Empty) if stopping.is_cancelled() => return,
                Ok(Round::Empty) => {
                    tokio::select! {
                        () = self.spool.appended() => {}
                        () = stopping.cancelled() => {}
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
        let Some(first) = self.waiting.front() else { return self.read(is_last).await };
        let looks_first = self.repeats || first.sequence < self.spool.begins();
        let points = first.accepted.call.points().len();
        let fair = match &self.store {
            Store::Sqlite(_) if first.cost > MAX_COST_EMBEDDED => {
                part_of(points, MAX_COST_EMBEDDED, first.cost)
            }
            _ => points,
        };
        let to = first.at.saturating_add(self.points_at_once.min(fair).max(1)).min(points);
        let part = first.at..to;
        let count = self.next();
        let cost = match count {
            1 => first.cost * part.len() as u64 / points.max(1) as u64,
            _ => self.waiting.iter().take(count).map(|entry| entry.cost).sum(),
        };
        let batch = self.waiting.iter().take(count).map(|entry| Arc::clone(&entry.accepted)).collect();
        let only = Some(part.clone()).filter(|part| count == 1 && part.len() < points);
        match self.count(batch, cost, only, looks_first).await {
            Ok(counted) => {
                self.repeats = counted.duplicates + counted.refused.len() > 0;
                self.at_once = (self.at_once * 2).min(MAX_ENTRIES);
                self.points_at_once = self.points_at_once.saturating_mul(2);
                self.metrics.counted(&counted);
                match self.waiting.front_mut() {
                    Some(first) if count == 1 && to < points => first.at = to,
                    _ => (0..count).for_each(|_| self.done()),
                }
                Ok(Round::Done)
            }
            Err(error) => self.failed(error, count, part.len()),
        }
    }

    /// Goes on with less, puts the entry aside that is refused for good, or waits.
    fn failed(&mut self, error: StoreError, entries: usize, points: usize) -> Result<Round, DrainError> {
        let is_much = error.is_too_slow() || error.full().is_some();
        if entries > 1 && (is_much || error.is_of_data()) {
            tracing::warn!(%error, entries, "usage that was accepted to disk is not taken: fewer entries at once");
            self.at_once = entries / 2;
            return Ok(Round::Done);
        }
        if is_much && points > 1 {
            tracing::warn!(%error, points, "usage that was accepted to disk is not taken: fewer records at once");
            self.points_at_once = points / 2;
            return Ok(Round::Done);
        }
        let Some(first) = self.waiting.front().filter(|_| error.is_of_data()) else {
            return Err(error.into());
        };
        if self.refused != Some(first.sequence) {
            // The days of a server that was promoted or restored may be missing: they are made before the next attempt.
            self.refused = Some(first.sequence);
            return Ok(Round::Done);
        }
        self.put_aside(first.sequence, &first.payload, &error.to_string())?;
        self.done();
        Ok(Round::Done)
    }

    /// The first one needs no place any more.
    fn done(&mut self) {
        if let Some(entry) = self.waiting.pop_front() {
            let bytes = entry.payload.len() as u64;
            let adds = super::adds(&self.store, &entry.accepted.call, bytes);
            self.shares.give_back((entry.accepted.call.tenant(), bytes), adds);
            self.settled.send_replace(entry.sequence + 1);
        }
    }

    /// Reads what was appended since, and removes what is done with.
    async fn read(&mut self, is_last: bool) -> Result<Round, DrainError> {
        let (spool, from, next) = (Arc::clone(&self.spool), self.read_to, self.spool.next_sequence());
        // A segment is megabytes to read and to parse: not on a thread that serves calls.
        let read = tokio::task::spawn_blocking(move || spool.read(from).map(|read| read.map(Batch::of)));
        let Some(batch) = read.await.map_err(io::Error::other)?? else {
            self.settled.send_replace(next);
            return Ok(Round::Empty);
        };
        for (sequence, payload, why) in &batch.wrong {
            self.put_aside(*sequence, payload, why)?;
            if let Ok(head) = entry::head(payload) {
                self.shares.give_back((head.tenant, payload.len() as u64), 0);
            }
        }
        if batch.damaged_bytes > 0 {
            let bytes = batch.damaged_bytes;
            tracing::error!(
                bytes,
                "what is on the usage spool's disk is damaged: unless it is an end that was torn off before it was answered, records are lost"
            );
            self.metrics.damaged(bytes);
        }
        if batch.is_empty() {
            // One that is written to goes at the end alone: else each call would begin a file.
            let is_removed = (batch.is_all || is_last) && self.spool.remove(batch.to).await?;
            self.read_to = Some(batch.to);
            if !batch.is_all {
                // It is the last one, which is written to.
                self.settled.send_replace(next);
            }
            return Ok(if is_removed { Round::Done } else { Round::Empty });
        }
        // Not before all that is wrong is put aside: what fails is read again.
        self.read_to = Some(batch.to);
        self.waiting.extend(batch.waiting);
        Ok(Round::Done)
    }

    /// How many of those that wait go into the next transaction.
    fn next(&self) -> usize {
        let costs = self.waiting.iter().scan(0, |sum, entry| {
            *sum += entry.cost;
            Some(*sum)
        });
        let most = match (&self.store, self.waiting.front()) {
            (_, Some(first)) if first.at > 0 => return 1,
            (Store::Sqlite(_), _) => MAX_COST_EMBEDDED,
            (Store::Postgres(_), _) => MAX_COST,
        };
        costs.take(self.at_once).take_while(|cost| *cost <= most).count().max(1)
    }

    /// Counts entries, or a part of one's points.
    async fn count(
        &self,
        batch: Vec<Arc<Accepted>>,
        cost: u64,
        only: Option<Range<usize>>,
        looks_first: bool,
    ) -> Result<Counted, StoreError> {
        let days: BTreeSet<Day> = batch.iter().flat_map(|accepted| accepted.call.days()).collect();
        self.days.make(days.clone()).await?;
        let tenants = batch.iter().map(|accepted| accepted.call.tenant()).collect();
        let batch: Arc<[Arc<Accepted>]> = batch.into();
        let counted: Result<Counted, StoreError> = self
            .store
            .run_adding(Reach::background_batch(tenants), Adds::Promised(cost), move |tx| {
                let (batch, only) = (Arc::clone(&batch), only.clone());
                Box::pin(async move { count_and_list(tx, &batch, only, looks_first).await })
            })
            .await;
        if counted.is_err() {
            // They may be gone, with a server that was promoted or restored.
            self.days.forget(&days);
        }
        counted
    }

    /// Keeps an entry that cannot be counted in a file of its own: its records as `POST /v1/usage` takes them, or all of it where they cannot be
    /// read. It stays in its tenant's part of the spool.
    fn put_aside(&self, sequence: u64, payload: &[u8], why: &str) -> io::Result<()> {
        let read = entry::head(payload).and_then(|head| Ok((head, entry::body(payload)?)));
        let (tenant, bytes, kind) = match read {
            Ok((head, body)) => (Some(head.tenant), body, "json"),
            Err(_) => (None, payload, "entry"),
        };
        let owner = tenant.map_or(UNKNOWN.to_owned(), |tenant| tenant.to_string());
        // After a kill the same one may come again; another one never has its name.
        let digest = u64::from_be_bytes(digest::first(digest::of_parts([payload]).as_ref()));
        let path = self.spool.put_aside(&format!("{owner}.{sequence:020}.{digest:016x}.{kind}"), bytes)?;
        if let Some(tenant) = tenant {
            self.shares.add_aside(tenant, bytes.len() as u64);
        }
        let file = path.display();
        tracing::error!(%file, tenant = owner, why, "usage that was accepted to disk cannot be counted, and is kept in this file");
        self.metrics.refused();
        Ok(())
    }
}

/// So many of these points that they cost about so much, of what all cost.
fn part_of(points: usize, cost: u64, all: u64) -> usize {
    usize::try_from(points as u64 * cost / all.max(1)).unwrap_or(points)
}

/// Whose a file is that was put aside.
pub(super) fn tenant_of(name: &str) -> Option<Uuid> {
    name.split('.').next()?.parse().ok()
}

/// Counts entries, and lists what has another one's key.
async fn count_and_list(
    tx: &mut Tx<'_>,
    batch: &[Arc<Accepted>],
    only: Option<Range<usize>>,
    looks_first: bool,
) -> Result<Counted, StoreError> {
    let calls: Vec<&Call> = batch.iter().map(|accepted| &accepted.call).collect();
    let counted = count_each(tx, &calls, only, looks_first).await?;
    let conflict = |(call, number): &(usize, usize)| {
        let Accepted { call, keys, .. } = &**batch.get(*call)?;
        let point = call.points().get(*number)?;
        Some(Conflict {
            tenant: call.tenant(),
            metric: &call.metric(point)?.name,
            key: keys.get(*number)?,
            point,
        })
    };
    let found: Option<Vec<Conflict<'_>>> = counted.refused.iter().map(conflict).collect();
    let found = found.ok_or_else(|| defect("a conflict of no record"))?;
    if !found.is_empty() {
        conflicts::note(tx, &found).await?;
    }
    Ok(counted)
}
