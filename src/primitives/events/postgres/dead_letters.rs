//! What groups gave up, copied from one topic to another: nothing of it comes here.

use tokio_postgres::types::Type;

use super::append::FLOOR;
use super::read::{Statements, Whose};
use crate::primitives::events::Position;
use crate::primitives::events::audience::Sees;
use crate::primitives::events::dead_letters::{Found, Letter};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// The length of what is out of line is known without reading it.
macro_rules! found {
    ($whose:literal) => {
        concat!(
            "SELECT id, CASE WHEN before < $4 THEN tenant_id END, CASE WHEN before < $4 THEN key END FROM ( \
                 SELECT id, tenant_id, key, sum(bytes) OVER (ORDER BY id) - bytes AS before FROM ( \
                     SELECT id, tenant_id, key, octet_length(attributes) + coalesce(octet_length(data), 0) + octet_length(key) AS bytes \
                     FROM events WHERE ", $whose, " AND topic = $2 AND id = ANY ($3)) dead) wanted ORDER BY id"
        )
    };
}
/// The ids are drawn in the order of the sorted rows.
macro_rules! copy {
    ($whose:literal) => {
        concat!(
            "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
             SELECT nextval('events_id_seq'), now(), tenant_id, $6, lane, key, type, attributes, form, data FROM ( \
                 SELECT tenant_id, letters.lane, key, type, form, data, \
                     substring(attributes FROM 1 FOR octet_length(attributes) - 1) || convert_to(more, 'UTF8') AS attributes \
                 FROM unnest($3::bigint[], $4::smallint[], $5::text[]) AS letters (id, lane, more) JOIN events USING (id) \
                 WHERE ", $whose, " AND topic = $2 AND events.id = ANY ($3) ORDER BY id) given_up RETURNING id"
        )
    };
}

const FOUND: Statements = Statements {
    one: found!("tenant_id = $1"),
    fleet: found!("($1::uuid[] IS NULL OR tenant_id = ANY ($1))"),
};
const COPY: Statements =
    Statements { one: copy!("tenant_id = $1"), fleet: copy!("($1::uuid[] IS NULL OR tenant_id = ANY ($1))") };

/// Which of these are kept, in order; behind so many bytes of others no more than that.
pub(in super::super) async fn found(
    tx: &mut PgTx,
    sees: &Sees,
    topic: &str,
    positions: &[Position],
    max_bytes: i64,
) -> Result<Vec<Found>, StoreError> {
    let ids: Vec<i64> = positions.iter().map(|position| position.number()).collect();
    let whose = Whose::of(sees);
    let parameters: [Parameter<'_>; 4] =
        [whose.parameter(), (&topic, Type::TEXT), (&ids, Type::INT8_ARRAY), (&max_bytes, Type::INT8)];
    let rows = tx.query(whose.of_statements(&FOUND), &parameters).await?;
    let read = |row: &tokio_postgres::Row| {
        let key: Option<String> = row.try_get(2)?;
        let of = row.try_get::<_, Option<_>>(1)?.zip(key.map(String::into_boxed_str));
        Ok(Found { position: Position::new(row.try_get(0)?), of })
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}

/// Copies these to another topic, in their order: the last two statements of a writer, in one round trip.
pub(in super::super) async fn copy(
    tx: &mut PgTx,
    sees: &Sees,
    from: &str,
    to: &str,
    letters: &[Letter],
) -> Result<(), StoreError> {
    let ids: Vec<i64> = letters.iter().map(|letter| letter.position.number()).collect();
    let lanes: Vec<i16> = letters.iter().map(|letter| letter.lane).collect();
    let more: Vec<&str> = letters.iter().map(|letter| &*letter.more).collect();
    let whose = Whose::of(sees);
    let parameters: [Parameter<'_>; 6] = [
        whose.parameter(),
        (&from, Type::TEXT),
        (&ids, Type::INT8_ARRAY),
        (&lanes, Type::INT2_ARRAY),
        (&more, Type::TEXT_ARRAY),
        (&to, Type::TEXT),
    ];
    let found = tx.query_all(&[(FLOOR, &[]), (whose.of_statements(&COPY), &parameters)]).await?;
    if found.last().map(Vec::len) == Some(letters.len()) {
        return Ok(());
    }
    // Committed it would be an event that nobody has any more.
    Err(StoreError::Corrupt("a defect: an event that was there could not be copied".to_owned()))
}
