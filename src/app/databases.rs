//! The embedded databases: opened, and their room on the health board.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use crate::config::{PostgresConfig, ProxyConfig, Role, StoreChoice};
use crate::primitives;
use crate::store::postgres::{self, ConnectAs, Postgres, PostgresMetrics};
use crate::store::sqlite::{Bound, Durability, Full, Migrations, Sqlite};
use crate::store::{self, Store};
use crate::tasks::Tasks;
use crate::telemetry::{BackendHealth, BackendState, HealthBoard, MetricError, Registry};

/// Where databases are opened from.
pub(super) struct Opener<'a> {
    pub(super) config: &'a ProxyConfig,
    pub(super) board: &'a HealthBoard,
    pub(super) metrics: &'a Registry,
    pub(super) tasks: &'a Tasks,
}

/// What one of the two files is.
struct Kind {
    file: &'static str,
    durability: Durability,
    /// Its bound's place in `proxy.yaml`.
    bound: &'static str,
    metric: &'static str,
    help: &'static str,
    /// What makes room.
    mend: &'static str,
}

const CACHE: Kind = Kind {
    file: "cache.db",
    durability: Durability::Normal,
    bound: "limits.cache_db_bytes",
    metric: "outrigger_cache_db_full",
    help: "Whether `cache.db` takes no new values, because the disk is full or its bound is reached.",
    mend: "shorten times to live, or free room by deletes",
};

const DURABLE: Kind = Kind {
    file: "durable.db",
    durability: Durability::Full,
    bound: "limits.durable_db_bytes",
    metric: "outrigger_durable_db_full",
    help: "Whether `durable.db` takes nothing more, because the disk is full or its bound is reached.",
    mend: "or keep events for fewer days (`events.retention_days`)",
};

impl Opener<'_> {
    /// `cache.db`, where there is a data directory.
    pub(super) fn cache(&self) -> Result<Option<Arc<Sqlite>>, StartError> {
        let Some(directory) = self.config.data_dir.as_deref() else { return Ok(None) };
        let migrations: Vec<_> = primitives::ALL.iter().map(|row| (row.name, row.migrations)).collect();
        let bound = Bound::of(self.config.limits.cache_db_bytes);
        self.open(&CACHE, directory, bound, &migrations).map(Some)
    }

    /// The store, where one is chosen.
    pub(super) fn store(&self, counts: &PostgresMetrics) -> Result<Option<Store>, StartError> {
        let data = |path: &str, reason: String| StartError::Data { path: path.to_owned(), reason };
        match self.config.store {
            None => Ok(None),
            Some(StoreChoice::Embedded) => {
                let directory = self.config.data_dir.as_deref();
                let directory = directory
                    .ok_or_else(|| data("store", "`store: embedded` needs `data_dir`".to_owned()))?;
                let limits = &self.config.limits;
                let bound =
                    Bound::of(limits.durable_db_bytes).with_tenant_percent(limits.durable_db_tenant_percent);
                self.open(&DURABLE, directory, bound, store::DURABLE).map(|open| Some(Store::Sqlite(open)))
            }
            Some(StoreChoice::Postgres) => {
                let database = self.config.postgres.as_ref();
                let database =
                    database.ok_or_else(|| data("store", "`store: postgres` needs `postgres`".to_owned()))?;
                let app = ConnectAs::App(&database.app);
                self.postgres("postgres", database, app, counts).map(Some)
            }
        }
    }

    /// The same database as relays see it, where this process is one.
    pub(super) fn relayed(&self, counts: &PostgresMetrics) -> Result<Option<Store>, StartError> {
        let database = self.config.postgres.as_ref().filter(|_| self.config.has_role(Role::Relay));
        let role = database.and_then(|database| Some((database, database.relay.as_ref()?)));
        role.map(|(database, role)| self.postgres("postgres.relay", database, ConnectAs::Relay(role), counts))
            .transpose()
    }

    fn postgres(
        &self,
        name: &'static str,
        database: &PostgresConfig,
        role: ConnectAs<'_>,
        counts: &PostgresMetrics,
    ) -> Result<Store, StartError> {
        let health = self.board.add(name, database.required);
        let postgres = Postgres::start(database, &role, health, counts, self.tasks);
        let failed = |error: postgres::StartError| StartError::Data {
            path: name.to_owned(),
            reason: error.to_string(),
        };
        Ok(Store::Postgres(postgres.map_err(failed)?))
    }

    /// Opens a database in the data directory, which it makes where it is not there.
    fn open(
        &self,
        kind: &'static Kind,
        directory: &Path,
        bound: Bound,
        migrations: &[Migrations],
    ) -> Result<Arc<Sqlite>, StartError> {
        let path = directory.join(kind.file);
        let data = |reason: String| StartError::Data { path: path.display().to_string(), reason };
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
        made.map_err(|error| data(error.to_string()))?;
        let opened = Sqlite::open(&path, kind.durability, bound, migrations)
            .map_err(|error| data(error.to_string()))?;
        let report = Report::new(kind, self.board.add(kind.file, false), self.metrics, directory)?;
        let (mut full, stopping) = (opened.full(), self.tasks.stopping().clone());
        report.say(&mut full);
        self.tasks.spawn("room of an embedded database", async move {
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    changed = full.changed() => if changed.is_err() { return },
                }
                report.say(&mut full);
            }
        });
        Ok(opened)
    }
}

/// What an operator is told.
struct Report {
    kind: &'static Kind,
    health: BackendHealth,
    full: prometheus::IntGaugeVec,
    directory: String,
}

impl Report {
    fn new(
        kind: &'static Kind,
        health: BackendHealth,
        metrics: &Registry,
        directory: &Path,
    ) -> Result<Self, MetricError> {
        let full = metrics.gauges(kind.metric, kind.help, &["reason"])?;
        Ok(Self { kind, health, full, directory: directory.display().to_string() })
    }

    fn say(&self, full: &mut watch::Receiver<Option<Full>>) {
        let full = *full.borrow_and_update();
        for (reason, this) in [("disk", Full::Disk), ("bound", Full::Database)] {
            self.full.with_label_values(&[reason]).set(i64::from(full == Some(this)));
        }
        match full {
            None => self.health.set(BackendState::Up, ""),
            Some(Full::Disk) => self.health.set(
                BackendState::Degraded,
                format!(
                    "the disk under {} is full, or refuses writes: what would add to it is refused with 503, reads and deletes \
                     go on; free 40 MiB there, or wait until something ends; nothing needs a restart",
                    self.directory
                ),
            ),
            Some(Full::Database | Full::Share) => self.health.set(
                BackendState::Degraded,
                format!(
                    "full: `{}` is reached, and what would add to it is refused with 503; raise it, {}",
                    self.kind.bound, self.kind.mend
                ),
            ),
        }
    }
}
