//! Points and sums written, by the owner's functions alone.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, civil};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::dates::Date;
use crate::primitives::usage::count::Row;
use crate::primitives::usage::{Added, Amount, Day, PointKey, Rollup, Sum, SumKey};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

const INSERT: &str =
    "SELECT held, held_fingerprint FROM outrigger_usage_insert($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
const COUNTED: &str = "SELECT held, held_fingerprint FROM outrigger_usage_counted($1, $2, $3)";
const ADJUST: &str = "SELECT outrigger_usage_adjust($1, $2, $3, $4, $5, $6)";
const NOW: &str = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";
const ADD_HOURS: &str = "SELECT outrigger_usage_add($1, $2, $3, $4, $5, $6, $7, $8)";
const ADD_DAYS: &str = "SELECT outrigger_usage_add_days($1, $2, $3, $4, $5, $6, $7, $8)";
const MAKE_DAY: &str = "SELECT outrigger_make_usage_day($1)";

/// Writes rows that come sorted by key, where all keys are new; else nothing, and of each that is known its number among them and
/// the fingerprint that is kept. Refused where the store's terms are not of this edition.
pub(in super::super) async fn insert(
    tx: &mut PgTx,
    rows: &[Row<'_>],
    edition: Uuid,
) -> Result<Vec<(usize, i64)>, StoreError> {
    let raw = Raw::of(rows.iter());
    let keys = Keys::of(rows.iter().map(|row| &row.point.key));
    let fingerprints: Vec<i64> = rows.iter().map(|row| row.point.fingerprint).collect();
    let [tenants, metrics, times, amounts, tags, metadata] = raw.parameters();
    let [days, places, hashes] = keys.parameters();
    let fingerprints = (&fingerprints as _, Type::INT8_ARRAY);
    let edition = (&edition as _, Type::UUID);
    let parameters =
        [tenants, metrics, times, amounts, tags, metadata, days, places, hashes, fingerprints, edition];
    held(&tx.query(INSERT, &parameters).await?)
}

/// Of keys, the numbers of those that were counted, and the fingerprints of their points.
pub(in super::super) async fn counted(
    tx: &mut PgTx,
    keys: &[PointKey],
) -> Result<Vec<(usize, i64)>, StoreError> {
    held(&tx.query(COUNTED, &Keys::of(keys.iter()).parameters()).await?)
}

/// Notes points that are adjustments, as of this transaction's beginning.
pub(in super::super) async fn adjust(tx: &mut PgTx, rows: &[&Row<'_>]) -> Result<(), StoreError> {
    tx.query(ADJUST, &Raw::of(rows.iter().copied()).parameters()).await?;
    Ok(())
}

/// When this transaction began.
pub(in super::super) async fn now(tx: &mut PgTx) -> Result<Timestamp, StoreError> {
    let rows = tx.query(NOW, &[]).await?;
    let now: i64 = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Timestamp::from_microsecond(now).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn held(rows: &[tokio_postgres::Row]) -> Result<Vec<(usize, i64)>, StoreError> {
    rows.iter()
        .map(|row| {
            let read =
                || -> Result<(i32, i64), tokio_postgres::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
            let (number, fingerprint) = read().map_err(PgError::of_row)?;
            Ok((usize::try_from(number - 1).unwrap_or(usize::MAX), fingerprint))
        })
        .collect()
}

/// Raw rows as the functions take them.
struct Raw<'r> {
    tenants: Vec<Uuid>,
    metrics: Vec<&'r str>,
    times: Vec<SystemTime>,
    amounts: Vec<Amount>,
    tags: Vec<Option<String>>,
    metadata: Vec<Option<&'r str>>,
}

impl<'r> Raw<'r> {
    fn of<'c: 'r>(rows: impl Iterator<Item = &'r Row<'c>> + Clone) -> Self {
        Self {
            tenants: rows.clone().map(|row| row.tenant).collect(),
            metrics: rows.clone().map(|row| row.metric.name.as_str()).collect(),
            times: rows.clone().map(|row| instant(row.point.time.as_microsecond())).collect(),
            amounts: rows.clone().map(|row| row.point.value).collect(),
            tags: rows.clone().map(|row| row.point.tags_text()).collect(),
            metadata: rows.map(|row| row.point.metadata.as_deref()).collect(),
        }
    }

    fn parameters(&self) -> [Parameter<'_>; 6] {
        [
            (&self.tenants, Type::UUID_ARRAY),
            (&self.metrics, Type::TEXT_ARRAY),
            (&self.times, Type::TIMESTAMPTZ_ARRAY),
            (&self.amounts, Type::NUMERIC_ARRAY),
            (&self.tags, Type::TEXT_ARRAY),
            (&self.metadata, Type::TEXT_ARRAY),
        ]
    }
}

/// Keys as the functions take them.
struct Keys {
    days: Vec<Date>,
    places: Vec<i64>,
    hashes: Vec<Uuid>,
}

impl Keys {
    fn of<'k>(keys: impl Iterator<Item = &'k PointKey> + Clone) -> Self {
        Self {
            days: keys.clone().map(|key| key.day.into()).collect(),
            places: keys.clone().map(|key| key.place).collect(),
            hashes: keys.map(|key| key.hash).collect(),
        }
    }

    fn parameters(&self) -> [Parameter<'_>; 3] {
        [(&self.days, Type::DATE_ARRAY), (&self.places, Type::INT8_ARRAY), (&self.hashes, Type::UUID_ARRAY)]
    }
}

/// Adds to sums, in the order of their keys.
pub(in super::super) async fn add(tx: &mut PgTx, sums: &Rollup<'_>) -> Result<(), StoreError> {
    let hours = Columns::of(&sums.hourly, |hour| instant(*hour));
    let days = Columns::of(&sums.daily, |day: &civil::Date| Date::from(*day));
    let (hours, days) = (hours.parameters(Type::TIMESTAMPTZ_ARRAY), days.parameters(Type::DATE_ARRAY));
    tx.query_all(&[(ADD_HOURS, &hours), (ADD_DAYS, &days)]).await?;
    Ok(())
}

/// Makes a day's partitions, where it has none.
pub(in super::super) async fn make_day(tx: &mut PgTx, day: Day) -> Result<(), StoreError> {
    let day = Date::from(day);
    tx.query(MAKE_DAY, &[(&day, Type::DATE)]).await?;
    Ok(())
}

/// Sums as the functions take them.
struct Columns<'p, S> {
    tenants: Vec<Uuid>,
    metrics: Vec<&'p str>,
    tags: Vec<&'p str>,
    tag_values: Vec<&'p str>,
    adjusted: Vec<Date>,
    starts: Vec<S>,
    amounts: Vec<Sum>,
    counts: Vec<i64>,
}

