//! The report on events: what JSON and the table show.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::ledger::Found;
use super::load::{Turn, Used};
use crate::process::Machine;
use crate::report::statistics::Spread;
use crate::report::table::{ABSENT, align};

/// Goal of DESIGN: events accepted a second, in batches.
pub(crate) const GOAL_EVENTS_PER_S: f64 = 50_000.0;
/// Goal: P95 from accepted to pulled, in milliseconds.
pub(crate) const GOAL_P95_MS: f64 = 100.0;

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EventsReport {
    /// Where it ran.
    pub(crate) machine: Machine,
    /// How long it took.
    pub(crate) took_s: f64,
    /// PostgreSQL's settings that matter.
    pub(crate) settings: String,
    /// Closed loops.
    pub(crate) accept: Vec<AcceptTable>,
    /// Open loops.
    pub(crate) pull: Vec<PullRow>,
    /// Into Kafka.
    pub(crate) kafka: Option<KafkaTable>,
    /// With more and more events kept.
    pub(crate) kept: Vec<KeptRow>,
}

/// Through the relay, beside a bare transactional producer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KafkaTable {
    /// What the bare producer commits a second with every caller always calling.
    pub(crate) bare_per_s: f64,
    /// What a relay that starts delivers a second of events that wait.
    pub(crate) backlog_per_s: f64,
    /// Open loops.
    pub(crate) rows: Vec<PullRow>,
}

/// Contenders side by side.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AcceptTable {
    pub(crate) label: String,
    pub(crate) has_goal: bool,
    pub(crate) rows: Vec<AcceptRow>,
}

/// One contender.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AcceptRow {
    pub(crate) name: String,
    pub(crate) events_per_s: Spread,
    /// Relative to the first contender of the table, in the same round.
    pub(crate) of_first: Spread,
    pub(crate) latency: Latency,
    /// CPU seconds for 100,000 events.
    pub(crate) cpu: Cpu,
    /// Share of the machine that was busy, and the part of it that is none of the above's.
    pub(crate) machine_busy: f64,
    pub(crate) other_busy: f64,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
}

/// CPU seconds for 100,000 events.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) server: f64,
    pub(crate) store: f64,
    pub(crate) generator: f64,
}

/// An open loop.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PullRow {
    pub(crate) name: String,
    pub(crate) consumers: usize,
    /// What was meant to be published, events/s.
    pub(crate) offered: f64,
    /// What was, events/s.
    pub(crate) accepted_per_s: f64,
    /// Of a publisher's call, from when it was meant to begin.
    pub(crate) accept: Latency,
    /// From the call's end until the event was in a consumer's hands.
    pub(crate) pulled: Latency,
    /// Events not yet pulled when the last was accepted.
    pub(crate) behind: u64,
    pub(crate) missing: u64,
    pub(crate) repeated: u64,
    pub(crate) out_of_order: u64,
}

/// So many events kept.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KeptRow {
    pub(crate) kept: u64,
    pub(crate) one_by_one_per_s: f64,
    pub(crate) batches_per_s: f64,
    pub(crate) pulled: Latency,
    pub(crate) first_page_ms: f64,
    pub(crate) read_per_s: f64,
}

impl Latency {
    /// Of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

impl AcceptRow {
    /// Of a contender's turns, and those of the first contender in the same rounds.
    pub(crate) fn of(name: &str, turns: &[&Turn], first: &[&Turn], cpus: usize) -> anyhow::Result<Self> {
        let rates: Vec<f64> = turns.iter().map(|turn| turn.events_per_s()).collect();
        let ratios: Vec<f64> =
            turns.iter().zip(first).map(|(own, first)| own.events_per_s() / first.events_per_s()).collect();
        let mut tally = crate::generator::Tally::default();
        let (mut used, mut events, mut seconds) = (Used::default(), 0, 0.0);
        for turn in turns {
            events += turn.tally.completed * turn.events;
            seconds += turn.tally.measured.as_secs_f64();
            used.server += turn.used.server;
            used.store += turn.used.store;
            used.generator += turn.used.generator;
            used.machine += turn.used.machine;
            tally.add(turn.tally.clone())?;
        }
        let per_100k = |time: std::time::Duration| time.as_secs_f64() * 1e5 / (events as f64).max(1.0);
        let share = |time: f64| time / (seconds * cpus as f64);
        let known = used.server + used.store + used.generator;
        Ok(Self {
            name: name.to_owned(),
            events_per_s: Spread::of(&rates),
            of_first: Spread::of(&ratios),
            latency: Latency::of(&tally.latency_ns),
            cpu: Cpu {
                server: per_100k(used.server),
                store: per_100k(used.store),
                generator: per_100k(used.generator),
            },
            machine_busy: share(used.machine.as_secs_f64()),
            other_busy: share(used.machine.saturating_sub(known).as_secs_f64()),
        })
    }
}

impl AcceptTable {
    fn verdict(&self) -> String {
        let outrigger = self.rows.iter().find(|row| row.name == "outrigger");
        match outrigger.filter(|_| self.has_goal) {
            Some(row) if row.events_per_s.median >= GOAL_EVENTS_PER_S => {
                format!(": goal {GOAL_EVENTS_PER_S:.0} events/s reached")
            }
            Some(_) => format!(": goal {GOAL_EVENTS_PER_S:.0} events/s missed"),
            None => String::new(),
        }
    }
}

impl PullRow {
    /// Adds what became of the events.
    pub(crate) fn with(mut self, found: Found) -> Self {
        (self.missing, self.repeated, self.out_of_order) =
            (found.missing, found.repeated, found.out_of_order);
        self
    }
}

impl EventsReport {
    /// Events through Outrigger that were not pulled exactly once, in the order of their keys.
    pub(crate) fn wrong(&self) -> u64 {
        let relayed = self.kafka.iter().flat_map(|table| &table.rows);
        let own = self.pull.iter().chain(relayed).filter(|row| row.name.starts_with("outrigger"));
        own.map(|row| row.missing + row.repeated + row.out_of_order).sum()
    }

