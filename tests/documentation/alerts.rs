//! What the alert rules name is there: metrics and values of their labels in what processes export, sections in the
//! document. What the rules do with it is tested by `promtool` (`deploy/alerts/tests`).

use std::time::Duration;

use super::root;
use super::support::postgres::OnPostgres;
use super::support::sidecar::{Sidecar, embedded_config};
use super::support::wait_until;

const RULES: &str = "deploy/alerts/outrigger.yaml";
/// A relay takes its shards within a round; Kafka's first transaction may take longer.
const BOUND: Duration = Duration::from_secs(60);

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap()
}

/// The files of promtool's tests, one after another.
fn tests() -> String {
    let files = std::fs::read_dir(root().join("deploy/alerts/tests")).unwrap();
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

/// A metric, or one with a value of a label, as a text names it.
#[derive(Debug, PartialEq)]
pub(crate) struct Named<'t> {
    metric: &'t str,
    pair: Option<(&'t str, &'t str)>,
}

impl Named<'_> {
    /// Whether an exported text has it.
    fn is_in(&self, exported: &str) -> bool {
        exported.lines().any(|line| {
            let Some(rest) = line.strip_prefix(self.metric) else { return false };
            rest.starts_with(['{', ' '])
                && self.pair.is_none_or(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")))
        })
    }
}

/// The values of labels in `a="b",c=~"d|e"`.
fn pairs(selector: &str) -> impl Iterator<Item = (&str, &str)> {
    selector.split("\",").flat_map(move |matcher| {
        let (left, values) = matcher.split_once('"').unwrap_or_else(|| panic!("{selector:?}"));
        let label = left.trim().trim_end_matches(['=', '~', '!']);
        values.trim_end_matches('"').split('|').map(move |value| (label, value))
    })
}

/// Every metric of ours that a text names, and with it the values of labels that it selects.
fn named(text: &str) -> Vec<Named<'_>> {
    let mut all = Vec::new();
    for (at, _) in text.match_indices("outrigger_") {
        let (metric, rest) = text[at..].split_at(
            text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len() - at),
        );
        all.push(Named { metric, pair: None });
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        for pair in selector.into_iter().flat_map(|(inner, _)| pairs(inner)) {
            all.push(Named { metric, pair: Some(pair) });
        }
    }
    all
}

fn missing<'t>(texts: &[&'t str], exported: &str) -> Vec<Named<'t>> {
    texts.iter().flat_map(|text| named(text)).filter(|named| !named.is_in(exported)).collect()
}

fn exported(process: &Sidecar) -> String {
    process.admin_client().send("GET", "/metrics", &[], b"").text()
}

/// What processes of every kind export, once that has all that these texts name; and what is missing if it never has.
pub(crate) fn exported_by_all<'t>(texts: &[&'t str]) -> (String, Vec<Named<'t>>) {
    let brokers = rig::shared_kafka_brokers();
    let prefix = format!("test-{}", uuid::Uuid::now_v7().simple());
    let kafka = format!("kafka: {{brokers: {brokers:?}, prefix: {prefix}}}\n");
    let on = OnPostgres::new().with_config(&kafka);
    let relay = on.process("roles: [api, relay]\n");
    let redis = Sidecar::on_redis(&rig::shared_redis_nodes());
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "store: embedded\nevents: {}\nusage: {}\n");
    let embedded = Sidecar::serve_in(directory, &config);

    wait_until("a relay's part of the shards", BOUND, || {
        relay.metric("outrigger_events_relay_shards_count") > 0.0
    });
    let others = exported(&redis) + &exported(&embedded);
    let (mut all, mut left) = (String::new(), Vec::new());
    let end = std::time::Instant::now() + BOUND;
    // A shard's series begin when it is taken over.
    wait_until("every metric that is named", BOUND + Duration::from_secs(1), || {
        all = format!("{others}{}", exported(&relay));
        left = missing(texts, &all);
        left.is_empty() || std::time::Instant::now() > end
    });
    (all, left)
}

/// The alert rules, and what their tests put in.
pub(crate) fn rules_and_inputs() -> [String; 2] {
    let tests = tests();
    // Of the tests' own labels the values are made up.
    let series = tests.lines().filter_map(|line| line.split_once("{series: '")?.1.split('{').next());
    [read(RULES), series.collect::<Vec<_>>().join("\n")]
}

#[test]
fn what_the_alert_rules_name_is_exported() {
    let [rules, inputs] = rules_and_inputs();
    assert!(
        named(&rules).len() > 70 && named(&inputs).len() > 40,
        "the texts are not read as they should be"
    );
    let (_, left) = exported_by_all(&[&rules, &inputs]);
    assert!(left.is_empty(), "no process exports {left:?}");
}

#[test]
fn a_metric_or_a_value_that_is_not_exported_is_found() {
    let exported =
        "# TYPE outrigger_a_total counter\noutrigger_a_total{outcome=\"ok\",kind=\"x\"} 0\noutrigger_ab 1\n";
    let good = "rate(outrigger_a_total{kind=\"x\",outcome=~\"ok\"}[5m]) / outrigger_ab > 1";
    assert_eq!(named(good).len(), 4);
    assert_eq!(missing(&[good], exported), []);
    for (bad, metric, pair) in [
        ("outrigger_a > 0", "outrigger_a", None),
        ("rate(outrigger_a_totals[5m])", "outrigger_a_totals", None),
        ("outrigger_a_total{outcome!~\"ok|lost\"}", "outrigger_a_total", Some(("outcome", "lost"))),
        ("outrigger_a_total{meaning=\"ok\"}", "outrigger_a_total", Some(("meaning", "ok"))),
    ] {
        assert_eq!(missing(&[bad], exported), [Named { metric, pair }], "{bad}");
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do_and_is_tested() {
    let (rules, tests, document) = (read(RULES), tests(), read("docs/operations.md"));
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 20, "{} alerts", alerts.len());
    for alert in alerts {
        let text = alert.split_whitespace().collect::<Vec<_>>().join(" ");
        let name = text.split(' ').next().unwrap();
        let is_graded =
            ["critical", "warning"].iter().any(|grade| text.contains(&format!("{{severity: {grade}}}")));
        assert!(is_graded && text.contains("summary: ") && text.contains("description: "), "{text}");
        let section = text.split("(docs/operations.md, \"").nth(1).and_then(|rest| rest.split("\")").next());
        let section = section.unwrap_or_else(|| panic!("{name} names no section of docs/operations.md"));
        let is_there = document
            .lines()
            .any(|line| line.trim_start_matches('#').trim() == section && line.starts_with('#'));
        assert!(is_there, "{name} names the section {section:?}, which is not there");
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "{name} fires in no test of deploy/alerts/tests"
        );
    }
}
