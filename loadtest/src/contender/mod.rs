//! What is measured: the echo, the Redis GET, Outrigger, and URLs that the user names.

pub(crate) mod echo;
mod http;
mod outrigger;
pub(crate) mod redis_get;
mod server;
pub(crate) mod url;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cli::{RunArgs, Which};
use crate::generator::{self, Endpoint, Load, Plan, RequestSpec};
use crate::profiles::Step;
use crate::scenarios::{Backend, Call, Names, Operation, seed_request, seed_value};

pub(crate) use outrigger::Launch;
pub(crate) use server::Server;

/// Status that every scenario's calls are answered with.
pub(crate) const OK: u16 = 200;
const SEED_LIMIT: Duration = Duration::from_secs(120);
/// A token's size, for runs without Outrigger: their requests are about as large.
const TOKEN_STAND_IN_BYTES: usize = 600;

/// One side of a comparison.
#[derive(Debug)]
pub(crate) struct Contender {
    /// As in the report.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) endpoint: Endpoint,
    /// What it is asked.
    pub(crate) request: RequestSpec,
    /// Its process, where that is known.
    pub(crate) pid: Option<u32>,
    /// Kept alive until the step is over.
    server: Option<Server>,
}

impl Contender {
    fn of(name: &str, server: Server, step: &Step, request: RequestSpec) -> Result<Self> {
        let endpoint = server.endpoint(step.transport)?;
        Ok(Self {
            name: name.to_owned(),
            endpoint,
            request,
            pid: Some(server.ready.pid),
            server: Some(server),
        })
    }

    /// Ends its process, if it is ours.
    ///
    /// # Errors
    /// It did not end well.
    pub(crate) fn stop(self) -> Result<()> {
        self.server.map_or(Ok(()), Server::stop)
    }
}

/// Starts an echo that answers `body_bytes` bytes.
///
/// # Errors
/// As [`Server::start`].
pub(crate) fn start_echo(folder: &Path, body_bytes: usize) -> Result<Server> {
    let mut command = this_program()?;
    command.args(["contender", "echo", "--body-bytes"]).arg(body_bytes.to_string());
    Server::start("echo", command, folder)
}

fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("where this program is")?))
}

/// Starts every contender of a step that makes calls, with the data that the calls need.
///
/// # Errors
/// A server does not start, or does not answer the scenario's call as it should.
pub(crate) fn assemble(
    arguments: &RunArgs,
    step: &Step,
    call: Call,
    folder: &Path,
) -> Result<Vec<Contender>> {
    let names = names(arguments, call);
    let mut request = call.operation.request(&names);
    let mut contenders = Vec::new();
    let mut body_bytes = step.value_bytes;
    if arguments.has(Which::Outrigger) {
        let launch = Launch::new(arguments, call.backend, folder)?;
        let server = launch.start()?;
        request.headers.push(("Authorization".to_owned(), format!("Bearer {}", launch.mint_token()?)));
        let outrigger = Contender::of("outrigger", server, step, request.clone())?;
        if call.operation == Operation::CacheGet {
            seed_through(&outrigger, &names, step.value_bytes, arguments.connections as usize)?;
        }
        body_bytes = generator::probe(&outrigger.endpoint, &request, OK)?.body_bytes;
        contenders.push(outrigger);
    } else {
        request
            .headers
            .push(("Authorization".to_owned(), format!("Bearer {}", "x".repeat(TOKEN_STAND_IN_BYTES))));
    }
    if call.backend == Backend::Redis && arguments.has(Which::RedisGet) {
        contenders.insert(0, start_redis_get(arguments, step, call, &names, &request, folder)?);
    }
    if arguments.has(Which::Echo) {
        contenders.insert(0, Contender::of("echo", start_echo(folder, body_bytes)?, step, request.clone())?);
    }
    contenders.extend(arguments.url.iter().map(|url| from_url(url, arguments, &request)));
    for contender in &contenders {
        generator::probe(&contender.endpoint, &contender.request, OK)
            .with_context(|| contender.name.clone())?;
    }
    Ok(contenders)
}

fn names(arguments: &RunArgs, call: Call) -> Names {
    let (namespace, cache_keys) = match call.backend {
        Backend::Embedded => (&arguments.namespace, 1),
        Backend::Redis => (&arguments.redis_namespace, arguments.keyspace),
    };
    Names {
        namespace: namespace.clone(),
        limit: arguments.limit.clone(),
        cache_keys,
        limit_keys: arguments.limit_keys,
    }
}

fn from_url(url: &url::UrlContender, arguments: &RunArgs, scenario_request: &RequestSpec) -> Contender {
    let mut request = match &url.path {
        Some(path) => {
            RequestSpec { method: "GET".to_owned(), path: path.clone(), keys: 1, ..RequestSpec::default() }
        }
        None => scenario_request.clone(),
    };
    request.headers.extend(url.headers.iter().cloned());
    let pid = arguments.url_pid.iter().find(|(name, _)| *name == url.name).map(|(_, pid)| *pid);
    Contender { name: url.name.clone(), endpoint: url.endpoint.clone(), request, pid, server: None }
}

/// Outrigger's own PUT fills the store, so that both it and the Redis contender read what it wrote.
fn seed_through(outrigger: &Contender, names: &Names, value_bytes: usize, connections: usize) -> Result<()> {
    let mut request = seed_request(names, value_bytes);
    request.headers.extend(outrigger.request.headers.iter().cloned());
    let plan = Plan {
        endpoint: outrigger.endpoint.clone(),
        request,
        expected_status: 204,
        connections: connections.min(usize::try_from(names.cache_keys)?),
        threads: 1,
        load: Load::Once(names.cache_keys),
        warm_up: Duration::ZERO,
        measured: SEED_LIMIT,
    };
    let tally = generator::run(&plan, &mut |_| Ok(())).context("cannot fill the cache")?;
    if tally.completed != names.cache_keys {
        bail!(
            "only {} of {} values could be stored in {} s",
            tally.completed,
            names.cache_keys,
            SEED_LIMIT.as_secs()
        );
    }
    Ok(())
}

fn start_redis_get(
    arguments: &RunArgs,
    step: &Step,
    call: Call,
    names: &Names,
    request: &RequestSpec,
    folder: &Path,
) -> Result<Contender> {
    if arguments.redis_nodes.is_empty() {
        bail!(
            "scenario {} needs a Redis Cluster: set REDIS_NODES, or run with --embedded-only",
            step.scenario.name
        );
    }
    let (mut prefix, suffix) = (format!("cache:{}:{}:", arguments.tenant, names.namespace), ":-");
    let filled_by_outrigger = call.operation == Operation::CacheGet && arguments.has(Which::Outrigger);
    if !filled_by_outrigger {
        let value = seed_value(step.value_bytes.max(1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        if call.operation != Operation::CacheGet {
            // The path of a check ends in "check": one key of the load test's own.
            prefix = format!("loadtest:{prefix}");
            runtime.block_on(redis_get::store(
                &arguments.redis_nodes,
                &format!("{prefix}check{suffix}"),
                &value,
            ))?;
        } else {
            let load = format!("{prefix}load");
            runtime.block_on(redis_get::seed(
                &arguments.redis_nodes,
                &load,
                suffix,
                names.cache_keys,
                &value,
            ))?;
        }
    }
    let mut command = this_program()?;
    command.args(["contender", "redis-get", "--key-prefix", &prefix, "--key-suffix", suffix]);
    command.env("REDIS_NODES", arguments.redis_nodes.join(","));
    Contender::of("redis-get", Server::start("redis-get", command, folder)?, step, request.clone())
}
