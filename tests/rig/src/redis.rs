//! Redis Cluster: three primaries with a replica each, from Debian's `redis-server`.

pub(crate) mod config;
pub(crate) mod migration;
pub(crate) mod topology;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::certificate::Certificate;
use crate::fleet::{Fleet, NodeState};
use crate::ports::Ports;
use crate::process::{Error, Missing, Program, log_tail, remove_folder, run, wait_until};
use crate::recorded::Recorded;
use crate::shared::workspace_root;
use config::{ADMINISTRATOR, ADMINISTRATOR_PASSWORD, Options};
use migration::SlotMigration;
use topology::{Node, Role, Seen};

/// Nodes of a cluster.
pub const NODES: usize = 6;

/// A node answers this soon after its start, or does not start. Measured 0.3 s; the rest is for a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// Creating the cluster, or a failover and everything after it. Measured 2-5 s.
const READY_DEADLINE: Duration = Duration::from_secs(45);
/// One command: a node that is stopped never answers.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
const LOG_LINES: usize = 12;

/// A cluster that this process started. All methods take `&self`, so that it can be shared with the threads of
/// a test. Dropping it ends its servers; so does the end of this process, however it comes.
#[derive(Debug)]
pub struct RedisCluster {
    options: Options,
    folder: PathBuf,
    remove_folder: bool,
    ports: Ports,
    certificate: Option<Certificate>,
    fleet: Fleet,
}

impl RedisCluster {
    /// Starts six servers, makes them a cluster and waits until it is ready: `cluster_state:ok` on all six and
    /// every replica linked to its primary, since a failover before that can lose its candidate.
    pub fn start(options: Options) -> Result<Self, Error> {
        let cluster = Self::prepare(options, false)?;
        cluster.create()?;
        Ok(cluster)
    }

    /// Like [`start`](Self::start), but the servers outlive this process; returns how to recognise them.
    pub(crate) fn start_outliving(options: Options) -> Result<Vec<Recorded>, Error> {
        let cluster = Self::prepare(options, true)?;
        cluster.create()?;
        cluster.fleet.release()
    }

    fn prepare(options: Options, outlives_us: bool) -> Result<Self, Error> {
        let count = u16::try_from(NODES).unwrap_or(u16::MAX);
        let ports = match options.first_port {
            Some(first) => Ports::fixed(first, count)?,
            None => Ports::free(count)?,
        };
        let remove_folder = options.base_dir.is_none();
        let folder = match &options.base_dir {
            Some(folder) => std::path::absolute(folder).map_err(|error| Error::new(error.to_string()))?,
            None => workspace_root()?.join(format!(".rig/own/{}-{}", std::process::id(), ports.first)),
        };
        let certificate = options.tls.then(|| Certificate::create(&folder.join("tls"))).transpose()?;
        for port in ports.iter() {
            write_node_folder(&options, certificate.as_ref(), port, &folder.join(port.to_string()))?;
        }
        let fleet = Fleet::new(NODES, outlives_us)?;
        Ok(Self { options, folder, remove_folder, ports, certificate, fleet })
    }

