//! PostgreSQL 15, from Debian's package: a primary and a standby that follows it synchronously.

pub(crate) mod access;
pub(crate) mod config;
pub(crate) mod database;
pub(crate) mod folder;
pub(crate) mod session;
pub(crate) mod template;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::certificate::Certificate;
use crate::fleet::{Fleet, NodeState, at_once};
use crate::ports::Ports;
use crate::process::{Error, Missing, Program, log_tail, run, wait_until};
use crate::recorded::Recorded;
use crate::user::{User, succeed};
use access::{PostgresAccess, PostgresRole};
use config::{NodeSettings, PostgresOptions, node_name};
use database::Database;
use folder::Folder;
use template::{REPLICATION, SETTINGS_FILE, program};

/// Servers of a cluster.
const SERVERS: usize = 2;
/// Two servers and PgBouncer.
pub(crate) const PORTS: u16 = 3;
/// The user that runs the servers where root runs the tests.
pub(crate) const USER: &str = "postgres";

/// A server answers this soon, also after a crash, or does not start. Measured 0.2 s; the rest is for a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A copy of a small cluster. Measured 0.5 s.
const BACKUP_DEADLINE: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 12;

/// Two servers that this process started, by index 0 and 1; 0 is the primary at first. All methods take `&self`.
/// Dropping it ends them; so does the end of this process, however it comes.
#[derive(Debug)]
pub struct PostgresCluster {
    options: PostgresOptions,
    folder: Folder,
    remove_folder: bool,
    user: Option<User>,
    access: PostgresAccess,
    _ports: Ports,
    fleet: Fleet,
    primary: Arc<AtomicUsize>,
}

