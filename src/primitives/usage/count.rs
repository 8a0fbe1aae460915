//! Points counted in a transaction: one function, whoever's transaction it is.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{Day, Known, Metric, Point, Rollup, Settled, Verdict, postgres, settle, sqlite};
use crate::policy::Permit;
use crate::store::{Reach, Store, StoreError, Tx};

/// How often a group is settled anew, since others counted its keys meanwhile.
const ATTEMPTS: usize = 4;

/// A tenant's call.
#[derive(Debug, Clone)]
pub struct Call {
    tenant: Uuid,
    /// What its points' metrics are numbers of.
    metrics: Vec<Arc<Metric>>,
    points: Vec<Point>,
}

impl Call {
    /// Of the tenant that these permits are of, one for each metric and in their order.
    #[must_use]
    pub fn new(tenant: &Permit, metrics: Vec<Arc<Metric>>, points: Vec<Point>) -> Self {
        Self { tenant: *tenant.tenant().as_uuid(), metrics, points }
    }

    #[cfg(test)]
    pub(super) fn of(tenant: Uuid, metrics: Vec<Arc<Metric>>, points: Vec<Point>) -> Self {
        Self { tenant, metrics, points }
    }

    /// The metric of one of its points.
    fn metric(&self, point: &Point) -> Option<&Metric> {
        self.metrics.get(usize::from(point.metric)).map(|metric| &**metric)
    }
}

/// A point to be written.
pub(super) struct Row<'c> {
    pub(super) tenant: Uuid,
    pub(super) metric: &'c Metric,
    pub(super) point: &'c Point,
}

/// Counts calls in this transaction, each as a whole or not at all, and says what became of each. What is sums of days begins
/// by this zone.
///
/// The sums are its last step: they are hot, and locked until the commit.
pub async fn count(tx: &mut Tx<'_>, calls: &[Call], zone: &TimeZone) -> Result<Vec<Verdict>, StoreError> {
    let points: Vec<&[Point]> = calls.iter().map(|call| call.points.as_slice()).collect();
    let mut known = Known::new();
    for _ in 0..ATTEMPTS {
        let settled = settle(&points, &known);
        let rows = rows(calls, &settled)?;
        if rows.is_empty() {
            return Ok(settled.verdicts);
        }
        let held = match tx {
            Tx::Postgres(tx) => postgres::insert(tx, &rows).await?,
            Tx::Sqlite(tx) => sqlite::insert(tx, &rows)?,
        };
        if held.is_empty() {
            let mut sums = Rollup::default();
            rows.iter().for_each(|row| sums.add(row.tenant, row.metric, row.point, zone));
            match tx {
                Tx::Postgres(tx) => postgres::add(tx, &sums).await?,
                Tx::Sqlite(tx) => sqlite::add(tx, &sums)?,
            }
            return Ok(settled.verdicts);
        }
        for (number, fingerprint) in held {
            let row = rows.get(number).ok_or_else(|| defect("a key that was not asked for"))?;
            known.insert(row.point.key, fingerprint);
        }
    }
    Err(defect("keys are held that were free"))
}

fn rows<'c>(calls: &'c [Call], settled: &Settled<'c>) -> Result<Vec<Row<'c>>, StoreError> {
    let row = |(call, point): &(usize, &'c Point)| {
        let call = calls.get(*call)?;
        Some(Row { tenant: call.tenant, metric: call.metric(point)?, point })
    };
    let rows: Option<Vec<Row<'c>>> = settled.points.iter().map(row).collect();
    rows.ok_or_else(|| defect("a point of no metric"))
}

fn defect(what: &str) -> StoreError {
    StoreError::Corrupt(format!("a defect: {what}"))
}

/// Which days one store has room for.
pub struct Days {
    store: Store,
    /// Days with partitions.
    days: Mutex<HashSet<Day>>,
}

impl Days {
    /// Of this one.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, days: Mutex::default() }
    }

    /// Makes the partitions of days that this process has not seen: late records are rare, and their days many.
    pub async fn make(&self, call: &Call) -> Result<(), StoreError> {
        let Store::Postgres(_) = &self.store else { return Ok(()) };
        let missing: BTreeSet<Day> = {
            let days = self.days.lock();
            call.points.iter().map(|point| point.key.day).filter(|day| !days.contains(day)).collect()
        };
        for day in missing {
            self.store
                .run(Reach::nobody(), 0, move |tx| {
                    Box::pin(async move {
                        match tx {
                            Tx::Postgres(tx) => postgres::make_day(tx, day).await,
                            Tx::Sqlite(_) => Ok(()),
                        }
                    })
                })
                .await?;
            self.days.lock().insert(day);
        }
        Ok(())
    }
}
