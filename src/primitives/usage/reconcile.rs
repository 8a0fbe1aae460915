//! Sums made anew from raw records, and compared with those that are kept.

use std::collections::{BTreeMap, HashMap};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::terms::{self, Kept};
use super::{Added, Calendar, Range, RangeError, Start, Window, postgres, sqlite};
use crate::store::{Reach, Store, StoreError, Tx};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// Of raw rows on PostgreSQL in one statement, which has ten seconds: busy days have hundreds of millions. Where that is too slow half of it is
/// asked for, down to this.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);
/// How often a block is read until its differences are the same twice: one is what was counted between two reads.
const LOOKS: usize = 5;

/// What a sum is of, wherever it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SumName {
    /// Whose.
    pub tenant: Uuid,
    /// Of what.
    pub metric: String,
    /// The tag by which it is grouped; empty of all together.
    pub tag: String,
    /// The tag's value.
    pub tag_value: String,
    /// The first day of the closed month that it adjusts.
    pub adjusts: Option<Date>,
    /// The hour or the day.
    pub start: Start,
}

/// A sum that is not what its records are together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Which.
    pub of: SumName,
    /// As it is kept; none where there is no such sum.
    pub kept: Option<Added>,
    /// As the records are; none where there are none.
    pub records: Option<Added>,
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A sum that is wrong.
    Difference(Difference),
    /// What was not looked at, and so may be wrong.
    NotCompared(NotCompared),
}

/// What cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotCompared {
    /// Days before this instant: their records were kept long enough, and are gone.
    Dropped {
        /// From here on records are all there.
        before: Timestamp,
    },
    /// Sums of a tag that may have records which were counted before it was declared.
    Tag {
        /// Of what.
        metric: String,
        /// The tag.
        tag: String,
        /// Those that begin before this instant.
        before: Timestamp,
        /// How many there are of that time.
        sums: usize,
    },
}

/// A metric's tag by which sums are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeclaredTag {
    pub(super) metric: String,
    pub(super) tag: String,
    /// What was counted before is not in its sums; none where all is.
    pub(super) since: Option<Timestamp>,
}

/// What the store says of what it has.
#[derive(Debug, Clone)]
pub(super) struct Inventory {
    /// By which time zone it is counted, if anything is.
    pub(super) kept: Kept,
    /// From when on all records are there; none where none were dropped.
    pub(super) records_from: Option<Timestamp>,
    pub(super) tags: Vec<DeclaredTag>,
}

/// What the store has of a time: records by hour and day, or sums that are kept.
pub(super) type Found = Vec<(SumName, Added)>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The time is none of whole days.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// It changes faster than it is read.
    #[error("sums of {0} changed with each of {LOOKS} looks: ask again for a time of which no records come")]
    Changing(Timestamp),
}

/// Compares the sums of whole UTC days, and of the days of the store's zone that are within them. Of each difference it is told, and of what
/// cannot be compared.
pub async fn reconcile(
    store: &Store,
    (from, to): (Timestamp, Timestamp),
    mut tell: impl FnMut(Told),
) -> Result<(), ReconcileError> {
    Range::new(Window::Day, from, to, &TimeZone::UTC)?;
    let Inventory { kept, records_from, tags } = inventory(store).await?;
    let Some((zone, closes)) = kept else { return Ok(()) };
    let calendar = terms::calendar(&zone, closes)?;
    let mut whole = (from, to);
    let mut dropped = records_from.filter(|before| *before > from);
    if let Some(before) = dropped {
        whole.0 = before.min(to);
    }
    let (mut end, mut step) = (whole.0, DAY);
    let mut uncovered: BTreeMap<(String, String), usize> = BTreeMap::new();
    while end < to {
        let begin = end;
        // Raw rows of SQLite are read from the first to the last each time; PostgreSQL finds those of a day.
        end = match store {
            Store::Postgres(_) => after(begin, DAY, to),
            Store::Sqlite(_) => to,
        };
        let block = Block { store, calendar: &calendar, tags: &tags, begin, end, whole };
        let mut looked = block.settled(&mut step).await?;
        if !looked.differences.is_empty() {
            // Some may have been dropped since it was begun.
            let now_from = inventory(store).await?.records_from.filter(|before| *before > begin);
            dropped = dropped.max(now_from);
            looked
                .differences
                .retain(|difference| now_from.is_none_or(|from| block.begins(difference.of.start) >= from));
        }
        looked.differences.into_iter().map(Told::Difference).for_each(&mut tell);
        looked.uncovered.into_iter().for_each(|(of, sums)| *uncovered.entry(of).or_default() += sums);
    }
    let of_tags = tags.into_iter().filter_map(|DeclaredTag { metric, tag, since }| {
        let sums = *uncovered.get(&(metric.clone(), tag.clone()))?;
        Some(NotCompared::Tag { metric, tag, before: covered_from(since?), sums })
    });
    let dropped = dropped.map(|before| NotCompared::Dropped { before: before.min(to) });
    dropped.into_iter().chain(of_tags).map(Told::NotCompared).for_each(tell);
    Ok(())
}

/// The first instant of which all that was counted is in the sums of a tag: what is counted then is up to five minutes ahead of the clock of who
/// counts, and clocks differ.
fn covered_from(since: Timestamp) -> Timestamp {
    since.checked_add(DAY).unwrap_or(Timestamp::MAX)
}

async fn inventory(store: &Store) -> Result<Inventory, StoreError> {
    store
        .read(Reach::nobody(), |tx| {
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::inventory(tx).await,
                    Tx::Sqlite(tx) => sqlite::inventory(tx),
                }
            })
        })
        .await
}

