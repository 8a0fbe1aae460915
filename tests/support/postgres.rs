//! Sidecars on a PostgreSQL database of the test's own.

use std::path::Path;
use std::process::Command;

use rig::{Database, PgBouncer, PostgresCluster, PostgresRole, TimescaleServer, shared_postgres};

use super::configuration::GOOD;
use super::sidecar::{ACME, BINARY, Sidecar};

/// A configuration with `store: postgres` on the shared servers; the roles' passwords are put into the directory.
pub fn configuration(directory: &Path, database: &str) -> String {
    let servers = shared_postgres();
    let address = servers.access().address(0);
    configuration_at(directory, database, &[address], &servers.access().certificate().authority)
}

/// The same at these addresses.
pub fn configuration_at(directory: &Path, database: &str, addresses: &[String], authority: &Path) -> String {
    let role = |role: PostgresRole| {
        std::fs::write(directory.join(role.name()), role.password()).unwrap();
        format!("{{user: {0}, password: \"${{file:{0}}}\"}}", role.name())
    };
    let redis =
        "redis:\n  limits:\n    nodes: [127.0.0.1:17001]\nratelimit: {backend: redis, redis: limits}\n";
    assert!(GOOD.contains(redis));
    let postgres = format!(
        "store: postgres\npostgres:\n  servers: {addresses:?}\n  database: {database}\n  tls: {{ca_file: '{}'}}\n  required: true\n  \
         app: {}\n  owner: {}\nevents: {{heartbeat_ms: 200}}\nusage: {{}}\n",
        authority.display(),
        role(PostgresRole::App),
        role(PostgresRole::Owner),
    );
    let relay = role(PostgresRole::Relay);
    let postgres = postgres.replace("  required", &format!("  relay: {relay}\n  required"));
    GOOD.replace(redis, "ratelimit: {backend: embedded}\n").replace("jwks.json", "identity/jwks.json")
        + &postgres
}

/// A configuration for a TimescaleDB of the test's own: no TLS, one connection, and patience.
pub fn timescale_configuration(directory: &Path, server: &TimescaleServer) -> String {
    let text = configuration_at(directory, server.database(), &[server.address()], Path::new(""));
    let is_there = |line: &&str| !["  tls:", "  relay:"].iter().any(|setting| line.starts_with(setting));
    let lines: Vec<&str> = text.lines().filter(is_there).collect();
    let one = "  connections: 1\n  connect_timeout_ms: 20000\n  wait_ms: 20000\n  required";
    (lines.join("\n") + "\n").replace("  required", one)
}

/// A database that is migrated, and a configuration for it in a directory with policies.
pub struct OnPostgres<D = Database> {
    pub database: D,
    text: String,
    pub policies: Vec<(String, String)>,
}

impl OnPostgres {
    /// With the shipped policies.
    pub fn new() -> Self {
        let servers = shared_postgres();
        let addresses = [servers.access().address(0)];
        let authority = servers.access().certificate().authority.clone();
        Self::at(servers.database().unwrap(), &addresses, &addresses, &authority)
    }

    /// On a cluster of the test's own, directly or through a pooler before it.
    pub fn on_cluster(cluster: &PostgresCluster, pooler: Option<&PgBouncer>) -> Self {
        let servers = [cluster.access().address(0), cluster.access().address(1)];
        let served = pooler.map_or_else(|| servers.to_vec(), |pooler| vec![pooler.address()]);
        let authority = &cluster.access().certificate().authority;
        Self::at(cluster.database().unwrap(), &servers, &served, authority)
    }

    /// A database that is migrated at some addresses and served from others.
    pub fn at(database: Database, servers: &[String], served: &[String], authority: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = configuration_at(directory.path(), database.name(), servers, authority);
        let mut on = Self { database, text, policies: shipped_policies() };
        on.migrate();
        on.text = configuration_at(directory.path(), on.database.name(), served, authority);
        on
    }
}

impl OnPostgres<TimescaleServer> {
    /// On TimescaleDB.
    pub fn on_timescale() -> Self {
        let (database, directory) = (TimescaleServer::start().unwrap(), tempfile::tempdir().unwrap());
        let text = timescale_configuration(directory.path(), &database);
        let on = Self { database, text, policies: shipped_policies() };
        on.migrate();
        on
    }
}

impl<D> OnPostgres<D> {
    /// With this in the place of that in `proxy.yaml`.
    pub fn with(mut self, that: &str, this: &str) -> Self {
        assert!(self.text.contains(that), "{}", self.text);
        self.text = self.text.replace(that, this);
        self
    }

    /// Another policy document in the place of the one of that name.
    pub fn with_policy(mut self, name: &str, text: &str) -> Self {
        self.policies.retain(|(held, _)| held != name);
        self.policies.push((name.to_owned(), text.to_owned()));
        self
    }

    fn write_to(&self, directory: &Path) {
        for role in [PostgresRole::App, PostgresRole::Owner, PostgresRole::Relay] {
            std::fs::write(directory.join(role.name()), role.password()).unwrap();
        }
        std::fs::write(directory.join("proxy.yaml"), &self.text).unwrap();
        let policies = directory.join("policies");
        std::fs::create_dir_all(&policies).unwrap();
        for (name, text) in &self.policies {
            std::fs::write(policies.join(name), text).unwrap();
        }
        let mint = ["token", "mint", "--subject", "s", "--tenant", ACME, "--data"];
        let minted = Command::new(BINARY).args(mint).arg(directory).output().unwrap();
        assert!(minted.status.success(), "{minted:?}");
    }

    /// More of `proxy.yaml`, and what it brings made by `outrigger migrate`.
    pub fn with_config(mut self, more: &str) -> Self {
        self.text.push_str(more);
        self.migrate();
        self
    }

    fn migrate(&self) {
        let directory = tempfile::tempdir().unwrap();
        self.write_to(directory.path());
        let config = directory.path().join("proxy.yaml");
        let migrated = Command::new(BINARY).args(["migrate", "--config"]).arg(&config).output().unwrap();
        assert!(migrated.status.success(), "{migrated:?}");
    }

    /// A sidecar on it, in a directory of its own.
    pub fn sidecar(&self) -> Sidecar {
        self.process("")
    }

    /// A process with more in its configuration.
    pub fn process(&self, more: &str) -> Sidecar {
        let directory = tempfile::tempdir().unwrap();
        self.write_to(directory.path());
        let config = directory.path().join("proxy.yaml");
        std::fs::write(&config, format!("{}{more}", self.text)).unwrap();
        Sidecar::serve_in(directory, &config)
    }
}

fn shipped_policies() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect()
}
