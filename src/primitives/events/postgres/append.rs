//! Ids taken and rows inserted, in the order that readers rely on.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::super::append::{Candidate, Row as NewRow, Taken};
use crate::digest::first;
use crate::primitives::events::DedupeKey;
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// What most transactions need: all of their ids are new.
const TAKE_NEW: &str = "SELECT outrigger_take_new_event_ids($1, $2, $3, $4, $5)";
/// Around midnight an id is taken on both days: two transactions that begin on different ones meet. Ten minutes are
/// longer than any transaction. An id counts as taken where every day's row of it is new. Each id is looked up by itself
/// (`LIMIT`): as a plain join the planner may read every id of the tenant's of the days before; and on those days alone of which a
/// row can hold it by its topic's own window, since each partition costs a look. Whose events share the transaction says nothing about it. Which are new is said only where not all are.
///
/// What is known is not tried again, and what another transaction inserts meanwhile is waited for and not locked: of
/// transactions with the same id each waits for the first one's commit, and none for the next.
const TAKE: &str = "WITH input AS ( \
         SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::bigint[]) \
             AS input (tenant_id, key, fingerprint, window_ms)), \
     days AS ( \
         SELECT DISTINCT (at AT TIME ZONE 'UTC')::date AS day \
         FROM unnest(ARRAY[now() - interval '10 min', now() + interval '10 min']) at), \
     known AS ( \
         SELECT input.tenant_id, input.key FROM input CROSS JOIN LATERAL ( \
             SELECT FROM event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key \
                 AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date - $5 \
                 AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date \
                     - ((input.window_ms + 86399999) / 86400000)::integer \
                 AND kept.day <= ((now() + interval '10 min') AT TIME ZONE 'UTC')::date \
                 AND kept.until > now() LIMIT 1) found), \
     taken AS ( \
         INSERT INTO event_dedupe (tenant_id, key, day, until, fingerprint) \
         SELECT tenant_id, key, day, now() + window_ms * interval '1 ms', fingerprint FROM input CROSS JOIN days \
         WHERE NOT EXISTS (SELECT FROM known WHERE known.tenant_id = input.tenant_id AND known.key = input.key) \
         ORDER BY tenant_id, key, day \
         ON CONFLICT DO NOTHING \
         RETURNING tenant_id, key), \
     each AS (SELECT tenant_id, key, count(*) AS days FROM taken GROUP BY tenant_id, key), \
     counted AS (SELECT (SELECT count(*) FROM days) AS days, \
         (SELECT count(*) FROM each WHERE each.days = (SELECT count(*) FROM days)) AS new) \
     SELECT counted.new, counted.days, listed.tenants, listed.keys, listed.days FROM counted LEFT JOIN LATERAL ( \
         SELECT coalesce(array_agg(tenant_id), '{}') AS tenants, coalesce(array_agg(key), '{}') AS keys, \
             coalesce(array_agg(each.days), '{}') AS days FROM each) listed \
         ON counted.new < cardinality($1)";

/// Of ids that were used on this day or the next, and whose time is over, takes those that nobody has taken meanwhile. Locked
/// in one order, so that no two transactions wait for each other.
const RENEW: &str = "WITH input AS ( \
         SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::bigint[]) \
             AS input (tenant_id, key, fingerprint, window_ms) ORDER BY tenant_id, key), \
     over AS MATERIALIZED ( \
         SELECT kept.tenant_id, kept.key, kept.day, fingerprint, window_ms FROM input CROSS JOIN LATERAL ( \
             SELECT tenant_id, key, day FROM event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key \
                 AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date AND kept.until <= now() \
                 AND NOT EXISTS (SELECT FROM event_dedupe live WHERE live.tenant_id = input.tenant_id AND live.key = input.key \
                     AND live.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date - $5 AND live.until > now() \
                     AND live.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date \
                         - ((input.window_ms + 86399999) / 86400000)::integer \
                     AND live.xmin <> pg_current_xact_id()::xid) \
             ORDER BY day LIMIT 2 FOR UPDATE) kept), \
     renewed AS ( \
         UPDATE event_dedupe AS kept SET until = now() + over.window_ms * interval '1 ms', fingerprint = over.fingerprint \
         FROM over WHERE kept.tenant_id = over.tenant_id AND kept.key = over.key AND kept.day = over.day \
             AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date \
         RETURNING kept.tenant_id, kept.key) \
     SELECT tenant_id, key, count(*) FROM renewed GROUP BY tenant_id, key";

