//! `docs/operations.md` lists every setting with its default and bounds, and every metric: both tables are made from
//! what there is, and compared here. The alert rules name metrics, values of labels and sections that there are.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "documentation/alerts.rs"]
mod alerts;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::sidecar::ACME;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Compares what stands between two marks of the document with `expected`; writes it where asked to.
fn hold(mark: &str, expected: &str) {
    let path = root().join("docs/operations.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("{begin:?} is not there"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{end:?} is not there"));
    if std::env::var_os("OUTRIGGER_REGENERATE").is_some() {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
    } else {
        assert!(found == expected, "docs/operations.md is behind: run this test with OUTRIGGER_REGENERATE=1");
    }
}

/// A JSON Schema with its definitions.
struct Schema(Value);

impl Schema {
    fn read(file: &str) -> Self {
        let text = std::fs::read_to_string(root().join("docs/schemas").join(file)).unwrap();
        Self(serde_json::from_str(&text).unwrap())
    }

    /// The schema itself behind a reference, or behind "this or null".
    fn follow<'s>(&'s self, schema: &'s Value) -> &'s Value {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.follow(self.0.pointer(reference.trim_start_matches('#')).unwrap());
        }
        let alternatives = schema["anyOf"].as_array();
        let other = alternatives.and_then(|list| list.iter().find(|one| one["type"] != "null"));
        other.map_or(schema, |one| self.follow(one))
    }

    /// The mappings of which a value may be one.
    fn alternatives<'s>(&'s self, schema: &'s Value) -> Vec<&'s Value> {
        let referred = schema["$ref"].as_str().and_then(|to| self.0.pointer(to.trim_start_matches('#')));
        let list = referred.unwrap_or(schema)["anyOf"].as_array();
        list.into_iter().flatten().filter(|one| !self.follow(one)["properties"].is_null()).collect()
    }

    /// A row for each setting below `schema`.
    fn rows(&self, prefix: &str, schema: &Value, rows: &mut String) {
        let Some(properties) = self.follow(schema)["properties"].as_object() else { return };
        for (name, property) in properties {
            let key = format!("{prefix}{name}");
            let inner = self.follow(property);
            let alternatives = self.alternatives(property);
            if alternatives.len() > 1 {
                for schema in alternatives {
                    self.rows(&format!("{key}."), schema, rows);
                }
                continue;
            }
            let below = if !inner["properties"].is_null() {
                Some((format!("{key}."), inner))
            } else if !self.follow(&inner["items"])["properties"].is_null() {
                Some((format!("{key}[]."), &inner["items"]))
            } else if inner["additionalProperties"].is_object() {
                Some((format!("{key}.NAME."), &inner["additionalProperties"]))
            } else {
                None
            };
            match below {
                Some((prefix, schema)) => self.rows(&prefix, schema, rows),
                None => writeln!(
                    rows,
                    "| `{key}` | {} | {} | {} |",
                    default_of(property),
                    bounds_of(inner),
                    meaning_of(property, inner)
                )
                .unwrap(),
            }
        }
    }
}

fn default_of(property: &Value) -> String {
    match &property["default"] {
        Value::Null => String::new(),
        Value::String(text) => format!("`{text}`"),
        value => format!("`{value}`"),
    }
}

fn bounds_of(schema: &Value) -> String {
    match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("{least} or more"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => String::new(),
    }
}

fn meaning_of(property: &Value, inner: &Value) -> String {
    let described = property["description"].as_str().or(inner["description"].as_str());
    described.unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

#[test]
fn every_setting_is_documented() {
    let schema = Schema::read("proxy.json");
    let mut table = "| key in `proxy.yaml` | default | bounds | meaning |\n|---|---|---|---|\n".to_owned();
    schema.rows("", &schema.0, &mut table);
    assert!(table.lines().count() > 40, "{table}");
    hold("settings", &table);
}

/// What one metric is.
#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: String,
}

/// The labels of a sample line, without those that its format adds.
fn labels_of(line: &str) -> String {
    let inner =
        line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inner, _)| inner);
    let names = inner.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name);
    names.filter(|name| *name != "le").map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn metrics_of(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            metrics.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let sample = line.split(['{', ' ']).next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
            let family = family.filter(|family| metrics.contains_key(*family)).unwrap_or(sample);
            if let Some(metric) = metrics.get_mut(family) {
                metric.labels = labels_of(line);
            }
        }
    }
    metrics
}

#[test]
fn every_metric_is_documented() {
    let texts = alerts::rules_and_inputs();
    let (text, _) = alerts::exported_by_all(&texts.each_ref().map(String::as_str));
    assert!(!text.contains(ACME), "a tenant is in the metrics");
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for (name, Metric { kind, help, labels }) in metrics_of(&text) {
        assert!(!help.is_empty(), "{name} has no help");
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    assert!(table.lines().count() > 80, "{table}");
    hold("metrics", &table);
}
