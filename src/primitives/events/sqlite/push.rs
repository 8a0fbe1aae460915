//! What subscriptions keep, and whose events there are.

use rusqlite::{OptionalExtension as _, Row};
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
/// Those rows and no others: not by an index, which has all of a tenant's.
const NEW: &str = "SELECT DISTINCT topic, tenant FROM events NOT INDEXED WHERE id > ?1 AND id <= ?2";
const NEXT: &str =
    "SELECT topic, tenant FROM events WHERE (tenant, topic) > (?1, ?2) ORDER BY tenant, topic LIMIT 1";

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

/// The tenants that have events in these topics after a position and up to another: that many rows are looked at.
pub(in super::super) fn tenants_with_events(
    tx: &mut SqliteTx<'_>,
    topics: &[String],
    after: Position,
    to: Position,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    let mut found: Vec<(String, Uuid)> = tx.run(|connection| {
        let mut statement = connection.prepare_cached(NEW)?;
        statement.query_map((after.number(), to.number()), line)?.collect()
    })?;
    found.retain(|(topic, _)| topics.contains(topic));
    Ok(found)
}

/// The topics of tenants that have events, whatever they are, after one of them and in the order of the index.
pub(in super::super) fn topics_of_tenants(
    tx: &mut SqliteTx<'_>,
    (mut tenant, topic): (Uuid, &str),
    limit: usize,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    let mut topic = topic.to_owned();
    let found = tx.run(|connection| {
        let mut statement = connection.prepare_cached(NEXT)?;
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(next) = statement.query_row((tenant.as_bytes(), &topic), line).optional()?
        {
            (topic, tenant) = next.clone();
            found.push(next);
        }
        Ok(found)
    });
    Ok(found?)
}

fn line(row: &Row<'_>) -> rusqlite::Result<(String, Uuid)> {
    Ok((row.get(0)?, Uuid::from_bytes(row.get(1)?)))
}
