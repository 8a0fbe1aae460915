//! The embedded backend: `cache.db` (SQLite) behind L1, for one process.
//!
//! A write is acknowledged after the commit that holds it (group commit, synchronous NORMAL), so it
//! survives the process's end. Leases are in memory: a restart voids them.

mod leases;
mod rows;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::leases::Leases;
use self::rows::{PutRow, Row, Written};
use super::etag::Etag;
use super::generation::{Generation, GenerationToken, Generations};
use super::key::{Address, Scope};
use super::l1::L1;
use super::lease::{LeaseToken, Waiters};
use super::metrics::CacheMetrics;
use super::pending::Pending;
use super::policy::Namespace;
use super::{CacheBackend, CacheError, Found, LeaseAnswer, Lookup, Stored, Tier, Write, cost, now_ms};
use crate::clock;
use crate::store::sqlite::{Sqlite, SqliteError};
use crate::tasks::Tasks;

/// What a read counts, so that a tenant has 16 of them under way: how large a value is, is known too late.
const READ_BYTES: usize = 255 * 1024;

/// Its tables.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("embedded/001_entries.sql")];

/// The backend.
pub(super) struct EmbeddedCache {
    database: Arc<Sqlite>,
    shared: Arc<Shared>,
    writes: Arc<Pending>,
    reads: Arc<Pending>,
    metrics: CacheMetrics,
    tasks: Tasks,
}

/// What a write needs after its commit, whether or not its caller still waits.
struct Shared {
    l1: Arc<L1>,
    generations: Generations,
    leases: Leases,
    waiters: Waiters,
}

/// What the store has under a key.
enum Held {
    Fresh(Arc<Stored>),
    Stale(Arc<Stored>),
    Nothing,
}

impl EmbeddedCache {
    /// Starts its sweeper.
    pub(super) fn start(
        database: Arc<Sqlite>,
        l1: Arc<L1>,
        metrics: CacheMetrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            l1,
            generations: Generations::default(),
            leases: Leases::default(),
            waiters: Waiters::default(),
        });
        sweep::start(&database, tasks);
        Arc::new(Self {
            database,
            shared,
            writes: Arc::default(),
            reads: Arc::default(),
            metrics,
            tasks: tasks.clone(),
        })
    }

    async fn load(&self, address: &Address, rules: &Namespace) -> Result<Held, CacheError> {
        let (tenant, longest) = (address.scope().tenant(), Duration::MAX);
        let _place = self.reads.enter(tenant, READ_BYTES, longest).await?;
        let fill = self.shared.l1.begin_fill(address.entry());
        let scope = address.scope();
        let (known, began) = (self.shared.generations.get(scope), self.shared.generations.begin_read());
        let (entry, wanted) = (address.entry().to_vec(), known.is_none().then(|| scope.clone()));
        let (row, read) = self
            .database
            .read(move |connection| {
                let generation = wanted.map(|scope| rows::generation(connection, &scope)).transpose()?;
                Ok((rows::get(connection, &entry)?, generation))
            })
            .await?;
        let generation = match (known, read) {
            (Some(known), _) => known,
            (None, read) => self.shared.generations.learn(scope, read.unwrap_or_default(), &began),
        };
        let now = now_ms();
        let Some(row) = row.filter(|row| row.stamp == *generation.stamp(address.version()).as_bytes()) else {
            return Ok(Held::Nothing);
        };
        let Some(stored) = stored(row, rules, generation, now) else { return Ok(Held::Nothing) };
        if now < stored.expires_at_ms {
            if rules.l1_ttl_ms > 0 {
                self.shared.l1.finish_fill(&fill, address.entry(), &stored);
            }
            Ok(Held::Fresh(stored))
        } else if now < stored.expires_at_ms.saturating_add(rules.stale_ms) {
            Ok(Held::Stale(stored))
        } else {
            Ok(Held::Nothing)
        }
    }

    /// Runs a write to its end, even where its caller goes away: what follows a commit must follow it.
    async fn finish<T, F>(
        &self,
        scope: &Scope,
        bytes: usize,
        budget: Duration,
        write: impl FnOnce(Arc<Sqlite>) -> F + Send + 'static,
    ) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CacheError>> + Send + 'static,
    {
        let end = Instant::now() + budget;
        let place = self.writes.enter(scope.tenant(), bytes, budget).await?;
        let (sender, receiver) = oneshot::channel();
        let database = Arc::clone(&self.database);
        self.tasks.spawn("cache write", async move {
            let answer = write(database).await;
            drop(place);
            if sender.send(answer).is_err() {
                tracing::trace!("the caller of a cache write stopped waiting");
            }
        });
        match tokio::time::timeout_at(end, receiver).await {
            Ok(answer) => answer.unwrap_or(Err(CacheError::Unavailable)),
            Err(_) => Err(CacheError::Unknown),
        }
    }
}

