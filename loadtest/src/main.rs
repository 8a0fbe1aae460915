//! The load generator: Outrigger beside bare hyper and whatever else the user names, in one run.

#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(
    clippy::disallowed_methods,
    reason = "plain threads that may sleep; the contenders have no tasks to track"
)]

mod cli;
mod contender;
mod events;
mod footprint;
mod generator;
mod interrupt;
mod process;
mod profiles;
mod progress;
mod report;
mod rounds;
mod scenarios;
mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;

use cli::{BuiltIn, Cli, Command, RunArgs, Which};
use contender::{Contender, assemble, echo, redis_get};
use profiles::Step;
use progress::Progress;
use report::{Report, markdown, step_report, svg, table};
use scenarios::{Backend, Call, Kind};

/// About what a step without calls takes, for the progress line.
const FOOTPRINT_TIME: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Events(arguments) => events::run(&arguments),
        Command::Usage(arguments) => usage::run(&arguments),
        Command::Contender { contender } => serve(contender),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(contender: BuiltIn) -> Result<()> {
    footprint::raise_open_files(1)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match contender {
            BuiltIn::Echo(arguments) => echo::run(arguments).await,
            BuiltIn::RedisGet(arguments) => redis_get::run(arguments).await,
        }
    })
}

fn run(arguments: &RunArgs) -> Result<()> {
    let steps = arguments.steps();
    if steps.is_empty() {
        bail!("no step is left: see --scenario, --mode and --embedded-only");
    }
    let idle = steps.iter().any(|step| step.scenario.kind == Kind::IdleConnections);
    footprint::raise_open_files(if idle { arguments.idle_connections } else { arguments.connections })?;
    interrupt::watch()?;
    let scratch = Scratch::new()?;
    let mut progress =
        Progress::new(arguments.progress, steps.iter().map(|step| planned(arguments, step)).sum());
    let begin = Instant::now();
    let mut report = Report::new(arguments.profile.name(), process::machine(), arguments.connections);
    for (place, step) in steps.iter().enumerate() {
        let folder = scratch.0.join(place.to_string());
        match step.scenario.kind {
            Kind::Calls(call) => {
                let measured = measure(arguments, step, call, &folder, &mut progress)
                    .inspect_err(|_| progress.clear())
                    .with_context(|| step.label())?;
                report.steps.push(step_report(
                    step,
                    call,
                    arguments.threads(step),
                    report.machine.cpus,
                    &measured,
                )?);
            }
            _ => {
                let rows = footprint::run(arguments, step.scenario, &folder, &progress)
                    .inspect_err(|_| progress.clear())
                    .context(step.scenario.name)?;
                report.footprints.extend(rows);
                progress.done(planned(arguments, step));
            }
        }
    }
    progress.clear();
    report.took_s = begin.elapsed().as_secs_f64();
    publish(arguments, &report)
}

fn publish(arguments: &RunArgs, report: &Report) -> Result<()> {
    let table = table::render(report);
    print!("{table}");
    if let Some(path) = &arguments.markdown {
        let document = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let document = markdown::replace_table(&document, "loadtest", &table)
            .with_context(|| path.display().to_string())?;
        fs::write(path, document).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, svg::render(report)).with_context(|| path.display().to_string())?;
    }
    match report.lost_calls() {
        0 => Ok(()),
        lost => bail!("{lost} calls were lost or not answered: see the table"),
    }
}

fn measure(
    arguments: &RunArgs,
    step: &Step,
    call: Call,
    folder: &Path,
    progress: &mut Progress,
) -> Result<Vec<rounds::Measured>> {
    progress.note(&format!("{}: starting the contenders", step.label()));
    let contenders = assemble(arguments, step, call, folder)?;
    let store_pids = match call.backend {
        Backend::Embedded => Vec::new(),
        Backend::Redis => local_store_pids(arguments)?,
    };
    let measured = rounds::run(arguments, step, &contenders, &store_pids, progress)?;
    for contender in contenders {
        Contender::stop(contender)?;
    }
    Ok(measured)
}

/// The Redis nodes on this machine, whose CPU time can be read; none when any node is elsewhere.
fn local_store_pids(arguments: &RunArgs) -> Result<Vec<u32>> {
    let is_local = |node: &String| node.contains("127.0.0.1:") || node.contains("localhost:");
    if !arguments.redis_nodes.iter().all(is_local) {
        return Ok(Vec::new());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(redis_get::node_pids(&arguments.redis_nodes))
}

fn planned(arguments: &RunArgs, step: &Step) -> Duration {
    let Kind::Calls(call) = step.scenario.kind else {
        return FOOTPRINT_TIME;
    };
    let with_redis = call.backend == Backend::Redis && arguments.has(Which::RedisGet);
    let built_in = [arguments.has(Which::Echo), with_redis, arguments.has(Which::Outrigger)];
    step.duration(built_in.into_iter().filter(|takes_part| *takes_part).count() + arguments.url.len())
}

/// A folder for logs, sockets and data, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("loadtest: {} is left behind: {error}", self.0.display());
        }
    }
}
