//! Rows of a topic, of one tenant or of several.

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::primitives::events::audience::Sees;
use crate::primitives::events::read::{Kept, Scan, Span, Topic};
use crate::primitives::events::{Data, Logged, Position};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// A row is read while those before it are less than the bound of bytes, so that one always is. An event's transaction began
/// less than an hour before the event of the cursor was accepted: no older partition is looked into.
macro_rules! page {
    ($whose:literal) => {
        concat!(
            "SELECT id, accepted_ms, key, type, attributes, form, data, tenant_id FROM ( \
                 SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint AS accepted_ms, key, type, attributes, form, data, \
                     tenant_id, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
                         - octet_length(attributes) - coalesce(octet_length(data), 0) AS before \
                 FROM events WHERE ", $whose, " AND topic = $2 AND id > $3 AND id <= $4 \
                     AND accepted_at >= to_timestamp($5::double precision / 1000) - interval '1 hour' \
                     AND ($6::text[] IS NULL OR type = ANY ($6)) AND ($9::uuid[] IS NULL OR tenant_id <> ALL ($9)) \
                 ORDER BY id LIMIT $7) page \
             WHERE before < $8 ORDER BY id"
        )
    };
}
macro_rules! at {
    ($whose:literal) => {
        concat!(
            "SELECT id, accepted_ms, key, type, CASE WHEN before < $4 THEN attributes ELSE '' END, form, \
                 CASE WHEN before < $4 THEN data END, tenant_id, before < $4 FROM ( \
                 SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint AS accepted_ms, key, type, attributes, form, data, \
                     tenant_id, sum(octet_length(attributes) + coalesce(octet_length(data), 0)) OVER (ORDER BY id) \
                         - octet_length(attributes) - coalesce(octet_length(data), 0) AS before \
                 FROM events WHERE ", $whose, " AND topic = $2 AND id = ANY ($3)) wanted ORDER BY id"
        )
    };
}
macro_rules! first_after {
    ($whose:literal) => {
        concat!(
            "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint FROM events \
             WHERE ",
            $whose,
            " AND topic = $2 AND id > $3 AND id <= $5 \
                 AND accepted_at >= to_timestamp($4::double precision / 1000) \
             ORDER BY id LIMIT 1"
        )
    };
}

const NEWEST: &str =
    "SELECT id FROM events WHERE tenant_id = $1 AND topic = $2 AND id <= $3 ORDER BY id DESC LIMIT 1";
/// The last of so many rows, and how many there are, of whatever type.
const HORIZON: &str = "SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint, rows FROM ( \
         SELECT id, accepted_at, count(*) OVER () AS rows FROM ( \
             SELECT id, accepted_at FROM events WHERE tenant_id = $1 AND topic = $2 AND id > $3 AND id <= $4 \
                 AND accepted_at >= to_timestamp($5::double precision / 1000) - interval '1 hour' \
             ORDER BY id LIMIT $6) step) counted \
     ORDER BY id DESC LIMIT 1";
const SPAN: &str = "(SELECT id, floor(extract(epoch FROM accepted_at) * 1000)::bigint FROM events \
         WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1) \
     UNION ALL (SELECT id, 0::bigint FROM events WHERE id > $1 AND id <= $2 ORDER BY id DESC LIMIT 1)";

/// The same statement for one tenant, whose index begins with it, and for a fleet.
pub(super) struct Statements {
    pub(super) one: &'static str,
    pub(super) fleet: &'static str,
}

const PAGE: Statements =
    Statements { one: page!("tenant_id = $1"), fleet: page!("($1::uuid[] IS NULL OR tenant_id = ANY ($1))") };
const AT: Statements =
    Statements { one: at!("tenant_id = $1"), fleet: at!("($1::uuid[] IS NULL OR tenant_id = ANY ($1))") };
const FIRST_AFTER: Statements = Statements {
    one: first_after!("tenant_id = $1"),
    fleet: first_after!("($1::uuid[] IS NULL OR tenant_id = ANY ($1))"),
};

/// `$1` of a statement, which says whose rows.
pub(super) enum Whose {
    One(Uuid),
    Fleet(Option<Vec<Uuid>>),
}

