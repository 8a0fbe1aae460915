//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::contender::echo::EchoArgs;
use crate::contender::redis_get::RedisGetArgs;
use crate::contender::url::UrlContender;
use crate::events::EventsArgs;
use crate::generator::Load;
use crate::profiles::{Profile, Step, steps};
use crate::scenarios::{Backend, Kind, SCENARIOS, Transport};
use crate::usage::UsageArgs;

const ABOUT: &str = "Outrigger's load generator: contenders side by side in one run, so that their ratios hold on a noisy machine";

/// Arguments of the program.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, about = ABOUT, after_long_help = explanation())]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure, and write the report
    #[command(after_long_help = explanation())]
    Run(Box<RunArgs>),
    /// Measure events on PostgreSQL beside the same work done directly, and write the report
    Events(Box<EventsArgs>),
    /// Measure usage on PostgreSQL beside the same rows without deduplication, and write the report
    Usage(Box<UsageArgs>),
    /// Run one of the built-in contenders by itself
    Contender {
        /// Which one
        #[command(subcommand)]
        contender: BuiltIn,
    },
}

/// Contenders inside this binary.
#[derive(Debug, Subcommand)]
pub(crate) enum BuiltIn {
    /// Bare hyper, a fixed body
    Echo(EchoArgs),
    /// Bare hyper, one multiplexed Redis GET a request
    RedisGet(RedisGetArgs),
}

/// Closed or open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Closed loop: each connection always has one call outstanding
    Saturate,
    /// Open loop: constant arrival rate, latency from the intended start
    Rate,
}

/// Contenders that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// Bare hyper
    Echo,
    /// Bare hyper with one Redis GET (scenarios on Redis only)
    RedisGet,
    /// Outrigger itself (needs --outrigger-bin)
    Outrigger,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// The set of steps
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    pub(crate) profile: Profile,
    /// Only these scenarios (may be repeated), also where the profile lacks them
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(SCENARIOS.iter().map(|scenario| scenario.name)))]
    scenario: Vec<String>,
    /// Only the scenarios that need no Redis
    #[arg(long)]
    embedded_only: bool,
    /// Only steps in this mode
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Every step over this transport instead of its own
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Connections, each with at most one call outstanding
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) connections: u32,
    /// Generator threads of the saturating steps: with one the server waits for it part of the time. Open-loop steps use one
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Calls a second of the open-loop steps
    #[arg(long, default_value_t = 8000.0, value_parser = positive)]
    rate: f64,
    /// Turns of each contender in a step, instead of the profile's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Unmeasured part of a turn, instead of the profile's
    #[arg(long)]
    warm_up_ms: Option<u64>,
    /// Measured part of a turn, instead of the profile's
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    measured_ms: Option<u64>,
    /// Every cached value of this size instead of the profile's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8192))]
    value_bytes: Option<u32>,
    /// Distinct keys that cache-hit-redis walks through in a circle; more than L1 holds, or L1 off in the configuration
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) keyspace: u64,
    /// Contenders, besides each --url
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Which::Echo, Which::RedisGet, Which::Outrigger])]
    contenders: Vec<Which>,
    /// Another contender: NAME=http://HOST:PORT[/path][,Header:value…] or NAME=unix:/socket[:/path]. With a path it is
    /// sent a GET of that path; without one, the scenario's own request. Its path must answer 200
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) url: Vec<UrlContender>,
    /// The process behind a --url, for its CPU and memory: NAME=PID
    #[arg(long, value_name = "NAME=PID", value_parser = name_and_pid)]
    pub(crate) url_pid: Vec<(String, u32)>,
    /// Outrigger's binary (a release build); without it only the other contenders run
    #[arg(long, value_name = "PATH")]
    pub(crate) outrigger_bin: Option<PathBuf>,
    /// Its configuration for the scenarios on Redis
    #[arg(long, value_name = "PATH", default_value = "proxy.yaml")]
    pub(crate) outrigger_config: PathBuf,
    /// Folder whose key signs tokens that this configuration accepts
    #[arg(long, value_name = "DIR", default_value = ".rig/identity")]
    pub(crate) identity: PathBuf,
    /// Policies for the embedded scenarios (default: those that `outrigger dev` takes)
    #[arg(long, value_name = "DIR")]
    pub(crate) policies: Option<PathBuf>,
    /// Tenant of every call, a UUID
    #[arg(long, default_value = "0198c0de-0000-7000-8000-00000000010a")]
    pub(crate) tenant: String,
    /// Its tier
    #[arg(long, default_value = "enterprise")]
    pub(crate) tier: String,
    /// Rate limit that is checked
    #[arg(long, default_value = "api")]
    pub(crate) limit: String,
    /// Distinct keys of the limit that the checks walk through
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) limit_keys: u64,
    /// Cache namespace of the embedded scenarios
    #[arg(long, default_value = "profiles")]
    pub(crate) namespace: String,
    /// Cache namespace of the scenarios on Redis; one in raw format, so that both contenders answer the same bytes
    #[arg(long, default_value = "scoring")]
    pub(crate) redis_namespace: String,
    /// Redis Cluster nodes, host:port or redis:// URLs, with commas between
    #[arg(long, env = "REDIS_NODES", hide_env_values = true, value_delimiter = ',')]
    pub(crate) redis_nodes: Vec<String>,
    /// Connections of idle-connections; every process needs RLIMIT_NOFILE a little above it (raised as far as the hard limit goes)
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    pub(crate) idle_connections: u32,
    /// Starts of start-to-ready
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) spawns: u32,
    /// Write the whole report as JSON
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,
    /// Draw throughput and latency as SVG
    #[arg(long, value_name = "PATH")]
    pub(crate) svg: Option<PathBuf>,
    /// Replace what stands between the marks <!-- loadtest --> and <!-- /loadtest --> of this file with the table
    #[arg(long, value_name = "PATH")]
    pub(crate) markdown: Option<PathBuf>,
    /// A progress line on stderr even where it is no terminal
    #[arg(long)]
    pub(crate) progress: bool,
}

