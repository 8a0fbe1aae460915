//! Ids taken and rows inserted.

use rusqlite::OptionalExtension as _;

use super::super::append::{Candidate, Row, Taken};
use super::held::{self, length};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HELD: &str = "SELECT fingerprint, until_ms FROM event_dedupe WHERE tenant = ?1 AND key = ?2";
const TAKE: &str =
    "INSERT OR REPLACE INTO event_dedupe (tenant, key, until_ms, fingerprint) VALUES (?1, ?2, ?3, ?4)";
const INSERT: &str = "INSERT INTO events (accepted_ms, tenant, topic, key, type, attributes, form, data) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// Takes the ids that nobody has; what is said of each is in the candidates' order.
pub(in super::super) fn take_ids(
    tx: &mut SqliteTx<'_>,
    candidates: &[Candidate],
) -> Result<Vec<Taken>, StoreError> {
    let now_ms = super::read::now_ms();
    let (said, added) = tx.run(|connection| {
        let (mut held, mut take) = (connection.prepare_cached(HELD)?, connection.prepare_cached(TAKE)?);
        let (mut said, mut added) = (Vec::with_capacity(candidates.len()), Vec::new());
        for candidate in candidates {
            let (tenant, key) = (candidate.tenant.as_bytes(), &candidate.key);
            let found: Option<(i64, i64)> =
                held.query_row((tenant, key), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
            said.push(match found {
                Some((fingerprint, until_ms)) if until_ms > now_ms => Taken::Held(fingerprint),
                // One whose time is over is written over.
                over => {
                    let until_ms = now_ms.saturating_add(candidate.window_ms);
                    take.execute((tenant, key, until_ms, candidate.fingerprint))?;
                    added.extend(over.is_none().then_some((candidate.tenant, held::ID)));
                    Taken::New
                }
            });
        }
        Ok((said, added))
    })?;
    held::added(tx, added);
    Ok(said)
}

pub(in super::super) fn insert(tx: &mut SqliteTx<'_>, rows: &[Row<'_>]) -> Result<(), StoreError> {
    let now_ms = super::read::now_ms();
    tx.run(|connection| {
        let mut insert = connection.prepare_cached(INSERT)?;
        for row in rows {
            let event = row.event;
            insert.execute((
                now_ms,
                row.tenant.as_bytes(),
                row.topic,
                &*event.key,
                &*event.kind,
                &*event.attributes,
                event.data.form(),
                event.data.stored(),
            ))?;
        }
        Ok(())
    })?;
    for row in rows {
        let event = row.event;
        let data = event.data.stored().map_or(0, |data| length(data.len()));
        tx.holds(row.tenant, held::EVENT + length(event.attributes.len()) + data + length(event.key.len()));
    }
    Ok(())
}
