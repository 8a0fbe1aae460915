//! Points and sums written, by the owner's functions alone.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::dates::Date;
use crate::primitives::usage::count::Row;
use crate::primitives::usage::{Added, Amount, Day, Rollup, Sum, SumKey};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

const INSERT: &str =
    "SELECT held, held_fingerprint FROM outrigger_usage_insert($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const ADD_HOURS: &str = "SELECT outrigger_usage_add($1, $2, $3, $4, $5, $6, $7)";
const ADD_DAYS: &str = "SELECT outrigger_usage_add_days($1, $2, $3, $4, $5, $6, $7)";
const MAKE_DAY: &str = "SELECT outrigger_make_usage_day($1)";

/// Writes rows that come sorted by key, where all keys are new; else nothing, and of each that is known its number among them and
/// the fingerprint that is kept.
pub(in super::super) async fn insert(
    tx: &mut PgTx,
    rows: &[Row<'_>],
) -> Result<Vec<(usize, i64)>, StoreError> {
    let tenants: Vec<Uuid> = rows.iter().map(|row| row.tenant).collect();
    let metrics: Vec<&str> = rows.iter().map(|row| row.metric.name.as_str()).collect();
    let times: Vec<SystemTime> = rows.iter().map(|row| instant(row.point.time_us)).collect();
    let amounts: Vec<Amount> = rows.iter().map(|row| row.point.value).collect();
    let tags: Vec<Option<String>> = rows.iter().map(|row| row.point.tags_text()).collect();
    let metadata: Vec<Option<&str>> = rows.iter().map(|row| row.point.metadata.as_deref()).collect();
    let days: Vec<Date> = rows.iter().map(|row| row.point.key.day.into()).collect();
    let places: Vec<i64> = rows.iter().map(|row| row.point.key.place).collect();
    let hashes: Vec<Uuid> = rows.iter().map(|row| row.point.key.hash).collect();
    let fingerprints: Vec<i64> = rows.iter().map(|row| row.point.fingerprint).collect();
    let parameters: [Parameter<'_>; 10] = [
        (&tenants, Type::UUID_ARRAY),
        (&metrics, Type::TEXT_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&amounts, Type::NUMERIC_ARRAY),
        (&tags, Type::TEXT_ARRAY),
        (&metadata, Type::TEXT_ARRAY),
        (&days, Type::DATE_ARRAY),
        (&places, Type::INT8_ARRAY),
        (&hashes, Type::UUID_ARRAY),
        (&fingerprints, Type::INT8_ARRAY),
    ];
    let held = tx.query(INSERT, &parameters).await?;
    held.iter()
        .map(|row| {
            let read =
                || -> Result<(i32, i64), tokio_postgres::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
            let (number, fingerprint) = read().map_err(PgError::of_row)?;
            Ok((usize::try_from(number - 1).unwrap_or(usize::MAX), fingerprint))
        })
        .collect()
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
            starts: sums.keys().map(|(_, of)| start(of)).collect(),
            amounts: sums.values().map(|added| added.value).collect(),
            counts: sums.values().map(|added| added.count).collect(),
        }
    }
}

impl<S: tokio_postgres::types::ToSql + Sync> Columns<'_, S> {
    fn parameters(&self, starts: Type) -> [Parameter<'_>; 7] {
        [
            (&self.tenants, Type::UUID_ARRAY),
            (&self.metrics, Type::TEXT_ARRAY),
            (&self.tags, Type::TEXT_ARRAY),
            (&self.tag_values, Type::TEXT_ARRAY),
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
