//! What records are together, and what is kept of them.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::civil::Date;
use rusqlite::Row;
use rusqlite::types::ToSql;
use uuid::Uuid;

use crate::primitives::usage::reconcile::{DeclaredTag, Found, Inventory};
use crate::primitives::usage::{Added, Amount, Calendar, Start, Sum, SumName};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

/// Records where they are booked: an adjustment is not in the sums of its own time. The last column is 1 of those that are, -1 of
/// what takes one from there, and the fifth when the month that is adjusted was.
const RECORDS: &str = "SELECT tenant, metric, tags, time_us, NULL, value, 1 FROM usage_events WHERE time_us >= ?1 AND time_us < ?2 \
     UNION ALL SELECT tenant, metric, tags, time_us, NULL, value, -1 FROM usage_adjustments WHERE time_us >= ?1 AND time_us < ?2 \
     UNION ALL SELECT tenant, metric, tags, booked_us, time_us, value, 1 FROM usage_adjustments WHERE booked_us >= ?1 AND booked_us < ?2";
const KEPT_HOURS: &str = "SELECT tenant, metric, tag, tag_value, adjusts, start, value, count FROM usage_hourly WHERE start >= ?1 AND start < ?2";
const KEPT_DAYS: &str = "SELECT tenant, metric, tag, tag_value, adjusts, start, value, count FROM usage_daily WHERE start >= ?1 AND start < ?2";
const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

const INVENTORY: &str = "SELECT usage_time_zone, usage_close_after_ms, usage_records_from_us FROM store";
const TAGS: &str = "SELECT metric, tag, since_us FROM usage_tags WHERE tag <> ''";

/// What the store says of what it has.
pub(in super::super) fn inventory(tx: &mut SqliteTx<'_>) -> Result<Inventory, StoreError> {
    type Columns = (Option<String>, Option<i64>, Option<i64>);
    let (columns, tags): (Columns, Vec<(String, String, i64)>) = tx.run(|connection| {
        let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let store = connection.prepare_cached(INVENTORY)?.query_row([], columns)?;
        let mut asked = connection.prepare_cached(TAGS)?;
        let tags = asked.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok((store, tags.collect::<rusqlite::Result<_>>()?))
    })?;
    let at =
        |us: i64| Timestamp::from_microsecond(us).map_err(|_| StoreError::Corrupt(format!("the time {us}")));
    let (zone, closes_ms, records_from_us) = columns;
    // Records went from one instant on; whole days are compared.
    let midnight =
        |us: i64| us.div_euclid(DAY_US) * DAY_US + if us.rem_euclid(DAY_US) > 0 { DAY_US } else { 0 };
    let tag = |(metric, tag, since_us): (String, String, i64)| {
        let since = Some(since_us).filter(|us| *us > i64::MIN).map(at).transpose()?;
        Ok::<_, StoreError>(DeclaredTag { metric, tag, since })
    };
    Ok(Inventory {
        kept: zone.map(|zone| (zone, closes_ms.map(i64::unsigned_abs))),
        records_from: records_from_us.map(midnight).map(at).transpose()?,
        tags: tags.into_iter().map(tag).collect::<Result<_, _>>()?,
    })
}

/// A record as it is booked.
struct Booked {
    tenant: Uuid,
    metric: String,
    tags: HashMap<String, String>,
    hour: Timestamp,
    day: Date,
    adjusts: Option<Date>,
    added: Added,
}

/// The sums of the records that are booked between two instants, by hour and by day.
pub(in super::super) fn records(
    tx: &mut SqliteTx<'_>,
    (from, to): (Timestamp, Timestamp),
    tags: &[DeclaredTag],
    calendar: &Calendar,
) -> Result<Found, StoreError> {
    let mut sums: HashMap<SumName, Added> = HashMap::new();
    let odd = tx.run(|connection| {
        let mut asked = connection.prepare_cached(RECORDS)?;
        let mut rows = asked.query((from.as_microsecond(), to.as_microsecond()))?;
        while let Some(row) = rows.next()? {
            match booked(row, calendar)? {
                Ok(booked) => add(&mut sums, &booked, tags),
                Err(odd) => return Ok(Some(odd)),
            }
        }
        Ok(None)
    })?;
    match odd {
        None => Ok(sums.into_iter().collect()),
        Some(what) => Err(StoreError::Corrupt(format!("a record of usage: {what}"))),
    }
}

