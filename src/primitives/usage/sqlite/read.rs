//! Sums read.

use jiff::Timestamp;
use jiff::civil::Date;
use rusqlite::types::{FromSql, ToSql};

use crate::primitives::usage::read::{MAX_ROWS, SumOf};
use crate::primitives::usage::{Added, Source, Sum, SumRow, Sums};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HOURS: &str = "SELECT start, tag_value, value, count FROM usage_hourly \
     WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start >= ?4 AND start < ?5 ORDER BY start, tag_value LIMIT ?6";
const DAYS: &str = "SELECT start, tag_value, value, count FROM usage_daily \
     WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start >= ?4 AND start < ?5 ORDER BY start, tag_value LIMIT ?6";

/// The sums of a range, in order; one more than a reading may have where there are more.
pub(in super::super) fn sums(
    tx: &mut SqliteTx<'_>,
    of: &SumOf<'_>,
    source: Source,
) -> Result<Sums, StoreError> {
    match source {
        Source::Hours(from, to) => {
            let start = |us: &i64| Timestamp::from_microsecond(*us).ok();
            Ok(Sums::Hours(rows(tx, HOURS, of, (&from, &to), start)?))
        }
        Source::Days(from, to) => {
            let start = |text: &String| text.parse::<Date>().ok();
            Ok(Sums::Days(rows(tx, DAYS, of, (&from.to_string(), &to.to_string()), start)?))
        }
    }
}

fn rows<C: FromSql, S>(
    tx: &mut SqliteTx<'_>,
    statement: &str,
    of: &SumOf<'_>,
    (from, to): (&dyn ToSql, &dyn ToSql),
    start: impl Fn(&C) -> Option<S>,
) -> Result<Vec<SumRow<S>>, StoreError> {
    let found: Vec<(C, String, String, i64)> = tx.run(|connection| {
        let mut asked = connection.prepare_cached(statement)?;
        let tenant = of.tenant.as_bytes().as_slice();
        let rows = asked.query_map((tenant, of.metric, of.tag, from, to, MAX_ROWS + 1), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        rows.collect()
    })?;
    found
        .into_iter()
        .map(|(at, group, text, count)| {
            let (start, value) = start(&at)
                .zip(Sum::parse(&text))
                .ok_or_else(|| StoreError::Corrupt(format!("the sum `{text}`")))?;
            Ok(SumRow { start, group, added: Added { value, count } })
        })
        .collect()
}
