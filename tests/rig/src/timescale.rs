//! PostgreSQL 17 with TimescaleDB, built for WebAssembly, in a Node.js process: one session at a time, in memory, without TLS,
//! passwords and background workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::cache;
use crate::fleet::Fleet;
use crate::ports::Ports;
use crate::postgres::access::{PostgresRole, output};
use crate::postgres::template::program;
use crate::process::{Error, Missing, Program, log_tail, remove_folder, run, wait_until};
use crate::shared::{from_environment, workspace_root};

const PACKAGE: &str = include_str!("../timescale/package.json");
const SERVER: &str = include_str!("../timescale/server.mjs");
/// The only database of the engine.
const DATABASE: &str = "template1";
/// Making the database: `initdb` and the extension. Measured 4 s, and 18 beside other work.
const MAKE_DEADLINE: Duration = Duration::from_secs(120);
/// Measured 2 s, and 8 beside other work.
const READY_DEADLINE: Duration = Duration::from_secs(90);
const LOG_LINES: usize = 12;

/// A server that this process started, with the extension created and a database that `outrigger_owner` owns and that has no
/// tables. Dropping it ends it; so does the end of this process, however it comes.
#[derive(Debug)]
pub struct TimescaleServer {
    folder: PathBuf,
    ports: Ports,
    fleet: Fleet,
}

impl TimescaleServer {
    /// Starts one and waits until it answers.
    pub fn start() -> Result<Self, Error> {
        let packages = packages()?;
        let statements = statements();
        let made_of = [PACKAGE, SERVER, &statements];
        let data = cache::once("timescale", &made_of, |path| make(&packages, &statements, path))?;
        let ports = Ports::free(1)?;
        let folder = workspace_root()?.join(format!(".rig/own/{}-{}", std::process::id(), ports.first));
        remove_folder(&folder)?;
        let server = Self { folder, ports, fleet: Fleet::new(1, false)? };
        let script = server.folder.join("server.mjs");
        fs::create_dir_all(&server.folder)
            .and_then(|()| fs::write(&script, SERVER))
            .map_err(|error| Error::new(format!("{}: {error}", server.folder.display())))?;
        let words = [script, packages, "serve".into(), server.port().to_string().into(), data.join("data")];
        server.fleet.start(
            0,
            Program {
                name: format!("timescale-{}", server.port()),
                path: node()?.display().to_string(),
                arguments: words.iter().map(|word| word.display().to_string()).collect(),
                log: server.log(),
                user: None,
                end: Signal::TERM,
                discard: Signal::KILL,
                outlives_us: false,
            },
        )?;
        server.wait_until_ready()?;
        Ok(server)
    }

    /// `127.0.0.1:port`; only without TLS.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// The name of its database.
    pub fn database(&self) -> &'static str {
        DATABASE
    }

    /// Runs statements in a session of their own, once those before it have ended; each in a transaction of its own. The rows as
    /// `psql` prints them, fields parted by `|`.
    pub fn psql(&self, role: PostgresRole, sql: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(program("psql"));
        command.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-d", DATABASE]);
        command.args(["-p", &self.port().to_string(), "-U", role.name()]);
        command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").env("PGCONNECT_TIMEOUT", "25");
        output(command, sql).map_err(|error| Error::new(format!("{error}\n{}", self.log_tail())))
    }

    fn wait_until_ready(&self) -> Result<(), Error> {
        let what = format!("TimescaleDB on port {}", self.port());
        wait_until(
            &what,
            READY_DEADLINE,
            || self.log_tail(),
            || {
                if self.fleet.ended_by_itself().is_some() {
                    return Err(Missing::ForGood("it ended".to_owned()));
                }
                let said = fs::read_to_string(self.log()).unwrap_or_default();
                let ready = said.lines().any(|line| line == "ready");
                if ready { Ok(()) } else { Err(Missing::Yet("it is not ready".to_owned())) }
            },
        )
    }

    fn port(&self) -> u16 {
        self.ports.first
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        log_tail(&self.log(), LOG_LINES)
    }
}

impl Drop for TimescaleServer {
    fn drop(&mut self) {
        self.fleet.discard(&self.folder, || remove_folder(&self.folder));
    }
}

/// The database that each server has a copy of.
fn make(packages: &Path, statements: &str, path: &Path) -> Result<(), Error> {
    let (script, sql) = (path.join("server.mjs"), path.join("sql"));
    fs::write(&script, SERVER)
        .and_then(|()| fs::write(&sql, statements))
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    let mut command = Command::new(node()?);
    command.arg(&script).arg(packages).arg("make").arg(&sql).arg(path.join("data"));
    let output = run(command, MAKE_DEADLINE)?;
    let text = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| Error::new(format!("TimescaleDB's database: {text}")))
}

/// As its administrator prepares a database: the extension is there, and the owner and the roles are.
fn statements() -> String {
    let login = |role: PostgresRole| format!("CREATE ROLE {} LOGIN NOBYPASSRLS;\n", role.name());
    let owner = PostgresRole::Owner;
    format!(
        "CREATE EXTENSION timescaledb;\n{}{}{}ALTER DATABASE {DATABASE} OWNER TO {owner};\n\
         GRANT ALL ON SCHEMA public TO {owner};\n",
        login(owner),
        login(PostgresRole::App),
        login(PostgresRole::Relay),
        owner = owner.name(),
    )
}

/// What scripts/setup fetched.
fn packages() -> Result<PathBuf, Error> {
    let version = PACKAGE.split("pglite\": \"").nth(1).and_then(|rest| rest.split('"').next());
    let folder = cache::folder()?.join(format!("timescale-{}", version.unwrap_or_default()));
    let missing = || Error::new(format!("no TimescaleDB in {} (run scripts/setup test)", folder.display()));
    folder.is_dir().then_some(folder.clone()).ok_or_else(missing)
}

/// `NODE` of the environment, else the one that scripts/setup fetched.
fn node() -> Result<PathBuf, Error> {
    match from_environment("NODE") {
        Some(path) => Ok(path.into()),
        None => Ok(cache::folder()?.join("tools/node/bin/node")),
    }
}
