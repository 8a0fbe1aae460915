//! Points counted in a transaction: one function, whoever's transaction it is.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use uuid::Uuid;

use super::terms::{self, Seen, Terms};
use super::{
    Ack, Calendar, Day, Known, Late, Metric, Offered, Point, PointKey, Rollup, Settled, Verdict, postgres,
    settle, sqlite,
};
use crate::policy::Permit;
use crate::store::{Reach, Store, StoreError, Tx};

/// How often a group is settled anew, since others counted its keys meanwhile.
const ATTEMPTS: usize = 4;
const HOUR_US: i64 = 3_600_000_000;
/// What a sum of an hour and its day's cost, in bytes of records.
const SUM_COST: u64 = 600;

/// A tenant's call.
#[derive(Debug, Clone)]
pub struct Call {
    tenant: Uuid,
    /// What its points' metrics are numbers of.
    metrics: Vec<Arc<Metric>>,
    points: Vec<Point>,
    /// Those that may only be known ones.
    late: Vec<Late>,
    /// Its policy's days and months.
    calendar: Arc<Calendar>,
    bytes: u64,
    cost: u64,
    /// Whether its keys are looked up before anything is written: its tenant had some of late that were counted.
    looks_first: bool,
    /// What this process saw of the store's terms.
    seen: Option<Arc<Seen>>,
}

impl Call {
    /// Of the permit's tenant, which may record all of these metrics.
    #[must_use]
    pub fn new(
        permit: &Permit,
        metrics: Vec<Arc<Metric>>,
        (points, late): (Vec<Point>, Vec<Late>),
        calendar: &Arc<Calendar>,
    ) -> Self {
        Self { late, ..Self::by(*permit.tenant().as_uuid(), metrics, points, Arc::clone(calendar)) }
    }

    /// Of a tenant that a permit named when the call came.
    pub(super) fn of(
        tenant: Uuid,
        metrics: Vec<Arc<Metric>>,
        points: Vec<Point>,
        calendar: &Calendar,
    ) -> Self {
        Self::by(tenant, metrics, points, Arc::new(calendar.clone()))
    }

    fn by(tenant: Uuid, metrics: Vec<Arc<Metric>>, points: Vec<Point>, calendar: Arc<Calendar>) -> Self {
        let bytes = points.iter().map(Point::bytes).sum();
        let cost = bytes + SUM_COST * sums(&metrics, &points);
        let (late, seen) = (Vec::new(), None);
        Self { tenant, metrics, points, late, calendar, bytes, cost, looks_first: false, seen }
    }

    /// What it wants to be counted by, and nothing to count.
    pub(super) fn without_points(&self) -> Self {
        Self::by(self.tenant, self.metrics.clone(), Vec::new(), Arc::clone(&self.calendar))
    }

    /// About what it adds to the store, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it costs a transaction: its bytes, and the sums that it adds to.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Has its keys looked up before anything is written.
    #[must_use]
    pub(super) fn looking_first(self, looks_first: bool) -> Self {
        Self { looks_first, ..self }
    }

    /// In a process that has seen the store's terms.
    #[must_use]
    pub(super) fn having_seen(self, seen: &Arc<Seen>) -> Self {
        Self { seen: Some(Arc::clone(seen)), ..self }
    }

    #[cfg(test)]
    pub(super) fn with_late(self, late: Vec<Late>) -> Self {
        Self { late, ..self }
    }

    pub(super) fn tenant(&self) -> Uuid {
        self.tenant
    }

    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    pub(super) fn metrics(&self) -> &[Arc<Metric>] {
        &self.metrics
    }

    /// Those that may only be known ones.
    pub(super) fn late(&self) -> &[Late] {
        &self.late
    }

    pub(super) fn calendar(&self) -> &Arc<Calendar> {
        &self.calendar
    }

    /// Whether some of its points are of metrics whose records are counted after they were answered.
    pub(super) fn has_spooled_metrics(&self) -> bool {
        self.metrics.iter().any(|metric| metric.ack == Ack::Spool)
    }

    /// Whether it is counted after it was answered. A correction is not, nor what is late: keys are looked up first.
    pub(super) fn is_spooled(&self) -> bool {
        self.late.is_empty()
            && self.metrics.iter().all(|metric| metric.ack == Ack::Spool)
            && self.points.iter().all(|point| point.corrects.is_none())
    }

    /// The days that its points are of, of which one may be new.
    pub(super) fn days(&self) -> BTreeSet<Day> {
        let is_far = |number: usize| {
            let at = self.late.binary_search_by_key(&number, |late| late.number);
            at.is_ok_and(|at| self.late.get(at).is_some_and(|late| late.is_far))
        };
        let may_be_new = self.points.iter().enumerate().filter(|(number, _)| !is_far(*number));
        may_be_new.map(|(_, point)| point.key.day).collect()
    }

