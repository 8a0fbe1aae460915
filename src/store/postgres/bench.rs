//! A migrated database of a test's own on the rig's servers, and the pool of the application's role to it.

use std::path::PathBuf;
use std::sync::Arc;

use rig::{Database, PostgresAccess, PostgresRole, TimescaleServer, shared_postgres};
use serde_json::json;

use super::{ConnectAs, Epoch, Postgres, PostgresMetrics, Settings, migrate};
use crate::config::{PostgresConfig, SecretSource};
use crate::tasks::Tasks;
use crate::telemetry::{HealthBoard, Registry};

/// Everything that a test of the store holds.
pub(crate) struct Bench<D = Database> {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) database: D,
    pub(crate) config: PostgresConfig,
    pub(crate) _board: HealthBoard,
    pub(crate) tasks: Tasks,
    _secrets: tempfile::TempDir,
}

/// How a role of the rig is written in a configuration.
fn role(secrets: &tempfile::TempDir, role: PostgresRole) -> crate::config::PostgresRole {
    let file = secrets.path().join(role.name());
    std::fs::write(&file, role.password()).unwrap();
    crate::config::PostgresRole { user: role.name().to_owned(), password: SecretSource::File(file) }
}

/// The configuration of a database at these addresses.
pub(crate) fn config(
    servers: &[String],
    database: &str,
    ca_file: Option<PathBuf>,
) -> (PostgresConfig, tempfile::TempDir) {
    let secrets = tempfile::tempdir().unwrap();
    let mut config: PostgresConfig = serde_json::from_value(json!({
        "servers": servers, "database": database, "connections": 1, "wait_ms": 20_000, "idle_ms": 400,
        "app": {"user": "?", "password": "${env:UNUSED}"},
    }))
    .unwrap();
    config.tls = ca_file.map(|ca_file| serde_json::from_value(json!({"ca_file": ca_file})).unwrap());
    config.app = role(&secrets, PostgresRole::App);
    config.owner = Some(role(&secrets, PostgresRole::Owner));
    config.relay = Some(role(&secrets, PostgresRole::Relay));
    (config, secrets)
}

/// A database on the shared servers, with so many connections to it.
pub(crate) async fn bench(connections: usize) -> Bench {
    let servers = shared_postgres();
    let addresses = [servers.access().address(0)];
    let database = servers.database().unwrap();
    bench_at(&addresses, &addresses, servers.access(), database, connections).await
}

/// The same, migrated at `servers` and used at `addresses`, with the certificate of `access`.
pub(crate) async fn bench_at(
    servers: &[String],
    addresses: &[String],
    access: &PostgresAccess,
    database: Database,
    connections: usize,
) -> Bench {
    let ca_file = access.certificate().authority.clone();
    let configured = config(servers, database.name(), Some(ca_file));
    migrated(configured, addresses, database, connections).await
}

/// The database of a TimescaleDB of the test's own, through the one connection that it takes.
pub(crate) async fn timescale_bench() -> Bench<TimescaleServer> {
    let server = TimescaleServer::start().unwrap();
    let addresses = [server.address()];
    let (mut config, secrets) = config(&addresses, server.database(), None);
    // A connection waits until the session before it has ended.
    config.connect_timeout_ms = 20_000;
    migrated((config, secrets), &addresses, server, 1).await
}

async fn migrated<D>(
    (mut config, secrets): (PostgresConfig, tempfile::TempDir),
    addresses: &[String],
    database: D,
    connections: usize,
) -> Bench<D> {
    migrate(&config, &Settings::default(), Epoch::Same, false).await.unwrap();
    config.connections = connections;
    // Most tests are one tenant alone.
    config.tenant_connections = Some(connections);
    config.servers = addresses.to_vec();
    let (board, tasks) = (HealthBoard::default(), Tasks::default());
    let health = board.add("postgres", false);
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let postgres = Postgres::start(&config, &ConnectAs::App(&config.app), health, &metrics, &tasks).unwrap();
    Bench { postgres, database, config, _board: board, tasks, _secrets: secrets }
}
