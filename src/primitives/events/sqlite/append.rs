//! Ids taken and rows inserted.

use rusqlite::OptionalExtension as _;

use super::super::append::{Candidate, Row, Taken};
use crate::store::StoreError;
use crate::store::sqlite::SqliteTx;

const HELD: &str = "SELECT fingerprint FROM event_dedupe WHERE tenant = ?1 AND key = ?2 AND until_ms > ?3";
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
    let taken = tx.run(|connection| {
        let (mut held, mut take) = (connection.prepare_cached(HELD)?, connection.prepare_cached(TAKE)?);
        let mut said = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let (tenant, key) = (candidate.tenant.as_bytes(), &candidate.key);
            let fingerprint: Option<i64> =
                held.query_row((tenant, key, now_ms), |row| row.get(0)).optional()?;
            said.push(match fingerprint {
                Some(fingerprint) => Taken::Held(fingerprint),
                None => {
                    let until_ms = now_ms.saturating_add(candidate.window_ms);
                    take.execute((tenant, key, until_ms, candidate.fingerprint))?;
                    Taken::New
                }
            });
        }
        Ok(said)
    });
    Ok(taken?)
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
    Ok(())
}
