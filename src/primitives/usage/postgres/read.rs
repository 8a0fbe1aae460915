//! Sums read, by the tenant whose they are.

use jiff::Timestamp;
use jiff::ToSpan as _;
use jiff::civil::{self, Date};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::dates::Date as DateParameter;
use super::write::instant;
use crate::primitives::usage::read::{MAX_ROWS, SumOf};
use crate::primitives::usage::{Added, Source, Sum, SumRow, Sums};
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const HOURS: &str = "SELECT (extract(epoch FROM start) * 1000000)::bigint, tag_value, trim_scale(value)::text, count \
     FROM usage_hourly WHERE tenant_id = $1 AND metric = $2 AND tag = $3 AND start >= $4 AND start < $5 \
     ORDER BY start, tag_value LIMIT $6";
const DAYS: &str = "SELECT (start - date '1970-01-01')::bigint, tag_value, trim_scale(value)::text, count \
     FROM usage_daily WHERE tenant_id = $1 AND metric = $2 AND tag = $3 AND start >= $4 AND start < $5 \
     ORDER BY start, tag_value LIMIT $6";

/// The sums of a range, in order; one more than a reading may have where there are more.
pub(in super::super) async fn sums(
    tx: &mut PgTx,
    of: &SumOf<'_>,
    source: Source,
) -> Result<Sums, StoreError> {
    let limit = MAX_ROWS + 1;
    let own = [(&of.tenant as _, Type::UUID), (&of.metric as _, Type::TEXT), (&of.tag as _, Type::TEXT)];
    let [tenant, metric, tag] = own;
    match source {
        Source::Hours(from, to) => {
            let (from, to) = (instant(from), instant(to));
            let (from, to) = ((&from as _, Type::TIMESTAMPTZ), (&to as _, Type::TIMESTAMPTZ));
            let rows = tx.query(HOURS, &[tenant, metric, tag, from, to, (&limit, Type::INT8)]).await?;
            let rows = rows.iter().map(|row| read(row, |us| Timestamp::from_microsecond(us).ok()));
            Ok(Sums::Hours(rows.collect::<Result<_, _>>()?))
        }
        Source::Days(from, to) => {
            let (from, to) = (DateParameter::from(from), DateParameter::from(to));
            let (from, to) = ((&from as _, Type::DATE), (&to as _, Type::DATE));
            let rows = tx.query(DAYS, &[tenant, metric, tag, from, to, (&limit, Type::INT8)]).await?;
            Ok(Sums::Days(rows.iter().map(|row| read(row, date)).collect::<Result<_, _>>()?))
        }
    }
}

/// Of days since 1970.
fn date(days: i64) -> Option<Date> {
    civil::date(1970, 1, 1).checked_add(days.days()).ok()
}

fn read<S>(row: &Row, start: impl Fn(i64) -> Option<S>) -> Result<SumRow<S>, StoreError> {
    let columns = || -> Result<(i64, String, String, i64), tokio_postgres::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
    };
    let (number, group, value, count) = columns().map_err(PgError::of_row)?;
    let read = start(number).zip(Sum::parse(&value));
    let (start, value) =
        read.ok_or_else(|| StoreError::Corrupt(format!("the sum `{value}` of `{number}`")))?;
    Ok(SumRow { start, group, added: Added { value, count } })
}
