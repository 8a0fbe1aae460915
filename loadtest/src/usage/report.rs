//! The report on usage: what JSON and the table show.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::events::load::Turn;
use crate::events::report::{AcceptRow, Latency};
use crate::process::{self, Machine};
use crate::report::statistics::{Spread, median};
use crate::report::table::{ABSENT, align};

/// Goal of DESIGN: records counted once a second, in batches.
const GOAL_POINTS_PER_S: f64 = 100_000.0;
/// Goal: P95 of a year of hourly points, in milliseconds.
const GOAL_YEAR_MS: f64 = 100.0;

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UsageReport {
    /// Where it ran.
    pub(crate) machine: Machine,
    /// How long it took.
    pub(crate) took_s: f64,
    /// PostgreSQL's settings that matter.
    pub(crate) settings: String,
    /// Closed loops.
    pub(crate) write: Vec<WriteTable>,
    /// Accepted to disk.
    pub(crate) spool: Vec<SpoolRow>,
    /// With more and more kept.
    pub(crate) kept: Vec<KeptRow>,
}

/// Contenders side by side.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WriteTable {
    pub(crate) label: String,
    pub(crate) has_goal: bool,
    pub(crate) rows: Vec<WriteRow>,
}

/// One contender.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WriteRow {
    /// Its `events` are records.
    pub(crate) of: AcceptRow,
    /// PostgreSQL's log, for each record.
    pub(crate) wal_bytes: f64,
}

/// So many callers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpoolRow {
    pub(crate) callers: u64,
    /// Counted before they are answered.
    pub(crate) database: WriteRow,
    /// Accepted to disk.
    pub(crate) spool: WriteRow,
    /// Of those, counted, from the first one's beginning until all are.
    pub(crate) counted_per_s: f64,
}

/// So many records kept.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KeptRow {
    pub(crate) kept: u64,
    pub(crate) write: WriteRow,
    /// A year of hourly points.
    pub(crate) year: Latency,
    /// A month of daily ones.
    pub(crate) month: Latency,
}

impl WriteRow {
    /// Of a contender's turns, and those of the first contender in the same rounds.
    pub(crate) fn of(name: &str, turns: &[(Turn, f64)], first: &[(Turn, f64)]) -> Result<Self> {
        let own: Vec<&Turn> = turns.iter().map(|(turn, _)| turn).collect();
        let first: Vec<&Turn> = first.iter().map(|(turn, _)| turn).collect();
        let wal: Vec<f64> = turns.iter().map(|(_, bytes)| *bytes).collect();
        let of = AcceptRow::of(name, &own, &first, process::machine().cpus)?;
        Ok(Self { of, wal_bytes: median(&wal) })
    }
}

impl WriteTable {
    fn verdict(&self) -> String {
        let outrigger = self.rows.iter().find(|row| row.of.name == "outrigger").filter(|_| self.has_goal);
        let reached = |rate: &Spread| rate.median >= GOAL_POINTS_PER_S;
        outrigger.map_or(String::new(), |row| {
            let word = if reached(&row.of.events_per_s) { "reached" } else { "missed" };
            format!(": goal {GOAL_POINTS_PER_S:.0} points/s {word}")
        })
    }
}

impl UsageReport {
    /// The table.
    pub(crate) fn render(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{} CPUs ({}), kernel {}, load average {:.2} before; {:.0} s\nPostgreSQL on the same machine with a synchronous standby: {}\nlatency of a batch in ms, CPU (server, store, gen) in seconds per 100,000 points, WAL in bytes per point\n",
            machine.cpus, machine.cpu_model, machine.kernel, machine.load_average, self.took_s, self.settings
        );
        for table in &self.write {
            // Writing to a String cannot fail.
            writeln!(text, "\ncounted, {}{}", table.label, table.verdict()).ok();
            text.push_str(&write(&table.rows));
        }
        if !self.spool.is_empty() {
            text.push_str(
                "\naccepted to disk (`ack: spool`) beside counted (`ack: database`), batches of 1000\n",
            );
            text.push_str(&spool(&self.spool));
        }
        if !self.kept.is_empty() {
            text.push_str("\nwith so many records of today kept: batches of 1000 from 8 callers, and readings of one tenant among 1,000\n");
            text.push_str(&kept(&self.kept));
            writeln!(text, "goal: P95 of a year of hourly points below {GOAL_YEAR_MS:.0} ms").ok();
        }
        text
    }
}

fn latency(latency: Latency) -> [String; 3] {
    [latency.p50, latency.p95, latency.p99].map(|value| format!("{value:.1}"))
}

fn write(rows: &[WriteRow]) -> String {
    let headings = [
        "contender",
        "points/s",
        "of first",
        "quartiles",
        "P50",
        "P95",
        "P99",
        "WAL",
        "server",
        "store",
        "gen",
        "cpu%",
        "other%",
    ];
    let cells = |WriteRow { of, wal_bytes }: &WriteRow| {
        let mut cells = vec![
            of.name.clone(),
            format!("{:.0}", of.events_per_s.median),
            format!("{:.2}", of.of_first.median),
            format!("{:.2}-{:.2}", of.of_first.lower_quartile, of.of_first.upper_quartile),
        ];
        cells.extend(latency(of.latency));
        cells.push(format!("{wal_bytes:.0}"));
        cells.push(if of.cpu.server > 0.0 { format!("{:.2}", of.cpu.server) } else { ABSENT.to_owned() });
        cells.extend([of.cpu.store, of.cpu.generator].map(|seconds| format!("{seconds:.2}")));
        cells.extend([of.machine_busy, of.other_busy].map(|share| format!("{:.0}", share * 100.0)));
        cells
    };
    align(&headings, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn spool(rows: &[SpoolRow]) -> String {
    let headings =
        ["callers", "ack", "points/s", "of first", "quartiles", "P50", "P95", "P99", "all counted/s"];
    let cells = |callers: u64, name: &str, row: &WriteRow, counted: f64| {
        let of = &row.of;
        let mut cells = vec![
            callers.to_string(),
            name.to_owned(),
            format!("{:.0}", of.events_per_s.median),
            format!("{:.2}", of.of_first.median),
            format!("{:.2}-{:.2}", of.of_first.lower_quartile, of.of_first.upper_quartile),
        ];
        cells.extend(latency(of.latency));
        cells.push(format!("{counted:.0}"));
        cells
    };
    let both = |row: &SpoolRow| {
        let rate = row.database.of.events_per_s.median;
        [
            cells(row.callers, "database", &row.database, rate),
            cells(row.callers, "spool", &row.spool, row.counted_per_s),
        ]
    };
    align(&headings, &rows.iter().flat_map(both).collect::<Vec<_>>())
}

fn kept(rows: &[KeptRow]) -> String {
    let headings = [
        "kept",
        "points/s",
        "P50",
        "P95",
        "P99",
        "WAL",
        "store",
        "year of hours P50",
        "P95",
        "P99",
        "month of days P50",
        "P95",
        "P99",
    ];
    let cells = |row: &KeptRow| {
        let mut cells = vec![row.kept.to_string(), format!("{:.0}", row.write.of.events_per_s.median)];
        cells.extend(latency(row.write.of.latency));
        cells.extend([format!("{:.0}", row.write.wal_bytes), format!("{:.2}", row.write.of.cpu.store)]);
        cells.extend(latency(row.year));
        cells.extend(latency(row.month));
        cells
    };
    align(&headings, &rows.iter().map(cells).collect::<Vec<_>>())
}
