//! What relays have read of Kafka's topics.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::broker_limits::BrokerLimit;
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx};

const LIMITS: &str = "SELECT topic, kafka_topic, max_message_bytes FROM event_topic_limits \
     WHERE read_at > now() - interval '1 day'";

/// By topic.
pub(in super::super) async fn broker_limits(
    tx: &mut PgTx,
) -> Result<HashMap<String, Arc<BrokerLimit>>, StoreError> {
    let rows = tx.query(LIMITS, &[]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<_, tokio_postgres::Error> {
        let bytes: i64 = row.try_get(2)?;
        let max_message_bytes = usize::try_from(bytes).unwrap_or(0);
        Ok((row.try_get(0)?, Arc::new(BrokerLimit { kafka_topic: row.try_get(1)?, max_message_bytes })))
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::of_row)?)
}
