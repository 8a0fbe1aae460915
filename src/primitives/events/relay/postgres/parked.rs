//! Which keys are parked, as the store has them.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::super::lanes::{MAX_PARKED_KEYS_OF_TENANT, OrderedKey, Parked};
use crate::primitives::events::Position;
use crate::store::StoreError;
use crate::store::postgres::{Parameter, PgError, PgTx};

/// One look into the index for each key, and for a tenant with more than `$2` of them no more than that and one: a tenant
/// may have millions of events parked.
const KEYS: &str = "WITH RECURSIVE keys AS ( \
         (SELECT tenant_id, topic, key, id, 1::bigint AS number FROM event_parked \
             WHERE shard = $1 AND tenant_id >= $3 AND tenant_id <= $4 ORDER BY tenant_id, topic, key, id LIMIT 1) \
         UNION ALL \
         SELECT next.* FROM keys CROSS JOIN LATERAL ( \
             (SELECT tenant_id, topic, key, id, \
                 CASE WHEN parked.tenant_id = keys.tenant_id THEN keys.number + 1 ELSE 1 END \
             FROM event_parked parked \
             WHERE keys.number <= $2 AND shard = $1 AND tenant_id <= $4 \
                 AND (tenant_id, topic, key) > (keys.tenant_id, keys.topic, keys.key) \
             ORDER BY tenant_id, topic, key, id LIMIT 1) \
             UNION ALL \
             (SELECT tenant_id, topic, key, id, 1::bigint FROM event_parked \
             WHERE keys.number > $2 AND shard = $1 AND tenant_id > keys.tenant_id AND tenant_id <= $4 \
             ORDER BY tenant_id, topic, key, id LIMIT 1)) next) \
     SELECT tenant_id, topic, key, id FROM keys";

/// Of a shard, or of one tenant in it.
pub(super) async fn parked(tx: &mut PgTx, shard: i16, tenant: Option<Uuid>) -> Result<Parked, StoreError> {
    let most = i64::try_from(MAX_PARKED_KEYS_OF_TENANT).unwrap_or(i64::MAX);
    let (first, last) = (tenant.unwrap_or(Uuid::nil()), tenant.unwrap_or(Uuid::max()));
    let parameters: [Parameter<'_>; 4] =
        [(&shard, Type::INT2), (&most, Type::INT8), (&first, Type::UUID), (&last, Type::UUID)];
    let mut keys = BTreeMap::new();
    for row in tx.query(KEYS, &parameters).await? {
        let read = || -> Result<_, tokio_postgres::Error> {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        };
        let (tenant, topic, key, first): (Uuid, String, String, i64) = read().map_err(PgError::of_row)?;
        let key = OrderedKey { topic: topic.into(), tenant, key: key.into() };
        keys.insert(key, Position::new(first));
    }
    Ok(Parked::new(keys, MAX_PARKED_KEYS_OF_TENANT))
}