    /// How many of its points are of an hour that was over an hour ago.
    #[must_use]
    pub fn of_hours_before(&self, now: Timestamp) -> u64 {
        self.points.iter().filter(|point| is_of_hour_before(point, now)).count() as u64
    }

    /// The metric of one of its points.
    pub(super) fn metric(&self, point: &Point) -> Option<&Metric> {
        self.metrics.get(usize::from(point.metric)).map(|metric| &**metric)
    }
}

/// How many sums of hours these points add to.
fn sums(metrics: &[Arc<Metric>], points: &[Point]) -> u64 {
    let mut sums: HashSet<(u16, &str, &str, i64)> = HashSet::new();
    for point in points {
        let hour = point.time.as_microsecond().div_euclid(HOUR_US);
        sums.insert((point.metric, "", "", hour));
        let declared = metrics.get(usize::from(point.metric)).map_or(&[][..], |metric| &metric.group_by);
        for tag in declared {
            let value = point.tags.iter().find(|(name, _)| **name == *tag.as_str());
            let value = value.map_or("", |(_, value)| value);
            sums.insert((point.metric, tag.as_str(), value, hour));
        }
    }
    sums.len() as u64
}

/// Whether a point that comes at an instant is of an hour that was over an hour before.
fn is_of_hour_before(point: &Point, came: Timestamp) -> bool {
    let hour = |time: Timestamp| time.as_microsecond().div_euclid(HOUR_US);
    hour(point.time) < hour(came) - 1
}

/// A point to be written.
pub(super) struct Row<'c> {
    pub(super) tenant: Uuid,
    pub(super) metric: &'c Metric,
    pub(super) point: &'c Point,
}

/// Points that are counted together or not at all.
#[derive(Clone, Copy)]
struct Unit<'c> {
    call: &'c Call,
    points: &'c [Point],
    late: &'c [Late],
    looks_first: bool,
}

impl<'c> Unit<'c> {
    /// All of a call.
    fn of(call: &'c Call) -> Self {
        Self { call, points: &call.points, late: &call.late, looks_first: call.looks_first }
    }
}

/// Counts calls in this transaction, each as a whole or not at all, and says what became of each. Of calls whose policy has another zone than the
/// store nothing is counted.
pub async fn count(tx: &mut Tx<'_>, calls: &[Call]) -> Result<Vec<Verdict>, StoreError> {
    let seen = calls.iter().find_map(|call| call.seen.as_deref());
    let all: Vec<&Call> = calls.iter().collect();
    let terms = terms::in_force(tx, &all, seen, false).await?;
    let is_own = |call: &Call| call.calendar.zone_name() == terms.time_zone;
    let units: Vec<Unit<'_>> = calls.iter().filter(|call| is_own(call)).map(Unit::of).collect();
    let counted = match units.is_empty() {
        true => Vec::new(),
        false => count_units(tx, &units, &terms, seen).await?,
    };
    if units.len() == calls.len() {
        return Ok(counted);
    }
    let mut counted = counted.into_iter();
    let verdict = |call: &Call| match is_own(call) {
        true => counted.next().ok_or_else(|| defect("a call without a verdict")),
        false => Ok(Verdict::OtherZone(terms.time_zone.clone())),
    };
    calls.iter().map(verdict).collect()
}

/// Counts calls that were promised to be counted at an instant, or these of their points: each that can be is, and those that cannot are
/// returned.
pub(super) async fn count_each(
    tx: &mut Tx<'_>,
    calls: &[(&Call, Timestamp)],
    only: Option<Range<usize>>,
    looks_first: bool,
) -> Result<Counted, StoreError> {
    let all: Vec<&Call> = calls.iter().map(|(call, _)| *call).collect();
    let terms = terms::in_force(tx, &all, None, true).await?;
    let only = only.unwrap_or(0..usize::MAX);
    let part = |(call, _): &(&Call, _)| only.start.min(call.points.len())..only.end.min(call.points.len());
    let places: Vec<(usize, usize)> =
        calls.iter().enumerate().flat_map(|(number, call)| part(call).map(move |at| (number, at))).collect();
    let unit = |(number, at): &(usize, usize)| {
        let (call, _) = *calls.get(*number)?;
        Some(Unit { call, points: call.points.get(*at..=*at)?, late: &[], looks_first })
    };
    let units: Option<Vec<Unit<'_>>> = places.iter().map(unit).collect();
    let units = units.ok_or_else(|| defect("a point of no call"))?;
    let verdicts = count_units(tx, &units, &terms, None).await?;
    let mut counted = Counted::default();
    for ((place, unit), verdict) in places.into_iter().zip(units).zip(verdicts) {
        match verdict {
            Verdict::Counted { accepted, duplicates } => {
                let came = calls.get(place.0).map(|(_, came)| *came);
                let is_late = |point: &Point| came.is_some_and(|came| is_of_hour_before(point, came));
                counted.late += if unit.points.iter().any(is_late) { accepted } else { 0 };
                counted.accepted += accepted;
                counted.duplicates += duplicates;
            }
            Verdict::Refused(_) => counted.refused.push(place),
            Verdict::OtherZone(_) => return Err(defect("what was promised is counted in any zone")),
        }
    }
    Ok(counted)
}

