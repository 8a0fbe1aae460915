//! PgBouncer, from Debian's package, before one of two PostgreSQL servers: transaction mode, passwords by SCRAM, TLS
//! on both sides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::fleet::Fleet;
use crate::ports::Ports;
use crate::postgres::access::{self, PostgresAccess, PostgresRole};
use crate::postgres::folder::Folder;
use crate::postgres::{PostgresCluster, USER};
use crate::process::{Error, Missing, Program, log_tail, wait_until};
use crate::recorded::Recorded;
use crate::user::User;

/// Where Debian's package has it; not in everybody's path.
const PROGRAM: &str = "/usr/sbin/pgbouncer";
const SETTINGS: &str = "pgbouncer.ini";
/// The database of PgBouncer's own commands.
const CONSOLE: &str = "pgbouncer";
const READY_DEADLINE: Duration = Duration::from_secs(30);
const LOG_LINES: usize = 12;

/// How to start one; `PgBouncerOptions::default()` has pools of 20 on a free port.
#[derive(Clone, Copy, Debug)]
pub struct PgBouncerOptions {
    /// Its port. None: a free one.
    pub port: Option<u16>,
    /// Server connections for each pair of database and user.
    pub pool_size: u16,
}

impl Default for PgBouncerOptions {
    fn default() -> Self {
        Self { port: None, pool_size: 20 }
    }
}

/// A PgBouncer that this process started. Dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    options: PgBouncerOptions,
    folder: Folder,
    remove_folder: bool,
    user: Option<User>,
    servers: PostgresAccess,
    server: AtomicUsize,
    port: u16,
    /// None where the port belongs to the servers' run.
    _ports: Option<Ports>,
    fleet: Fleet,
}

impl PgBouncer {
    /// Starts one before the cluster's primary; after a failover, [`point_to`](Self::point_to) the other.
    pub fn start(cluster: &PostgresCluster, options: PgBouncerOptions) -> Result<Self, Error> {
        Self::start_before(cluster.access(), cluster.primary(), options)
    }

    /// Starts one before a server of a pair.
    pub(crate) fn start_before(
        servers: &PostgresAccess,
        server: usize,
        options: PgBouncerOptions,
    ) -> Result<Self, Error> {
        let ports = match options.port {
            Some(port) => Ports::fixed(port, 1)?,
            None => Ports::free(1)?,
        };
        let port = ports.first;
        let link = format!("own/{}-{port}", std::process::id());
        Self::create(servers, server, options, port, Some(ports), Path::new(&link))
    }

    /// On a port that the caller holds; it outlives this process, once it is [released](Self::release).
    pub(crate) fn start_outliving(servers: &PostgresAccess, port: u16) -> Result<Self, Error> {
        let options = PgBouncerOptions { port: Some(port), ..PgBouncerOptions::default() };
        Self::create(servers, 0, options, port, None, Path::new("pgbouncer"))
    }

    pub(crate) fn release(&self) -> Result<Vec<Recorded>, Error> {
        self.fleet.release()
    }

