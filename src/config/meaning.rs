//! What a schema cannot say about `proxy.yaml`. It works on the plain value, so that it has its say also where the
//! schema found errors elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Map, Value};

use super::server::{host_and_port, is_key_url, is_loopback};
use super::words::{one_of, with_nearest};
use super::{Findings, Limits, SecretSource, Section, pointer_step};

/// What is around the document.
pub(super) struct Surroundings<'a> {
    /// The folder that relative paths start from.
    pub(super) base: &'a Path,
    /// The primitives' sections.
    pub(super) sections: &'a [Section],
}

/// Adds everything that is wrong with the meaning of `value`.
pub(super) fn check(value: &Value, around: &Surroundings<'_>, findings: &mut Findings) {
    listeners(value, around.base, findings);
    issuers(value, around.base, findings);
    limits(value, findings);
    instances(value, around.base, findings);
    store(value, around.base, findings);
    secrets(value, "", around.base, findings);
    for known in around.sections {
        section(value, known.name, findings);
        if known.needs_store
            && value.get(known.name).is_some()
            && value.get("store").is_none_or(Value::is_null)
        {
            findings.add(
                format!("/{}", known.name),
                format!("`{}` needs `store`", known.name),
                "`store: embedded` with `data_dir`, or `store: postgres` with `postgres`, at the top of this file",
            );
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

fn members<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(name).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn listeners(value: &Value, base: &Path, findings: &mut Findings) {
    let address = |pointer| text(value, pointer).and_then(|text| text.parse::<SocketAddr>().ok());
    let has_tls = value.pointer("/listeners/tls").is_some_and(Value::is_object);
    let allowed = value.pointer("/listeners/allow_remote").and_then(Value::as_bool) == Some(true);
    if address("/listeners/api").is_some_and(|api| !api.ip().is_loopback()) && !(has_tls && allowed) {
        let missing = match (allowed, has_tls) {
            (false, false) => "`allow_remote: true` and `tls`",
            (false, true) => "`allow_remote: true`",
            _ => "`tls`",
        };
        findings.add(
            "/listeners/api",
            format!("other machines would reach the API here, without {missing}"),
            "an address on loopback, such as `127.0.0.1:7780`; or both `allow_remote: true` and `tls`",
        );
    }
    if address("/listeners/admin").is_some_and(|admin| !admin.ip().is_loopback()) {
        findings.add(
            "/listeners/admin",
            "the admin listener is for this machine alone",
            "an address on loopback, such as `127.0.0.1:7781`; `probe` shows health and metrics to others",
        );
    }
    for pointer in ["/listeners/tls/certificate", "/listeners/tls/key"] {
        readable(value, pointer, base, findings);
    }
}

/// A PEM file that is named has to be there.
fn readable(value: &Value, pointer: &str, base: &Path, findings: &mut Findings) {
    let Some(path) = text(value, pointer) else { return };
    match std::fs::read(base.join(path)) {
        Ok(bytes) if bytes.windows(11).any(|window| window == b"-----BEGIN ") => {}
        Ok(_) => findings.add(pointer, "this file holds no PEM", "a PEM file"),
        Err(error) => findings.add(pointer, format!("cannot be read: {}", error.kind()), "a PEM file"),
    }
}

fn issuers(value: &Value, base: &Path, findings: &mut Findings) {
    let list = value.pointer("/identity/issuers").and_then(Value::as_array);
    let mut seen = BTreeMap::new();
    for (index, issuer) in list.into_iter().flatten().enumerate() {
        let at = format!("/identity/issuers/{index}");
        for (field, expected) in
            [("name", "a name of its own for each issuer"), ("issuer", "each `iss` claim at one issuer only")]
        {
            let Some(given) = issuer.get(field).and_then(Value::as_str) else { continue };
            if let Some(first) = seen.insert((field, given), index) {
                findings.add(
                    format!("{at}/{field}"),
                    format!("the same as issuer {}'s", first + 1),
                    expected,
                );
            }
        }
        if issuer.pointer("/jwks/url").and_then(Value::as_str).is_some_and(|url| !is_key_url(url)) {
            let expected =
                "an `https://` URL, or `http://` on loopback: keys that anyone can replace prove nothing";
            findings.add(format!("{at}/jwks/url"), "not a URL that keys may come from", expected);
        }
        let plain = issuer.pointer("/jwks/url").and_then(Value::as_str);
        if issuer.pointer("/jwks/ca_file").is_some() && plain.is_some_and(|url| url.starts_with("http://")) {
            let expected = "an `https://` URL, or no `ca_file`";
            findings.add(format!("{at}/jwks/ca_file"), "a server without TLS proves nothing by it", expected);
        }
        readable(value, &format!("{at}/jwks/ca_file"), base, findings);
    }
}

fn limits(value: &Value, findings: &mut Findings) {
    let given = |name: &str| value.pointer(&format!("/limits/{name}")).and_then(Value::as_u64);
    let (usual, most) = (given("request_timeout_ms"), given("max_request_timeout_ms"));
    let defaults = Limits::default();
    let least = usual.unwrap_or(defaults.request_timeout_ms);
    if most.unwrap_or(defaults.max_request_timeout_ms) < least {
        let pointer =
            if most.is_some() { "/limits/max_request_timeout_ms" } else { "/limits/request_timeout_ms" };
        findings.add(
            pointer,
            "`max_request_timeout_ms` is less than `request_timeout_ms`",
            "`max_request_timeout_ms` of at least `request_timeout_ms`",
        );
    }
}

fn instances(value: &Value, base: &Path, findings: &mut Findings) {
    for (name, instance) in members(value, "redis") {
        let at = format!("/redis{}", pointer_step(name));
        let nodes = instance.get("nodes").and_then(Value::as_array);
        for (index, node) in nodes.into_iter().flatten().enumerate() {
            if node.as_str().is_some_and(|node| !is_host_and_port(node)) {
                let expected = "`host:port`, such as `127.0.0.1:6379`; an IPv6 address in brackets";
                findings.add(format!("{at}/nodes/{index}"), "not a node's address", expected);
            }
        }
        readable(value, &format!("{at}/tls/ca_file"), base, findings);
    }
}

fn store(value: &Value, base: &Path, findings: &mut Findings) {
    let missing = |pointer: &str| value.pointer(pointer).is_none_or(Value::is_null);
    match text(value, "/store") {
        Some("postgres") if missing("/postgres") => findings.add(
            "/store",
            "`store: postgres` needs `postgres`",
            "`postgres: {servers, database, app}` at the top of this file, or `store: embedded`",
        ),
        Some("embedded") if missing("/data_dir") => findings.add(
            "/store",
            "`store: embedded` needs `data_dir`",
            "`data_dir: DIR` at the top of this file, or `store: postgres`",
        ),
        Some(_) | None => {}
    }
    let servers = value.pointer("/postgres/servers").and_then(Value::as_array);
    for (index, server) in servers.into_iter().flatten().enumerate() {
        let Some(server) = server.as_str() else { continue };
        let pointer = format!("/postgres/servers/{index}");
        if !is_host_and_port(server) {
            let expected = "`host:port`, such as `127.0.0.1:5432`; an IPv6 address in brackets";
            findings.add(pointer, "not a server's address", expected);
        } else if missing("/postgres/tls")
            && host_and_port(server).is_some_and(|(host, _)| !is_loopback(host))
        {
            let message =
                "this server is not on loopback, and a password would cross the network in the clear";
            findings.add(pointer, message, "`tls: {}` or `tls: {ca_file}` under `postgres`");
        }
    }
    readable(value, "/postgres/tls/ca_file", base, findings);
    let roles = value.get("roles").and_then(Value::as_array);
    if roles.is_some_and(|roles| roles.iter().any(|role| role == "relay")) {
        for (pointer, is_there) in [
            ("/kafka", !missing("/kafka")),
            ("/postgres/relay", !missing("/postgres/relay")),
            ("/events", !missing("/events")),
        ] {
            if !is_there {
                let name = pointer.trim_start_matches('/').replace('/', ".");
                let message = format!("the role `relay` needs `{name}`");
                findings.add("/roles", message, format!("`{name}`, or roles without `relay`"));
            }
        }
    }
    let brokers = value.pointer("/kafka/brokers").and_then(Value::as_array);
    for (index, broker) in brokers.into_iter().flatten().enumerate() {
        if broker.as_str().is_some_and(|broker| !is_host_and_port(broker)) {
            let expected = "`host:port`, such as `127.0.0.1:9092`; an IPv6 address in brackets";
            findings.add(format!("/kafka/brokers/{index}"), "not a broker's address", expected);
        }
    }
    readable(value, "/kafka/tls/ca_file", base, findings);
}

fn is_host_and_port(node: &str) -> bool {
    let Some((host, port)) = node.rsplit_once(':') else { return false };
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    host_fits && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Every `${file:…}` and `${env:…}`, wherever it stands, has to be readable now.
fn secrets(value: &Value, pointer: &str, base: &Path, findings: &mut Findings) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                secrets(member, &format!("{pointer}{}", pointer_step(name)), base, findings);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                secrets(item, &format!("{pointer}/{index}"), base, findings);
            }
        }
        Value::String(text) => {
            let Ok(mut source) = SecretSource::try_from(text.clone()) else { return };
            source.resolve(base);
            if let Err(error) = source.read() {
                findings.add(pointer, error.to_string(), "a file or a variable with the secret in it");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A primitive's section: the instance that it names and the data directory that it needs have to be there.
fn section(value: &Value, name: &str, findings: &mut Findings) {
    if let Some(instance) = text(value, &format!("/{name}/redis")) {
        let names: Vec<&str> = members(value, "redis").map(|(name, _)| name.as_str()).collect();
        if !names.contains(&instance) {
            let message = format!("no Redis instance is called `{instance}`");
            let message = with_nearest(message, instance, names.iter().copied());
            let expected = match names.as_slice() {
                [] => "an instance of `redis:`, which has none yet".to_owned(),
                _ => one_of(names),
            };
            findings.add(format!("/{name}/redis"), message, expected);
        }
    }
    let backend = text(value, &format!("/{name}/backend"));
    if backend == Some("redis") && value.pointer(&format!("/{name}/redis")).is_none_or(Value::is_null) {
        let expected = "`redis:` with the name of an instance of `redis:` at the top of this file";
        findings.add(format!("/{name}/redis"), "the field `redis` is missing", expected);
    }
    if backend == Some("embedded") && value.get("data_dir").is_none_or(Value::is_null) {
        findings.add(
            format!("/{name}/backend"),
            "the embedded backend needs `data_dir`",
            "`data_dir: DIR` at the top of this file, or another backend",
        );
    }
}
