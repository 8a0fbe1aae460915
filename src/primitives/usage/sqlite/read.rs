//! Sums read.

use jiff::Timestamp;
use jiff::civil::Date;
use rusqlite::types::{FromSql, ToSql};

use crate::primitives::usage::read::{MAX_GROUPS, Start, SumOf, Sums};
use crate::primitives::usage::{Added, Range, Source, Sum, SumRow};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HOURS: &str = "SELECT start, tag_value, value, count, adjusts FROM usage_hourly \
     WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start >= ?4 AND start < ?5";
const DAYS: &str = "SELECT start, tag_value, value, count, adjusts FROM usage_daily \
     WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start >= ?4 AND start < ?5";
const GROUPS: &str = "SELECT DISTINCT tag_value FROM usage_daily \
     WHERE tenant = ?1 AND metric = ?2 AND tag = ?3 AND start >= ?4 AND start < ?5 ORDER BY tag_value LIMIT ?6";

/// The values of a tag on these days, in order; one more than a reading may have where there are more.
pub(in super::super) fn groups(
    tx: &mut SqliteTx<'_>,
    of: &SumOf<'_>,
    (from, to): (Date, Date),
) -> Result<Vec<String>, StoreError> {
    let limit = i64::try_from(MAX_GROUPS + 1).unwrap_or(i64::MAX);
    let groups = tx.run(|connection| {
        let mut asked = connection.prepare_cached(GROUPS)?;
        let tenant = of.tenant.as_bytes().as_slice();
        let bounds = (from.to_string(), to.to_string());
        let rows =
            asked.query_map((tenant, of.metric, of.tag, bounds.0, bounds.1, limit), |row| row.get(0))?;
        rows.collect()
    })?;
    Ok(groups)
}

/// The sums of a page, and the total of the whole, in the transaction's one view.
pub(in super::super) fn sums(
    tx: &mut SqliteTx<'_>,
    of: &SumOf<'_>,
    page: &Range,
    whole: &Range,
) -> Result<Sums, StoreError> {
    let mut total = Sum::default();
    each(tx, &SumOf { tag: "", ..*of }, whole.source(), |row| total += row.added.value)?;
    let mut sums: Vec<SumRow> = Vec::new();
    each(tx, of, page.source(), |row| {
        // Those of one window that come one after the other are added up at once.
        match sums.last_mut() {
            Some(last) if is_same(page, last, &row) => {
                last.added.value += row.added.value;
                last.added.count += row.added.count;
            }
            _ => sums.push(row),
        }
    })?;
    Ok(Sums { sums, total })
}

fn is_same(page: &Range, one: &SumRow, other: &SumRow) -> bool {
    one.group == other.group
        && one.adjusts == other.adjusts
        && page.start(one.start) == page.start(other.start)
}

/// Hands over each sum of a source.
fn each(
    tx: &mut SqliteTx<'_>,
    of: &SumOf<'_>,
    source: Source,
    take: impl FnMut(SumRow),
) -> Result<(), StoreError> {
    match source {
        Source::Hours(from, to) => {
            let start = |us: &i64| Timestamp::from_microsecond(*us).ok().map(Start::Hour);
            rows(tx, HOURS, of, (&from, &to), start, take)
        }
        Source::Days(from, to) => {
            let start = |text: &String| text.parse::<Date>().ok().map(Start::Day);
            rows(tx, DAYS, of, (&from.to_string(), &to.to_string()), start, take)
        }
    }
}

fn rows<C: FromSql>(
    tx: &mut SqliteTx<'_>,
    statement: &str,
    of: &SumOf<'_>,
    (from, to): (&dyn ToSql, &dyn ToSql),
    start: impl Fn(&C) -> Option<Start>,
    mut take: impl FnMut(SumRow),
) -> Result<(), StoreError> {
    let odd = tx.run(|connection| {
        let mut asked = connection.prepare_cached(statement)?;
        let tenant = of.tenant.as_bytes().as_slice();
        let mut rows = asked.query((tenant, of.metric, of.tag, from, to))?;
        while let Some(row) = rows.next()? {
            let (at, group, text, count): (C, String, String, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let adjusts = match row.get_ref(4)?.as_str()? {
                "" => Some(None),
                month => month.parse::<Date>().ok().map(Some),
            };
            match (start(&at), Sum::parse(&text), adjusts) {
                (Some(start), Some(value), Some(adjusts)) => {
                    take(SumRow { start, group, adjusts, added: Added { value, count } });
                }
                _ => return Ok(Some(text)),
            }
        }
        Ok(None)
    })?;
    match odd {
        None => Ok(()),
        Some(text) => Err(StoreError::Corrupt(format!("the sum `{text}`"))),
    }
}
