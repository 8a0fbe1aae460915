//! Kafka: three brokers, each a voter of the metadata quorum too (KRaft), from Maven Central's jars.

pub(crate) mod acl;
pub(crate) mod config;
mod java;
pub(crate) mod protocol;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::certificate::Certificate;
use crate::fleet::{Fleet, NodeState, at_once};
use crate::ports::{BUS_OFFSET, Ports};
use crate::process::{Error, Missing, Program, log_tail, remove_folder, wait_until};
use crate::recorded::Recorded;
use crate::shared::workspace_root;
use acl::KafkaAcl;
use config::{KafkaOptions, node_id, properties, with_secured};
use java::{Java, Prepared};

/// Brokers of a cluster.
pub const BROKERS: usize = 3;

/// Starting all three, or the return of one. Measured 5-11 s; a JVM takes two or three times longer beside a compiler.
const READY_DEADLINE: Duration = Duration::from_secs(90);
const LOG_LINES: usize = 12;

/// Three brokers that this process started, by index 0 to 2. All methods take `&self`. Dropping it ends them; so does
/// the end of this process, however it comes.
#[derive(Debug)]
pub struct KafkaCluster {
    options: KafkaOptions,
    folder: PathBuf,
    remove_folder: bool,
    ports: Ports,
    java: Java,
    prepared: Prepared,
    fleet: Fleet,
    /// Of the secured listeners.
    certificate: Option<Certificate>,
}

