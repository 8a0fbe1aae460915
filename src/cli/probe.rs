//! How `outrigger check` tries a backend: one function for each kind.

use std::time::Duration;

use crate::config::{Findings, Issuer, KeySource, RedisInstance};

/// Tries a Redis instance for the primitives that use it: what is well in a line, or what is wrong, with pointers
/// below the instance.
pub(super) async fn redis(instance: &RedisInstance, used_by: &[&'static str]) -> Result<String, Findings> {
    let mut findings = Findings::default();
    let bound = Duration::from_millis(instance.connect_timeout_ms);
    for (index, node) in instance.nodes.iter().enumerate() {
        let refused = match tokio::time::timeout(bound, tokio::net::TcpStream::connect(node)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} ms", bound.as_millis()),
        };
        findings.add(format!("/nodes/{index}"), refused, "a node that takes connections");
    }
    let users = if used_by.is_empty() { "nothing".to_owned() } else { used_by.join(", ") };
    let nodes = instance.nodes.len();
    if findings.is_empty() {
        Ok(format!("up, {nodes} nodes take connections, used by {users}"))
    } else {
        Err(findings)
    }
}

/// Reads an issuer's key set once: the number of its keys, or what is wrong.
pub(super) async fn keys(issuer: &Issuer) -> Result<usize, String> {
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