    fn create(
        servers: &PostgresAccess,
        server: usize,
        options: PgBouncerOptions,
        port: u16,
        ports: Option<Ports>,
        link: &Path,
    ) -> Result<Self, Error> {
        let user = User::instead_of_root(USER)?;
        let folder = Folder::create(&format!("pgbouncer-{port}"), link, user)?;
        let fleet = Fleet::new(1, ports.is_none())?;
        let bouncer = Self {
            options,
            folder,
            remove_folder: ports.is_some(),
            user,
            servers: servers.clone(),
            server: AtomicUsize::new(server),
            port,
            _ports: ports,
            fleet,
        };
        bouncer.write("users", &users(servers, server)?)?;
        bouncer.write(SETTINGS, &bouncer.settings())?;
        user.map_or(Ok(()), |user| user.takes(&bouncer.folder.path))?;
        bouncer.restart()?;
        Ok(bouncer)
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A connection string through it.
    pub fn url(&self, role: PostgresRole, database: &str) -> String {
        access::url(self.port, role, database)
    }

    /// `psql` through it, over TLS with the certificate verified; add what it is to do.
    pub fn psql_command(&self, role: PostgresRole, database: &str) -> Command {
        access::psql(self.port, role, database, self.servers.certificate())
    }

    /// Runs statements through it; the rows as `psql` prints them, fields parted by `|`.
    pub fn psql(&self, role: PostgresRole, database: &str, sql: &[&str]) -> Result<String, Error> {
        access::output(self.psql_command(role, database), sql)
    }

    /// One of PgBouncer's own commands, such as `SHOW POOLS`.
    pub fn console(&self, command: &str) -> Result<String, Error> {
        self.psql(PostgresRole::Superuser, CONSOLE, &[command])
    }

    /// Sends new transactions to the other server of the pair, as a failover tool does.
    pub fn point_to(&self, server: usize) -> Result<(), Error> {
        self.server.store(server, Ordering::SeqCst);
        self.write(SETTINGS, &self.settings())?;
        self.console("RELOAD").map(drop)
    }

    /// SIGKILL.
    pub fn kill(&self) -> Result<(), Error> {
        self.fleet.kill(0)
    }

    /// SIGSTOP: connections stay and nothing answers.
    pub fn stop(&self) -> Result<(), Error> {
        self.fleet.stop(0)
    }

    /// SIGCONT, after [`stop`](Self::stop).
    pub fn cont(&self) -> Result<(), Error> {
        self.fleet.cont(0)
    }

    /// Starts it again, after killing it where it runs; returns when it answers.
    pub fn restart(&self) -> Result<(), Error> {
        if self.fleet.pid(0).is_some() {
            self.kill()?;
        }
        let program = Program {
            name: format!("postgres-bouncer-{}", self.port),
            path: PROGRAM.to_owned(),
            arguments: vec![self.folder.path.join(SETTINGS).display().to_string()],
            log: self.log(),
            user: self.user,
            end: Signal::TERM,
            discard: Signal::KILL,
            outlives_us: false,
        };
        self.fleet.start(0, program)?;
        let what = format!("PgBouncer on port {}", self.port);
        wait_until(
            &what,
            READY_DEADLINE,
            || log_tail(&self.log(), LOG_LINES),
            || {
                if self.fleet.pid(0).is_none() {
                    return Err(Missing::ForGood("it ended".to_owned()));
                }
                self.console("SHOW VERSION").map(drop).map_err(|error| Missing::Yet(error.to_string()))
            },
        )
    }

    fn settings(&self) -> String {
        let certificate = self.servers.certificate();
        format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\npool_mode = transaction\ndefault_pool_size = {pool_size}\n\
             max_client_conn = 500\nauth_type = scram-sha-256\nauth_file = {users}\nadmin_users = {admin}\n\
             client_tls_sslmode = require\nclient_tls_protocols = tlsv1.3\nclient_tls_cert_file = {certificate}\n\
             client_tls_key_file = {key}\nserver_tls_sslmode = verify-full\nserver_tls_protocols = tlsv1.3\n\
             server_tls_ca_file = {authority}\nignore_startup_parameters = extra_float_digits\n\
             server_login_retry = 0.2\n",
            server = self.servers.port(self.server.load(Ordering::SeqCst)),
            port = self.port,
            pool_size = self.options.pool_size,
            users = self.folder.path.join("users").display(),
            admin = PostgresRole::Superuser.name(),
            certificate = certificate.certificate.display(),
            key = certificate.key.display(),
            authority = certificate.authority.display(),
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.folder.path.join(name);
        fs::write(&path, text).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
        self.user.map_or(Ok(()), |user| user.takes_only(&path))
    }

    fn log(&self) -> PathBuf {
        self.folder.path.join("log")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // Where the folder is to stay the fleet's own destructor ends it.
        if self.remove_folder {
            self.fleet.discard(&self.folder.path, || self.folder.remove());
        }
    }
}

/// PgBouncer's `auth_file` with the SCRAM secrets of the server itself: it needs no password then, and logs in with
/// what a client proved to it.
fn users(servers: &PostgresAccess, server: usize) -> Result<String, Error> {
    let statement =
        r#"SELECT format('"%s" "%s"', rolname, rolpassword) FROM pg_authid WHERE rolpassword IS NOT NULL"#;
    servers.psql(server, PostgresRole::Superuser, "postgres", &[statement])
}
