//! The embedded backend: buckets in memory, written to `cache.db` a little later by a background task.
//!
//! A check never waits for the disk. What was taken longer ago than `save_interval_ms` and a commit is still
//! taken after a crash; what was taken since is given again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::RateLimitConfig;
use super::memory::Memory;
use super::{Asks, Source, Taking, Tat, TokenSource};
use crate::store::sqlite::{Sqlite, SqliteError};
use crate::tasks::Tasks;

/// The tables: a row is a bucket that is not full, by tenant (16 bytes) and `<limit>:<key>`.
pub(super) const MIGRATIONS: &[&str] = &["CREATE TABLE ratelimit_buckets (
    tenant BLOB NOT NULL,
    id BLOB NOT NULL,
    tat_us INTEGER NOT NULL,
    part INTEGER NOT NULL,
    parts INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID"];

/// Rows that one write job holds, so that other writers wait a few milliseconds at the most.
const ROWS_A_JOB: usize = 4096;
/// Saves between two sweeps of expired keys.
const SAVES_A_SWEEP: u32 = 4;
/// Saves after the stop, for calls still in flight.
const LAST_SAVES: u32 = 100;
/// Between two of those.
const LAST_SAVE_INTERVAL: Duration = Duration::from_millis(50);

/// Buckets in memory, saved.
pub(super) struct Embedded {
    memory: Memory,
    loaded: AtomicBool,
    loading: watch::Receiver<bool>,
}

/// What one job writes.
#[derive(Default)]
struct Batch {
    removed: Vec<(Uuid, Arc<str>)>,
    taken: Vec<(Uuid, Arc<str>, Tat)>,
}

impl Embedded {
    /// Loads what is saved and begins to save, both in the background; checks wait until it is loaded.
    pub(super) fn start(config: &RateLimitConfig, database: Arc<Sqlite>, tasks: &Tasks) -> Arc<Self> {
        let (done, loading) = watch::channel(false);
        let source = Arc::new(Self {
            memory: Memory::new(config.max_keys, true),
            loaded: AtomicBool::new(false),
            loading,
        });
        let background = Arc::clone(&source);
        let stopping = tasks.stopping().clone();
        let (interval, max_keys) = (Duration::from_millis(config.save_interval_ms), config.max_keys);
        tasks.spawn("save rate limits", async move {
            if let Err(error) = background.load(&database, max_keys).await {
                tracing::error!(%error, "the saved rate limits cannot be read: every bucket starts full");
            }
            background.loaded.store(true, Ordering::Release);
            done.send_replace(true);
            background.keep_saving(&database, interval, &stopping).await;
        });
        source
    }

    async fn load(&self, database: &Sqlite, max_keys: usize) -> Result<(), SqliteError> {
        let now_us = self.memory.now_us();
        let most = i64::try_from(max_keys).unwrap_or(i64::MAX);
        let rows = database.read(move |connection| rows_not_full(connection, now_us, most)).await?;
        for (tenant, id, tat) in rows {
            self.memory.restore(tenant, &id, tat);
        }
        database
            .write(move |c| c.execute("DELETE FROM ratelimit_buckets WHERE tat_us < ?1", [now_us]))
            .await?;
        Ok(())
    }

    async fn keep_saving(&self, database: &Sqlite, interval: Duration, stopping: &CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut until_sweep = SAVES_A_SWEEP;
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                _ = ticks.tick() => {}
            }
            until_sweep -= 1;
            if until_sweep == 0 {
                until_sweep = SAVES_A_SWEEP;
                self.memory.sweep();
            }
            self.save(database).await;
        }
        // Calls in flight when the process stops may still take: saved until none did.
        let mut ticks = tokio::time::interval(LAST_SAVE_INTERVAL);
        for _ in 0..LAST_SAVES {
            if self.save(database).await == 0 {
                return;
            }
            ticks.tick().await;
        }
    }

    /// Saves what was changed; how many rows that was.
    async fn save(&self, database: &Sqlite) -> usize {
        let mut batches = vec![Batch::default()];
        self.memory.drain_changes(|removed, taken| {
            let rows = |batch: &Batch| batch.removed.len() + batch.taken.len();
            if batches.last().is_none_or(|last| rows(last) + removed.len() + taken.len() > ROWS_A_JOB) {
                batches.push(Batch::default());
            }
            if let Some(last) = batches.last_mut() {
                last.removed.extend(removed);
                last.taken.extend(taken);
            }
        });
        let mut saved = 0;
        for batch in batches {
            let rows = batch.removed.len() + batch.taken.len();
            if rows == 0 {
                continue;
            }
            saved += rows;
            let batch = Arc::new(batch);
            let job = Arc::clone(&batch);
            if let Err(error) = database.write(move |connection| job.write(connection)).await {
                // Where the disk is full the health board says so, once.
                match error.full() {
                    Some(_) => tracing::debug!(%error, rows, "rate limits could not be saved"),
                    None => {
                        tracing::warn!(%error, rows, "rate limits could not be saved; tried again with the next");
                    }
                }
                self.memory.changed_still(&batch.removed, &batch.taken);
            }
        }
        saved
    }
}

