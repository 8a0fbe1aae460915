//! The report: everything that JSON, table and plot show.

pub(crate) mod markdown;
pub(crate) mod statistics;
pub(crate) mod svg;
pub(crate) mod table;

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use crate::footprint::Footprint;
use crate::generator::{Load, Tally};
use crate::process::{Machine, Memory};
use crate::profiles::Step;
use crate::rounds::{Measured, Turn};
use crate::scenarios::{Call, Transport};
use statistics::{Spread, median};

/// Version of the JSON's shape.
const FORMAT: u32 = 1;
const YARDSTICKS: [&str; 2] = ["echo", "redis-get"];

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this shape.
    pub(crate) format: u32,
    /// When the run began, seconds since 1970.
    pub(crate) started_unix_s: u64,
    /// How long it took.
    pub(crate) took_s: f64,
    /// Profile name.
    pub(crate) profile: &'static str,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Connections of every step.
    pub(crate) connections: u32,
    /// Steps with calls.
    pub(crate) steps: Vec<StepReport>,
    /// Memory and start.
    pub(crate) footprints: Vec<Footprint>,
}

impl Report {
    /// An empty report of a run that begins.
    pub(crate) fn new(profile: &'static str, machine: Machine, connections: u32) -> Self {
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            format: FORMAT,
            started_unix_s: started.map_or(0, |time| time.as_secs()),
            took_s: 0.0,
            profile,
            machine,
            connections,
            steps: Vec::new(),
            footprints: Vec::new(),
        }
    }

    /// Calls that were lost with their connection or never answered.
    pub(crate) fn lost_calls(&self) -> u64 {
        self.steps.iter().flat_map(|step| &step.contenders).map(|row| row.errors + row.unfinished).sum()
    }
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StepReport {
    /// Scenario, value size, transport, load.
    pub(crate) label: String,
    /// Scenario name.
    pub(crate) scenario: &'static str,
    /// TCP or unix socket.
    pub(crate) transport: Transport,
    /// Calls a second of an open loop; null for a closed one.
    pub(crate) rate_per_s: Option<f64>,
    /// Generator threads.
    pub(crate) generator_threads: u32,
    /// Size of a cached value.
    pub(crate) value_bytes: usize,
    /// Rounds.
    pub(crate) rounds: usize,
    /// Measured part of a turn.
    pub(crate) measured_ms: u64,
    /// The contender that `goal` is about.
    pub(crate) compared_with: &'static str,
    /// Wanted ratio of Outrigger's requests/s to that contender's; null in an open loop.
    pub(crate) goal: Option<f64>,
    /// One row a contender.
    pub(crate) contenders: Vec<ContenderReport>,
}

/// One contender in a step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ContenderReport {
    /// Its name.
    pub(crate) name: String,
    /// Over the rounds.
    pub(crate) requests_per_s: Spread,
    /// Requests/s of each round.
    pub(crate) requests_per_s_by_round: Vec<f64>,
    /// Requests/s relative to a yardstick in the same round: the median over the rounds.
    pub(crate) ratios: BTreeMap<&'static str, Spread>,
    /// CPU seconds per call of server, stores and generator together: the yardstick's relative to this one's. It is
    /// what the ratio of requests/s would be with every CPU busy and no one else on them, so noise moves it less.
    pub(crate) cpu_ratios: BTreeMap<&'static str, f64>,
    /// Over all rounds.
    pub(crate) latency_ms: Latency,
    /// CPU seconds of the server for 100,000 calls.
    pub(crate) server_cpu_s_per_100k: Option<f64>,
    /// The same of the local Redis nodes.
    pub(crate) store_cpu_s_per_100k: Option<f64>,
    /// The same of the generator.
    pub(crate) generator_cpu_s_per_100k: f64,
    /// Share of its threads' time for which the generator was busy.
    pub(crate) generator_busy: f64,
    /// Share of the machine that was busy at all: well below 1 in a closed loop, something waits.
    pub(crate) machine_busy: f64,
    /// Share of the machine used by neither server, stores nor generator: noise, and kernel work on nobody's account.
    pub(crate) other_busy: f64,
    /// After the last turn.
    pub(crate) memory: Option<Memory>,
    /// Calls answered inside the measured windows.
    pub(crate) calls: u64,
    /// Calls lost with their connection.
    pub(crate) errors: u64,
    /// What the first of them met.
    pub(crate) first_error: Option<String>,
    /// Calls of an open loop without an answer at the end.
    pub(crate) unfinished: u64,
    /// Bytes of a request.
    pub(crate) request_bytes: usize,
    /// Bytes of a reply's head.
    pub(crate) reply_head_bytes: usize,
    /// Bytes of a reply's body.
    pub(crate) reply_body_bytes: usize,
    /// Share of the sampled replies that say `Outrigger-Cache: l1`; null where none has the header.
    pub(crate) l1_share: Option<f64>,
}