impl Whose {
    pub(super) fn of(sees: &Sees) -> Self {
        match sees {
            Sees::One(tenant) => Self::One(*tenant),
            Sees::Every => Self::Fleet(None),
            Sees::These(tenants) => Self::Fleet(Some(tenants.to_vec())),
        }
    }

    pub(super) fn parameter(&self) -> Parameter<'_> {
        match self {
            Self::One(tenant) => (tenant, Type::UUID),
            Self::Fleet(tenants) => (tenants, Type::UUID_ARRAY),
        }
    }

    pub(super) fn of_statements(&self, statements: &Statements) -> &'static str {
        match self {
            Self::One(_) => statements.one,
            Self::Fleet(_) => statements.fleet,
        }
    }
}

/// The scan's next rows, up to `limit`.
pub(in super::super) async fn page(
    tx: &mut PgTx,
    scan: &Scan,
    limit: Position,
) -> Result<Vec<Logged>, StoreError> {
    let kinds = (!scan.kinds.is_empty()).then_some(&scan.kinds);
    let without = (!scan.without.is_empty()).then_some(&scan.without);
    let (after, limit) = (scan.after.number(), limit.number());
    let (rows, bytes) = (i64::from(scan.max_rows), scan.max_bytes);
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    let after_ms = scan.after_ms as f64;
    let (topic, whose) = (scan.topic.as_str(), Whose::of(&scan.sees));
    let parameters: [Parameter<'_>; 9] = [
        whose.parameter(),
        (&topic, Type::TEXT),
        (&after, Type::INT8),
        (&limit, Type::INT8),
        (&after_ms, Type::FLOAT8),
        (&kinds, Type::TEXT_ARRAY),
        (&rows, Type::INT8),
        (&bytes, Type::INT8),
        (&without, Type::UUID_ARRAY),
    ];
    let rows = tx.query(whose.of_statements(&PAGE), &parameters).await?;
    rows.iter().map(logged).collect()
}