impl TokenSource for Embedded {
    fn take<'a>(&'a self, asks: &'a Asks) -> Taking<'a> {
        let take = || self.memory.take(asks, Source::Backend, |ask| Some(&ask.rule().quota));
        if self.loaded.load(Ordering::Acquire) {
            return Taking::Now(take());
        }
        Taking::Later(Box::pin(async move {
            let mut loading = self.loading.clone();
            if loading.wait_for(|loaded| *loaded).await.is_err() {
                tracing::debug!("a check came while the process stopped");
            }
            take()
        }))
    }
}

impl Batch {
    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        // A key that was removed and came back is in both: first the old row goes.
        let mut delete =
            connection.prepare_cached("DELETE FROM ratelimit_buckets WHERE tenant = ?1 AND id = ?2")?;
        for (tenant, id) in &self.removed {
            delete.execute((&tenant.as_bytes()[..], id.as_bytes()))?;
        }
        let mut insert = connection
            .prepare_cached("INSERT OR REPLACE INTO ratelimit_buckets VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (tenant, id, tat) in &self.taken {
            insert.execute((&tenant.as_bytes()[..], id.as_bytes(), tat.us, tat.part, tat.parts))?;
        }
        Ok(())
    }
}

type Row = (Uuid, String, Tat);

fn rows_not_full(connection: &Connection, now_us: i64, most: i64) -> rusqlite::Result<Vec<Row>> {
    let mut select = connection.prepare(
        "SELECT tenant, id, tat_us, part, parts FROM ratelimit_buckets WHERE tat_us >= ?1 ORDER BY tat_us DESC LIMIT ?2",
    )?;
    let rows = select.query_map([now_us, most], |row| {
        let tenant: [u8; 16] = row.get(0)?;
        let id: Vec<u8> = row.get(1)?;
        let tat = Tat { us: row.get(2)?, part: row.get(3)?, parts: row.get(4)? };
        Ok((Uuid::from_bytes(tenant), String::from_utf8_lossy(&id).into_owned(), tat))
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use crate::store::sqlite::{Bound, Durability};

    fn open(directory: &std::path::Path) -> Arc<Sqlite> {
        let migrations = [("ratelimit", MIGRATIONS)];
        Sqlite::open(&directory.join("cache.db"), Durability::Normal, Bound::of(1 << 30), &migrations)
            .unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_every_promise_of_a_source() {
        let directory = tempfile::tempdir().unwrap();
        let tasks = Tasks::default();
        conformance::run(Embedded::start(&RateLimitConfig::of("embedded"), open(directory.path()), &tasks))
            .await;
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn what_was_taken_is_still_taken_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let tenant = Uuid::new_v4();
        let (slow, odd) = (conformance::rule("slow", 7, 600_000, 9), conformance::rule("odd", 1, 1, 1));
        for left in [6, 3] {
            let database = open(directory.path());
            let tasks = Tasks::default();
            let source = Embedded::start(&RateLimitConfig::of("embedded"), Arc::clone(&database), &tasks);
            let asks = conformance::asks(tenant, 10, &[(&slow, "k\u{e9}", 3), (&odd, "gone", 1)]);
            let outcome = source.take(&asks).outcome().await;
            assert_eq!(outcome.standings[0].remaining, left);
            assert!(tasks.stop(Duration::from_secs(5)).await);
            database.close().await;
        }
        let rows = open(directory.path())
            .read(|c| c.query_row("SELECT count(*) FROM ratelimit_buckets", [], |row| row.get::<_, i64>(0)))
            .await;
        assert!(rows.unwrap() <= 2);
    }

    #[tokio::test]
    async fn expired_keys_leave_memory_and_the_table() {
        let directory = tempfile::tempdir().unwrap();
        let database = open(directory.path());
        let tasks = Tasks::default();
        let mut config = RateLimitConfig::of("embedded");
        config.save_interval_ms = 10;
        let source = Embedded::start(&config, Arc::clone(&database), &tasks);
        let brief = conformance::rule("brief", 1, 20, 1);
        for key in 0..200 {
            let asks = conformance::asks(Uuid::new_v4(), 10, &[(&brief, &key.to_string(), 1)]);
            assert!(source.take(&asks).outcome().await.allowed);
        }
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            let count =
                |c: &Connection| c.query_row("SELECT count(*) FROM ratelimit_buckets", [], |row| row.get(0));
            let rows: i64 = database.read(count).await.unwrap();
            if rows == 0 && source.memory.is_empty() {
                break;
            }
            assert!(std::time::Instant::now() < end, "{rows} rows are left");
            ticks.tick().await;
        }
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }
}