impl ContenderReport {
    /// CPU seconds of all that takes part, for 100,000 calls; unknown where the server's process is.
    fn cpu_per_call(&self) -> Option<f64> {
        let server_and_generator = self.server_cpu_s_per_100k? + self.generator_cpu_s_per_100k;
        Some(server_and_generator + self.store_cpu_s_per_100k.unwrap_or(0.0)).filter(|seconds| *seconds > 0.0)
    }
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Latency {
    /// Half of the calls took no longer.
    pub(crate) p50: f64,
    /// 95%.
    pub(crate) p95: f64,
    /// 99%.
    pub(crate) p99: f64,
    /// 99.9%.
    pub(crate) p99_9: f64,
    /// The longest.
    pub(crate) max: f64,
}

impl Latency {
    fn of(tally: &Tally) -> Self {
        let at = |quantile: f64| tally.latency_ns.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: tally.latency_ns.max() as f64 / 1e6,
        }
    }
}

/// Turns the counts of a step into its report.
///
/// # Errors
/// Histograms of different shape, which cannot be.
pub(crate) fn step_report(
    step: &Step,
    call: Call,
    threads: u32,
    cpus: usize,
    measured: &[Measured],
) -> Result<StepReport> {
    let mut contenders = Vec::with_capacity(measured.len());
    for one in measured {
        let mut row = contender_report(one, threads, cpus)?;
        for name in YARDSTICKS {
            if let Some(yardstick) = measured.iter().find(|other| other.name == name) {
                let ratios: Vec<f64> =
                    rates(&one.turns).zip(rates(&yardstick.turns)).map(|(own, its)| own / its).collect();
                row.ratios.insert(name, Spread::of(&ratios));
            }
        }
        contenders.push(row);
    }
    add_cpu_ratios(&mut contenders);
    let rate_per_s = match step.load {
        Load::Rate(per_second) => Some(per_second),
        Load::Saturate | Load::Once(_) => None,
    };
    Ok(StepReport {
        label: step.label(),
        scenario: step.scenario.name,
        transport: step.transport,
        rate_per_s,
        generator_threads: threads,
        value_bytes: step.value_bytes,
        rounds: step.rounds,
        measured_ms: u64::try_from(step.measured.as_millis())?,
        compared_with: call.compared_with,
        goal: rate_per_s.is_none().then_some(call.goal),
        contenders,
    })
}

fn add_cpu_ratios(contenders: &mut [ContenderReport]) {
    for name in YARDSTICKS {
        let yardstick =
            contenders.iter().find(|row| row.name == name).and_then(ContenderReport::cpu_per_call);
        for row in contenders.iter_mut() {
            if let Some((yardstick, own)) = yardstick.zip(row.cpu_per_call()) {
                row.cpu_ratios.insert(name, yardstick / own);
            }
        }
    }
}

fn rates(turns: &[Turn]) -> impl Iterator<Item = f64> {
    turns.iter().map(|turn| turn.tally.requests_per_s())
}

fn contender_report(measured: &Measured, threads: u32, cpus: usize) -> Result<ContenderReport> {
    let turns = &measured.turns;
    let mut total = Tally::default();
    for turn in turns {
        total.add(turn.tally.clone())?;
    }
    let seconds: f64 = turns.iter().map(|turn| turn.tally.measured.as_secs_f64()).sum();
    let sum = |of: fn(&Turn) -> Option<std::time::Duration>| -> Option<f64> {
        turns.iter().map(|turn| of(turn).map(|time| time.as_secs_f64())).sum()
    };
    let (server, store) = (sum(|turn| turn.server_cpu), sum(|turn| turn.store_cpu));
    let machine = turns.iter().map(|turn| turn.machine_busy.as_secs_f64()).sum::<f64>();
    let generator = total.generator_cpu.as_secs_f64();
    let known = server.unwrap_or(0.0) + store.unwrap_or(0.0) + generator;
    let per_100k = |cpu_seconds: f64| cpu_seconds * 100_000.0 / (total.completed.max(1) as f64);
    let by_round: Vec<f64> = rates(turns).collect();
    let (samples, hits) = total.cache_samples;
    Ok(ContenderReport {
        name: measured.name.clone(),
        requests_per_s: Spread::of(&by_round),
        requests_per_s_by_round: by_round,
        ratios: BTreeMap::new(),
        cpu_ratios: BTreeMap::new(),
        latency_ms: Latency::of(&total),
        server_cpu_s_per_100k: server.map(per_100k),
        store_cpu_s_per_100k: store.map(per_100k),
        generator_cpu_s_per_100k: per_100k(generator),
        generator_busy: generator / (seconds * f64::from(threads)),
        machine_busy: machine / (seconds * cpus as f64),
        other_busy: ((machine - known) / (seconds * cpus as f64)).max(0.0),
        memory: turns.last().and_then(|turn| turn.memory),
        calls: total.completed,
        errors: total.errors,
        first_error: total.first_error,
        unfinished: total.unfinished,
        request_bytes: measured.request_bytes,
        reply_head_bytes: total.reply.map_or(0, |reply| reply.head_bytes),
        reply_body_bytes: total.reply.map_or(0, |reply| reply.body_bytes),
        l1_share: (samples > 0).then(|| hits as f64 / samples as f64),
    })
}

/// Median in milliseconds of some times.
pub(crate) fn median_ms(times: &[std::time::Duration]) -> f64 {
    median(&times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>())
}
