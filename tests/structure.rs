//! The import directions of `docs/ARCHITECTURE.md`, held by reading the source.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the code under a folder or file of `src/` may name from the rest of the crate. The longest prefix counts.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main.rs", &["cli"]),
    ("lib.rs", &[]),
    ("clock.rs", &[]),
    ("digest.rs", &[]),
    ("key_order.rs", &["digest"]),
    ("rfc3339.rs", &[]),
    ("tls.rs", &[]),
    ("error.rs", &[]),
    ("fairness", &["fairness"]),
    ("names.rs", &[]),
    ("tasks.rs", &[]),
    ("telemetry", &["telemetry"]),
    ("config", &["config"]),
    ("store", &["store", "error", "fairness", "policy", "tasks"]),
    ("store/postgres", &["store", "config", "error", "fairness", "policy", "tasks", "telemetry", "tls"]),
    ("leases", &["leases", "store"]),
    ("identity", &["identity", "clock", "config", "error", "names", "tasks", "telemetry", "tls"]),
    ("policy", &["policy", "identity", "config", "error", "names", "tasks", "telemetry"]),
    ("pools", &["pools", "config", "error", "tasks", "telemetry", "tls"]),
    ("http", &["http", "policy", "identity", "clock", "error", "fairness", "names", "tasks", "telemetry"]),
    (
        "primitives",
        &[
            "primitives",
            "http",
            "policy",
            "clock",
            "config",
            "digest",
            "error",
            "fairness",
            "key_order",
            "leases",
            "names",
            "pools",
            "rfc3339",
            "store",
            "tasks",
            "telemetry",
        ],
    ),
    // Permits come from verified tokens, in tests too.
    (
        "primitives/events/bench.rs",
        &["primitives", "config", "identity", "names", "policy", "tasks", "telemetry"],
    ),
    (
        "primitives/mod.rs",
        &["primitives", "config", "http", "policy", "pools", "store", "tasks", "telemetry"],
    ),
    ("admin", &["admin", "http", "error", "telemetry"]),
    (
        "app",
        &[
            "app",
            "admin",
            "config",
            "http",
            "identity",
            "policy",
            "pools",
            "primitives",
            "store",
            "tasks",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "cli",
            "app",
            "config",
            "identity",
            "policy",
            "pools",
            "primitives",
            "store",
            "tasks",
            "telemetry",
            "names",
        ],
    ),
];

/// Where each driver may be named, and nowhere else.
const DRIVERS: &[(&str, &[&str])] = &[
    (
        "rusqlite",
        &[
            "store",
            "leases/sqlite.rs",
            "primitives/events/sqlite",
            "primitives/usage/sqlite",
            "primitives/cache/embedded",
            "primitives/ratelimit/embedded",
        ],
    ),
    (
        "tokio_postgres",
        &[
            "store/postgres",
            "leases/postgres.rs",
            "primitives/events/postgres",
            "primitives/events/relay/postgres",
            "primitives/events/relay/fleet.rs",
            "primitives/usage/postgres",
        ],
    ),
    ("deadpool_postgres", &["store/postgres"]),
    ("sqlx", &["store/postgres/migrate.rs"]),
    ("rdkafka", &["pools/kafka"]),
    ("redis", &["pools/redis", "primitives/cache/redis", "primitives/ratelimit/redis"]),
    ("jsonwebtoken", &["identity"]),
    ("hyper", &["http", "admin", "identity", "pools/upstream", "primitives/events/push/tests"]),
    ("anyhow", &["cli", "app", "main.rs"]),
];

fn sources() -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    assert!(paths.len() > 30, "the sources were not found");
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// The code of a file without its unit tests and comments: tests may reach further.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules that follow `crate::`, also in `crate::{a, b::c}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let boundary =
            code[..at].chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != '$');
        let rest = &code[at + "crate::".len()..];
        if !boundary {
            continue;
        }
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split(';').next().unwrap_or("");
            found.extend(list.split(',').map(|item| word(item.trim())).filter(|item| !item.is_empty()));
        } else {
            found.insert(word(rest));
        }
    }
    found
}

fn rule(name: &str) -> &'static [&'static str] {
    let matching =
        ALLOWED.iter().filter(|(prefix, _)| name == *prefix || name.starts_with(&format!("{prefix}/")));
    let best = matching.max_by_key(|(prefix, _)| prefix.len());
    best.unwrap_or_else(|| panic!("{name}: no rule says what it may import; add it to the architecture")).1
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        if name.contains("conformance") {
            continue;
        }
        let allowed = rule(&name);
        for module in named_modules(&code(&text)) {
            if module.starts_with(|c: char| c.is_ascii_lowercase()) && !allowed.contains(&module.as_str()) {
                wrong.push(format!("src/{name} names crate::{module}; it may name {allowed:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_primitive_names_another() {
    for (name, text) in sources() {
        let Some(own) =
            name.strip_prefix("primitives/").and_then(|rest| rest.split_once('/')).map(|(own, _)| own)
        else {
            continue;
        };
        for (at, _) in text.match_indices("primitives::") {
            let is_of_name = |c: &char| c.is_ascii_lowercase() || *c == '_';
            let other: String = text[at + "primitives::".len()..].chars().take_while(is_of_name).collect();
            // A file beside the folders is everyone's.
            let is_shared =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/primitives/{other}.rs")).exists();
            assert!(other.is_empty() || other == own || is_shared, "src/{name} names primitives::{other}");
        }
    }
}

#[test]
fn drivers_stay_in_their_modules() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let code = code(&text);
        for (driver, places) in DRIVERS {
            let named = code.lines().any(|line| {
                let line = line.trim_start();
                line.starts_with(&format!("use {driver}::"))
                    || line.contains(&format!(" {driver}::"))
                    || line.contains(&format!("<{driver}::"))
                    || line.contains(&format!("({driver}::"))
                    || line.contains(&format!("&{driver}::"))
            });
            if named && !places.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("src/{name} names the driver {driver}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_readable() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= 500,
            "src/{name} has {lines} lines; split it so that a newcomer knows where to look"
        );
    }
}
