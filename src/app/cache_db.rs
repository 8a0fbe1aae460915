//! `cache.db`: opened, and its room on the health board.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;
use crate::config::ProxyConfig;
use crate::primitives;
use crate::store::sqlite::{Durability, Full, Sqlite};
use crate::tasks::Tasks;
use crate::telemetry::{BackendHealth, BackendState, HealthBoard, MetricError, Registry};

/// Opens the database in the data directory, which it makes where it is not there.
pub(super) fn open(
    config: &ProxyConfig,
    board: &HealthBoard,
    metrics: &Registry,
    tasks: &Tasks,
) -> Result<Option<Arc<Sqlite>>, StartError> {
    let Some(directory) = config.data_dir.as_deref() else { return Ok(None) };
    let path = directory.join("cache.db");
    let data = |reason: String| StartError::Data { path: path.display().to_string(), reason };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.map_err(|error| data(error.to_string()))?;
    let migrations: Vec<_> = primitives::ALL.iter().map(|row| (row.name, row.migrations)).collect();
    let opened = Sqlite::open(&path, Durability::Normal, config.limits.cache_db_bytes, &migrations)
        .map_err(|error| data(error.to_string()))?;
    let report = Report::new(board.add("cache.db", false), metrics, directory)?;
    let (mut full, stopping) = (opened.full(), tasks.stopping().clone());
    report.say(&mut full);
    tasks.spawn("cache.db room", async move {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = full.changed() => if changed.is_err() { return },
            }
            report.say(&mut full);
        }
    });
    Ok(Some(opened))
}

/// What an operator is told.
struct Report {
    health: BackendHealth,
    full: prometheus::IntGaugeVec,
    directory: String,
}

impl Report {
    fn new(health: BackendHealth, metrics: &Registry, directory: &Path) -> Result<Self, MetricError> {
        let full = metrics.gauges(
            "outrigger_cache_db_full",
            "Whether `cache.db` takes no new values, because the disk is full or its bound is reached.",
            &["reason"],
        )?;
        Ok(Self { health, full, directory: directory.display().to_string() })
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
                    "the disk under {} is full, or refuses writes: new values are refused with 503, reads and deletes go on; free \
                     40 MiB there, or wait until values end; nothing needs a restart",
                    self.directory
                ),
            ),
            Some(Full::Database) => self.health.set(
                BackendState::Degraded,
                "full: `limits.cache_db_bytes` is reached, and new values are refused with 503; raise it, shorten times to \
                 live, or free room by deletes",
            ),
        }
    }
}
