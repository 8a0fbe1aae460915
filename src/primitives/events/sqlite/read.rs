//! Rows of a topic, of one tenant or of several.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::{OptionalExtension as _, Row};
use uuid::Uuid;

use crate::primitives::events::audience::Sees;
use crate::primitives::events::read::{Kept, Scan, Span, Topic};
use crate::primitives::events::{Data, Logged, Position};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

/// The same statement for one tenant, whose index begins with it, and for a fleet, whose rows are looked through.
struct Statements {
    one: &'static str,
    fleet: &'static str,
}

const PAGE: Statements = Statements {
    one: "SELECT id, accepted_ms, key, type, attributes, form, data, tenant FROM events \
          WHERE tenant = ?1 AND topic = ?2 AND id > ?3 AND id <= ?4 ORDER BY id",
    fleet: "SELECT id, accepted_ms, key, type, attributes, form, data, tenant FROM events \
            WHERE topic = ?2 AND id > ?3 AND id <= ?4 ORDER BY id",
};
const AT: &str = "SELECT id, accepted_ms, key, type, attributes, form, data, tenant FROM events WHERE id = ?1 AND topic = ?2";
const FIRST_AFTER: Statements = Statements {
    one: "SELECT id, accepted_ms, tenant FROM events \
          WHERE tenant = ?1 AND topic = ?2 AND id > ?3 AND accepted_ms >= ?4 AND id <= ?5 ORDER BY id",
    fleet: "SELECT id, accepted_ms, tenant FROM events \
            WHERE topic = ?2 AND id > ?3 AND accepted_ms >= ?4 AND id <= ?5 ORDER BY id",
};
/// The last of so many rows, and how many there are, of whatever type.
const HORIZON: &str = "SELECT max(id), count(*) FROM ( \
     SELECT id FROM events WHERE tenant = ?1 AND topic = ?2 AND id > ?3 AND id <= ?4 ORDER BY id LIMIT ?5)";
const FIRST: &str = "SELECT id, accepted_ms FROM events WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT 1";
/// Also where the newest events are not kept any more.
const LAST: &str = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";

pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// The last position that may be read: all that was committed.
pub(in super::super) fn readable(tx: &mut SqliteTx<'_>) -> Result<Position, StoreError> {
    let last = tx.run(|connection| connection.prepare_cached(LAST)?.query_row([], |row| row.get(0)))?;
    Ok(Position::new(last))
}

/// The statement for those whose rows are looked at, and its first parameter.
fn of<'s>(sees: &'s Sees, statements: &Statements) -> (&'static str, Option<&'s [u8]>) {
    match sees {
        Sees::One(tenant) => (statements.one, Some(tenant.as_bytes())),
        Sees::Every | Sees::These(_) => (statements.fleet, None),
    }
}

pub(super) fn tenant(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get::<_, [u8; 16]>(column).map(Uuid::from_bytes)
}

/// The scan's next rows, up to `limit`.
pub(in super::super) fn page(
    tx: &mut SqliteTx<'_>,
    scan: &Scan,
    limit: Position,
) -> Result<Vec<Logged>, StoreError> {
    let (statement, whose) = of(&scan.sees, &PAGE);
    let found = tx.run(|connection| {
        let mut statement = connection.prepare_cached(statement)?;
        let (after, limit) = (scan.after.number(), limit.number());
        let mut rows = statement.query((whose, scan.topic.as_str(), after, limit))?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if found.len() == scan.max_rows as usize || bytes >= scan.max_bytes {
                break;
            }
            let kind = row.get_ref(3)?.as_str()?;
            let is_wanted = scan.kinds.is_empty() || scan.kinds.iter().any(|wanted| wanted == kind);
            let whose = tenant(row, 7)?;
            if !is_wanted || !scan.sees.covers(&whose) || scan.without.contains(&whose) {
                continue;
            }
            let event = logged(row)?;
            bytes += size(&event);
            found.push(event);
        }
        Ok(found)
    })?;
    found.into_iter().map(understood).collect()
}

