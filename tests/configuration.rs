//! `proxy.yaml`: what is wrong is said with its place and what would be right, all of it at once.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;

use outrigger::config::{ProxyConfig, Report, proxy_schema};
use outrigger::primitives;
use serde_json::{Value, json};
use support::configuration::{GOOD, SECTIONS, load_in, report_of};

/// `line:column message` of each problem.
fn problems(report: &Report) -> Vec<String> {
    let line = |diagnostic: &outrigger::config::Diagnostic| {
        let place = diagnostic.place.as_ref().unwrap();
        format!("{}:{} {}", place.line, place.column, diagnostic.message)
    };
    report.diagnostics().iter().map(line).collect()
}

/// In the good configuration the first text is replaced by the second; then the problems are exactly these, and each
/// last text is in what would be right.
#[test]
fn each_mistake_is_shown_at_its_place_with_what_would_be_right() {
    for (from, to, expected, right) in SCHEMA_MISTAKES.iter().chain(MEANING_MISTAKES).chain(YAML_MISTAKES) {
        assert!(from.is_empty() || GOOD.contains(from), "{from}");
        let text = if from.is_empty() { (*to).to_owned() } else { GOOD.replacen(from, to, 1) };
        let report = report_of(&text);
        assert_eq!(problems(&report), *expected, "{text}\n{report}");
        let first = &report.diagnostics()[0];
        assert!(first.expected.contains(right), "{text}\n{right:?} is not in\n{report}");
        let place = first.place.as_ref().unwrap();
        let shown = report.to_string();
        assert!(shown.contains(&format!("proxy.yaml:{}:{}\n", place.line, place.column)), "{shown}");
        assert!(
            place.text.is_empty() || shown.contains('^') && shown.contains(place.text.trim_end()),
            "{shown}"
        );
    }
}

type Mistake = (&'static str, &'static str, &'static [&'static str], &'static str);

const SCHEMA_MISTAKES: &[Mistake] = &[
    ("listeners:", "lisetners:", &["1:1 unknown field `lisetners`; did you mean `listeners`?"], "`identity`"),
    ("admin:", "amdin:", &["1:31 unknown field `amdin`; did you mean `admin`?"], "`socket`"),
    ("policies:", "policys:", &["8:1 unknown field `policys`; did you mean `policies`?"], "`policies`"),
    (
        "policies: policies",
        "policies: 5",
        &["8:11 wrong type: this is a whole number; put it in quotes"],
        "text",
    ),
    ("policies: policies\n", "", &["1:1 the field `policies` is missing"], "`policies:` with text"),
    ("      audience: outrigger\n", "", &["4:7 the field `audience` is missing"], "`audience:` with text"),
    ("name: dev", "name: Dev", &["4:13 not of the right form"], "1 to 64 characters of a-z"),
    ("name: dev", "name: ''", &["4:13 not of the right form"], "a name"),
    ("issuer: outrigger-dev", "issuer: ''", &["5:15 empty"], "text of at least 1 characters"),
    ("{file: jwks.json}", "{fil: jwks.json}", &["7:14 unknown field `fil`; did you mean `file`?"], "`url`"),
    ("{file: jwks.json}", "jwks.json", &["7:13 wrong type: this is text"], "a mapping with `file`, or"),
    (
        "{file: jwks.json}",
        "{}",
        &["7:13 these fields do not go together, or one is missing"],
        "one of `file`, `url`",
    ),
    (
        "{file: jwks.json}",
        "{url: 'https://example.com/', hs256: true}",
        &["7:13 these fields do not go together, or one is missing"],
        "one of `file`, `url`",
    ),
    ("api: 127.0.0.1:0", "api: localhost:0", &["1:18 not of the right form"], "such as `127.0.0.1:7780`"),
    ("nodes: [127.0.0.1:17001]", "nodes: []", &["12:12 too few entries"], "from 1 to 64 entries"),
    (
        "backend: embedded",
        "backend: rediss",
        &["14:18 not one of the allowed values; did you mean `redis`?"],
        "`embedded`",
    ),
    ("{backend: embedded}", "{}", &["14:1 the field `backend` is missing"], "one of `embedded`, `redis`"),
    ("{backend: embedded}", "embedded", &["14:8 wrong type: this is text"], "a mapping with `backend`"),
    (
        "redis: limits",
        "redis: limits, reddis: x",
        &["13:44 unknown field `reddis`; did you mean `redis`?"],
        "`backend`",
    ),
    (
        "cache:",
        "log: {level: infos}\ncache:",
        &["14:14 not one of the allowed values; did you mean `info`?"],
        "`debug`",
    ),
    ("cache:", "log: {requests: yes}\ncache:", &["14:17 wrong type: this is text"], "`true` or `false`"),
    (
        "cache:",
        "limits: {max_connections: 0}\ncache:",
        &["14:27 too small; the least is 1"],
        "from 1 to 1000000",
    ),
    (
        "cache:",
        "limits: {header_bytes: 9.5}\ncache:",
        &["14:24 wrong type: this is a number"],
        "from 8192 to 1048576",
    ),
    ("cache:", "roles: [api, cook]\ncache:", &["14:14 not one of the allowed values"], "`api`"),
    ("cache:", "sections: {}\ncache:", &["14:1 unknown field `sections`"], "`ratelimit`"),
    ("cache:", "größe: {ä: ö}\ncache:", &["14:1 unknown field `größe`"], "`limits`"),
    ("data_dir: data", "data_dir: {ä: ö}", &["9:11 wrong type: this is a mapping"], "text"),
    ("", "", &["1:1 wrong type: this is nothing"], "a mapping"),
    ("", "- a", &["1:1 wrong type: this is a list"], "a mapping"),
];