/// A row as a value; `None` where its content type is no header value, which no writer of ours leaves.
fn stored(row: Row, rules: &Namespace, generation: Arc<Generation>, now: u64) -> Option<Arc<Stored>> {
    Some(Arc::new(Stored {
        body: Bytes::from(row.body),
        content_type: HeaderValue::from_str(&row.content_type).ok()?,
        etag: Etag::from_bytes(row.etag),
        etag_header: Etag::from_bytes(row.etag).header(),
        written_at_ms: row.written_at_ms,
        expires_at_ms: row.expires_at_ms,
        l1_until_ms: row.expires_at_ms.min(now.saturating_add(rules.l1_ttl_ms)),
        generation,
    }))
}

#[async_trait]
impl CacheBackend for EmbeddedCache {
    fn cached(&self, address: &Address) -> Option<Found> {
        let stored = self.shared.l1.get(address.entry(), clock::since_1970_ms())?;
        Some(Found { stored, tier: Tier::L1 })
    }

    async fn lookup(
        &self,
        address: &Address,
        rules: &Namespace,
        budget: Duration,
    ) -> Result<Lookup, CacheError> {
        let held = tokio::time::timeout(budget, self.load(address, rules));
        match held.await.map_err(|_| CacheError::Unavailable)?? {
            Held::Fresh(stored) => Ok(Lookup::Found(Found { stored, tier: Tier::L2 })),
            Held::Stale(_) | Held::Nothing => Ok(Lookup::Absent),
        }
    }

    async fn lease(
        &self,
        address: &Address,
        rules: &Namespace,
        lease_ms: u64,
        budget: Duration,
    ) -> Result<LeaseAnswer, CacheError> {
        let taken = self.shared.leases.take(address, lease_ms)?;
        // Only after it was taken does a miss mean that nobody filled meanwhile.
        let held = tokio::time::timeout(budget, self.load(address, rules)).await;
        let held = held.map_err(|_| CacheError::Unavailable)??;
        let stale = match held {
            Held::Fresh(stored) => return Ok(LeaseAnswer::Found(Found { stored, tier: Tier::L2 })),
            Held::Stale(stored) => Some(Found { stored, tier: Tier::Stale }),
            Held::Nothing => None,
        };
        Ok(match taken {
            Ok(taken) => match taken.hand_over() {
                Some(token) => LeaseAnswer::Granted(token),
                None => LeaseAnswer::Held { for_ms: 0, stale },
            },
            Err(for_ms) => LeaseAnswer::Held { for_ms, stale },
        })
    }

