//! Removing what is over, in small steps beside the callers' writes.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::rows::{fixed, generation, integer};
use crate::primitives::cache::key::Scope;
use crate::primitives::cache::now_ms;
use crate::store::sqlite::{Sqlite, SqliteError};
use crate::tasks::Tasks;

/// Entries that one step looks at: about a millisecond of the writer's time.
const STEP: i64 = 256;
/// Between two looks for what has ended.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts removing entries whose time is over. They are not served meanwhile: a read looks at the time.
pub(super) fn start(database: &Arc<Sqlite>, tasks: &Tasks) {
    let (database, stopping) = (Arc::clone(database), tasks.stopping().clone());
    tasks.spawn("cache sweep", async move {
        let mut period = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = period.tick() => {}
            }
            while !stopping.is_cancelled() {
                match database.write(|connection| remove_ended(connection, now_ms())).await {
                    Ok(removed) if i64::try_from(removed) == Ok(STEP) => {}
                    Ok(_) => break,
                    Err(SqliteError::Gone) => return,
                    Err(error) => {
                        tracing::warn!(%error, "ended cache entries could not be removed");
                        break;
                    }
                }
            }
        }
    });
}

/// Starts removing the entries of a scope whose generation is over, so that their bytes come back.
pub(super) fn invalidated(database: &Arc<Sqlite>, scope: Scope, tasks: &Tasks) {
    let (database, stopping) = (Arc::clone(database), tasks.stopping().clone());
    tasks.spawn("cache invalidation", async move {
        let mut after = 0;
        while !stopping.is_cancelled() {
            let scope = scope.clone();
            match database.write(move |connection| remove_invalidated(connection, &scope, after)).await {
                Ok(Some(last)) => after = last,
                Ok(None) => return,
                Err(error) => {
                    // They end by their time to live.
                    tracing::warn!(%error, "invalidated cache entries could not be removed");
                    return;
                }
            }
        }
    });
}

fn remove_ended(connection: &Connection, now: u64) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM cache_entries WHERE rowid IN
             (SELECT rowid FROM cache_entries WHERE gone_at_ms <= ?1 ORDER BY gone_at_ms LIMIT ?2)",
        )?
        .execute(params![integer(now), STEP])
}

/// One step from the row `after` on; the last row it looked at, or `None` at the end.
fn remove_invalidated(connection: &Connection, scope: &Scope, after: i64) -> rusqlite::Result<Option<i64>> {
    let generation = generation(connection, scope)?;
    let mut statement = connection.prepare_cached(
        "SELECT rowid, version, stamp FROM cache_entries
         WHERE tenant = ?1 AND namespace = ?2 AND rowid > ?3 ORDER BY rowid LIMIT ?4",
    )?;
    let mut rows = statement.query(params![scope.tenant().as_bytes(), scope.namespace(), after, STEP])?;
    let (mut last, mut over) = (None, Vec::new());
    while let Some(row) = rows.next()? {
        let (rowid, version): (i64, Option<String>) = (row.get(0)?, row.get(1)?);
        if fixed::<16>(row, 2)? != *generation.stamp(version.as_deref()).as_bytes() {
            over.push(rowid);
        }
        last = Some(rowid);
    }
    let mut delete = connection.prepare_cached("DELETE FROM cache_entries WHERE rowid = ?1")?;
    for rowid in over {
        delete.execute([rowid])?;
    }
    Ok(last)
}