const MEANING_MISTAKES: &[Mistake] = &[
    (
        "api: 127.0.0.1:0",
        "api: 0.0.0.0:7780",
        &["1:18 other machines would reach the API here, without `allow_remote: true` and `tls`"],
        "an address on loopback",
    ),
    (
        "api: 127.0.0.1:0",
        "allow_remote: true, api: '[::]:7780'",
        &["1:38 other machines would reach the API here, without `tls`"],
        "`allow_remote: true` and `tls`",
    ),
    (
        "admin: 127.0.0.1:0",
        "admin: 10.0.0.1:0",
        &["1:38 the admin listener is for this machine alone"],
        "`probe`",
    ),
    (
        "admin: 127.0.0.1:0",
        "tls: {certificate: proxy.yaml, key: none.pem}",
        &["1:50 this file holds no PEM", "1:67 cannot be read: entity not found"],
        "a PEM file",
    ),
    (
        "redis: limits",
        "redis: limit",
        &["13:36 no Redis instance is called `limit`; did you mean `limits`?"],
        "`limits`",
    ),
    (
        "{backend: redis, redis: limits}",
        "{backend: redis}",
        &["13:1 the field `redis` is missing"],
        "`redis:` with",
    ),
    ("data_dir: data\n", "", &["13:18 the embedded backend needs `data_dir`"], "another backend"),
    (
        "127.0.0.1:17001]",
        "127.0.0.1, 'redis:0', '[::1]:1']",
        &["12:13 not a node's address", "12:24 not a node's address"],
        "`host:port`",
    ),
    (
        "{file: jwks.json}",
        "{url: 'http://example.com/'}",
        &["7:19 not a URL that keys may come from"],
        "`https://` URL",
    ),
    (
        "{file: jwks.json}",
        "{url: 'https://example.com/', ca_file: no.pem}",
        &["7:52 cannot be read: entity not found"],
        "a PEM file",
    ),
    (
        "{file: jwks.json}",
        "{url: 'http://localhost/', ca_file: /dev/null}",
        &["7:49 a server without TLS proves nothing by it", "7:49 this file holds no PEM"],
        "an `https://` URL",
    ),
    (
        "    - name: dev",
        "    - {name: dev, issuer: outrigger-dev, audience: a, jwks: {url: 'http://localhost/'}}\n    - name: dev",
        &["5:13 the same as issuer 1's", "6:15 the same as issuer 1's"],
        "a name of its own",
    ),
    (
        "cache:",
        "limits: {request_timeout_ms: 70000}\ncache:",
        &["14:30 `max_request_timeout_ms` is less than `request_timeout_ms`"],
        "at least `request_timeout_ms`",
    ),
    (
        "cache:",
        "limits: {request_timeout_ms: 100, max_request_timeout_ms: 99}\ncache:",
        &["14:59 `max_request_timeout_ms` is less than `request_timeout_ms`"],
        "at least `request_timeout_ms`",
    ),
    (
        "127.0.0.1:17001]",
        "127.0.0.1:17001]\n    password: ${env:OUTRIGGER_TEST_NOT_SET}",
        &["13:15 the environment variable OUTRIGGER_TEST_NOT_SET is not set"],
        "the secret in it",
    ),
];