    fn create(&self) -> Result<(), Error> {
        self.start_processes()?;
        let mut words = vec!["--cluster", "create"];
        let addresses = self.addresses();
        words.extend(addresses.iter().map(String::as_str));
        words.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        let mut command = Command::new("redis-cli");
        self.authenticate(&mut command);
        command.args(&words);
        let output = run(command, READY_DEADLINE)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Err(Error::new(format!("redis-cli --cluster create: {text}\n{}", self.logs())));
        }
        self.wait_ok()
    }

    /// `127.0.0.1:port` of all six, in order of their index.
    pub fn addresses(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// The addresses as `REDIS_NODES` holds them: joined by commas.
    pub fn redis_nodes(&self) -> String {
        self.addresses().join(",")
    }

    /// What TLS clients need to trust it; None without TLS.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// Where the nodes keep data and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All six, by index, as the newest view among those that run has them.
    pub fn nodes(&self) -> Result<Vec<Node>, Error> {
        let views = self
            .fleet
            .running()
            .into_iter()
            .filter_map(|index| self.cli_at(index, &["CLUSTER", "NODES"]).ok())
            .map(|text| topology::parse(&text))
            .collect();
        let view = topology::newest(views).ok_or_else(|| Error::new("no node of the cluster runs"))?;
        self.ports.iter().enumerate().map(|(index, port)| self.node(index, port, &view)).collect()
    }

    fn node(&self, index: usize, port: u16, view: &[Seen]) -> Result<Node, Error> {
        let seen = view
            .iter()
            .find(|seen| seen.port == port)
            .ok_or_else(|| Error::new(format!("the cluster does not know the node on port {port}")))?;
        Ok(Node {
            index,
            address: format!("127.0.0.1:{port}"),
            pid: self.fleet.pid(index),
            role: if seen.is_primary { Role::Primary } else { Role::Replica },
            state: self.fleet.state(index),
            id: seen.id.clone(),
            primary_id: seen.primary_id.clone(),
            slots: seen.slots.clone(),
        })
    }

    /// The index of the node that owns the slot.
    pub fn primary_of(&self, slot: u16) -> Result<usize, Error> {
        let nodes = self.nodes()?;
        let owner = nodes.iter().find(|node| node.owns(slot)).map(|node| node.index);
        owner.ok_or_else(|| Error::new(format!("slot {slot} has no owner")))
    }

    /// The index of a replica of this primary.
    pub fn replica_of(&self, primary: usize) -> Result<usize, Error> {
        let nodes = self.nodes()?;
        let id = nodes.get(primary).map(|node| &node.id);
        let replica = nodes.iter().find(|node| node.primary_id.as_ref() == id);
        replica.map(|node| node.index).ok_or_else(|| Error::new(format!("node {primary} has no replica")))
    }

    /// The slot of a key (its hash tag, where it has one), as Redis computes it.
    pub fn slot_of(&self, key: &str) -> Result<u16, Error> {
        let text = self.cli(&["CLUSTER", "KEYSLOT", key])?;
        text.trim().parse().map_err(|_| Error::new(format!("CLUSTER KEYSLOT says {text}")))
    }

    /// SIGKILL. Returns when it is gone; its peers notice after `cluster_node_timeout_ms`.
    pub fn kill(&self, index: usize) -> Result<(), Error> {
        self.fleet.kill(index)
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn stop(&self, index: usize) -> Result<(), Error> {
        self.fleet.stop(index)
    }

    /// SIGCONT, after [`stop`](Self::stop).
    pub fn cont(&self, index: usize) -> Result<(), Error> {
        self.fleet.cont(index)
    }

    /// Starts a node that is down, with its data, or kills and starts it; returns when it answers.
    pub fn restart(&self, index: usize) -> Result<(), Error> {
        if self.fleet.pid(index).is_some() {
            self.kill(index)?;
        }
        self.start_process(index)?;
        self.wait_answers(index)
    }

    /// Ends all six: SIGTERM, so that what they acknowledged is on disk.
    pub fn shutdown_all(&self) -> Result<(), Error> {
        self.fleet.terminate_all()
    }

    /// Starts every node that is down, with its data, and waits until the cluster is ready again.
    pub fn start_all(&self) -> Result<(), Error> {
        self.start_processes()?;
        self.wait_ok()
    }

    /// `CLUSTER FAILOVER` on a replica: no write is lost. Returns when it is the primary.
    pub fn failover(&self, replica: usize) -> Result<(), Error> {
        self.cli_at(replica, &["CLUSTER", "FAILOVER"])?;
        wait_until(
            &format!("the promotion of node {replica}"),
            READY_DEADLINE,
            || self.logs(),
            || {
                let role = self.cli_at(replica, &["ROLE"]).map_err(|error| error.to_string())?;
                if role.starts_with("master") { Ok(()) } else { Err(role) }
            },
        )?;
        self.wait_ok()
    }

    /// Begins to move a slot (SETSLOT IMPORTING and MIGRATING); the caller moves keys and finishes.
    pub fn begin_slot_migration(&self, slot: u16, to: usize) -> Result<SlotMigration<'_>, Error> {
        SlotMigration::begin(self, slot, to)
    }

    /// Moves a slot with its keys to another primary.
    pub fn migrate_slot(&self, slot: u16, to: usize) -> Result<(), Error> {
        self.begin_slot_migration(slot, to)?.finish()
    }

    /// `CONFIG SET` on every node that runs.
    pub fn config_set(&self, name: &str, value: &str) -> Result<(), Error> {
        self.on_all(&["CONFIG", "SET", name, value])
    }

    /// Gives the ACL user another password on every node that runs and cuts its connections: what a client sees
    /// of a rotation that it missed. A restarted node has the first password again.
    pub fn change_password(&self, password: &str) -> Result<(), Error> {
        let user = self.options.acl.as_ref().map(|acl| acl.user.clone());
        let user = user.ok_or_else(|| Error::new("this cluster was started without `acl`"))?;
        self.on_all(&["ACL", "SETUSER", &user, "resetpass", &format!(">{password}")])?;
        self.on_all(&["CLIENT", "KILL", "USER", &user])
    }

    fn on_all(&self, words: &[&str]) -> Result<(), Error> {
        self.fleet.running().into_iter().try_for_each(|index| self.cli_at(index, words).map(drop))
    }

    /// Runs a command through the first node that runs, following redirections; its reply as `redis-cli` prints it
    /// to a pipe. An error reply is an error.
    pub fn cli(&self, words: &[&str]) -> Result<String, Error> {
        let index = self.fleet.running().into_iter().next();
        let index = index.ok_or_else(|| Error::new("no node of the cluster runs"))?;
        self.redis_cli(index, &["-c"], words)
    }

    /// Runs a command on one node; a redirection is an error.
    pub fn cli_at(&self, index: usize, words: &[&str]) -> Result<String, Error> {
        self.redis_cli(index, &[], words)
    }

    fn redis_cli(&self, index: usize, flags: &[&str], words: &[&str]) -> Result<String, Error> {
        let mut command = Command::new("redis-cli");
        // -e: an error reply is an exit code; otherwise it could be told from data by guessing only.
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port(index).to_string()]);
        self.authenticate(&mut command);
        command.args(flags).args(words);
        let output = run(command, COMMAND_DEADLINE)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Error::new(format!("node {index}: {}: {text}{complaint}", words.join(" "))))
    }

    fn authenticate(&self, command: &mut Command) {
        if let Some(certificate) = &self.certificate {
            command.arg("--tls").arg("--cacert").arg(&certificate.authority);
        }
        if self.has_acl() {
            command.args(["--no-auth-warning", "--user", ADMINISTRATOR]);
            command.env("REDISCLI_AUTH", ADMINISTRATOR_PASSWORD);
        }
    }

    /// Waits until the nodes that run are a whole cluster: each says `cluster_state:ok`, every slot belongs to
    /// one of them, every replica among them is linked. So after [`kill`](Self::kill) of a primary it waits for the
    /// failover, and after [`restart`](Self::restart) for the node's place in the cluster.
    pub fn wait_ok(&self) -> Result<(), Error> {
        wait_until(
            "a ready cluster",
            READY_DEADLINE,
            || self.logs(),
            || self.fleet.running().into_iter().try_for_each(|index| self.check(index)),
        )
    }

    fn check(&self, index: usize) -> Result<(), String> {
        let ask = |words: &[&str]| self.cli_at(index, words).map_err(|error| error.to_string());
        if !ask(&["CLUSTER", "INFO"])?.contains("cluster_state:ok") {
            return Err(format!("node {index}: the cluster is not ok"));
        }
        let running = self.fleet.running();
        let runs = |seen: &Seen| {
            self.ports.iter().position(|port| port == seen.port).is_some_and(|i| running.contains(&i))
        };
        let view = topology::parse(&ask(&["CLUSTER", "NODES"])?);
        if let Some(lost) = view.iter().find(|seen| !seen.slots.is_empty() && !runs(seen)) {
            return Err(format!("node {index}: slots belong to port {}, which is not running", lost.port));
        }
        let is_idle_primary = |seen: &&Seen| seen.is_primary && seen.slots.is_empty() && runs(seen);
        if let Some(idle) = view.iter().find(is_idle_primary) {
            return Err(format!("node {index}: port {} is not a replica yet", idle.port));
        }
        let replication = ask(&["INFO", "replication"])?;
        if replication.contains("role:slave") && !replication.contains("master_link_status:up") {
            return Err(format!("node {index}: the replica is not linked to its primary"));
        }
        Ok(())
    }

    /// The last log lines of all six, for a failing test's message.
    pub fn logs(&self) -> String {
        let log = |port: u16| log_tail(&self.folder.join(port.to_string()).join("log"), LOG_LINES);
        self.ports.iter().map(log).collect()
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.ports.port(index)
    }

    pub(crate) fn has_acl(&self) -> bool {
        self.options.acl.is_some()
    }

    pub(crate) fn running_primaries(&self) -> Result<Vec<usize>, Error> {
        let is_wanted = |node: &Node| node.role == Role::Primary && node.state == NodeState::Running;
        Ok(self.nodes()?.into_iter().filter(is_wanted).map(|node| node.index).collect())
    }

    fn start_processes(&self) -> Result<(), Error> {
        let down = self.fleet.down();
        down.iter().try_for_each(|index| self.start_process(*index))?;
        down.into_iter().try_for_each(|index| self.wait_answers(index))
    }

    fn start_process(&self, index: usize) -> Result<(), Error> {
        let port = self.port(index);
        let folder = self.folder.join(port.to_string());
        let program = Program {
            name: format!("redis-{port}"),
            path: "redis-server".to_owned(),
            arguments: vec![folder.join("redis.conf").display().to_string()],
            log: folder.join("log"),
            user: None,
            end: Signal::TERM,
            discard: Signal::KILL,
            outlives_us: false,
        };
        self.fleet.start(index, program)
    }

    fn wait_answers(&self, index: usize) -> Result<(), Error> {
        let port = self.port(index);
        let log = self.folder.join(port.to_string()).join("log");
        wait_until(
            &format!("redis-server on port {port}"),
            START_DEADLINE,
            || log_tail(&log, LOG_LINES),
            || {
                if self.fleet.pid(index).is_none() {
                    return Err(Missing::ForGood("it ended".to_owned()));
                }
                self.cli_at(index, &["PING"]).map(drop).map_err(|error| Missing::Yet(error.to_string()))
            },
        )
    }
}

impl Drop for RedisCluster {
    fn drop(&mut self) {
        // Where the folder is to stay the fleet's own destructor ends it.
        if self.remove_folder {
            self.fleet.discard(&self.folder, || remove_folder(&self.folder));
        }
    }
}

fn write_node_folder(
    options: &Options,
    certificate: Option<&Certificate>,
    port: u16,
    folder: &Path,
) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.display()));
    remove_folder(folder)?;
    fs::create_dir_all(folder).map_err(failed)?;
    let text = config::node_config(options, certificate, port, folder)?;
    fs::write(folder.join("redis.conf"), text).map_err(failed)
}
