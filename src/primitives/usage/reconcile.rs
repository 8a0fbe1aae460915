//! Sums made anew from raw records, and compared with those that are kept.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use uuid::Uuid;

use super::{Added, Range, RangeError, Start, UsagePolicy, Window, postgres, sqlite};
use crate::store::{Reach, Store, StoreError, Tx};

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;
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
    let range = Range::new(Window::Day, from, to, &jiff::tz::TimeZone::UTC)?;
    let mut end_us = range.from_us();
    while end_us < range.to_us() {
        let begin_us = end_us;
        // Raw rows of SQLite are read from the first to the last each time; PostgreSQL finds those of a day.
        end_us = match store {
            Store::Postgres(_) => begin_us + DAY_US,
            Store::Sqlite(_) => range.to_us(),
        };
        let block = Block { store, policy, begin_us, end_us, from_us: range.from_us(), to_us: range.to_us() };
        block.settled().await?.into_iter().for_each(&mut tell);
    }
    Ok(())
}

/// Some days of a range.
struct Block<'s> {
    store: &'s Store,
    policy: &'s UsagePolicy,
    begin_us: i64,
    end_us: i64,
    from_us: i64,
    to_us: i64,
}

impl Block<'_> {
    /// The differences, once they are the same twice.
    async fn settled(&self) -> Result<Vec<Difference>, ReconcileError> {
        let mut before = self.look().await?;
        for _ in 1..LOOKS {
            if before.is_empty() {
                return Ok(before);
            }
            let now = self.look().await?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        Err(ReconcileError::Changing(Timestamp::from_microsecond(self.begin_us).unwrap_or_default()))
    }

    async fn look(&self) -> Result<Vec<Difference>, ReconcileError> {
        // Days of the zone that begin in this block may end after it, and are looked at whole.
        let days = self.policy.calendar().days_within(self.begin_us, self.end_us, (self.from_us, self.to_us));
        let (mut first_us, mut last_us) = (self.begin_us, self.end_us);
        if let Some((first, last)) = days {
            first_us = first_us.min(self.policy.calendar().begin_us(first));
            last_us = last_us.max(self.policy.calendar().begin_us(last));
        }
        let mut records: HashMap<SumName, Added> = HashMap::new();
        // A statement has ten seconds, and busy hours have millions of records.
        let step_us =
            if matches!(self.store, Store::Postgres(_)) { HOUR_US / 12 } else { last_us - first_us };
        let mut at_us = first_us;
        while at_us < last_us {
            let until_us = (at_us + step_us).min(last_us);
            for (of, added) in self.records(at_us, until_us).await? {
                let is_asked = match of.start {
                    Start::Hour(hour) => (self.begin_us..self.end_us).contains(&hour.as_microsecond()),
                    Start::Day(day) => days.is_some_and(|(first, last)| day >= first && day < last),
                };
                if is_asked {
                    let sum = records.entry(of).or_default();
                    sum.value += added.value;
                    sum.count += added.count;
                }
            }
            at_us = until_us;
        }
        records.retain(|_, added| *added != Added::default());
        let mut kept: HashMap<SumName, Added> = self.kept(days).await?.into_iter().collect();
        let mut differences = Vec::new();
        for (of, right) in records {
            let kept = kept.remove(&of);
            if kept != Some(right) {
                differences.push(Difference { of, kept, records: Some(right) });
            }
        }
        differences.extend(kept.into_iter().map(|(of, kept)| Difference {
            of,
            kept: Some(kept),
            records: None,
        }));
        differences.sort();
        Ok(differences)
    }

    async fn records(&self, from_us: i64, to_us: i64) -> Result<Found, StoreError> {
        let (tags, calendar) = (self.policy.declared_tags(), self.policy.calendar().clone());
        self.store
            .read(Reach::nobody(), move |tx| {
                let (tags, calendar) = (tags.clone(), calendar.clone());
                Box::pin(async move {
                    match tx {
                        Tx::Postgres(tx) => postgres::records(tx, (from_us, to_us), &tags, &calendar).await,
                        Tx::Sqlite(tx) => sqlite::records(tx, (from_us, to_us), &tags, &calendar),
                    }
                })
            })
            .await
    }

    async fn kept(&self, days: Option<(Date, Date)>) -> Result<Found, StoreError> {
        let (tags, hours) = (self.policy.declared_tags(), (self.begin_us, self.end_us));
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