const YAML_MISTAKES: &[Mistake] = &[
    ("data_dir: data", "policies: data", &["9:1 a key twice; it is on line 8 already"], "each key once"),
    ("data_dir: data", "data_dir: &here data", &["9:11 anchors are not supported"], "without `&name`"),
    ("data_dir: data", "data_dir: !!str data", &["9:11 tags are not supported"], "without `!`"),
    ("data_dir: data", "data_dir: .inf", &["9:11 not a finite number"], "64 bits"),
    (
        "data_dir: data",
        "data_dir: 99999999999999999999",
        &["9:11 a number beyond 64 bits"],
        "quotes make it text",
    ),
    (
        "data_dir: data",
        "---\ndata_dir: data",
        &["9:1 a second document in the file"],
        "one document in a file",
    ),
    ("data_dir: data", "[a]: b", &["9:1 a key that is a list or a mapping"], "a key is text"),
    ("data_dir: data", "data_dir: 'data", &["9:11 not YAML: invalid indentation in quoted scalar"], ""),
];

#[test]
fn every_problem_of_a_file_is_reported_at_once() {
    let text = "\
listeners: {api: 0.0.0.0:7780, admin: 127.0.0.1:0, sokcet: o.sock}
identity:
  issuers:
    - {name: dev, issuer: outrigger-dev, jwks: {file: jwks.json}}
polices: policies
limits: {max_connections: -1}
redis: {limits: {nodes: [nowhere]}}
ratelimit: {backend: redis, redis: limit}
cache: {backend: embedded}
";
    let expected = [
        "1:18 other machines would reach the API here, without `allow_remote: true` and `tls`",
        "1:52 unknown field `sokcet`; did you mean `socket`?",
        "4:7 the field `audience` is missing",
        "5:1 unknown field `polices`; did you mean `policies`?",
        "6:27 too small; the least is 1",
        "7:26 not a node's address",
        "8:36 no Redis instance is called `limit`; did you mean `limits`?",
        "9:18 the embedded backend needs `data_dir`",
    ];
    let report = report_of(text);
    assert_eq!(problems(&report), expected, "{report}");
    assert!(report.to_string().ends_with("8 problems\n"));
    let first = &report.to_json()[0];
    assert_eq!(
        (&first["line"], &first["column"], &first["pointer"]),
        (&json!(1), &json!(18), &json!("/listeners/api"))
    );
}

#[test]
fn a_problem_is_drawn_with_its_line_and_a_caret() {
    let directory = tempfile::tempdir().unwrap();
    let report = load_in(directory.path(), &GOOD.replace("admin:", "amdin:")).unwrap_err().to_string();
    let expected = format!(
        "\
error: unknown field `amdin`; did you mean `admin`?
 --> {}/proxy.yaml:1:31
  |
1 | listeners: {{api: 127.0.0.1:0, amdin: 127.0.0.1:0}}
  |                               ^^^^^
  |
  = help: one of `api`, `admin`, `probe`, `socket`, `allowed_hosts`, `allow_remote`, `tls`

1 problem
",
        directory.path().display()
    );
    assert_eq!(report, expected);
}

