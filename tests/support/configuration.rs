//! A good `proxy.yaml`, and what is said of one.

use std::path::Path;

use outrigger::config::{ProxyConfig, Report, Section};
use schemars::JsonSchema;

/// Sections like those of the primitives.
#[derive(JsonSchema)]
#[serde(tag = "backend", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
pub enum Backend {
    Embedded,
    Redis { redis: String },
}

pub const SECTIONS: &[Section] = &[
    Section {
        name: "ratelimit",
        schema: |generator| generator.subschema_for::<Backend>(),
        needs_store: false,
    },
    Section { name: "cache", schema: |generator| generator.subschema_for::<Backend>(), needs_store: false },
];

pub const GOOD: &str = "\
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

pub fn load_in(directory: &Path, text: &str) -> Result<ProxyConfig, Report> {
    let path = directory.join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    ProxyConfig::load(&path, SECTIONS)
}

pub fn report_of(text: &str) -> Report {
    load_in(tempfile::tempdir().unwrap().path(), text).err().unwrap_or_else(|| panic!("accepted:\n{text}"))
}
