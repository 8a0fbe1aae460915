//! What a server costs without load: memory, start, idle connections.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::cli::{RunArgs, Which};
use crate::contender::{Launch, OK, Server, start_echo};
use crate::generator::{RequestSpec, Socket, call, probe};
use crate::interrupt;
use crate::process::{Memory, memory};
use crate::progress::Progress;
use crate::report::median_ms;
use crate::scenarios::{Backend, Kind, Names, Operation, Scenario, Transport};

const SETTLE: Duration = Duration::from_secs(2);
const ECHO_BODY_BYTES: usize = 40;
/// Files beside the connections: listeners, databases, logs, epoll.
const SPARE_FILES: u64 = 200;

/// One measurement of one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    /// Scenario name.
    pub(crate) scenario: &'static str,
    /// `echo`, `outrigger dev`, `outrigger serve`.
    pub(crate) contender: String,
    /// Memory two seconds after the start, or with the connections open.
    pub(crate) memory: Option<Memory>,
    /// Median from exec to the ready file, the first start left out.
    pub(crate) start_to_ready_ms: Option<f64>,
    /// The first start, on an empty folder.
    pub(crate) first_start_ms: Option<f64>,
    /// Connections held open, every one of them still open at the end.
    pub(crate) connections: Option<u32>,
    /// RSS that each of them added, in bytes.
    pub(crate) rss_bytes_per_connection: Option<f64>,
    /// That number relative to the echo's.
    pub(crate) ratio_to_echo: Option<f64>,
}

impl Footprint {
    fn new(scenario: Scenario, contender: &str) -> Self {
        Self {
            scenario: scenario.name,
            contender: contender.to_owned(),
            memory: None,
            start_to_ready_ms: None,
            first_start_ms: None,
            connections: None,
            rss_bytes_per_connection: None,
            ratio_to_echo: None,
        }
    }
}

/// A server to be measured.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Echo,
    Outrigger(Backend),
}

impl Subject {
    fn all(arguments: &RunArgs) -> Vec<Self> {
        let mut subjects = Vec::new();
        if arguments.has(Which::Echo) {
            subjects.push(Self::Echo);
        }
        if arguments.has(Which::Outrigger) {
            subjects.push(Self::Outrigger(Backend::Embedded));
            if !arguments.embedded_only() {
                subjects.push(Self::Outrigger(Backend::Redis));
            }
        }
        subjects
    }

    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Outrigger(Backend::Embedded) => "outrigger dev",
            Self::Outrigger(Backend::Redis) => "outrigger serve",
        }
    }

    fn start(self, arguments: &RunArgs, folder: &Path) -> Result<Server> {
        match self {
            Self::Echo => start_echo(folder, ECHO_BODY_BYTES),
            Self::Outrigger(backend) => Launch::new(arguments, backend, folder)?.start(),
        }
    }

    /// The one call of an idle connection: a rate-limit check with cost 0, with a token where tokens are looked at.
    fn request(self, arguments: &RunArgs, folder: &Path) -> Result<RequestSpec> {
        let names = Names {
            namespace: arguments.namespace.clone(),
            limit: arguments.limit.clone(),
            cache_keys: 1,
            limit_keys: 1,
        };
        let mut request = Operation::LimitLook.request(&names);
        if let Self::Outrigger(backend) = self {
            let token = Launch::new(arguments, backend, folder)?.mint_token()?;
            request.headers.push(("Authorization".to_owned(), format!("Bearer {token}")));
        }
        Ok(request)
    }
}

/// Measures one of the scenarios without load, each server by itself.
///
/// # Errors
/// A server does not start, answers wrongly, or closes an idle connection.
pub(crate) fn run(
    arguments: &RunArgs,
    scenario: Scenario,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<Footprint>> {
    let mut rows: Vec<Footprint> = Vec::new();
    for subject in Subject::all(arguments) {
        progress.note(&format!("{}: {}", scenario.name, subject.name()));
        let own = folder.join(subject.name().replace(' ', "-"));
        let mut row = Footprint::new(scenario, subject.name());
        match scenario.kind {
            Kind::IdleMemory => row.memory = Some(idle_memory(subject.start(arguments, &own)?)?),
            Kind::StartToReady => start_to_ready(&mut row, subject, arguments, &own)?,
            Kind::IdleConnections => idle_connections(&mut row, subject, arguments, &own)?,
            Kind::Calls(_) => bail!("{} is no scenario without load", scenario.name),
        }
        let echo = rows.first().filter(|first| first.contender == "echo");
        row.ratio_to_echo =
            echo.and_then(|echo| Some(row.rss_bytes_per_connection? / echo.rss_bytes_per_connection?));
        rows.push(row);
    }
    Ok(rows)
}

fn idle_memory(server: Server) -> Result<Memory> {
    interrupt::sleep(SETTLE)?;
    let used = memory(server.ready.pid)?;
    server.stop()?;
    Ok(used)
}

fn start_to_ready(row: &mut Footprint, subject: Subject, arguments: &RunArgs, folder: &Path) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..=arguments.spawns {
        interrupt::check()?;
        let server = subject.start(arguments, folder)?;
        times.push(server.start_to_ready);
        server.stop()?;
    }
    row.first_start_ms = Some(median_ms(&times[..1]));
    row.start_to_ready_ms = Some(median_ms(&times[1..]));
    Ok(())
}

fn idle_connections(row: &mut Footprint, subject: Subject, arguments: &RunArgs, folder: &Path) -> Result<()> {
    let wanted = arguments.idle_connections;
    let server = subject.start(arguments, folder)?;
    let endpoint = server.endpoint(Transport::Tcp)?;
    let spec = subject.request(arguments, folder)?;
    probe(&endpoint, &spec, OK)?;
    let mut request = spec.prepare(&endpoint.host());
    interrupt::sleep(SETTLE)?;
    let before = memory(server.ready.pid)?;
    let mut sockets = Vec::with_capacity(wanted as usize);
    for opened in 0..wanted {
        let mut socket = endpoint.connect().with_context(|| format!("after {opened} connections"))?;
        call(&mut socket, request.next(), OK).with_context(|| format!("after {opened} connections"))?;
        sockets.push(socket);
    }
    interrupt::sleep(SETTLE)?;
    let after = memory(server.ready.pid)?;
    let closed = count_closed(&mut sockets)?;
    if closed > 0 {
        bail!("{}: {closed} of {wanted} idle connections were closed by the server", row.contender);
    }
    drop(sockets);
    server.stop()?;
    row.memory = Some(after);
    row.connections = Some(wanted);
    row.rss_bytes_per_connection =
        Some(after.rss_bytes.saturating_sub(before.rss_bytes) as f64 / f64::from(wanted));
    Ok(())
}

fn count_closed(sockets: &mut [Socket]) -> Result<usize> {
    let mut closed = 0;
    for socket in sockets {
        socket.set_nonblocking(true)?;
        closed += usize::from(!matches!(
            std::io::Read::read(socket, &mut [0]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
        ));
    }
    Ok(closed)
}

/// Raises this process's limit of open files for `connections`, and its children's with it.
///
/// # Errors
/// The hard limit is too low.
pub(crate) fn raise_open_files(connections: u32) -> Result<()> {
    let needed = u64::from(connections) + SPARE_FILES;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let maximum = limit.maximum;
    if maximum.is_some_and(|maximum| maximum < needed) {
        bail!(
            "{connections} connections need a limit of {needed} open files, and the hard limit is lower: ulimit -Hn {needed}"
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum.or(Some(needed)), maximum })
        .context("cannot raise RLIMIT_NOFILE")
}