impl RunArgs {
    /// The steps to make, with what the options override.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut chosen = steps(self.profile, &self.scenario, self.rate);
        chosen.retain(|step| self.wants(step));
        for step in &mut chosen {
            step.transport = self.transport.unwrap_or(step.transport);
            step.rounds = self.rounds.map_or(step.rounds, |rounds| rounds as usize);
            step.warm_up = self.warm_up_ms.map_or(step.warm_up, Duration::from_millis);
            step.measured = self.measured_ms.map_or(step.measured, Duration::from_millis);
            step.value_bytes = self.value_bytes.map_or(step.value_bytes, |bytes| bytes as usize);
        }
        let mut labels = Vec::new();
        chosen.retain(|step| {
            let fresh = !labels.contains(&step.label());
            labels.push(step.label());
            fresh
        });
        chosen
    }

    /// Whether the scenarios on Redis are left out.
    pub(crate) fn embedded_only(&self) -> bool {
        self.embedded_only
    }

    fn wants(&self, step: &Step) -> bool {
        let named = self.scenario.is_empty() || self.scenario.iter().any(|name| name == step.scenario.name);
        let Kind::Calls(call) = step.scenario.kind else {
            return named && self.mode.is_none();
        };
        let in_mode = match self.mode {
            None => true,
            Some(Mode::Saturate) => step.load == Load::Saturate,
            Some(Mode::Rate) => matches!(step.load, Load::Rate(_)),
        };
        named && in_mode && !(self.embedded_only && call.backend == Backend::Redis)
    }

    /// Generator threads of that step.
    pub(crate) fn threads(&self, step: &Step) -> u32 {
        if step.load == Load::Saturate { self.threads.min(self.connections) } else { 1 }
    }

    /// Whether that contender takes part.
    pub(crate) fn has(&self, which: Which) -> bool {
        self.contenders.contains(&which) && (which != Which::Outrigger || self.outrigger_bin.is_some())
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number.is_finite() && (1.0..=1e7).contains(&number) {
        Ok(number)
    } else {
        Err("1 to 10000000".to_owned())
    }
}

fn name_and_pid(text: &str) -> Result<(String, u32), String> {
    let (name, pid) = text.split_once('=').ok_or("expected NAME=PID")?;
    Ok((name.to_owned(), pid.parse().map_err(|_| "PID is not a number")?))
}

fn explanation() -> String {
    let mut text = String::from("Scenarios:\n");
    for scenario in SCENARIOS {
        text.push_str(&format!("  {:<17} {}\n", scenario.name, scenario.about));
    }
    text.push_str(include_str!("explanation.txt"));
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run_args(extra: &[&str]) -> RunArgs {
        match Cli::parse_from(["loadtest", "run"].iter().chain(extra)).command {
            Command::Run(arguments) => *arguments,
            Command::Events(_) | Command::Usage(_) | Command::Contender { .. } => panic!("not run"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_named_scenario_runs_even_if_the_quick_profile_lacks_it() {
        let labels: Vec<String> = run_args(&["--profile", "quick", "--scenario", "ratelimit-take"])
            .steps()
            .iter()
            .map(Step::label)
            .collect();
        assert_eq!(labels, ["ratelimit-take, tcp, saturate"]);
    }

    #[test]
    fn one_transport_for_all_makes_no_step_twice() {
        let arguments =
            run_args(&["--transport", "unix", "--scenario", "cache-hit-l1", "--mode", "saturate"]);
        let labels: Vec<String> = arguments.steps().iter().map(Step::label).collect();
        assert_eq!(labels, ["cache-hit-l1 40 B, unix, saturate", "cache-hit-l1 1024 B, unix, saturate"]);
    }

    #[test]
    fn outrigger_takes_part_only_with_its_binary() {
        assert!(!run_args(&[]).has(Which::Outrigger));
        assert!(run_args(&["--outrigger-bin", "/x"]).has(Which::Outrigger));
    }
}
