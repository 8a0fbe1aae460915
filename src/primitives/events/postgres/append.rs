//! Ids taken and rows inserted, in the order that readers rely on.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::append::{Candidate, Row, Taken};
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// Around midnight an id is taken on both days: two transactions that begin on different ones meet. Ten minutes are
/// longer than any transaction. An id counts as taken where every day's row of it is new. Each id is looked up by itself
/// (`LIMIT`): as a plain join the planner may read every id of the tenant's of the days before. Which are new is said only
/// where not all are.
const TAKE: &str = "WITH input AS ( \
         SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bigint[], $4::bigint[]) \
             AS input (tenant_id, key, fingerprint, window_ms)), \
     days AS ( \
         SELECT DISTINCT (at AT TIME ZONE 'UTC')::date AS day \
         FROM unnest(ARRAY[now() - interval '10 min', now() + interval '10 min']) at), \
     earlier AS ( \
         SELECT input.tenant_id, input.key FROM input CROSS JOIN LATERAL ( \
             SELECT FROM event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key \
                 AND kept.day < (SELECT min(day) FROM days) AND kept.day >= (SELECT min(day) FROM days) - 8 \
                 AND kept.until > now() LIMIT 1) found), \
     taken AS ( \
         INSERT INTO event_dedupe AS kept (tenant_id, key, day, until, fingerprint) \
         SELECT tenant_id, key, day, now() + window_ms * interval '1 ms', fingerprint FROM input CROSS JOIN days \
         WHERE NOT EXISTS (SELECT FROM earlier WHERE earlier.tenant_id = input.tenant_id AND earlier.key = input.key) \
         ORDER BY tenant_id, key, day \
         ON CONFLICT (tenant_id, key, day) DO UPDATE SET until = excluded.until, fingerprint = excluded.fingerprint \
             WHERE kept.until <= now() \
         RETURNING tenant_id, key), \
     new AS (SELECT tenant_id, key FROM taken GROUP BY tenant_id, key HAVING count(*) = (SELECT count(*) FROM days)) \
     SELECT CASE WHEN count(*) < cardinality($1) THEN array_agg(tenant_id) END, \
         CASE WHEN count(*) < cardinality($1) THEN array_agg(key) END, count(*) FROM new";

/// Of ids that are taken, the first event's.
const HELD: &str = "SELECT tenant_id, key, fingerprint FROM unnest($1::uuid[], $2::bytea[]) AS input (tenant_id, key) \
     CROSS JOIN LATERAL ( \
         SELECT fingerprint FROM event_dedupe kept WHERE kept.tenant_id = input.tenant_id AND kept.key = input.key \
             AND kept.until > now() ORDER BY day LIMIT 1) found";

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
    let tenants: Vec<Uuid> = candidates.iter().map(|candidate| candidate.tenant).collect();
    let keys: Vec<&[u8]> = candidates.iter().map(|candidate| &candidate.key[..]).collect();
    let fingerprints: Vec<i64> = candidates.iter().map(|candidate| candidate.fingerprint).collect();
    let windows: Vec<i64> = candidates.iter().map(|candidate| candidate.window_ms).collect();
    let parameters: [Parameter<'_>; 4] = [
        (&tenants, Type::UUID_ARRAY),
        (&keys, Type::BYTEA_ARRAY),
        (&fingerprints, Type::INT8_ARRAY),
        (&windows, Type::INT8_ARRAY),
    ];
    let rows = tx.query(TAKE, &parameters).await?;
    let row = rows.first().ok_or(PgError::Ended)?;
    let new: i64 = row.try_get(2).map_err(PgError::of_row)?;
    if usize::try_from(new) == Ok(candidates.len()) {
        return Ok(vec![Taken::New; candidates.len()]);
    }
    let new_tenants: Option<Vec<Uuid>> = row.try_get(0).map_err(PgError::of_row)?;
    let new_keys: Option<Vec<Vec<u8>>> = row.try_get(1).map_err(PgError::of_row)?;
    let new: HashSet<(Uuid, Vec<u8>)> =
        new_tenants.unwrap_or_default().into_iter().zip(new_keys.unwrap_or_default()).collect();
    let is_new = |candidate: &Candidate| new.contains(&(candidate.tenant, candidate.key.to_vec()));
    let mut held: HashMap<(Uuid, Vec<u8>), i64> = HashMap::new();
    let parameters: [Parameter<'_>; 2] = [(&tenants, Type::UUID_ARRAY), (&keys, Type::BYTEA_ARRAY)];
    for row in tx.query(HELD, &parameters).await? {
        let (tenant, key): (Uuid, Vec<u8>) =
            (row.try_get(0).map_err(PgError::of_row)?, row.try_get(1).map_err(PgError::of_row)?);
        held.insert((tenant, key), row.try_get(2).map_err(PgError::of_row)?);
    }
    let said = |candidate: &Candidate| match is_new(candidate) {
        true => Taken::New,
        false => {
            let kept = held.get(&(candidate.tenant, candidate.key.to_vec()));
            Taken::Held(kept.copied().unwrap_or(candidate.fingerprint))
        }
    };
    Ok(candidates.iter().map(said).collect())
}

/// The last two statements of a writer, in one round trip.
pub(in super::super) async fn insert(tx: &mut PgTx, rows: &[Row<'_>]) -> Result<(), StoreError> {
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