#[test]
fn a_secret_that_was_written_out_is_in_no_report() {
    for line in [
        "password: hunter2",
        "pasword: hunter2",
        "password: {value: hunter2}",
        "password: [hunter2]",
        "password: \"hunter2",
        "password: |\n      hunter2",
        "password:\n      hunter2",
        "nodes: [redis://me:hunter2@127.0.0.1:1]",
        "tls: {ca_file: '-----BEGIN PRIVATE KEY----- hunter2'}",
    ] {
        let report = report_of(&GOOD.replace("nodes: [127.0.0.1:17001]", line));
        let (shown, json) = (report.to_string(), report.to_json().to_string());
        assert!(!shown.contains("hunter2") && !json.contains("hunter2"), "{line}\n{shown}\n{json}");
    }
}

#[test]
fn a_good_configuration_is_typed_and_its_paths_start_from_its_folder() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "hunter2\n").unwrap();
    let text = GOOD
        .replace("nodes:", "password: ${file:password}\n    nodes:")
        .replace("api: 127.0.0.1:0", "api: 127.0.0.1:0, socket: run/o.sock");
    let config = load_in(directory.path(), &text).unwrap();
    assert_eq!(config.policies, directory.path().join("policies"));
    assert_eq!(config.data_dir.as_deref(), Some(directory.path().join("data").as_path()));
    assert_eq!(config.listeners.socket.as_deref(), Some(directory.path().join("run/o.sock").as_path()));
    assert_eq!(config.redis["limits"].password.as_ref().unwrap().read().unwrap().expose(), "hunter2");
    assert_eq!(config.section("ratelimit"), Some(&json!({"backend": "redis", "redis": "limits"})));
    assert_eq!(config.sections.len(), 2);
    let serialised = serde_json::to_string(&config).unwrap();
    assert!(!serialised.contains("hunter2"), "{serialised}");
}

#[test]
fn a_file_that_is_not_text_or_too_large_or_not_there_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.yaml");
    for (bytes, expected) in [
        (None, "cannot be read"),
        (Some(b"a: \xff".to_vec()), "not UTF-8"),
        (Some(vec![b'#'; 1024 * 1024 + 1]), "too large"),
    ] {
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let report = ProxyConfig::load(&path, SECTIONS).unwrap_err();
        assert!(report.diagnostics()[0].message.starts_with(expected), "{report}");
        assert_eq!(report.to_json()[0]["line"], Value::Null);
        assert!(report.to_string().contains("proxy.yaml"), "{report}");
    }
}

#[test]
fn the_shipped_configuration_is_valid() {
    // Its secrets are those of the servers that `make servers` starts.
    rig::shared_postgres();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = ProxyConfig::load(&root.join("proxy.yaml"), &primitives::sections());
    let config = config.unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(config.sections.keys().collect::<Vec<_>>(), ["cache", "events", "ratelimit", "usage"]);
    assert_eq!(config.redis.keys().collect::<Vec<_>>(), ["cache", "limits"]);
    assert_eq!(config.identity.issuers[0].issuer, outrigger::config::DEVELOPMENT_ISSUER);
    assert_eq!(config.identity.issuers[0].audience, outrigger::config::DEVELOPMENT_AUDIENCE);
    assert_eq!(config.policies, root.join("policies"));
}

#[test]
fn the_schema_in_the_repository_is_the_one_that_checks() {
    kept("docs/schemas/proxy.json", &proxy_schema(&primitives::sections()));
    let kinds: Vec<_> = primitives::ALL.iter().map(|row| &row.policy).collect();
    kept("docs/schemas/policy.json", &outrigger::policy::policy_schema(&kinds));
}

fn kept(name: &str, schema: &Value) {
    assert!(jsonschema::meta::is_valid(schema), "{name} is no JSON Schema");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let pretty = serde_json::to_string_pretty(schema).unwrap() + "\n";
    if std::env::var_os("OUTRIGGER_REGENERATE").is_some() {
        std::fs::write(&path, &pretty).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == pretty, "{name} is behind: run this test with OUTRIGGER_REGENERATE=1");
}