/// So long after an instant, and no later than another one.
fn after(time: Timestamp, long: SignedDuration, last: Timestamp) -> Timestamp {
    // Beyond the end of all calendars there is nothing to wait for.
    time.checked_add(long).map_or(last, |after| after.min(last))
}

/// Some days of a range.
struct Block<'s> {
    store: &'s Store,
    calendar: &'s Calendar,
    tags: &'s [DeclaredTag],
    begin: Timestamp,
    end: Timestamp,
    whole: (Timestamp, Timestamp),
}

/// What a look at a block found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looked {
    differences: Vec<Difference>,
    /// How many sums were not compared, by metric and tag.
    uncovered: BTreeMap<(String, String), usize>,
}

impl Block<'_> {
    /// The differences, once they are the same twice.
    async fn settled(&self, step: &mut SignedDuration) -> Result<Looked, ReconcileError> {
        let mut before = self.look(step).await?;
        for _ in 1..LOOKS {
            if before.differences.is_empty() {
                return Ok(before);
            }
            let now = self.look(step).await?;
            if now.differences == before.differences {
                return Ok(now);
            }
            before = now;
        }
        Err(ReconcileError::Changing(self.begin))
    }

    async fn look(&self, step: &mut SignedDuration) -> Result<Looked, ReconcileError> {
        let days = self.calendar.days_within((self.begin, self.end), self.whole);
        let records = self.all_records(days, step).await?;
        let mut kept: HashMap<SumName, Added> = self.kept(days).await?.into_iter().collect();
        let mut looked = Looked::default();
        let mut compare = |of: SumName, kept: Option<Added>, records: Option<Added>| {
            if !self.is_covered(&of) {
                *looked.uncovered.entry((of.metric, of.tag)).or_default() += 1;
            } else if kept != records {
                looked.differences.push(Difference { of, kept, records });
            }
        };
        for (of, right) in records {
            let kept = kept.remove(&of);
            compare(of, kept, Some(right));
        }
        kept.into_iter().for_each(|(of, kept)| compare(of, Some(kept), None));
        looked.differences.sort();
        Ok(looked)
    }

    /// Whether all records of a sum were counted by its tag.
    fn is_covered(&self, of: &SumName) -> bool {
        let declared =
            self.tags.iter().find(|declared| declared.metric == of.metric && declared.tag == of.tag);
        let since = declared.and_then(|declared| declared.since);
        since.is_none_or(|since| self.begins(of.start) >= covered_from(since))
    }

    /// When an hour or a day begins.
    fn begins(&self, start: Start) -> Timestamp {
        match start {
            Start::Hour(hour) => hour,
            // Beyond the end of all calendars nothing begins.
            Start::Day(day) => self.calendar.begin(day).unwrap_or(Timestamp::MAX),
        }
    }

    /// The sums of this block's hours, and of these days, made anew, step by step.
    async fn all_records(
        &self,
        days: Option<(Date, Date)>,
        step: &mut SignedDuration,
    ) -> Result<HashMap<SumName, Added>, StoreError> {
        // Days of the zone that begin in this block may end after it, and are looked at whole.
        let begin_of = |day: Date| self.calendar.begin(day);
        let (mut at, mut last) = (self.begin, self.end);
        if let Some((first_day, last_day)) = days {
            at = begin_of(first_day).map_or(at, |begin| begin.min(at));
            last = begin_of(last_day).map_or(last, |begin| begin.max(last));
        }
        let mut records: HashMap<SumName, Added> = HashMap::new();
        while at < last {
            let until = match self.store {
                Store::Postgres(_) => after(at, *step, last),
                Store::Sqlite(_) => last,
            };
            let found = match self.records(at, until).await {
                Err(error) if error.is_too_slow() && *step > SHORTEST => {
                    *step = (*step / 2).max(SHORTEST);
                    continue;
                }
                found => found?,
            };
            for (of, added) in found {
                let is_asked = match of.start {
                    Start::Hour(hour) => hour >= self.begin && hour < self.end,
                    Start::Day(day) => days.is_some_and(|(first, last)| day >= first && day < last),
                };
                if is_asked {
                    let sum = records.entry(of).or_default();
                    sum.value += added.value;
                    sum.count += added.count;
                }
            }
            at = until;
        }
        // What was moved away as an adjustment leaves nothing.
        records.retain(|_, added| *added != Added::default());
        Ok(records)
    }

    async fn records(&self, from: Timestamp, to: Timestamp) -> Result<Found, StoreError> {
        let (tags, calendar) = (self.tags.to_vec(), self.calendar.clone());
        self.store
            .read(Reach::nobody(), move |tx| {
                let (tags, calendar) = (tags.clone(), calendar.clone());
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => postgres::records(tx, (from, to), &tags, &calendar).await,
                        Tx::Sqlite(tx) => sqlite::records(tx, (from, to), &tags, &calendar),
                    }
                })
            })
            .await
    }

    async fn kept(&self, days: Option<(Date, Date)>) -> Result<Found, StoreError> {
        let (tags, hours) = (self.tags.to_vec(), (self.begin, self.end));
        self.store
            .read(Reach::nobody(), move |tx| {
                let tags = tags.clone();
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => postgres::kept(tx, hours, days, &tags).await,
                        Tx::Sqlite(tx) => sqlite::kept(tx, hours, days, &tags),
                    }
                })
            })
            .await
    }
}
