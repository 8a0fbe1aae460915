//! What was accepted, counted: in order, the entries of many tenants in a transaction.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::conflicts::{self, Conflict};
use super::super::count::{Counted, count_each};
use super::super::metrics::SpoolMetrics;
use super::super::{Call, Day, Days};
use super::entry::{self, Accepted};
use super::shares::Shares;
use crate::store::spool::{AppendError, Entry, Place, Read, Spool};
use crate::store::{Reach, Store, StoreError, Tx};

/// What the calls of one transaction cost at the most, beside one that costs more.
const MAX_COST: u64 = 8 * 1024 * 1024;
/// Entries of one transaction at the most.
const MAX_ENTRIES: usize = 256;
const TOO_OLD: &str =
    "it was in the spool for so long that it may have been counted, and its keys are no longer kept";
/// Of a file whose tenant cannot be read.
const UNKNOWN: &str = "unknown";
/// For how many days keys are kept.
const KEYS_DAYS: i32 = 100;
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
    /// What was read, and up to where.
    waiting: VecDeque<Waiting>,
    read_to: Option<Place>,
    /// Entries of a transaction at the most: fewer where one of them may be what the store refuses.
    at_once: usize,
    /// Whether keys are looked up first: the last ones were counted before.
    repeats: bool,
}

/// An entry that is to be counted.
struct Waiting {
    sequence: u64,
    tenant: Uuid,
    accepted_ms: i64,
    cost: u64,
    payload: Vec<u8>,
    /// Shared with the transaction that counts it.
    accepted: Arc<Accepted>,
}

/// What was read.
struct Batch {
    waiting: Vec<Waiting>,
    /// Entries that cannot be counted, with their sequences, and why not.
    wrong: Vec<(u64, Vec<u8>, String)>,
    damaged_bytes: u64,
    to: Place,
    is_all: bool,
}

