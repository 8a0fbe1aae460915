//! Into the log: one function, whoever's transaction it is.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{DEAD_LETTERS, DedupeKey, Event, Topic, dedupe_key, lane, postgres, sqlite};
use crate::names::Name;
use crate::policy::Permit;
use crate::store::{StoreError, Tx};

/// Events of one tenant on their way into one topic.
#[derive(Debug, Clone)]
pub struct Batch {
    tenant: Uuid,
    topic: Name,
    rules: Arc<Topic>,
    events: Vec<Event>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events that are in the log now, and were not before.
    pub accepted: usize,
    /// Events that were there already, or came twice in the batch.
    pub duplicates: usize,
    /// Duplicates whose type or data is another than that of the event that is kept.
    pub conflicting: usize,
}

impl Batch {
    /// Events for the topic that the permit names.
    #[must_use]
    pub fn new(permit: &Permit, rules: Arc<Topic>, events: Vec<Event>) -> Self {
        Self { tenant: *permit.tenant().as_uuid(), topic: permit.name().clone(), rules, events }
    }

    /// How many events.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// About what it adds to the store, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |event: &Event| event.attributes.len() + event.data.bytes().len() + event.key.len() + 256;
        self.events.iter().map(|event| bytes(event) as u64).sum()
    }

    /// The ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.events.iter().map(|event| &*event.id)
    }
}

/// Appends a batch in this transaction, as its last step: others read no further than what came before, until the
/// transaction ends.
///
/// An event whose topic, `source` and `id` the tenant used within `dedupe_ms` is a duplicate and is not appended. Events of
/// a key are read in the order in which their transactions end, and those of one batch in its own order.
pub async fn append(tx: &mut Tx<'_>, batch: &Batch) -> Result<Appended, StoreError> {
    let appended = append_all(tx, std::slice::from_ref(batch)).await?;
    appended.first().copied().ok_or_else(|| defect("a batch was not answered"))
}

/// The same of many batches, of one tenant or, in a transaction for all of them, of many.
pub async fn append_all(tx: &mut Tx<'_>, batches: &[Batch]) -> Result<Vec<Appended>, StoreError> {
    let mut plan = Plan::new(batches);
    match tx {
        Tx::Postgres(tx) => {
            let taken = postgres::take_ids(tx, &plan.candidates).await?;
            plan.settle(&taken)?;
            let rows = plan.rows()?;
            if rows.is_empty() && !plan.candidates.is_empty() {
                tx.wait_for_what_was_seen().await?;
            }
            postgres::insert(tx, &rows).await?;
        }
        Tx::Sqlite(tx) => {
            let taken = sqlite::take_ids(tx, &plan.candidates)?;
            plan.settle(&taken)?;
            sqlite::insert(tx, &plan.rows()?)?;
        }
    }
    Ok(plan.appended)
}

/// An id that an event wants to be the only one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) tenant: Uuid,
    pub(super) key: DedupeKey,
    pub(super) fingerprint: i64,
    pub(super) window_ms: i64,
}

/// What the store says of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nobody had the id, and this event has it now.
    New,
    /// An event with this fingerprint has it.
    Held(i64),
}

/// A row of the log.
pub(super) struct Row<'b> {
    pub(super) tenant: Uuid,
    pub(super) topic: &'b str,
    pub(super) lane: i16,
    pub(super) event: &'b Event,
}

/// Which events of the batches go in.
struct Plan<'b> {
    batches: &'b [Batch],
    /// Of each event, by batch and place: the candidate that speaks for it.
    fates: Vec<Vec<Fate>>,
    candidates: Vec<Candidate>,
    appended: Vec<Appended>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Goes,
    /// If this candidate is new.
    Asks(usize),
    Stays,
}

impl<'b> Plan<'b> {
    fn new(batches: &'b [Batch]) -> Self {
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut appended = vec![Appended::default(); batches.len()];
        let mut first: HashMap<(Uuid, DedupeKey), usize> = HashMap::new();
        let mut fates = Vec::with_capacity(batches.len());
        for (batch, appended) in batches.iter().zip(&mut appended) {
            let mut of_batch = Vec::with_capacity(batch.events.len());
            for event in &batch.events {
                if event.id_is_ours {
                    of_batch.push(Fate::Goes);
                    continue;
                }
                let candidate = Candidate {
                    tenant: batch.tenant,
                    key: dedupe_key(batch.topic.as_str(), &event.source, &event.id),
                    fingerprint: event.fingerprint(),
                    window_ms: i64::try_from(batch.rules.dedupe_ms).unwrap_or(i64::MAX),
                };
                let place = *first.entry((candidate.tenant, candidate.key)).or_insert(candidates.len());
                match candidates.get(place) {
                    None => {
                        candidates.push(candidate);
                        of_batch.push(Fate::Asks(place));
                    }
                    Some(earlier) => {
                        appended.duplicates += 1;
                        appended.conflicting += usize::from(earlier.fingerprint != candidate.fingerprint);
                        of_batch.push(Fate::Stays);
                    }
                }
            }
            fates.push(of_batch);
        }
        Self { batches, fates, candidates, appended }
    }

    /// `taken` is in the candidates' order.
    fn settle(&mut self, taken: &[Taken]) -> Result<(), StoreError> {
        for (of_batch, appended) in self.fates.iter_mut().zip(&mut self.appended) {
            for fate in of_batch {
                if let Fate::Asks(place) = *fate {
                    let answer = taken.get(place).zip(self.candidates.get(place));
                    // Left out it would be an event that nobody misses.
                    let (taken, own) = answer.ok_or_else(|| defect("an id was not answered"))?;
                    *fate = match taken {
                        Taken::New => Fate::Goes,
                        Taken::Held(fingerprint) => {
                            appended.duplicates += 1;
                            appended.conflicting += usize::from(own.fingerprint != *fingerprint);
                            Fate::Stays
                        }
                    };
                }
                appended.accepted += usize::from(*fate == Fate::Goes);
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row<'b>>, StoreError> {
        let mut rows = Vec::new();
        for (batch, fates) in self.batches.iter().zip(&self.fates) {
            for (event, _) in batch.events.iter().zip(fates).filter(|(_, fate)| **fate == Fate::Goes) {
                let lane = i16::try_from(lane(batch.tenant, &event.key, batch.rules.lanes));
                let lane = lane.map_err(|_| defect("a topic has more lanes than a policy can give"))?;
                rows.push(Row { tenant: batch.tenant, topic: batch.topic.as_str(), lane, event });
            }
        }
        Ok(rows)
    }
}

fn defect(what: &str) -> StoreError {
    StoreError::Corrupt(format!("a defect: {what}"))
}

/// Whether a name is that of a topic's dead letters.
#[must_use]
pub fn is_dead_letters(name: &str) -> bool {
    name.ends_with(DEAD_LETTERS)
}
