//! What records are together, and what is kept of them, as the owner of the tables sees it.

use std::time::SystemTime;

use jiff::civil::{self, Date};
use jiff::{Span, Timestamp, ToSpan as _};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::dates::Date as DateParameter;
use super::terms::kept as kept_terms;
use super::write::instant;
use crate::primitives::usage::reconcile::{DeclaredTag, Found, Inventory};
use crate::primitives::usage::{Added, Calendar, Start, Sum, SumName};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

/// Records where they are booked: an adjustment is not in the sums of its own time. Days and months are numbers among those whose first instants are
/// given: PostgreSQL's time zones may be of another year than those of the program that counted.
const RECORDS: &str = "WITH booked AS ( \
         SELECT tenant_id, metric, tags, time AS at, NULL::integer AS adjusts, value, 1 AS n \
             FROM usage_events WHERE time >= $1 AND time < $2 \
         UNION ALL SELECT tenant_id, metric, tags, time, NULL, -value, -1 \
             FROM usage_adjustments WHERE time >= $1 AND time < $2 \
         UNION ALL SELECT tenant_id, metric, tags, booked_at, width_bucket(time, $6::timestamptz[]), value, 1 \
             FROM usage_adjustments WHERE booked_at >= $1 AND booked_at < $2), \
     tagged AS ( \
         SELECT tenant_id, metric, '' AS tag, '' AS tag_value, at, adjusts, value, n FROM booked \
         UNION ALL SELECT tenant_id, metric, declared.tag, coalesce(tags ->> declared.tag, ''), at, adjusts, value, n \
             FROM booked JOIN unnest($4::text[], $5::text[]) AS declared (metric, tag) USING (metric)) \
     SELECT tenant_id, metric, tag, tag_value, adjusts::bigint, \
         (extract(epoch FROM date_trunc('hour', at, 'UTC')) * 1000000)::bigint, \
         width_bucket(at, $3::timestamptz[])::bigint, trim_scale(sum(value))::text, sum(n)::bigint \
     FROM tagged GROUP BY 1, 2, 3, 4, 5, 6, 7";
const KEPT_HOURS: &str = "SELECT tenant_id, metric, tag, tag_value, (nullif(adjusts, '-infinity') - date '1970-01-01')::bigint, \
         (extract(epoch FROM start) * 1000000)::bigint, NULL::bigint, trim_scale(value)::text, count FROM usage_hourly \
     WHERE start >= $1 AND start < $2 AND (tag = '' OR (metric, tag) IN (SELECT * FROM unnest($3::text[], $4::text[])))";
const KEPT_DAYS: &str = "SELECT tenant_id, metric, tag, tag_value, (nullif(adjusts, '-infinity') - date '1970-01-01')::bigint, \
         NULL::bigint, (start - date '1970-01-01')::bigint, trim_scale(value)::text, count FROM usage_daily \
     WHERE start >= $1 AND start < $2 AND (tag = '' OR (metric, tag) IN (SELECT * FROM unnest($3::text[], $4::text[])))";

const INVENTORY: &str = "SELECT usage_time_zone, usage_close_after_ms, \
         (extract(epoch FROM nullif(usage_records_from, '-infinity')::timestamp AT TIME ZONE 'UTC') * 1000000)::bigint FROM outrigger_store";
const TAGS: &str = "SELECT metric, tag, (extract(epoch FROM nullif(since, '-infinity')) * 1000000)::bigint FROM usage_tags WHERE tag <> ''";
/// An adjustment is of a month that began so many days before it was booked at the most: it was 90 days late, and lay in a spool for 100.
const ADJUSTED_DAYS: i64 = 400;

/// What the store says of what it has.
pub(in super::super) async fn inventory(tx: &mut PgTx) -> Result<Inventory, StoreError> {
    let rows = tx.query(INVENTORY, &[]).await?;
    let row = rows.first().ok_or(PgError::Ended)?;
    let records_from: Option<i64> = row.try_get(2).map_err(PgError::of_row)?;
    let tag = |row: &Row| -> Result<DeclaredTag, StoreError> {
        let columns = || Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let (metric, tag, since_us): (String, String, Option<i64>) = columns().map_err(PgError::of_row)?;
        Ok(DeclaredTag { metric, tag, since: since_us.map(at).transpose()? })
    };
    let tags = tx.query(TAGS, &[]).await?.iter().map(tag).collect::<Result<_, _>>()?;
    Ok(Inventory { kept: kept_terms(row)?, records_from: records_from.map(at).transpose()?, tags })
}

fn at(us: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(us).map_err(|_| StoreError::Corrupt(format!("the time {us}")))
}

/// The first instants of days or months, in order, and which they are.
#[derive(Default)]
struct Begins {
    instants: Vec<SystemTime>,
    dates: Vec<Date>,
}

impl Begins {
    /// From this one to the one that an instant is in.
    fn of(calendar: &Calendar, first: Date, step: Span, to: Timestamp) -> Self {
        let (mut begins, last) = (Self::default(), calendar.day(to));
        let mut date = first;
        while date <= last {
            if let Some(begin) = calendar.begin(date) {
                begins.instants.push(instant(begin.as_microsecond()));
                begins.dates.push(date);
            }
            let Ok(next) = date.checked_add(step) else { break };
            date = next;
        }
        begins
    }

