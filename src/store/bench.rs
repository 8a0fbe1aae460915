//! A store of each kind for one test.

use std::sync::Arc;

use rig::{PostgresRole, TimescaleServer};

use super::postgres::bench::{Bench, bench, timescale_bench};
use super::postgres::{ConnectAs, Postgres};
use super::sqlite::{Bound, Durability, Sqlite};
use super::{DURABLE, Store};

/// Both stores, and what lives as long.
pub(crate) struct Stores {
    pub(crate) sqlite: Store,
    pub(crate) postgres: Store,
    pub(crate) _database: Bench,
    /// Where the test asked for it.
    timescale: Option<(Store, Bench<TimescaleServer>)>,
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
        let sqlite = Store::Sqlite(sqlite);
        Self { sqlite, postgres, _database: database, timescale: None, _directory: directory }
    }

    /// And one on TimescaleDB, which has one connection.
    pub(crate) async fn with_timescale(connections: usize) -> Self {
        let database = timescale_bench().await;
        let store = Store::Postgres(Arc::clone(&database.postgres));
        Self { timescale: Some((store, database)), ..Self::new(connections).await }
    }

    /// Each with its name.
    pub(crate) fn both(&self) -> [(&'static str, &Store); 2] {
        [("sqlite", &self.sqlite), ("postgres", &self.postgres)]
    }

    /// Both, and the one on TimescaleDB.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &Store)> {
        let timescale = self.timescale.iter().map(|(store, _)| ("timescale", store));
        self.both().into_iter().chain(timescale)
    }

    /// Runs statements on the server of a store's name, which is not SQLite's.
    pub(crate) fn psql(&self, name: &str, role: PostgresRole, sql: &[&str]) -> Result<String, rig::Error> {
        tokio::task::block_in_place(|| match &self.timescale {
            Some((_, bench)) if name == "timescale" => bench.database.psql(role, sql),
            _ => self._database.database.psql(role, sql),
        })
    }

    /// The store of this name, as who sees everyone's rows.
    pub(crate) async fn as_owner(&self, name: &str) -> Store {
        let config = match &self.timescale {
            _ if name == "sqlite" => return self.sqlite.clone(),
            Some((_, bench)) if name == "timescale" => &bench.config,
            _ => &self._database.config,
        };
        let owner = config.owner.as_ref().unwrap();
        Store::Postgres(Postgres::open(config, &ConnectAs::Owner(owner)).await.unwrap())
    }
}
