//! Sums made anew from raw records, and compared with those that are kept.

use std::collections::HashMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{Added, Range, RangeError, Start, UsagePolicy, Window, postgres, sqlite};
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

/// A metric's tag by which sums are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeclaredTag {
    pub(super) metric: String,
    pub(super) tag: String,
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

/// Compares the sums of whole UTC days, and of the policy's days that are within them. Of each difference it is told.
pub async fn reconcile(
    store: &Store,
    policy: &UsagePolicy,
    (from, to): (Timestamp, Timestamp),
    mut tell: impl FnMut(Difference),
) -> Result<(), ReconcileError> {
    Range::new(Window::Day, from, to, &TimeZone::UTC)?;
    let (mut end, mut step) = (from, DAY);
    while end < to {
        let begin = end;
        // Raw rows of SQLite are read from the first to the last each time; PostgreSQL finds those of a day.
        end = match store {
            Store::Postgres(_) => after(begin, DAY, to),
            Store::Sqlite(_) => to,
        };
        let block = Block { store, policy, begin, end, whole: (from, to) };
        block.settled(&mut step).await?.into_iter().for_each(&mut tell);
    }
    Ok(())
}

/// So long after an instant, and no later than another one.
fn after(time: Timestamp, long: SignedDuration, last: Timestamp) -> Timestamp {
    // Beyond the end of all calendars there is nothing to wait for.
    time.checked_add(long).map_or(last, |after| after.min(last))
}

/// Some days of a range.
struct Block<'s> {
    store: &'s Store,
    policy: &'s UsagePolicy,
    begin: Timestamp,
    end: Timestamp,
    whole: (Timestamp, Timestamp),
}

impl Block<'_> {
    /// The differences, once they are the same twice.
    async fn settled(&self, step: &mut SignedDuration) -> Result<Vec<Difference>, ReconcileError> {
        let mut before = self.look(step).await?;
        for _ in 1..LOOKS {
            if before.is_empty() {
                return Ok(before);
            }
            let now = self.look(step).await?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        Err(ReconcileError::Changing(self.begin))
    }

    async fn look(&self, step: &mut SignedDuration) -> Result<Vec<Difference>, ReconcileError> {
        let calendar = self.policy.calendar();
        let days = calendar.days_within((self.begin, self.end), self.whole);
        let records = self.all_records(days, step).await?;
        let mut kept: HashMap<SumName, Added> = self.kept(days).await?.into_iter().collect();
        let mut differences = Vec::new();
        for (of, right) in records {
            let kept = kept.remove(&of);
            if kept != Some(right) {
                differences.push(Difference { of, kept, records: Some(right) });
            }
        }
        let surplus = |(of, kept)| Difference { of, kept: Some(kept), records: None };
        differences.extend(kept.into_iter().map(surplus));
        differences.sort();
        Ok(differences)
    }

    /// The sums of this block's hours, and of these days, made anew, step by step.
    async fn all_records(
        &self,
        days: Option<(Date, Date)>,
        step: &mut SignedDuration,
    ) -> Result<HashMap<SumName, Added>, StoreError> {
        // Days of the zone that begin in this block may end after it, and are looked at whole.
        let begin_of = |day: Date| self.policy.calendar().begin(day);
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
        let (tags, calendar) = (self.policy.declared_tags(), self.policy.calendar().clone());
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
        let (tags, hours) = (self.policy.declared_tags(), (self.begin, self.end));
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