/// What became of points that are each counted by itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    /// Those that were not known before.
    pub(super) accepted: usize,
    /// Of these, those of an hour that was over an hour before they came.
    pub(super) late: usize,
    /// Those that were.
    pub(super) duplicates: usize,
    /// The others, each by its call's number and its own in there.
    pub(super) refused: Vec<(usize, usize)>,
}

/// The sums are its last step: they are hot, and locked until the commit.
async fn count_units(
    tx: &mut Tx<'_>,
    units: &[Unit<'_>],
    terms: &Terms,
    seen: Option<&Seen>,
) -> Result<Vec<Verdict>, StoreError> {
    let late = late_numbers(tx, units).await?;
    let offered: Vec<Offered<'_>> = (0..)
        .zip(units)
        .map(|(number, unit)| Offered {
            points: unit.points,
            late: late.get(number).map_or(&[], Vec::as_slice),
        })
        .collect();
    let corrected = units.iter().flat_map(|unit| unit.points).filter_map(|point| point.corrects);
    let suspected = units.iter().filter(|unit| unit.looks_first).flat_map(|unit| unit.points);
    let of_late =
        units.iter().flat_map(|unit| unit.late.iter().filter_map(|late| unit.points.get(late.number)));
    let keys = suspected.chain(of_late).map(|point| point.key).chain(corrected);
    let mut looked_for: BTreeSet<PointKey> = keys.collect();
    let mut known = counted(tx, looked_for.clone()).await?;
    for _ in 0..ATTEMPTS {
        let mut settled = settle(&offered, &known);
        let refused = refused_keys(units, &settled);
        if !refused.is_subset(&looked_for) {
            // What is refused is not inserted, and that would not say all that is wrong with it.
            known.extend(counted(tx, refused.clone()).await?);
            looked_for.extend(refused);
            settled = settle(&offered, &known);
        }
        let rows = rows(units, &settled)?;
        if rows.is_empty() {
            if let Tx::Postgres(tx) = tx {
                tx.wait_for_what_was_seen().await?;
            }
            return Ok(settled.verdicts);
        }
        let held = match tx {
            Tx::Postgres(tx) => postgres::insert(tx, &rows, terms.edition).await.inspect_err(|_| {
                // Others may be in force: where that is why, this is run again, and asks.
                seen.iter().for_each(|seen| seen.forget());
            })?,
            Tx::Sqlite(tx) => sqlite::insert(tx, &rows)?,
        };
        if held.is_empty() {
            add(tx, &rows, terms).await?;
            return Ok(settled.verdicts);
        }
        for (number, fingerprint) in held {
            let row = rows.get(number).ok_or_else(|| defect("a key that was not asked for"))?;
            known.insert(row.point.key, fingerprint);
        }
    }
    Err(StoreError::Contended)
}

/// Of each unit the points that are too old to be new, by the store's clock; none at all where none may be.
async fn late_numbers(tx: &mut Tx<'_>, units: &[Unit<'_>]) -> Result<Vec<Vec<usize>>, StoreError> {
    if units.iter().all(|unit| unit.late.is_empty()) {
        return Ok(Vec::new());
    }
    let now_us = now(tx).await?.as_microsecond();
    let is_late = |unit: &Unit<'_>, late: &Late| {
        let time_us = unit.points.get(late.number).map(|point| point.time.as_microsecond());
        late.is_far || time_us.is_some_and(|time_us| time_us < now_us - late.accept_late_us)
    };
    let of_unit = |unit: &Unit<'_>| {
        unit.late.iter().filter(|late| is_late(unit, late)).map(|late| late.number).collect()
    };
    Ok(units.iter().map(of_unit).collect())
}

/// The store's clock.
async fn now(tx: &mut Tx<'_>) -> Result<Timestamp, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::now(tx).await,
        Tx::Sqlite(_) => Ok(Timestamp::now()),
    }
}