/// Of ids that are taken, the first event's.
const HELD: &str = "SELECT tenant_id, key, fingerprint FROM unnest($1::uuid[], $2::bytea[], $3::bigint[]) AS input (tenant_id, key, window_ms) \
     CROSS JOIN LATERAL ( \
         SELECT fingerprint FROM event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key \
             AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date - $4 \
             AND kept.day >= ((now() - interval '10 min') AT TIME ZONE 'UTC')::date \
                 - ((input.window_ms + 86399999) / 86400000)::integer \
             AND kept.until > now() ORDER BY day LIMIT 1) found";
const DAY_MS: i64 = 86_400_000;

/// The floor: whoever reads while this transaction is not over reads no further than what the sequence had given before.
/// After it, and with nothing between, come the row's own ids.
pub(super) const FLOOR: &str = "SELECT pg_advisory_xact_lock_shared(1869968498, (last_value & 2147483647)::integer) \
                                FROM events_id_seq";
const INSERT: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('events_id_seq'), now(), tenant_id, topic, lane, key, type, attributes, form, data \
     FROM unnest($1::uuid[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::bytea[], $7::smallint[], $8::bytea[]) \
         AS input (tenant_id, topic, lane, key, type, attributes, form, data)";

/// Takes the ids that nobody has; what is said of each is in the candidates' order.
pub(in super::super) async fn take_ids(
    tx: &mut PgTx,
    candidates: &[Candidate],
) -> Result<Vec<Taken>, StoreError> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let all = Input::of(candidates.iter());
    let row = tx.query(TAKE_NEW, &all.parameters()).await?.pop().ok_or(PgError::Ended)?;
    if row.try_get(0).map_err(PgError::of_row)? {
        return Ok(vec![Taken::New; candidates.len()]);
    }
    let row = tx.query(TAKE, &all.parameters()).await?.pop().ok_or(PgError::Ended)?;
    let new: i64 = row.try_get(0).map_err(PgError::of_row)?;
    if usize::try_from(new) == Ok(candidates.len()) {
        return Ok(vec![Taken::New; candidates.len()]);
    }
    let days: i64 = row.try_get(1).map_err(PgError::of_row)?;
    let mut taken = listed(&row).map_err(PgError::of_row)?;
    let is_new = |taken: &HashMap<Id, i64>, candidate: &Candidate| {
        taken.get(&id(candidate)).is_some_and(|taken| *taken == days)
    };
    let others = Input::of(candidates.iter().filter(|candidate| !is_new(&taken, candidate)));
    let [tenants, keys, _, windows, days_back] = others.parameters();
    let answers =
        tx.query_all(&[(RENEW, &others.parameters()), (HELD, &[tenants, keys, windows, days_back])]).await?;
    let [renewed, held]: [Vec<Row>; 2] = answers.try_into().map_err(|_| PgError::Ended)?;
    for row in renewed {
        let (id, renewed): (Id, i64) = of_id(&row).map_err(PgError::of_row)?;
        *taken.entry(id).or_default() += renewed;
    }
    let held: Result<HashMap<Id, i64>, _> = held.iter().map(of_id).collect();
    let held = held.map_err(PgError::of_row)?;
    let said = |candidate: &Candidate| match held.get(&id(candidate)) {
        _ if is_new(&taken, candidate) => Ok(Taken::New),
        Some(fingerprint) => Ok(Taken::Held(*fingerprint)),
        // Taken for a duplicate it would be an event that nobody misses.
        None => Err(StoreError::Corrupt("a defect: an id that is neither new nor held".to_owned())),
    };
    candidates.iter().map(said).collect()
}