impl<'p, S> Columns<'p, S> {
    fn of<T>(sums: &BTreeMap<(SumKey<'p>, T), Added>, start: impl Fn(&T) -> S) -> Self {
        Self {
            tenants: sums.keys().map(|(key, _)| key.tenant).collect(),
            metrics: sums.keys().map(|(key, _)| key.metric).collect(),
            tags: sums.keys().map(|(key, _)| key.tag).collect(),
            tag_values: sums.keys().map(|(key, _)| key.tag_value).collect(),
            adjusted: sums.keys().map(|(key, _)| key.adjusts.into()).collect(),
            starts: sums.keys().map(|(_, of)| start(of)).collect(),
            amounts: sums.values().map(|added| added.value).collect(),
            counts: sums.values().map(|added| added.count).collect(),
        }
    }
}

impl<S: tokio_postgres::types::ToSql + Sync> Columns<'_, S> {
    fn parameters(&self, starts: Type) -> [Parameter<'_>; 8] {
        [
            (&self.tenants, Type::UUID_ARRAY),
            (&self.metrics, Type::TEXT_ARRAY),
            (&self.tags, Type::TEXT_ARRAY),
            (&self.tag_values, Type::TEXT_ARRAY),
            (&self.adjusted, Type::DATE_ARRAY),
            (&self.starts, starts),
            (&self.amounts, Type::NUMERIC_ARRAY),
            (&self.counts, Type::INT8_ARRAY),
        ]
    }
}

pub(super) fn instant(us: i64) -> SystemTime {
    let since = Duration::from_micros(us.unsigned_abs());
    if us < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
}