/// The keys of those that are refused.
fn refused_keys(units: &[Unit<'_>], settled: &Settled<'_>) -> BTreeSet<PointKey> {
    let with_verdicts = units.iter().zip(&settled.verdicts);
    let refused = with_verdicts.filter(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
    refused.flat_map(|(unit, _)| unit.points).map(|point| point.key).collect()
}

/// Of keys, those that were counted.
async fn counted(tx: &mut Tx<'_>, keys: BTreeSet<PointKey>) -> Result<Known, StoreError> {
    if keys.is_empty() {
        return Ok(Known::new());
    }
    let keys: Vec<PointKey> = keys.into_iter().collect();
    let counted = match tx {
        Tx::Postgres(tx) => postgres::counted(tx, &keys).await?,
        Tx::Sqlite(tx) => sqlite::counted(tx, &keys)?,
    };
    let of = |(number, fingerprint): (usize, i64)| {
        let key = keys.get(number).ok_or_else(|| defect("a key that was not asked for"))?;
        Ok((*key, fingerprint))
    };
    counted.into_iter().map(of).collect()
}

/// How far the store's clock may be ahead of this process's.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(24);

/// Adds points to the sums, where they are booked.
async fn add(tx: &mut Tx<'_>, rows: &[Row<'_>], terms: &Terms) -> Result<(), StoreError> {
    let (calendar, mut time) = (terms.calendar()?, Timestamp::now());
    if may_be_closed(&calendar, rows, time) {
        // The store's clock says which months are closed: those of sidecars differ.
        time = now(tx).await?;
    }
    let (mut sums, mut adjustments, books) = (Rollup::default(), Vec::new(), calendar.at(time));
    for row in rows {
        let (booked, metric) = (books.book(row.point.time), row.metric.name.as_str());
        sums.add(row.tenant, (metric, terms.tags(metric)), row.point, &booked);
        adjustments.extend(booked.adjusts.map(|_| row));
    }
    match tx {
        Tx::Postgres(tx) => {
            if !adjustments.is_empty() {
                postgres::adjust(tx, &adjustments).await?;
            }
            postgres::add(tx, &sums).await
        }
        Tx::Sqlite(tx) => {
            sqlite::adjust(tx, &adjustments, time)?;
            sqlite::add(tx, &sums)
        }
    }
}

/// Whether a point may be of a month that is closed by the store's clock. Most calendars close none, and nothing is looked at.
fn may_be_closed(calendar: &Calendar, rows: &[Row<'_>], now: Timestamp) -> bool {
    let latest = now.checked_add(CLOCKS_DIFFER).ok().filter(|_| calendar.closes());
    latest.is_some_and(|latest| {
        let books = calendar.at(latest);
        rows.iter().any(|row| books.book(row.point.time).adjusts.is_some())
    })
}

fn rows<'c>(units: &[Unit<'c>], settled: &Settled<'c>) -> Result<Vec<Row<'c>>, StoreError> {
    let row = |(unit, point): &(usize, &'c Point)| {
        let call = units.get(*unit)?.call;
        Some(Row { tenant: call.tenant, metric: call.metric(point)?, point })
    };
    let rows: Option<Vec<Row<'c>>> = settled.points.iter().map(row).collect();
    rows.ok_or_else(|| defect("a point of no metric"))
}

pub(super) fn defect(what: &str) -> StoreError {
    StoreError::Corrupt(format!("a defect: {what}"))
}

/// Which days one store has room for.
pub struct Days {
    store: Store,
    /// Days with partitions.
    days: Mutex<HashSet<Day>>,
    /// One day is made at a time, and by one caller.
    making: tokio::sync::Mutex<()>,
}

impl Days {
    /// Of this one.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, days: Mutex::default(), making: tokio::sync::Mutex::new(()) }
    }

    /// Makes the partitions of days that this process has not seen: late records are rare, and their days many.
    pub async fn make(&self, days: BTreeSet<Day>) -> Result<(), StoreError> {
        let Store::Postgres(_) = &self.store else { return Ok(()) };
        let is_missing = |day: &Day| !self.days.lock().contains(day);
        if !days.iter().any(is_missing) {
            return Ok(());
        }
        // Who waits finds most of its days made.
        let _alone = self.making.lock().await;
        for day in days.into_iter().filter(is_missing) {
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

    /// Days that may be gone again, with a server that was promoted or restored.
    pub(super) fn forget(&self, days: &BTreeSet<Day>) {
        self.days.lock().retain(|day| !days.contains(day));
    }
}