/// An id of a tenant's.
type Id = (Uuid, DedupeKey);

fn id(candidate: &Candidate) -> Id {
    (candidate.tenant, candidate.key)
}

/// A row's id, and the number that it says of it.
fn of_id(row: &Row) -> Result<(Id, i64), Error> {
    let key: &[u8] = row.try_get(1)?;
    Ok(((row.try_get(0)?, first(key)), row.try_get(2)?))
}

/// On how many days each of the ids that [`TAKE`] lists was taken, where it lists them.
fn listed(row: &Row) -> Result<HashMap<Id, i64>, Error> {
    let (tenants, keys): (Vec<Uuid>, Vec<&[u8]>) = (row.try_get(2)?, row.try_get(3)?);
    let days: Vec<i64> = row.try_get(4)?;
    let ids = tenants.into_iter().zip(keys.into_iter().map(first));
    Ok(ids.zip(days).collect())
}

/// Candidates as the statements take them.
struct Input<'c> {
    tenants: Vec<Uuid>,
    keys: Vec<&'c [u8]>,
    fingerprints: Vec<i64>,
    windows: Vec<i64>,
    /// So many days ago was the first of which a row may hold one of them: what lies before is not planned for.
    days_back: i32,
}

impl<'c> Input<'c> {
    fn of(candidates: impl Iterator<Item = &'c Candidate> + Clone) -> Self {
        let longest = candidates.clone().map(|candidate| candidate.window_ms).max().unwrap_or(0);
        Self {
            // The longest window that a policy can give is 7 days.
            days_back: i32::try_from((longest + DAY_MS - 1) / DAY_MS).unwrap_or(8),
            tenants: candidates.clone().map(|candidate| candidate.tenant).collect(),
            keys: candidates.clone().map(|candidate| &candidate.key[..]).collect(),
            fingerprints: candidates.clone().map(|candidate| candidate.fingerprint).collect(),
            windows: candidates.map(|candidate| candidate.window_ms).collect(),
        }
    }

    fn parameters(&self) -> [Parameter<'_>; 5] {
        [
            (&self.tenants, Type::UUID_ARRAY),
            (&self.keys, Type::BYTEA_ARRAY),
            (&self.fingerprints, Type::INT8_ARRAY),
            (&self.windows, Type::INT8_ARRAY),
            (&self.days_back, Type::INT4),
        ]
    }
}

/// The last two statements of a writer, in one round trip.
pub(in super::super) async fn insert(tx: &mut PgTx, rows: &[NewRow<'_>]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let tenants: Vec<Uuid> = rows.iter().map(|row| row.tenant).collect();
    let topics: Vec<&str> = rows.iter().map(|row| row.topic).collect();
    let lanes: Vec<i16> = rows.iter().map(|row| row.lane).collect();
    let keys: Vec<&str> = rows.iter().map(|row| &*row.event.key).collect();
    let kinds: Vec<&str> = rows.iter().map(|row| &*row.event.kind).collect();
    let attributes: Vec<&[u8]> = rows.iter().map(|row| &*row.event.attributes).collect();
    let forms: Vec<i16> = rows.iter().map(|row| row.event.data.form()).collect();
    let data: Vec<Option<&[u8]>> = rows.iter().map(|row| row.event.data.stored()).collect();
    let parameters: [Parameter<'_>; 8] = [
        (&tenants, Type::UUID_ARRAY),
        (&topics, Type::TEXT_ARRAY),
        (&lanes, Type::INT2_ARRAY),
        (&keys, Type::TEXT_ARRAY),
        (&kinds, Type::TEXT_ARRAY),
        (&attributes, Type::BYTEA_ARRAY),
        (&forms, Type::INT2_ARRAY),
        (&data, Type::BYTEA_ARRAY),
    ];
    tx.query_all(&[(FLOOR, &[]), (INSERT, &parameters)]).await?;
    Ok(())
}