    /// The table.
    pub(crate) fn render(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{} CPUs ({}), kernel {}, load average {:.2} before; {:.0} s\nPostgreSQL on the same machine with a synchronous standby: {}\nlatency in ms, CPU (server, store, gen) in seconds per 100,000 events\n",
            machine.cpus, machine.cpu_model, machine.kernel, machine.load_average, self.took_s, self.settings
        );
        for table in &self.accept {
            // Writing to a String cannot fail.
            writeln!(text, "\naccepted, {}{}", table.label, table.verdict()).ok();
            text.push_str(&accept(table));
        }
        if !self.pull.is_empty() {
            text.push_str("\naccepted -> in a consumer's hands, open loop (16 publishers, batches of 100; outbox: 64, one by one)\n");
            text.push_str(&pull(&self.pull));
            writeln!(text, "goal: P95 from accepted to pulled below {GOAL_P95_MS:.0} ms").ok();
        }
        if let Some(table) = &self.kafka {
            text.push_str("\naccepted -> committed in Kafka, in a native consumer's hands, open loop (16 publishers, batches of 100)\n");
            text.push_str(&pull(&table.rows));
            writeln!(
                text,
                "a backlog: {:.0} events/s by four shards of one relay, {:.2} of what a bare transactional producer commits ({:.0})",
                table.backlog_per_s,
                table.backlog_per_s / table.bare_per_s,
                table.bare_per_s
            )
            .ok();
            writeln!(text, "goal: P95 from accepted to Kafka below {GOAL_P95_MS:.0} ms").ok();
        }
        if !self.kept.is_empty() {
            text.push_str("\nwith so many events kept\n");
            text.push_str(&kept(&self.kept));
        }
        text
    }
}

fn latency(latency: Latency) -> [String; 3] {
    [latency.p50, latency.p95, latency.p99].map(|value| format!("{value:.1}"))
}

fn accept(table: &AcceptTable) -> String {
    let headings = [
        "contender",
        "events/s",
        "of direct",
        "quartiles",
        "P50",
        "P95",
        "P99",
        "server",
        "store",
        "gen",
        "cpu%",
        "other%",
    ];
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.name.clone(),
                format!("{:.0}", row.events_per_s.median),
                format!("{:.2}", row.of_first.median),
                format!("{:.2}-{:.2}", row.of_first.lower_quartile, row.of_first.upper_quartile),
            ];
            cells.extend(latency(row.latency));
            cells.push(match row.cpu.server > 0.0 {
                true => format!("{:.2}", row.cpu.server),
                false => ABSENT.to_owned(),
            });
            cells.extend([row.cpu.store, row.cpu.generator].map(|seconds| format!("{seconds:.2}")));
            cells.extend([row.machine_busy, row.other_busy].map(|share| format!("{:.0}", share * 100.0)));
            cells
        })
        .collect();
    align(&headings, &rows)
}

fn pull(rows: &[PullRow]) -> String {
    let headings = [
        "contender",
        "consumers",
        "offered/s",
        "accepted/s",
        "accept P50",
        "P95",
        "P99",
        "pulled P50",
        "P95",
        "P99",
        "behind",
        "missing",
        "repeated",
        "out of order",
    ];
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.name.clone(),
                row.consumers.to_string(),
                format!("{:.0}", row.offered),
                format!("{:.0}", row.accepted_per_s),
            ];
            cells.extend(latency(row.accept));
            cells.extend(latency(row.pulled));
            cells.extend(
                [row.behind, row.missing, row.repeated, row.out_of_order].map(|count| count.to_string()),
            );
            cells
        })
        .collect();
    align(&headings, &rows)
}

fn kept(rows: &[KeptRow]) -> String {
    let headings =
        ["kept", "one by one/s", "batches/s", "pulled P50", "P95", "P99", "first page ms", "read/s"];
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut cells = vec![
                row.kept.to_string(),
                format!("{:.0}", row.one_by_one_per_s),
                format!("{:.0}", row.batches_per_s),
            ];
            cells.extend(latency(row.pulled));
            cells.extend([format!("{:.1}", row.first_page_ms), format!("{:.0}", row.read_per_s)]);
            cells
        })
        .collect();
    align(&headings, &rows)
}
