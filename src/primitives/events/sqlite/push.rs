//! What subscriptions keep, and whose events there are.

use uuid::Uuid;

use super::held::{self, length};
use crate::primitives::events::Position;
use crate::primitives::events::push::AttemptRow;
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const BEGIN: &str = "INSERT OR IGNORE INTO event_subscriptions (name, position) VALUES (?1, ?2)";
const BEGUN: &str = "SELECT position FROM event_subscriptions WHERE name = ?1";
const KEEP: &str = "INSERT INTO event_attempts \
     (tenant, at_ms, subscription, event_id, message_id, attempt, outcome, status, duration_ms, next_at_ms) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
const TENANTS: &str = "SELECT DISTINCT tenant FROM events WHERE topic = ?1 AND id > ?2 AND id <= ?3";

/// Where a subscription began; here, where nobody has begun it.
pub(in super::super) fn begin_subscription(
    tx: &mut SqliteTx<'_>,
    name: &str,
    here: Position,
) -> Result<Position, StoreError> {
    let begun = tx.run(|connection| {
        connection.prepare_cached(BEGIN)?.execute((name, here.number()))?;
        connection.prepare_cached(BEGUN)?.query_row([name], |row| row.get(0))
    });
    Ok(Position::new(begun?))
}

/// Keeps what was tried for a tenant.
pub(in super::super) fn keep_attempts(
    tx: &mut SqliteTx<'_>,
    tenant: Uuid,
    attempts: &[AttemptRow],
) -> Result<(), StoreError> {
    tx.run(|connection| {
        let mut keep = connection.prepare_cached(KEEP)?;
        for tried in attempts {
            keep.execute((
                tenant.as_bytes(),
                tried.at_ms,
                &*tried.subscription,
                &*tried.event_id,
                &*tried.message_id,
                tried.attempt,
                tried.outcome,
                tried.status,
                tried.duration_ms,
                tried.next_at_ms,
            ))?;
        }
        Ok(())
    })?;
    for tried in attempts {
        let texts = tried.subscription.len() + tried.event_id.len() + tried.message_id.len();
        tx.holds(tenant, held::ATTEMPT + length(texts));
    }
    Ok(())
}

/// The tenants that have events in these topics: of all that are kept, or of those after a position and up to another.
pub(in super::super) fn tenants_with_events(
    tx: &mut SqliteTx<'_>,
    topics: &[String],
    after: Option<Position>,
    to: Position,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    let after = after.unwrap_or(Position::START);
    let found = tx.run(|connection| {
        let mut statement = connection.prepare_cached(TENANTS)?;
        let mut found = Vec::new();
        for topic in topics {
            let rows =
                statement.query_map((topic, after.number(), to.number()), |row| row.get::<_, [u8; 16]>(0))?;
            for tenant in rows {
                found.push((topic.clone(), Uuid::from_bytes(tenant?)));
            }
        }
        Ok(found)
    });
    Ok(found?)
}
