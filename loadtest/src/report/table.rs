//! The report as aligned text.

use super::{ContenderReport, Report, StepReport};
use crate::footprint::Footprint;

const HEADINGS: [&str; 19] = [
    "contender",
    "req/s",
    "of echo",
    "of GET",
    "by cpu",
    "P50",
    "P95",
    "P99",
    "P99.9",
    "server",
    "store",
    "gen",
    "gen%",
    "cpu%",
    "other%",
    "RSS",
    "PSS",
    "L1",
    "lost",
];
pub(crate) const ABSENT: &str = "-";

/// Everything, as it is printed at the end of a run.
pub(crate) fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} CPUs ({}), kernel {}, load average {:.2} before; {} connections, {:.0} s\n",
        machine.cpus,
        machine.cpu_model,
        machine.kernel,
        machine.load_average,
        report.connections,
        report.took_s
    );
    if !report.steps.is_empty() {
        text.push_str(
            "latency in ms, CPU (server, store, gen) in seconds per 100,000 calls, memory in MiB\n",
        );
    }
    for step in &report.steps {
        text.push('\n');
        text.push_str(&heading(step));
        let rows: Vec<Vec<String>> = step.contenders.iter().map(|one| row(one, step.compared_with)).collect();
        text.push_str(&align(&HEADINGS, &rows));
    }
    if !report.footprints.is_empty() {
        text.push('\n');
        let rows: Vec<Vec<String>> = report.footprints.iter().map(footprint_row).collect();
        text.push_str(&align(
            &[
                "without load",
                "contender",
                "RSS MiB",
                "PSS MiB",
                "ready ms",
                "first ms",
                "connections",
                "bytes each",
                "of echo",
            ],
            &rows,
        ));
    }
    text
}

fn heading(step: &StepReport) -> String {
    let mut line =
        format!("{} ({} rounds of {:.1} s)", step.label, step.rounds, step.measured_ms as f64 / 1e3);
    let outrigger = step.contenders.iter().find(|row| row.name == "outrigger");
    if let Some((ratio, goal)) = outrigger.and_then(|row| row.ratios.get(step.compared_with)).zip(step.goal) {
        let verdict = if ratio.median >= goal { "met" } else { "missed" };
        line.push_str(&format!(
            ": {:.2} of {} (half of the rounds {:.2} to {:.2}), goal {goal:.2} {verdict}",
            ratio.median, step.compared_with, ratio.lower_quartile, ratio.upper_quartile
        ));
    }
    line.push('\n');
    line
}

fn row(row: &ContenderReport, compared_with: &str) -> Vec<String> {
    let ratio = |name: &str| row.ratios.get(name).map(|spread| spread.median);
    let latency = &row.latency_ms;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        row.name.clone(),
        format!("{:.0}", row.requests_per_s.median),
        optional(ratio("echo"), 2),
        optional(ratio("redis-get"), 2),
        optional(row.cpu_ratios.get(compared_with).copied(), 2),
        format!("{:.2}", latency.p50),
        format!("{:.2}", latency.p95),
        format!("{:.2}", latency.p99),
        format!("{:.2}", latency.p99_9),
        optional(row.server_cpu_s_per_100k, 2),
        optional(row.store_cpu_s_per_100k, 2),
        format!("{:.2}", row.generator_cpu_s_per_100k),
        format!("{:.0}", row.generator_busy * 100.0),
        format!("{:.0}", row.machine_busy * 100.0),
        format!("{:.0}", row.other_busy * 100.0),
        optional(row.memory.map(|memory| mebibytes(memory.rss_bytes)), 1),
        optional(row.memory.map(|memory| mebibytes(memory.pss_bytes)), 1),
        row.l1_share.map_or_else(|| ABSENT.to_owned(), |share| format!("{:.0}%", share * 100.0)),
        (row.errors + row.unfinished).to_string(),
    ]
}

fn footprint_row(row: &Footprint) -> Vec<String> {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        row.scenario.to_owned(),
        row.contender.clone(),
        optional(row.memory.map(|memory| mebibytes(memory.rss_bytes)), 1),
        optional(row.memory.map(|memory| mebibytes(memory.pss_bytes)), 1),
        optional(row.start_to_ready_ms, 1),
        optional(row.first_start_ms, 1),
        row.connections.map_or_else(|| ABSENT.to_owned(), |connections| connections.to_string()),
        optional(row.rss_bytes_per_connection, 0),
        optional(row.ratio_to_echo, 2),
    ]
}

fn optional(number: Option<f64>, decimals: usize) -> String {
    number.map_or_else(|| ABSENT.to_owned(), |number| format!("{number:.decimals$}"))
}

/// Columns two spaces apart, the first to the left and the others to the right; a column without any value is left out.
pub(crate) fn align(headings: &[&str], rows: &[Vec<String>]) -> String {
    let kept: Vec<usize> =
        (0..headings.len()).filter(|column| rows.iter().any(|row| row[*column] != ABSENT)).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(headings[column].len())
    };
    let mut text = String::new();
    let mut line = |cells: &dyn Fn(usize) -> String| {
        for (place, column) in kept.iter().copied().enumerate() {
            let (cell, width) = (cells(column), width(column));
            let is_name = rows.iter().all(|row| {
                row[column].parse::<f64>().is_err() && !row[column].ends_with('%') && row[column] != ABSENT
            });
            let gap = if place == 0 { "" } else { "  " };
            text.push_str(&if is_name {
                format!("{gap}{cell:<width$}")
            } else {
                format!("{gap}{cell:>width$}")
            });
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    line(&|column| headings[column].to_owned());
    for row in rows {
        line(&|column| row[column].clone());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::align;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let rows = vec![
            vec!["echo".to_owned(), "10".to_owned(), "-".to_owned(), "1.00".to_owned()],
            vec!["outrigger".to_owned(), "9".to_owned(), "-".to_owned(), "-".to_owned()],
        ];
        let text = align(&["contender", "req/s", "none", "of echo"], &rows);
        assert_eq!(text, "contender  req/s  of echo\necho          10     1.00\noutrigger      9        -\n");
    }
}