/// The events at these positions that are still kept, in order; behind so many bytes of others only where they are.
pub(in super::super) async fn at(
    tx: &mut PgTx,
    sees: &Sees,
    topic: &str,
    positions: &[Position],
    max_bytes: i64,
) -> Result<Kept, StoreError> {
    if positions.is_empty() {
        return Ok(Kept::default());
    }
    let ids: Vec<i64> = positions.iter().map(|position| position.number()).collect();
    let whose = Whose::of(sees);
    let parameters: [Parameter<'_>; 4] =
        [whose.parameter(), (&topic, Type::TEXT), (&ids, Type::INT8_ARRAY), (&max_bytes, Type::INT8)];
    let mut kept = Kept::default();
    for row in tx.query(whose.of_statements(&AT), &parameters).await? {
        if row.try_get(8).map_err(PgError::of_row)? {
            kept.events.push(logged(&row)?);
        } else {
            kept.unread.push(Position::new(row.try_get(0).map_err(PgError::of_row)?));
        }
    }
    Ok(kept)
}

/// The first event after a position and up to another that was accepted at this time or later.
pub(in super::super) async fn first_after(
    tx: &mut PgTx,
    topic: &Topic<'_>,
    position: Position,
    to: Position,
    not_before_ms: i64,
) -> Result<Option<(Position, i64)>, StoreError> {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    let not_before = not_before_ms as f64;
    let whose = Whose::of(topic.sees);
    let parameters: [Parameter<'_>; 5] = [
        whose.parameter(),
        (&topic.name, Type::TEXT),
        (&position.number(), Type::INT8),
        (&not_before, Type::FLOAT8),
        (&to.number(), Type::INT8),
    ];
    let rows = tx.query(whose.of_statements(&FIRST_AFTER), &parameters).await?;
    let read = |row: &Row| Ok((Position::new(row.try_get(0)?), row.try_get(1)?));
    Ok(rows.first().map(read).transpose().map_err(PgError::of_row)?)
}

const NEWEST_OF_ALL: &str = "SELECT id FROM events WHERE id <= $1 ORDER BY id DESC LIMIT 1";

/// The place of the last event of all that this transaction sees, up to `limit`: where work for everyone goes on from, since a
/// number may be given again by a promoted standby.
pub(in super::super) async fn newest_of_all(tx: &mut PgTx, limit: Position) -> Result<Position, StoreError> {
    let rows = tx.query(NEWEST_OF_ALL, &[(&limit.number(), Type::INT8)]).await?;
    let found = rows.first().map(|row| row.try_get(0)).transpose().map_err(PgError::of_row)?;
    Ok(found.map_or(Position::START, Position::new))
}

/// The place of a tenant's last event of a topic up to `limit`; the beginning where there is none.
pub(in super::super) async fn newest(
    tx: &mut PgTx,
    tenant: Uuid,
    topic: &str,
    limit: Position,
) -> Result<Position, StoreError> {
    let parameters: [Parameter<'_>; 3] =
        [(&tenant, Type::UUID), (&topic, Type::TEXT), (&limit.number(), Type::INT8)];
    let rows = tx.query(NEWEST, &parameters).await?;
    let last = rows.first().map(|row| row.try_get(0)).transpose().map_err(PgError::of_row)?;
    Ok(last.map_or(Position::START, Position::new))
}

/// Of the next `step` rows of a tenant's topic, of whatever type, the last one's place and time, and how many there are.
pub(in super::super) async fn horizon(
    tx: &mut PgTx,
    scan: &Scan,
    limit: Position,
    step: i64,
) -> Result<Option<(Position, i64, i64)>, StoreError> {
    let (after, limit, topic) = (scan.after.number(), limit.number(), scan.topic.as_str());
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    let after_ms = scan.after_ms as f64;
    let whose = Whose::of(&scan.sees);
    let parameters: [Parameter<'_>; 6] = [
        whose.parameter(),
        (&topic, Type::TEXT),
        (&after, Type::INT8),
        (&limit, Type::INT8),
        (&after_ms, Type::FLOAT8),
        (&step, Type::INT8),
    ];
    let rows = tx.query(HORIZON, &parameters).await?;
    let read = |row: &Row| Ok((Position::new(row.try_get(0)?), row.try_get(1)?, row.try_get(2)?));
    Ok(rows.first().map(read).transpose().map_err(PgError::of_row)?)
}

/// The first and the last event of everyone's after a position and up to another: places alone, for a fleet's transaction.
pub(in super::super) async fn span(
    tx: &mut PgTx,
    after: Position,
    to: Position,
) -> Result<Option<Span>, StoreError> {
    let parameters: [Parameter<'_>; 2] = [(&after.number(), Type::INT8), (&to.number(), Type::INT8)];
    let rows = tx.query_for_everyone((SPAN, &parameters)).await?;
    let [first, last] = rows.as_slice() else { return Ok(None) };
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok(Span {
            first: Position::new(first.try_get(0)?),
            first_ms: first.try_get(1)?,
            last: Position::new(last.try_get(0)?),
        })
    };
    Ok(Some(read().map_err(PgError::of_row)?))
}

fn logged(row: &Row) -> Result<Logged, StoreError> {
    let read = || -> Result<_, tokio_postgres::Error> {
        let (form, data): (i16, Option<Vec<u8>>) = (row.try_get(5)?, row.try_get(6)?);
        let event = Logged {
            position: Position::new(row.try_get(0)?),
            accepted_ms: row.try_get(1)?,
            tenant: row.try_get(7)?,
            key: row.try_get::<_, String>(2)?.into_boxed_str(),
            kind: row.try_get::<_, String>(3)?.into_boxed_str(),
            attributes: Bytes::from(row.try_get::<_, Vec<u8>>(4)?),
            data: Data::None,
        };
        Ok((event, form, data.unwrap_or_default()))
    };
    let (event, form, data) = read().map_err(PgError::of_row)?;
    let data = Data::of_form(form, data.into()).ok_or_else(|| {
        StoreError::Corrupt(format!("the form {form} of event {}", event.position.number()))
    })?;
    Ok(Logged { data, ..event })
}
