//! What records are together, and what is kept of them, as the owner of the tables sees it.

use jiff::civil::{self, Date};
use jiff::{Timestamp, ToSpan as _};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::dates::Date as DateParameter;
use super::write::instant;
use crate::primitives::usage::reconcile::{DeclaredTag, Found};
use crate::primitives::usage::{Added, Calendar, Start, Sum, SumName};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

/// Records where they are booked: an adjustment is not in the sums of its own time.
const RECORDS: &str = "WITH booked AS ( \
         SELECT tenant_id, metric, tags, time AS at, NULL::date AS adjusts, value, 1 AS n \
             FROM usage_events WHERE time >= $1 AND time < $2 \
         UNION ALL SELECT tenant_id, metric, tags, time, NULL, -value, -1 \
             FROM usage_adjustments WHERE time >= $1 AND time < $2 \
         UNION ALL SELECT tenant_id, metric, tags, booked_at, date_trunc('month', time AT TIME ZONE $3)::date, value, 1 \
             FROM usage_adjustments WHERE booked_at >= $1 AND booked_at < $2), \
     tagged AS ( \
         SELECT tenant_id, metric, '' AS tag, '' AS tag_value, at, adjusts, value, n FROM booked \
         UNION ALL SELECT tenant_id, metric, declared.tag, coalesce(tags ->> declared.tag, ''), at, adjusts, value, n \
             FROM booked JOIN unnest($4::text[], $5::text[]) AS declared (metric, tag) USING (metric)) \
     SELECT tenant_id, metric, tag, tag_value, (adjusts - date '1970-01-01')::bigint, \
         (extract(epoch FROM date_trunc('hour', at, 'UTC')) * 1000000)::bigint, \
         ((at AT TIME ZONE $3)::date - date '1970-01-01')::bigint, trim_scale(sum(value))::text, sum(n)::bigint \
     FROM tagged GROUP BY 1, 2, 3, 4, 5, 6, 7";
const KEPT_HOURS: &str = "SELECT tenant_id, metric, tag, tag_value, (nullif(adjusts, '-infinity') - date '1970-01-01')::bigint, \
         (extract(epoch FROM start) * 1000000)::bigint, NULL::bigint, trim_scale(value)::text, count FROM usage_hourly \
     WHERE start >= $1 AND start < $2 AND (tag = '' OR (metric, tag) IN (SELECT * FROM unnest($3::text[], $4::text[])))";
const KEPT_DAYS: &str = "SELECT tenant_id, metric, tag, tag_value, (nullif(adjusts, '-infinity') - date '1970-01-01')::bigint, \
         NULL::bigint, (start - date '1970-01-01')::bigint, trim_scale(value)::text, count FROM usage_daily \
     WHERE start >= $1 AND start < $2 AND (tag = '' OR (metric, tag) IN (SELECT * FROM unnest($3::text[], $4::text[])))";

/// The sums of the records that are booked between two instants, by hour and by day; parts of one may come apart.
pub(in super::super) async fn records(
    tx: &mut PgTx,
    (from, to): (Timestamp, Timestamp),
    tags: &[DeclaredTag],
    calendar: &Calendar,
) -> Result<Found, StoreError> {
    let (from, to) = (instant(from.as_microsecond()), instant(to.as_microsecond()));
    let (metrics, names) = columns(tags);
    let zone = calendar.zone().iana_name().unwrap_or("UTC");
    let parameters = [
        (&from as _, Type::TIMESTAMPTZ),
        (&to as _, Type::TIMESTAMPTZ),
        (&zone as _, Type::TEXT),
        (&metrics as _, Type::TEXT_ARRAY),
        (&names as _, Type::TEXT_ARRAY),
    ];
    found(&tx.query(RECORDS, &parameters).await?)
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
    found(&rows)
}

fn columns(tags: &[DeclaredTag]) -> (Vec<&str>, Vec<&str>) {
    tags.iter().map(|declared| (declared.metric.as_str(), declared.tag.as_str())).unzip()
}

/// Each row has an hour, a day, or both.
fn found(rows: &[Row]) -> Result<Found, StoreError> {
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let (of, hour, day, added) = read(row)?;
        let starts = [hour.map(Start::Hour), day.map(Start::Day)];
        found.extend(starts.into_iter().flatten().map(|start| (SumName { start, ..of.clone() }, added)));
    }
    Ok(found)
}

type Read = (SumName, Option<Timestamp>, Option<Date>, Added);

fn read(row: &Row) -> Result<Read, StoreError> {
    type Columns = (Uuid, [String; 3], [Option<i64>; 3], String, i64);
    let columns = || -> Result<Columns, tokio_postgres::Error> {
        let texts = [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?];
        let numbers = [row.try_get(4)?, row.try_get(5)?, row.try_get(6)?];
        Ok((row.try_get(0)?, texts, numbers, row.try_get(7)?, row.try_get(8)?))
    };
    let (tenant, [metric, tag, tag_value], [adjusts, hour, day], value, count) =
        columns().map_err(PgError::of_row)?;
    let odd = || StoreError::Corrupt(format!("the sum `{value}` of {metric}"));
    let date = |days: i64| civil::date(1970, 1, 1).checked_add(days.days()).map_err(|_| odd());
    let hour = hour.map(Timestamp::from_microsecond).transpose().map_err(|_| odd())?;
    let (adjusts, day) = (adjusts.map(date).transpose()?, day.map(date).transpose()?);
    let added = Added { value: Sum::parse(&value).ok_or_else(odd)?, count };
    let start = Start::Day(Date::default());
    Ok((SumName { tenant, metric, tag, tag_value, adjusts, start }, hour, day, added))
}