    /// By its number, from 1.
    fn date(&self, number: i64) -> Result<Date, StoreError> {
        let at = usize::try_from(number - 1).ok().and_then(|at| self.dates.get(at));
        at.copied().ok_or_else(|| {
            StoreError::Corrupt("an adjustment of a month that was closed for years".to_owned())
        })
    }
}

/// The sums of the records that are booked between two instants, by hour and by day; parts of one may come apart.
pub(in super::super) async fn records(
    tx: &mut PgTx,
    (from, to): (Timestamp, Timestamp),
    tags: &[DeclaredTag],
    calendar: &Calendar,
) -> Result<Found, StoreError> {
    let days = Begins::of(calendar, calendar.day(from), 1.day(), to);
    let before = calendar.day(from).checked_sub(ADJUSTED_DAYS.days()).unwrap_or(Date::MIN);
    let months = Begins::of(calendar, before.first_of_month(), 1.month(), to);
    let (from, to) = (instant(from.as_microsecond()), instant(to.as_microsecond()));
    let (metrics, names) = columns(tags);
    let parameters = [
        (&from as _, Type::TIMESTAMPTZ),
        (&to as _, Type::TIMESTAMPTZ),
        (&days.instants as _, Type::TIMESTAMPTZ_ARRAY),
        (&metrics as _, Type::TEXT_ARRAY),
        (&names as _, Type::TEXT_ARRAY),
        (&months.instants as _, Type::TIMESTAMPTZ_ARRAY),
    ];
    found(&tx.query(RECORDS, &parameters).await?, |month| months.date(month), |day| days.date(day))
}

/// The sums that are kept of hours, and of days.
pub(in super::super) async fn kept(
    tx: &mut PgTx,
    (from, to): (Timestamp, Timestamp),
    days: Option<(Date, Date)>,
    tags: &[DeclaredTag],
) -> Result<Found, StoreError> {
    let (metrics, names) = columns(tags);
    let [metrics, names] = [&metrics, &names].map(|texts| (texts as _, Type::TEXT_ARRAY));
    let [from, to] = [from, to].map(|time| instant(time.as_microsecond()));
    let [from, to] = [&from, &to].map(|at| (at as _, Type::TIMESTAMPTZ));
    let mut rows = tx.query(KEPT_HOURS, &[from, to, metrics.clone(), names.clone()]).await?;
    if let Some((first, last)) = days {
        let (first, last) = (DateParameter::from(first), DateParameter::from(last));
        let [first, last] = [&first, &last].map(|day| (day as _, Type::DATE));
        rows.extend(tx.query(KEPT_DAYS, &[first, last, metrics, names]).await?);
    }
    found(&rows, since_1970, since_1970)
}

fn since_1970(days: i64) -> Result<Date, StoreError> {
    let date = civil::date(1970, 1, 1).checked_add(days.days());
    date.map_err(|_| StoreError::Corrupt(format!("the day {days}")))
}

fn columns(tags: &[DeclaredTag]) -> (Vec<&str>, Vec<&str>) {
    tags.iter().map(|declared| (declared.metric.as_str(), declared.tag.as_str())).unzip()
}

/// Each row has an hour, a day, or both.
fn found(
    rows: &[Row],
    month_of: impl Fn(i64) -> Result<Date, StoreError>,
    day_of: impl Fn(i64) -> Result<Date, StoreError>,
) -> Result<Found, StoreError> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let (of, [adjusts, hour, day], added) = read(row)?;
        let of = SumName { adjusts: adjusts.map(&month_of).transpose()?, ..of };
        let (hour, day) = (hour.map(at).transpose()?, day.map(&day_of).transpose()?);
        let starts = [hour.map(Start::Hour), day.map(Start::Day)];
        found.extend(starts.into_iter().flatten().map(|start| (SumName { start, ..of.clone() }, added)));
    }
    Ok(found)
}

/// A sum without its month and its time; the month, the hour and the day as numbers.
type Read = (SumName, [Option<i64>; 3], Added);

fn read(row: &Row) -> Result<Read, StoreError> {
    type Columns = (Uuid, [String; 3], [Option<i64>; 3], String, i64);
    let columns = || -> Result<Columns, tokio_postgres::Error> {
        let texts = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?];
        let numbers = [row.try_get(4)?, row.try_get(5)?, row.try_get(6)?];
        Ok((row.try_get(0)?, texts, numbers, row.try_get(7)?, row.try_get(8)?))
    };
    let (tenant, [metric, tag, tag_value], numbers, value, count) = columns().map_err(PgError::of_row)?;
    let odd = || StoreError::Corrupt(format!("the sum `{value}` of {metric}"));
    let added = Added { value: Sum::parse(&value).ok_or_else(odd)?, count };
    let start = Start::Day(Date::default());
    Ok((SumName { tenant, metric, tag, tag_value, adjusts: None, start }, numbers, added))
}
