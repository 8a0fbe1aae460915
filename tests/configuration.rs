//! `proxy.yaml`: what is wrong is said with its place and what would be right, all of it at once.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use outrigger::config::{Document, ProxyConfig, Report, Section, proxy_schema};
use proptest::prelude::*;
use schemars::JsonSchema;
use serde_json::Value;

/// Sections like those of the primitives: one with a tagged backend, one that is free.
#[derive(JsonSchema)]
#[serde(tag = "backend", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
enum Tagged {
    Embedded,
    Redis { redis: String },
}

const SECTIONS: &[Section] = &[
    Section { name: "ratelimit", schema: |generator| generator.subschema_for::<Tagged>() },
    Section { name: "cache", schema: |generator| generator.subschema_for::<Tagged>() },
];

const GOOD: &str = "\
listeners: {api: 127.0.0.1:0, admin: 127.0.0.1:0}
identity:
  issuers:
    - name: dev
      issuer: outrigger-dev
      audience: outrigger
      jwks: {file: jwks.json}
policies: policies
data_dir: data
redis:
  limits:
    nodes: [127.0.0.1:17001]
ratelimit: {backend: redis, redis: limits}
cache: {backend: embedded}
";

fn load_in(directory: &Path, text: &str) -> Result<ProxyConfig, Report> {
    let path = directory.join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    ProxyConfig::load(&path, SECTIONS)
}

fn load(text: &str) -> Result<ProxyConfig, Report> {
    load_in(tempfile::tempdir().unwrap().path(), text)
}

#[test]
fn explore() {
    for (from, to) in CASES {
        let text = if from.is_empty() { to.to_string() } else { GOOD.replacen(from, to, 1) };
        println!("{}", load(&text).map(|_| ()).err().map(|r| r.to_string()).unwrap_or("OK".into()));
    }
}
const CASES: &[(&str, &str)] = &[
    ("policies: policies", "policys: policies"),
    ("policies: policies", "policies: 5"),
    ("policies: policies\n", ""),
    ("api: 127.0.0.1:0", "api: 127.0.0.1"),
    ("api: 127.0.0.1:0", "api: 0.0.0.0:7780"),
    ("{file: jwks.json}", "{fil: jwks.json}"),
    ("{file: jwks.json}", "{file: a, url: b}"),
    ("{file: jwks.json}", "jwks.json"),
    ("{file: jwks.json}", "{url: 'http://example.com/x'}"),
    ("cache: {backend: embedded}", "cache: {backend: embeded}"),
    ("cache: {backend: embedded}", "cache: {}"),
    ("cache: {backend: embedded}", "cache: embedded"),
    ("cache: {backend: embedded}", "cache: {backend: embedded, red: 1}"),
    ("redis: limits", "redis: limit"),
    ("policies: policies", "policies: policies\nlog: {level: infos}"),
    ("policies: policies", "policies: policies\nlog: {level: 3, requests: yes}"),
    (
        "policies: policies",
        "policies: policies\nlimits: {max_connections: 0, header_bytes: '9000', max_request_timeout_ms: 10}",
    ),
    ("nodes: [127.0.0.1:17001]", "nodes: [127.0.0.1:17001]\n    password: hunter2"),
    ("nodes: [127.0.0.1:17001]", "nodes: [127.0.0.1:17001]\n    pasword: hunter2"),
    ("nodes: [127.0.0.1:17001]", "nodes: [127.0.0.1:17001]\n    password: ${file:nothing}"),
    ("nodes: [127.0.0.1:17001]", "nodes: [redis://u:hunter2@127.0.0.1:17001, x]"),
    ("nodes: [127.0.0.1:17001]", "nodes: []"),
    ("nodes: [127.0.0.1:17001]", "nodes: [127.0.0.1:17001]\n    tls: true"),
    ("data_dir: data\n", ""),
    ("data_dir: data", "data_dir: &x data"),
    ("data_dir: data", "data_dir: *x"),
    ("data_dir: data", "policies: data"),
    ("data_dir: data", "data_dir: [data"),
    ("data_dir: data", "---\ndata_dir: [data"),
    ("name: dev", "name: Dev"),
    ("", ""),
    ("", "[]"),
    ("policies: policies", "policies: policies\nroles: [apii]\nähm: {x: 1}"),
];
