//! How `outrigger check` tries a backend: one function for each kind.

use std::time::Duration;

use crate::config::{Findings, Issuer, KeySource, RedisInstance};

/// What was seen of a backend.
pub(super) struct Tried {
    /// What there is, in a line; empty where nothing answered.
    pub(super) summary: String,
    /// What is wrong, with pointers below the backend's place in the configuration.
    pub(super) findings: Findings,
}

impl Tried {
    /// A backend of which nothing was seen.
    pub(super) fn failed(problem: impl Into<String>, expected: &str) -> Self {
        let mut findings = Findings::default();
        findings.add("", problem, expected);
        Self { summary: String::new(), findings }
    }
}

/// Tries the Redis instance `name` for the primitives that use it.
pub(super) async fn redis(name: &str, instance: &RedisInstance, used_by: &[&'static str]) -> Tried {
    let mut findings = Findings::default();
    let bound = Duration::from_millis(instance.connect_timeout_ms);
    for (index, node) in instance.nodes.iter().enumerate() {
        let refused = match tokio::time::timeout(bound, tokio::net::TcpStream::connect(node)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} ms", bound.as_millis()),
        };
        findings.add(
            format!("/nodes/{index}"),
            format!("redis.{name}: {refused}"),
            "a node that takes connections",
        );
    }
    let users = if used_by.is_empty() { "nothing".to_owned() } else { used_by.join(", ") };
    Tried { summary: format!("used by {users}"), findings }
}

/// Reads an issuer's key set once.
pub(super) async fn keys(issuer: &Issuer) -> Tried {
    match read_keys(issuer).await {
        Ok(1) => Tried { summary: "1 key".to_owned(), findings: Findings::default() },
        Ok(count) => Tried { summary: format!("{count} keys"), findings: Findings::default() },
        Err(problem) => Tried::failed(problem, "a key set (JWKS) that can be read"),
    }
}

async fn read_keys(issuer: &Issuer) -> Result<usize, String> {
    let path = match &issuer.jwks {
        KeySource::File(path) => path,
        KeySource::Url(url) => return Err(format!("{url} cannot be fetched by this build")),
    };
    let text = tokio::fs::read(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    let set: serde_json::Value =
        serde_json::from_slice(&text).map_err(|_| format!("{}: not JSON", path.display()))?;
    let keys = set.get("keys").and_then(serde_json::Value::as_array);
    keys.map(Vec::len).ok_or_else(|| format!("{}: no `keys`", path.display()))
}