/// Adds a record to the sums of its hour and day, of all and of each declared tag.
fn add(sums: &mut HashMap<SumName, Added>, booked: &Booked, tags: &[DeclaredTag]) {
    let declared = tags.iter().filter(|declared| declared.metric == booked.metric);
    // Without the tag a record is in the sum of the empty value.
    let value = |tag: &str| booked.tags.get(tag).map_or("", String::as_str);
    let groups = declared.map(|declared| (declared.tag.as_str(), value(&declared.tag)));
    for (tag, tag_value) in std::iter::once(("", "")).chain(groups) {
        for start in [Start::Hour(booked.hour), Start::Day(booked.day)] {
            let of = SumName {
                tenant: booked.tenant,
                metric: booked.metric.clone(),
                tag: tag.to_owned(),
                tag_value: tag_value.to_owned(),
                adjusts: booked.adjusts,
                start,
            };
            let sum = sums.entry(of).or_default();
            sum.value += booked.added.value;
            sum.count += booked.added.count;
        }
    }
}

/// What a row says; in words what of it is nothing that this program writes.
fn booked(row: &Row<'_>, calendar: &Calendar) -> rusqlite::Result<Result<Booked, String>> {
    let (text, sign): (String, i64) = (row.get(5)?, row.get(6)?);
    let (tags, at_us): (Option<String>, i64) = (row.get(2)?, row.get(3)?);
    let of_month: Option<i64> = row.get(4)?;
    let (tenant, metric) = (Uuid::from_bytes(row.get(0)?), row.get(1)?);
    let read = || -> Result<Booked, String> {
        let amount = Amount::parse(&text).map_err(|_| format!("the value `{text}`"))?;
        let amount = if sign < 0 { amount.negated() } else { Some(amount) };
        let value = amount.ok_or_else(|| format!("the value `{text}`"))?;
        let tags = tags.map_or_else(
            || Ok(HashMap::new()),
            |tags| serde_json::from_str(&tags).map_err(|_| format!("the tags `{tags}`")),
        )?;
        let instant = |us: i64| Timestamp::from_microsecond(us).map_err(|_| format!("the time {us}"));
        let hour = instant(at_us.div_euclid(HOUR_US) * HOUR_US)?;
        let adjusts = of_month.map(instant).transpose()?.map(|time| calendar.day(time).first_of_month());
        let (day, added) = (calendar.day(instant(at_us)?), Added { value: Sum::from(value), count: sign });
        Ok(Booked { tenant, metric, tags, hour, day, adjusts, added })
    };
    Ok(read())
}

/// The sums that are kept of hours, and of days.
pub(in super::super) fn kept(
    tx: &mut SqliteTx<'_>,
    (from, to): (Timestamp, Timestamp),
    days: Option<(Date, Date)>,
    tags: &[DeclaredTag],
) -> Result<Found, StoreError> {
    let hour = |row: &Row<'_>| Ok(Timestamp::from_microsecond(row.get(5)?).ok().map(Start::Hour));
    let (from_us, to_us) = (from.as_microsecond(), to.as_microsecond());
    let mut found = sums(tx, KEPT_HOURS, (&from_us, &to_us), hour)?;
    if let Some((first, last)) = days {
        let day = |row: &Row<'_>| Ok(row.get_ref(5)?.as_str()?.parse().ok().map(Start::Day));
        found.extend(sums(tx, KEPT_DAYS, (&first.to_string(), &last.to_string()), day)?);
    }
    let is_asked = |of: &SumName| {
        of.tag.is_empty()
            || tags.iter().any(|declared| declared.metric == of.metric && declared.tag == of.tag)
    };
    found.retain(|(of, _)| is_asked(of));
    Ok(found)
}

fn sums(
    tx: &mut SqliteTx<'_>,
    statement: &str,
    (from, to): (&dyn ToSql, &dyn ToSql),
    start: impl Fn(&Row<'_>) -> rusqlite::Result<Option<Start>>,
) -> Result<Found, StoreError> {
    let mut found = Vec::new();
    let odd = tx.run(|connection| {
        let mut asked = connection.prepare_cached(statement)?;
        let mut rows = asked.query((from, to))?;
        while let Some(row) = rows.next()? {
            let (adjusts, value): (String, String) = (row.get(4)?, row.get(6)?);
            let month = Some(adjusts.as_str()).filter(|text| !text.is_empty()).map(str::parse::<Date>);
            let (Some(start), Some(sum), Ok(adjusts)) = (start(row)?, Sum::parse(&value), month.transpose())
            else {
                return Ok(Some(value));
            };
            let (metric, tag, tag_value) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let of =
                SumName { tenant: Uuid::from_bytes(row.get(0)?), metric, tag, tag_value, adjusts, start };
            found.push((of, Added { value: sum, count: row.get(7)? }));
        }
        Ok(None)
    })?;
    match odd {
        None => Ok(found),
        Some(text) => Err(StoreError::Corrupt(format!("the sum `{text}`"))),
    }
}
