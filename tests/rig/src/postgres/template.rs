//! A data folder as `initdb` makes it, with the roles that every test finds.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cache;
use crate::postgres::access::PostgresRole;
use crate::postgres::folder::Folder;
use crate::process::{Error, run_on};
use crate::user::{User, succeed};

/// Where Debian's package has its programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// `initdb`. Measured 1-8 s.
const DEADLINE: Duration = Duration::from_secs(120);
const INITDB: &[&str] = &[
    "--username=postgres",
    "--auth=reject",
    "--encoding=UTF8",
    "--locale=C.UTF-8",
    "--data-checksums",
    "--no-sync",
];
/// A standby must not have fewer connections than the data folder was last used with: any number may follow this one.
const SINGLE: &[&str] = &["--single", "-c", "max_connections=4", "-c", "max_wal_senders=1"];
/// Read after `postgresql.conf`, so that it wins.
pub(crate) const SETTINGS_FILE: &str = "rig.conf";
/// Only over TLS, and nobody without a password.
const ACCESS_RULES: &str = "\
hostssl all all 127.0.0.1/32 scram-sha-256
hostssl replication rig_replication 127.0.0.1/32 scram-sha-256
";
/// The user that a standby follows its primary as.
pub(crate) const REPLICATION: (&str, &str) = ("rig_replication", "rig-replication");

pub(crate) fn program(name: &str) -> String {
    format!("{PROGRAMS}/{name}")
}

/// The folder to copy; made once on this machine.
pub(crate) fn template(user: Option<User>) -> Result<PathBuf, Error> {
    let statements = statements();
    let made_of = [
        INITDB.join(" "),
        SINGLE.join(" "),
        ACCESS_RULES.to_owned(),
        SETTINGS_FILE.to_owned(),
        statements.clone(),
    ];
    let made_of: Vec<&str> = made_of.iter().map(String::as_str).collect();
    cache::once("postgres-15", &made_of, |path| {
        // PostgreSQL's user may not enter root's cache: made elsewhere, and copied.
        let name = format!("template-{}", std::process::id());
        let folder = Folder::create(&name, Path::new(&name), user)?;
        let data = folder.path.join("data");
        if let Some(user) = user {
            user.takes(&folder.path)?;
        }
        let mut initdb = Command::new(program("initdb"));
        initdb.args(INITDB).arg("-D").arg(&data);
        let script = folder.path.join("roles.sql");
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.path.display()));
        fs::write(&script, &statements).map_err(failed)?;
        run_as(user, initdb, Stdio::null())?;
        run_as(user, single(&data), File::open(&script).map_err(failed)?.into())?;
        fs::write(data.join("pg_hba.conf"), ACCESS_RULES).map_err(failed)?;
        let mut settings =
            OpenOptions::new().append(true).open(data.join("postgresql.conf")).map_err(failed)?;
        writeln!(settings, "include = '{SETTINGS_FILE}'").map_err(failed)?;
        copy(&data, &path.join("data"))?;
        folder.remove()
    })
    .map(|path| path.join("data"))
}

/// A server that reads statements, one a line, and listens nowhere.
fn single(data: &Path) -> Command {
    let mut command = Command::new(program("postgres"));
    command.args(SINGLE).arg("-D").arg(data).arg("postgres");
    command
}

fn statements() -> String {
    let login = |role: PostgresRole| {
        format!("CREATE ROLE {} LOGIN NOBYPASSRLS PASSWORD '{}';\n", role.name(), role.password())
    };
    let superuser = PostgresRole::Superuser;
    format!(
        "ALTER ROLE {} PASSWORD '{}';\n{}{}{}CREATE ROLE {} LOGIN REPLICATION PASSWORD '{}';\n",
        superuser.name(),
        superuser.password(),
        login(PostgresRole::Owner),
        login(PostgresRole::App),
        login(PostgresRole::Relay),
        REPLICATION.0,
        REPLICATION.1,
    )
}

/// A copy with owners and permissions.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    succeed(command)
}

fn run_as(user: Option<User>, mut command: Command, input: Stdio) -> Result<(), Error> {
    if let Some(user) = user {
        user.runs(&mut command);
    }
    let shown = format!("{command:?}");
    let output = run_on(input, command, DEADLINE)?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // The single-user server says ERROR and goes on.
    if output.status.success() && !text.contains("ERROR:") {
        return Ok(());
    }
    Err(Error::new(format!("{shown}: {text}")))
}
