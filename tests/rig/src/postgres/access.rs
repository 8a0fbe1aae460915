//! How to reach a pair of servers and PgBouncer before them.

use std::process::{Command, Output};
use std::time::Duration;

use crate::certificate::Certificate;
use crate::postgres::template::program;
use crate::process::{Error, run};

/// One statement: a server that is stopped never answers.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);

/// Who connects. Every cluster of the rig has these roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresRole {
    /// `postgres`: may everything.
    Superuser,
    /// `outrigger_owner`: owns the database and what is in it; migrates.
    Owner,
    /// `outrigger_app`: owns nothing, and row-level security holds it. What it may do the owner grants.
    App,
    /// `outrigger_relay`: the system's own work; what it may do the owner grants.
    Relay,
}

impl PostgresRole {
    /// As PostgreSQL knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superuser => "postgres",
            Self::Owner => "outrigger_owner",
            Self::App => "outrigger_app",
            Self::Relay => "outrigger_relay",
        }
    }

    /// The same in every cluster of the rig.
    pub fn password(self) -> &'static str {
        match self {
            Self::Superuser => "rig-superuser",
            Self::Owner => "rig-owner",
            Self::App => "rig-app",
            Self::Relay => "rig-relay",
        }
    }
}

/// The addresses and the certificate of two servers, whatever their roles are at the moment.
#[derive(Clone, Debug)]
pub struct PostgresAccess {
    pub(crate) ports: [u16; 2],
    pub(crate) certificate: Certificate,
}

impl PostgresAccess {
    /// `127.0.0.1:port` of a server (0 or 1).
    pub fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.port(index))
    }

    /// The certificate that both servers show, and the authority that a client trusts.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// A connection string for one server, as libpq, tokio-postgres and sqlx read it. The authority is a matter of
    /// the client's TLS.
    pub fn url(&self, index: usize, role: PostgresRole, database: &str) -> String {
        url(self.port(index), role, database)
    }

    /// `psql` on one server, over TLS with the certificate verified; add what it is to do.
    pub fn psql_command(&self, index: usize, role: PostgresRole, database: &str) -> Command {
        let mut command = psql(self.port(index), role, database, &self.certificate);
        command.env("PGCHANNELBINDING", "require");
        command
    }

    /// Runs statements; the rows as `psql` prints them, fields parted by `|`.
    pub fn psql(
        &self,
        index: usize,
        role: PostgresRole,
        database: &str,
        sql: &[&str],
    ) -> Result<String, Error> {
        let command = self.psql_command(index, role, database);
        output(command, sql).map_err(|error| Error::new(format!("server {index}: {error}")))
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.ports.get(index).copied().unwrap_or(0)
    }
}

pub(crate) fn url(port: u16, role: PostgresRole, database: &str) -> String {
    format!("postgres://{}:{}@127.0.0.1:{port}/{database}?sslmode=require", role.name(), role.password())
}

pub(crate) fn psql(port: u16, role: PostgresRole, database: &str, certificate: &Certificate) -> Command {
    let mut command = Command::new(program("psql"));
    // Nothing of the user's own settings; quiet, unaligned, rows only.
    command.args([
        "--no-psqlrc",
        "-qAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
    ]);
    command.args(["-U", role.name(), "-d", database]);
    command.env("PGPASSWORD", role.password()).env("PGCONNECT_TIMEOUT", "10").env("PGGSSENCMODE", "disable");
    command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", &certificate.authority);
    command
}

/// Each statement in a transaction of its own.
pub(crate) fn output(mut command: Command, sql: &[&str]) -> Result<String, Error> {
    for statement in sql {
        command.args(["-c", statement]);
    }
    let Output { status, stdout, stderr } = run(command, STATEMENT_DEADLINE)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(Error::new(format!("{}: {}", sql.join("; "), String::from_utf8_lossy(&stderr).trim())))
}
