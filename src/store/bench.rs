//! A store of each kind for one test.

use std::sync::Arc;

use super::postgres::bench::{Bench, bench};
use super::sqlite::{Bound, Durability, Sqlite};
use super::{DURABLE, Store};

/// Both stores, and what lives as long.
pub(crate) struct Stores {
    pub(crate) sqlite: Store,
    pub(crate) postgres: Store,
    pub(crate) _database: Bench,
    pub(crate) _directory: tempfile::TempDir,
}

impl Stores {
    /// With so many connections to PostgreSQL.
    pub(crate) async fn new(connections: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("durable.db");
        let sqlite =
            Sqlite::open(&path, Durability::Full, Bound::of(1 << 30).with_tenant_percent(50), DURABLE)
                .unwrap();
        let database = bench(connections).await;
        let postgres = Store::Postgres(Arc::clone(&database.postgres));
        Self { sqlite: Store::Sqlite(sqlite), postgres, _database: database, _directory: directory }
    }

    /// Each with its name.
    pub(crate) fn both(&self) -> [(&'static str, &Store); 2] {
        [("sqlite", &self.sqlite), ("postgres", &self.postgres)]
    }
}