impl KafkaCluster {
    /// Starts three brokers and waits until each counts all three as alive.
    pub fn start(options: KafkaOptions) -> Result<Self, Error> {
        let listeners = if options.secured { 2 * BROKERS } else { BROKERS };
        let count = u16::try_from(listeners).unwrap_or(u16::MAX);
        let ports = match options.first_port {
            Some(first) => Ports::fixed(first, count)?,
            None => Ports::free(count)?,
        };
        let folder = workspace_root()?.join(format!(".rig/own/{}-{}", std::process::id(), ports.first));
        let cluster = Self::prepare(options, ports, folder, false)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Like [`start`](Self::start), but the brokers outlive this process; says how to recognise them.
    pub(crate) fn start_outliving(folder: &Path, first: u16) -> Result<Vec<Recorded>, Error> {
        let ports = Ports::fixed(first, u16::try_from(BROKERS).unwrap_or(u16::MAX))?;
        let cluster = Self::prepare(KafkaOptions::default(), ports, folder.to_owned(), true)?;
        cluster.start_all()?;
        cluster.fleet.release()
    }

    fn prepare(
        options: KafkaOptions,
        ports: Ports,
        folder: PathBuf,
        outlives_us: bool,
    ) -> Result<Self, Error> {
        let java = Java::find()?;
        let prepared = java.prepare()?;
        let fleet = Fleet::new(BROKERS, outlives_us)?;
        let mut cluster = Self {
            options,
            folder,
            remove_folder: !outlives_us,
            ports,
            java,
            prepared,
            fleet,
            certificate: None,
        };
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", cluster.folder.display()));
        remove_folder(&cluster.folder)?;
        fs::create_dir_all(&cluster.folder).map_err(failed)?;
        if cluster.options.secured {
            cluster.certificate = Some(Certificate::create(&cluster.folder.join("tls"))?);
        }
        let id = java::new_id()?;
        at_once(0..BROKERS, |index| cluster.write_node(index, &id))?;
        Ok(cluster)
    }

    fn write_node(&self, index: usize, cluster_id: &str) -> Result<(), Error> {
        let data = self.path(index, "data");
        java::copy_formatted(&self.prepared.formatted, &data, node_id(index), cluster_id)?;
        let ports: Vec<(u16, u16)> =
            self.ports.iter().take(BROKERS).map(|port| (port, port + BUS_OFFSET)).collect();
        let file = self.path(index, "properties");
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", file.display()));
        let mut text = properties(&self.options, &ports, index, &data);
        if let Some(certificate) = &self.certificate {
            // Java wants both in one file.
            let keystore = self.path(index, "pem");
            let key = fs::read_to_string(&certificate.key).map_err(failed)?;
            let chain = fs::read_to_string(&certificate.certificate).map_err(failed)?;
            fs::write(&keystore, key + &chain).map_err(failed)?;
            text = with_secured(&text, self.ports.port(BROKERS + index), &keystore);
        }
        fs::write(&file, text).map_err(failed)
    }

    /// `127.0.0.1:port` of the secured listeners, in order of their broker's index; none where there are none.
    pub fn secured_addresses(&self) -> Vec<String> {
        self.ports.iter().skip(BROKERS).map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Allows [`KAFKA_USER`](config::KAFKA_USER) what this says, beside what it may already.
    pub fn grant(&self, acl: &KafkaAcl) -> Result<(), Error> {
        let granted = protocol::grant(self.ports.port(0), config::KAFKA_USER, acl);
        granted.map_err(|why| Error::new(format!("{acl:?}: {why}")))
    }

    /// The authority's certificate that the secured listeners' is signed by.
    pub fn authority(&self) -> Option<&Path> {
        self.certificate.as_ref().map(|certificate| &*certificate.authority)
    }

    /// `127.0.0.1:port` of all three, in order of their index.
    pub fn addresses(&self) -> Vec<String> {
        self.ports.iter().take(BROKERS).map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// The addresses as `bootstrap.servers` holds them: joined by commas.
    pub fn bootstrap_servers(&self) -> String {
        self.addresses().join(",")
    }

    /// What the rig did with a broker's process.
    pub fn state(&self, index: usize) -> NodeState {
        self.fleet.state(index)
    }

    /// The index of the broker whose controller leads the metadata quorum.
    pub fn controller(&self) -> Result<usize, Error> {
        let ask = |index: usize| protocol::quorum_leader(self.ports.port(index));
        let mut complaint = "no broker runs".to_owned();
        for index in self.fleet.running() {
            match ask(index).map(usize::try_from) {
                Ok(Ok(id)) => return Ok(id - node_id(0)),
                Ok(Err(_)) => "nobody leads".clone_into(&mut complaint),
                Err(why) => complaint = why,
            }
        }
        Err(Error::new(format!("the metadata quorum's leader: {complaint}")))
    }

    /// SIGKILL. Returns when it is gone; the others notice after 1.5 s (`broker.session.timeout.ms`).
    pub fn kill(&self, index: usize) -> Result<(), Error> {
        self.fleet.kill(index)
    }

    /// SIGKILL for all three.
    pub fn kill_all(&self) -> Result<(), Error> {
        self.fleet.throw_away()
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn stop(&self, index: usize) -> Result<(), Error> {
        self.fleet.stop(index)
    }

    /// SIGCONT, after [`stop`](Self::stop).
    pub fn cont(&self, index: usize) -> Result<(), Error> {
        self.fleet.cont(index)
    }

    /// Ends a broker cleanly: it hands its partitions over first, which takes 3-4 s.
    pub fn shutdown(&self, index: usize) -> Result<(), Error> {
        self.fleet.terminate(index)
    }

    /// Starts a broker that is down, with its data, or kills and starts it. Returns at once: it is back when
    /// [`wait_ok`](Self::wait_ok) says so.
    pub fn restart(&self, index: usize) -> Result<(), Error> {
        if self.fleet.pid(index).is_some() {
            self.kill(index)?;
        }
        self.start_process(index)
    }

    /// Starts every broker that is down, with its data, and waits as [`wait_ok`](Self::wait_ok) does.
    pub fn start_all(&self) -> Result<(), Error> {
        self.fleet.down().into_iter().try_for_each(|index| self.start_process(index))?;
        self.wait_ok()
    }

    /// Waits until each broker that runs counts exactly those that run as alive: all are registered, and one that was
    /// killed has been noticed. That is a decision of the metadata quorum, which needs two of three.
    pub fn wait_ok(&self) -> Result<(), Error> {
        wait_until(
            "Kafka's brokers",
            READY_DEADLINE,
            || self.logs(),
            || {
                if let Some(index) = self.fleet.ended_by_itself() {
                    return Err(Missing::ForGood(format!("broker {index} ended")));
                }
                let running = self.fleet.running();
                let ports: Vec<u16> = running.iter().map(|index| self.ports.port(*index)).collect();
                let ids: Vec<usize> = running.into_iter().map(node_id).collect();
                check(&ports, &ids).map_err(Missing::Yet)
            },
        )
    }

    /// The last log lines of all three, for a failing test's message.
    pub fn logs(&self) -> String {
        (0..BROKERS).map(|index| log_tail(&self.path(index, "log"), LOG_LINES)).collect()
    }

    fn start_process(&self, index: usize) -> Result<(), Error> {
        let program = Program {
            name: format!("kafka-{}", self.ports.port(index)),
            path: "java".to_owned(),
            arguments: self.java.broker(&self.prepared, &self.path(index, "properties")),
            log: self.path(index, "log"),
            user: None,
            end: Signal::TERM,
            discard: Signal::KILL,
            outlives_us: false,
        };
        self.fleet.start(index, program)
    }

    /// Of a node's files: `0.data`, `0.properties`, `0.log`.
    fn path(&self, index: usize, what: &str) -> PathBuf {
        self.folder.join(format!("{index}.{what}"))
    }
}

impl Drop for KafkaCluster {
    fn drop(&mut self) {
        // Where the folder is to stay the fleet's own destructor ends it.
        if self.remove_folder {
            self.fleet.discard(&self.folder, || remove_folder(&self.folder));
        }
    }
}

/// Whether the brokers on these ports count those with these ids as alive, and no others.
pub(crate) fn check(ports: &[u16], ids: &[usize]) -> Result<(), String> {
    ports.iter().try_for_each(|port| {
        let alive = protocol::alive_brokers(*port)?;
        let found = alive.iter().map(|id| usize::try_from(*id).unwrap_or(0));
        if found.eq(ids.iter().copied()) {
            return Ok(());
        }
        Err(format!("port {port} counts {alive:?} as alive instead of {ids:?}"))
    })
}
