//! Sums read, by the tenant whose they are.

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan as _, civil};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::dates::Date as DateParameter;
use super::write::instant;
use crate::primitives::usage::read::{MAX_GROUPS, Start, SumOf, Sums};
use crate::primitives::usage::{Added, Range, Source, Step, Sum, SumRow};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// The sums of a page and the total of the whole, in one statement. The total is of what is not grouped: a tag may have been
/// declared later.
macro_rules! sums {
    ($table:literal, $start:literal, by $by:literal) => {
        concat!(
            "SELECT ",
            $start,
            ", tag_value, trim_scale(sum(value))::text, sum(count)::bigint, \
             (nullif(adjusts, '-infinity') - date '1970-01-01')::bigint FROM ",
            $table,
            " WHERE tenant_id = $1 AND metric = $2 AND tag = $3 AND start >= $4 AND start < $5 GROUP BY adjusts, ",
            $by,
            " UNION ALL SELECT NULL, '', trim_scale(coalesce(sum(value), 0))::text, 0, NULL FROM ",
            $table,
            " WHERE tenant_id = $1 AND metric = $2 AND tag = '' AND start >= $6 AND start < $7"
        )
    };
}
const EACH_HOUR: &str =
    sums!("usage_hourly", "(extract(epoch FROM start) * 1000000)::bigint", by "start, tag_value");
const ALL_HOURS: &str =
    sums!("usage_hourly", "(extract(epoch FROM min(start)) * 1000000)::bigint", by "tag_value");
const EACH_DAY: &str = sums!("usage_daily", "(start - date '1970-01-01')::bigint", by "start, tag_value");
const DAYS_OF_MONTHS: &str = sums!(
    "usage_daily",
    "(min(start) - date '1970-01-01')::bigint",
    by "date_trunc('month', start::timestamp), tag_value"
);
const ALL_DAYS: &str = sums!("usage_daily", "(min(start) - date '1970-01-01')::bigint", by "tag_value");
/// Served by the primary key; its days are those of the policy's zone.
const GROUPS: &str = "SELECT DISTINCT tag_value FROM usage_daily \
     WHERE tenant_id = $1 AND metric = $2 AND tag = $3 AND start >= $4 AND start < $5 ORDER BY tag_value LIMIT $6";

fn statement(source: Source, step: Step) -> &'static str {
    match (source, step) {
        (Source::Hours(..), Step::Each | Step::Month) => EACH_HOUR,
        (Source::Hours(..), Step::All) => ALL_HOURS,
        (Source::Days(..), Step::Each) => EACH_DAY,
        (Source::Days(..), Step::Month) => DAYS_OF_MONTHS,
        (Source::Days(..), Step::All) => ALL_DAYS,
    }
}

/// The values of a tag on these days, in order; one more than a reading may have where there are more.
pub(in super::super) async fn groups(
    tx: &mut PgTx,
    of: &SumOf<'_>,
    (from, to): (Date, Date),
) -> Result<Vec<String>, StoreError> {
    let (from, to) = (DateParameter::from(from), DateParameter::from(to));
    let limit = i64::try_from(MAX_GROUPS + 1).unwrap_or(i64::MAX);
    let [tenant, metric, tag] = own(of);
    let parameters =
        [tenant, metric, tag, (&from as _, Type::DATE), (&to as _, Type::DATE), (&limit as _, Type::INT8)];
    let rows = tx.query(GROUPS, &parameters).await?;
    rows.iter().map(|row| row.try_get(0).map_err(|error| PgError::of_row(error).into())).collect()
}

/// The sums of a page, and the total of the whole.
pub(in super::super) async fn sums(
    tx: &mut PgTx,
    of: &SumOf<'_>,
    page: &Range,
    whole: &Range,
) -> Result<Sums, StoreError> {
    let [tenant, metric, tag] = own(of);
    let statement = statement(page.source(), page.step());
    let rows = match (page.source(), whole.source()) {
        (Source::Hours(from, to), Source::Hours(first, end)) => {
            let [from, to, first, end] = [from, to, first, end].map(instant);
            let [from, to, first, end] = [&from, &to, &first, &end].map(|at| (at as _, Type::TIMESTAMPTZ));
            tx.query(statement, &[tenant, metric, tag, from, to, first, end]).await?
        }
        (Source::Days(from, to), Source::Days(first, end)) => {
            let [from, to, first, end] = [from, to, first, end].map(DateParameter::from);
            let [from, to, first, end] = [&from, &to, &first, &end].map(|at| (at as _, Type::DATE));
            tx.query(statement, &[tenant, metric, tag, from, to, first, end]).await?
        }
        _ => return Err(StoreError::Corrupt("a defect: a page of other sums than its range".to_owned())),
    };
    let (mut sums, mut total) = (Vec::with_capacity(rows.len()), Sum::default());
    for row in &rows {
        let Columns { start, group, value, count, adjusts } = columns(row).map_err(PgError::of_row)?;
        let value = Sum::parse(&value).ok_or_else(|| StoreError::Corrupt(format!("the sum `{value}`")))?;
        let Some(start) = start else {
            total = value;
            continue;
        };
        let start = match page.source() {
            Source::Hours(..) => Start::Hour(Timestamp::from_microsecond(start).map_err(|_| odd(start))?),
            Source::Days(..) => Start::Day(day(start)?),
        };
        let adjusts = adjusts.map(day).transpose()?;
        sums.push(SumRow { start, group, adjusts, added: Added { value, count } });
    }
    Ok(Sums { sums, total })
}

/// Of days since 1970.
fn day(days: i64) -> Result<Date, StoreError> {
    civil::date(1970, 1, 1).checked_add(days.days()).map_err(|_| odd(days))
}

fn own<'p>(of: &'p SumOf<'_>) -> [Parameter<'p>; 3] {
    [(&of.tenant, Type::UUID), (&of.metric, Type::TEXT), (&of.tag, Type::TEXT)]
}

struct Columns {
    start: Option<i64>,
    group: String,
    value: String,
    count: i64,
    adjusts: Option<i64>,
}

fn columns(row: &Row) -> Result<Columns, tokio_postgres::Error> {
    Ok(Columns {
        start: row.try_get(0)?,
        group: row.try_get(1)?,
        value: row.try_get(2)?,
        count: row.try_get(3)?,
        adjusts: row.try_get(4)?,
    })
}

fn odd(start: i64) -> StoreError {
    StoreError::Corrupt(format!("a sum that begins at {start}"))
}