impl PostgresCluster {
    /// Starts both and waits until the standby is synchronous.
    pub fn start(options: PostgresOptions) -> Result<Self, Error> {
        let ports = match options.first_port {
            Some(first) => Ports::fixed(first, PORTS)?,
            None => Ports::free(PORTS)?,
        };
        let link = format!("own/{}-{}", std::process::id(), ports.first);
        let cluster = Self::prepare(options, ports, Path::new(&link), false)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Like [`start`](Self::start), but the servers outlive this process, once they are [released](Self::release).
    pub(crate) fn start_outliving(options: PostgresOptions, first: u16) -> Result<Self, Error> {
        let cluster = Self::prepare(options, Ports::fixed(first, PORTS)?, Path::new("postgres"), true)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    pub(crate) fn release(&self) -> Result<Vec<Recorded>, Error> {
        self.fleet.release()
    }

    fn prepare(
        options: PostgresOptions,
        ports: Ports,
        link: &Path,
        outlives_us: bool,
    ) -> Result<Self, Error> {
        let user = User::instead_of_root(USER)?;
        let template = template::template(user)?;
        let folder = Folder::create(&folder_name(ports.first), link, user)?;
        let certificate = Certificate::create(&folder.path.join("tls"))?;
        let access = PostgresAccess { ports: [ports.port(0), ports.port(1)], certificate };
        let fleet = Fleet::new(SERVERS, outlives_us)?;
        let primary = Arc::new(AtomicUsize::new(0));
        let remove_folder = !outlives_us;
        let cluster = Self { options, folder, remove_folder, user, access, _ports: ports, fleet, primary };
        // A standby begins as a copy of its primary: both are the same template.
        at_once(0..SERVERS, |index| template::copy(&template, &cluster.data(index)))?;
        cluster.write_settings(0, None, true)?;
        cluster.follow(1, 0)?;
        cluster.user.map_or(Ok(()), |user| user.takes(&cluster.folder.path))?;
        Ok(cluster)
    }

    /// Addresses, certificate, connection strings.
    pub fn access(&self) -> &PostgresAccess {
        &self.access
    }

    /// A new database in it.
    pub fn database(&self) -> Result<Database, Error> {
        Database::create(&self.access, &self.primary, false)
    }

    /// The index of the server that takes writes.
    pub fn primary(&self) -> usize {
        self.primary.load(Ordering::SeqCst)
    }

    /// The index of the other one.
    pub fn standby(&self) -> usize {
        1 - self.primary()
    }

    /// What the rig did with a server's processes.
    pub fn state(&self, index: usize) -> NodeState {
        self.fleet.state(index)
    }

    /// SIGKILL for a server and all its processes at once, as when its machine stops.
    pub fn kill(&self, index: usize) -> Result<(), Error> {
        self.fleet.kill(index)
    }

    /// SIGSTOP for all of them: connections stay and nothing answers.
    pub fn stop(&self, index: usize) -> Result<(), Error> {
        self.fleet.stop(index)
    }

    /// SIGCONT, after [`stop`](Self::stop).
    pub fn cont(&self, index: usize) -> Result<(), Error> {
        self.fleet.cont(index)
    }

    /// Ends a server cleanly: cuts its clients, and what it has goes to the standby first.
    pub fn shutdown(&self, index: usize) -> Result<(), Error> {
        self.fleet.terminate(index)
    }

    /// Starts a server that is down, as what it was, or kills and starts it; returns when it answers.
    pub fn restart(&self, index: usize) -> Result<(), Error> {
        if self.fleet.pid(index).is_some() {
            self.kill(index)?;
        }
        self.start_process(index)?;
        self.wait_answers(index)
    }

    /// Starts every server that is down, and waits as [`wait_ok`](Self::wait_ok) does.
    pub fn start_all(&self) -> Result<(), Error> {
        self.fleet.down().into_iter().try_for_each(|index| self.start_process(index))?;
        self.wait_ok()
    }

    /// Makes the standby the primary, as after the loss of the other, which is not looked at: kill or stop it first.
    /// The new primary commits without a standby until [`rejoin`](Self::rejoin). Returns when it takes writes.
    pub fn promote(&self) -> Result<(), Error> {
        let (old, new) = (self.primary(), self.standby());
        self.write_settings(new, Some(self.access.port(old)), false)?;
        self.reload(new, "synchronous_standby_names", "")?;
        self.superuser(new, "SELECT pg_promote(true, 60)")?;
        self.primary.store(new, Ordering::SeqCst);
        self.wait_answers(new)
    }

    /// Makes the server that is not the primary a standby of it, from a fresh copy: what it had and the primary has
    /// not is gone. Ends it first where it runs. Returns when commits wait for it again.
    pub fn rejoin(&self) -> Result<(), Error> {
        let (primary, standby) = (self.primary(), self.standby());
        if self.fleet.pid(standby).is_some() {
            self.kill(standby)?;
        }
        self.forget_shared_memory(standby)?;
        let data = self.data(standby);
        fs::remove_dir_all(&data).map_err(|error| Error::new(format!("{}: {error}", data.display())))?;
        self.base_backup(primary, &data)?;
        self.follow(standby, primary)?;
        self.user.map_or(Ok(()), |user| user.takes(&data))?;
        self.start_process(standby)?;
        self.wait_answers(standby)?;
        self.write_settings(primary, None, true)?;
        self.superuser(primary, "SELECT pg_reload_conf()")?;
        self.wait_ok()
    }

    /// Waits until the primary answers and, where the other server runs as its standby, commits wait for it.
    pub fn wait_ok(&self) -> Result<(), Error> {
        self.wait_answers(self.primary())?;
        if self.state(self.standby()) != NodeState::Running {
            return Ok(());
        }
        let what = format!("{} to be a synchronous standby", node_name(self.standby()));
        wait_until(&what, READY_DEADLINE, || self.logs(), || check_synchronous(&self.access, self.primary()))
    }

    /// The last log lines of both, for a failing test's message.
    pub fn logs(&self) -> String {
        (0..SERVERS).map(|index| log_tail(&self.log(index), LOG_LINES)).collect()
    }

    fn wait_answers(&self, index: usize) -> Result<(), Error> {
        let what = format!("PostgreSQL on port {}", self.access.port(index));
        wait_until(
            &what,
            READY_DEADLINE,
            || log_tail(&self.log(index), LOG_LINES),
            || {
                if self.fleet.pid(index).is_none() {
                    return Err(Missing::ForGood("it ended".to_owned()));
                }
                let answer = self.superuser(index, "SELECT 1");
                answer.map(drop).map_err(|error| Missing::Yet(error.to_string()))
            },
        )
    }

    /// Waits until a server has read its settings again.
    fn reload(&self, index: usize, name: &str, value: &str) -> Result<(), Error> {
        self.fleet.reload(index)?;
        wait_until(
            &format!("{name} = '{value}'"),
            READY_DEADLINE,
            || self.logs(),
            || {
                let found =
                    self.superuser(index, &format!("SHOW {name}")).map_err(|error| error.to_string())?;
                if found.trim() == value { Ok(()) } else { Err(found) }
            },
        )
    }

    fn superuser(&self, index: usize, sql: &str) -> Result<String, Error> {
        self.access.psql(index, PostgresRole::Superuser, "postgres", &[sql])
    }

    fn start_process(&self, index: usize) -> Result<(), Error> {
        let program = Program {
            name: format!("postgres-{}", self.access.port(index)),
            path: program("postgres"),
            arguments: vec!["-D".to_owned(), self.data(index).display().to_string()],
            log: self.log(index),
            user: self.user,
            // "Fast shutdown" and "immediate shutdown": SIGKILL would leave a piece of shared memory behind.
            end: Signal::INT,
            discard: Signal::QUIT,
            outlives_us: false,
        };
        self.fleet.start(index, program)
    }

    fn base_backup(&self, from: usize, to: &Path) -> Result<(), Error> {
        let (user, password) = REPLICATION;
        let mut command = Command::new(program("pg_basebackup"));
        if let Some(user) = self.user {
            user.runs(&mut command);
        }
        command.args(["-h", "127.0.0.1", "-p", &self.access.port(from).to_string(), "-U", user]);
        command.args(["-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(to);
        command.env("PGPASSWORD", password).env("PGSSLMODE", "verify-full").env("PGGSSENCMODE", "disable");
        command.env("PGSSLROOTCERT", &self.access.certificate.authority);
        let output = run(command, BACKUP_DEADLINE)?;
        let text = String::from_utf8_lossy(&output.stderr);
        let failed = || Error::new(format!("pg_basebackup: {text}\n{}", self.logs()));
        output.status.success().then_some(()).ok_or_else(failed)
    }

    /// A killed server leaves a piece of shared memory (56 bytes; a machine has room for 4096 of them), and takes it
    /// again when it starts. Not one whose data is removed: its number is in `postmaster.pid`, seventh line.
    fn forget_shared_memory(&self, index: usize) -> Result<(), Error> {
        let text = fs::read_to_string(self.data(index).join("postmaster.pid")).unwrap_or_default();
        let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else {
            return Ok(());
        };
        let mut command = Command::new("ipcrm");
        command.args(["-m", id]);
        succeed(command)
    }

    fn follow(&self, index: usize, primary: usize) -> Result<(), Error> {
        let signal = self.data(index).join("standby.signal");
        fs::write(&signal, "").map_err(|error| Error::new(format!("{}: {error}", signal.display())))?;
        self.write_settings(index, Some(self.access.port(primary)), true)
    }

    fn write_settings(&self, index: usize, follows: Option<u16>, synchronous: bool) -> Result<(), Error> {
        let settings = NodeSettings {
            options: &self.options,
            certificate: &self.access.certificate,
            index,
            port: self.access.port(index),
            follows,
            synchronous,
        };
        let path = self.data(index).join(SETTINGS_FILE);
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", path.display()));
        fs::write(&path, settings.text()).map_err(failed)?;
        self.user.map_or(Ok(()), |user| user.takes_only(&path))
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path.join(node_name(index))
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.path.join(format!("{}.log", node_name(index)))
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        // Where the folder is to stay the fleet's own destructor ends it.
        if !self.remove_folder {
            return;
        }
        let ended = self.fleet.throw_away();
        let forgotten = (0..SERVERS).try_for_each(|index| self.forget_shared_memory(index));
        if let Err(error) = ended.and(forgotten) {
            eprintln!("rig: {error}");
        }
        self.fleet.discard(&self.folder.path, || self.folder.remove());
    }
}

/// The name of the folder of the servers with these ports; only one pair can have them.
fn folder_name(first_port: u16) -> String {
    format!("postgres-{first_port}")
}

/// Where the servers with these ports have their files.
pub(crate) fn shared_folder(first_port: u16) -> Result<PathBuf, Error> {
    Folder::place(&folder_name(first_port), User::instead_of_root(USER)?)
}

pub(crate) fn check_synchronous(access: &PostgresAccess, primary: usize) -> Result<(), String> {
    let statement = "SELECT coalesce(string_agg(application_name || ' ' || sync_state, ','), 'no standby') \
                     FROM pg_stat_replication WHERE state = 'streaming'";
    let found = access.psql(primary, PostgresRole::Superuser, "postgres", &[statement]);
    let found = found.map_err(|error| error.to_string())?;
    let wanted = format!("{} sync", node_name(1 - primary));
    if found.trim() == wanted { Ok(()) } else { Err(found.trim().to_owned()) }
}