impl Batch {
    fn of(read: Read) -> Self {
        let (mut waiting, mut wrong) = (Vec::with_capacity(read.entries.len()), Vec::new());
        for Entry { sequence, payload } in read.entries {
            match entry::head(&payload).and_then(|head| Ok((head, entry::read(&payload)?))) {
                Ok((_, accepted)) if is_too_old(&accepted.call) => {
                    wrong.push((sequence, payload, TOO_OLD.to_owned()));
                }
                Ok((head, accepted)) => waiting.push(Waiting {
                    sequence,
                    tenant: head.tenant,
                    accepted_ms: head.accepted_ms,
                    cost: accepted.call.cost(),
                    payload,
                    accepted: Arc::new(accepted),
                }),
                Err(error) => wrong.push((sequence, payload, error.to_string())),
            }
        }
        Self { waiting, wrong, damaged_bytes: read.damaged_bytes, to: read.to, is_all: read.is_all }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.wrong.is_empty()
    }
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
        let (waiting, read_to) = (VecDeque::new(), None);
        Self { spool, store, days, shares, metrics, waiting, read_to, at_once: MAX_ENTRIES, repeats: false }
    }

    /// Until the process stops, and then until everything is counted, or cannot be now.
    pub(super) async fn run(mut self, stopping: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let ended = self.round(stopping.is_cancelled()).await;
            self.metrics.bytes(self.spool.bytes());
            self.metrics.oldest(self.waiting.front().map(|entry| entry.accepted_ms));
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
        let count = self.next();
        let batch = self.waiting.iter().take(count).map(|entry| Arc::clone(&entry.accepted)).collect();
        match self.count(batch, looks_first).await {
            Ok(counted) => {
                self.repeats = counted.duplicates + counted.refused.len() > 0;
                self.at_once = (self.at_once * 2).min(MAX_ENTRIES);
                self.metrics.counted(&counted);
                (0..count).for_each(|_| self.done());
            }
            Err(error) if error.is_of_data() && count > 1 => {
                tracing::warn!(%error, entries = count, "usage that was accepted to disk is refused: fewer entries at once");
                self.at_once = count / 2;
            }
            Err(error) if error.is_of_data() => {
                let first = self.waiting.front().map(|entry| (entry.sequence, &entry.payload));
                if let Some((sequence, payload)) = first {
                    self.put_aside(sequence, payload, &error.to_string())?;
                }
                self.waiting.pop_front();
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Round::Done)
    }

    /// The first one needs no place any more.
    fn done(&mut self) {
        if let Some(entry) = self.waiting.pop_front() {
            self.shares.give_back((entry.tenant, entry.payload.len() as u64));
        }
    }

    /// Reads what was appended since, and removes what is done with.
    async fn read(&mut self, is_last: bool) -> Result<Round, DrainError> {
        let (spool, from) = (Arc::clone(&self.spool), self.read_to);
        // A segment is megabytes to read and to parse: not on a thread that serves calls.
        let read = tokio::task::spawn_blocking(move || spool.read(from).map(|read| read.map(Batch::of)));
        let Some(batch) = read.await.map_err(io::Error::other)?? else { return Ok(Round::Empty) };
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
            return Ok(if is_removed { Round::Done } else { Round::Empty });
        }
        for (sequence, payload, why) in &batch.wrong {
            self.put_aside(*sequence, payload, why)?;
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
        costs.take(self.at_once).take_while(|cost| *cost <= MAX_COST).count().max(1)
    }

    async fn count(&self, batch: Vec<Arc<Accepted>>, looks_first: bool) -> Result<Counted, StoreError> {
        let days: BTreeSet<Day> = batch.iter().flat_map(|accepted| accepted.call.days()).collect();
        self.days.make(days.clone()).await?;
        let tenants = batch.iter().map(|accepted| accepted.call.tenant()).collect();
        let batch: Arc<[Arc<Accepted>]> = batch.into();
        let counted: Result<Counted, StoreError> = self
            .store
            .run(Reach::background_batch(tenants), 0, move |tx| {
                let batch = Arc::clone(&batch);
                Box::pin(async move { count_and_list(tx, &batch, looks_first).await })
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
        let (owner, bytes, kind) = match read {
            Ok((head, body)) => (head.tenant.to_string(), body, "json"),
            Err(_) => (UNKNOWN.to_owned(), payload, "entry"),
        };
        // After a kill the same one may come again.
        let path = self.spool.put_aside(&format!("{owner}.{sequence:020}.{kind}"), bytes)?;
        let file = path.display();
        tracing::error!(%file, tenant = owner, why, "usage that was accepted to disk cannot be counted, and is kept in this file");
        self.metrics.refused();
        Ok(())
    }
}

/// Whose a file is that was put aside.
pub(super) fn tenant_of(name: &str) -> Option<Uuid> {
    name.split_once('.')?.0.parse().ok()
}

/// Whether the keys of some of it may be gone.
fn is_too_old(call: &Call) -> bool {
    let oldest = Day::of(Timestamp::now()).number() - KEYS_DAYS;
    call.days().iter().any(|day| day.number() <= oldest)
}

/// Counts entries, and lists what has another one's key.
async fn count_and_list(
    tx: &mut Tx<'_>,
    batch: &[Arc<Accepted>],
    looks_first: bool,
) -> Result<Counted, StoreError> {
    let calls: Vec<&Call> = batch.iter().map(|accepted| &accepted.call).collect();
    let counted = count_each(tx, &calls, looks_first).await?;
    let conflict = |(call, number): &(usize, usize)| {
        let Accepted { call, keys } = &**batch.get(*call)?;
        let point = call.points().get(*number)?;
        Some(Conflict {
            tenant: call.tenant(),
            metric: &call.metric(point)?.name,
            key: keys.get(*number)?,
            point,
        })
    };
    let found: Vec<Conflict<'_>> = counted.refused.iter().filter_map(conflict).collect();
    if !found.is_empty() {
        conflicts::note(tx, &found).await?;
    }
    Ok(counted)
}