/// The events at these positions that are still kept, in order; behind so many bytes of others only where they are.
pub(in super::super) fn at(
    tx: &mut SqliteTx<'_>,
    sees: &Sees,
    topic: &str,
    positions: &[Position],
    max_bytes: i64,
) -> Result<Kept, StoreError> {
    let (found, unread) = tx.run(|connection| {
        let mut statement = connection.prepare_cached(AT)?;
        let (mut found, mut unread, mut bytes) = (Vec::with_capacity(positions.len()), Vec::new(), 0);
        for position in positions {
            let mut rows = statement.query((position.number(), topic))?;
            let Some(row) = rows.next()? else { continue };
            if !sees.covers(&tenant(row, 7)?) {
                continue;
            }
            if bytes >= max_bytes {
                unread.push(*position);
                continue;
            }
            let event = logged(row)?;
            bytes += size(&event);
            found.push(event);
        }
        Ok((found, unread))
    })?;
    Ok(Kept { events: found.into_iter().map(understood).collect::<Result<_, _>>()?, unread })
}

/// Of the next `step` rows of a tenant's topic, of whatever type, the last one's place, the scan's own time, and how many
/// there are.
pub(in super::super) fn horizon(
    tx: &mut SqliteTx<'_>,
    scan: &Scan,
    limit: Position,
    step: i64,
) -> Result<Option<(Position, i64, i64)>, StoreError> {
    let Sees::One(tenant) = &scan.sees else { return Ok(None) };
    let (last, rows): (Option<i64>, i64) = tx.run(|connection| {
        let mut statement = connection.prepare_cached(HORIZON)?;
        let (after, limit) = (scan.after.number(), limit.number());
        let parameters = (&tenant.as_bytes()[..], scan.topic.as_str(), after, limit, step);
        statement.query_row(parameters, |row| Ok((row.get(0)?, row.get(1)?)))
    })?;
    Ok(last.map(|last| (Position::new(last), scan.after_ms, rows)))
}

/// The first event of everyone's after a position and up to another, and that other: no number comes again here.
pub(in super::super) fn span(
    tx: &mut SqliteTx<'_>,
    after: Position,
    to: Position,
) -> Result<Option<Span>, StoreError> {
    let first = tx.run(|connection| {
        let mut statement = connection.prepare_cached(FIRST)?;
        let found = statement.query_row((after.number(), to.number()), |row| Ok((row.get(0)?, row.get(1)?)));
        found.optional()
    })?;
    Ok(first.map(|(first, first_ms)| Span { first: Position::new(first), first_ms, last: to }))
}

/// The first event after a position and up to another that was accepted at this time or later.
pub(in super::super) fn first_after(
    tx: &mut SqliteTx<'_>,
    topic: &Topic<'_>,
    position: Position,
    to: Position,
    not_before_ms: i64,
) -> Result<Option<(Position, i64)>, StoreError> {
    let (statement, whose) = of(topic.sees, &FIRST_AFTER);
    let found = tx.run(|connection| {
        let mut statement = connection.prepare_cached(statement)?;
        let mut rows = statement.query((whose, topic.name, position.number(), not_before_ms, to.number()))?;
        while let Some(row) = rows.next()? {
            if topic.sees.covers(&tenant(row, 2)?) {
                return Ok(Some((Position::new(row.get(0)?), row.get(1)?)));
            }
        }
        Ok(None)
    });
    Ok(found?)
}

/// An event whose data is not yet known by its form.
type Raw = (Logged, i16, Vec<u8>);

fn size((event, _, data): &Raw) -> i64 {
    i64::try_from(event.attributes.len() + data.len()).unwrap_or(i64::MAX)
}

fn logged(row: &Row<'_>) -> rusqlite::Result<Raw> {
    let event = Logged {
        position: Position::new(row.get(0)?),
        accepted_ms: row.get(1)?,
        tenant: tenant(row, 7)?,
        key: row.get::<_, String>(2)?.into_boxed_str(),
        kind: row.get::<_, String>(3)?.into_boxed_str(),
        attributes: Bytes::from(row.get::<_, Vec<u8>>(4)?),
        data: Data::None,
    };
    Ok((event, row.get(5)?, row.get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default()))
}

fn understood((event, form, data): Raw) -> Result<Logged, StoreError> {
    let data = Data::of_form(form, data.into()).ok_or_else(|| {
        StoreError::Corrupt(format!("the form {form} of event {}", event.position.number()))
    })?;
    Ok(Logged { data, ..event })
}