    async fn put(
        &self,
        address: &Address,
        rules: &Namespace,
        write: Write,
        budget: Duration,
    ) -> Result<Etag, CacheError> {
        let etag = Etag::of_typed(write.content_type.as_bytes(), &write.body);
        let now = now_ms();
        let expires_at_ms = now.saturating_add(write.ttl_ms);
        let row = PutRow {
            entry: address.entry().to_vec(),
            scope: address.scope().clone(),
            version: address.version().map(str::to_owned),
            bytes: cost(address, write.content_type.len() + write.body.len()),
            written_at_ms: now,
            expires_at_ms,
            gone_at_ms: expires_at_ms.saturating_add(rules.stale_ms),
            etag,
            write,
        };
        let bytes = row.write.body.len();
        let shared = Arc::clone(&self.shared);
        let (scope, entry) = (address.scope().clone(), address.entry().to_vec());
        self.finish(address.scope(), bytes, budget, move |database| async move {
            let in_job = Arc::clone(&shared);
            let written = database
                .store(row.bytes, move |connection| rows::put(connection, &row, &in_job.leases))
                .await;
            shared.l1.invalidate(&entry);
            // Only now: a lease that is free before the commit would go to a reader who does not see the
            // value yet.
            if matches!(written, Ok(Written::Stored) | Err(SqliteError::Sqlite(_) | SqliteError::Gone)) {
                shared.leases.void(&scope, &entry);
            }
            shared.waiters.changed(&entry);
            match written? {
                Written::Stored => Ok(etag),
                Written::PreconditionFailed => Err(CacheError::PreconditionFailed),
                Written::LeaseVoid => Err(CacheError::LeaseVoid),
                Written::TenantFull { max_bytes } => Err(CacheError::TenantFull { max_bytes }),
            }
        })
        .await
    }

    async fn delete(
        &self,
        address: &Address,
        _: &Namespace,
        lease: Option<LeaseToken>,
        budget: Duration,
    ) -> Result<(), CacheError> {
        if let Some(token) = lease {
            self.shared.leases.give_up(address, &token);
            self.shared.waiters.changed(address.entry());
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let (scope, entry) = (address.scope().clone(), address.entry().to_vec());
        self.finish(address.scope(), 0, budget, move |database| async move {
            let (in_job, job_scope, job_entry) = (Arc::clone(&shared), scope.clone(), entry.clone());
            let deleted = database.write(move |connection| {
                in_job.leases.use_up(&job_scope, &job_entry);
                rows::delete(connection, &job_entry)
            });
            let deleted = deleted.await;
            shared.l1.invalidate(&entry);
            if !matches!(deleted, Err(SqliteError::Overloaded)) {
                shared.leases.void(&scope, &entry);
            }
            shared.waiters.changed(&entry);
            Ok(deleted?)
        })
        .await
    }

    async fn invalidate(
        &self,
        scope: &Scope,
        _: &Namespace,
        version: Option<&str>,
        budget: Duration,
    ) -> Result<(), CacheError> {
        let (shared, of_scope) = (Arc::clone(&self.shared), scope);
        let scope = of_scope.clone();
        let (version, tasks) = (version.map(str::to_owned), self.tasks.clone());
        self.metrics.invalidations.inc();
        self.finish(of_scope, 0, budget, move |database| async move {
            let (in_job, job_scope, job_version) = (Arc::clone(&shared), scope.clone(), version.clone());
            let job = database.write(move |connection| {
                in_job.leases.void_scope(&job_scope, job_version.as_deref());
                rows::renew_generation(
                    connection,
                    &job_scope,
                    job_version.as_deref(),
                    GenerationToken::random(),
                )
            });
            let done = job.await;
            shared.generations.void(&scope);
            // Again, for those that were given since, before the commit.
            shared.leases.void_scope(&scope, version.as_deref());
            shared.waiters.scope_changed(&scope);
            done?;
            sweep::invalidated(&database, scope, &tasks);
            Ok(())
        })
        .await
    }

    fn waiters(&self) -> &Waiters {
        &self.shared.waiters
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::conformance;
    use super::*;
    use crate::store::sqlite::{Bound, Durability};
    use crate::telemetry::Registry;

    fn open(directory: &Path) -> Arc<EmbeddedCache> {
        let metrics = CacheMetrics::new(&Registry::default()).unwrap();
        let path = directory.join("cache.db");
        let database =
            Sqlite::open(&path, Durability::Normal, Bound::of(1 << 30), &[("cache", MIGRATIONS)]).unwrap();
        let l1 = Arc::new(L1::new(8 << 20, &metrics));
        EmbeddedCache::start(database, l1, metrics, &Tasks::default())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_embedded_backend_keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let backend = open(directory.path());
        conformance::run(backend.clone(), backend).await;
    }
}
