//! `examples/lead_scoring.*` as people run them. What they leave is looked at by calls of the test's own.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use support::sidecar::{ACME, Sidecar, embedded_config};
use support::wait_until;

const SCRIPTS: [&str; 2] = ["lead_scoring.py", "lead_scoring.ts"];

#[derive(Clone, Copy, Debug)]
enum Over {
    Tcp,
    Socket,
}

/// The Node.js that `scripts/setup test` installs, which runs TypeScript.
fn node() -> PathBuf {
    if let Some(path) = std::env::var_os("NODE") {
        return PathBuf::from(path);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    cache.unwrap().join("outrigger/tools/node/bin/node")
}

/// What is the same in every run of a test: sent again, it is the same requests.
struct Scripts<'s> {
    sidecar: &'s Sidecar,
    over: Over,
    token: String,
    at: Timestamp,
}

impl<'s> Scripts<'s> {
    fn new(sidecar: &'s Sidecar, over: Over, tier: &str) -> Self {
        let token = sidecar.token_with(&["--tenant", ACME, "--subject", "test", "--tier", tier]);
        let at = Timestamp::from_millisecond(Timestamp::now().as_millisecond()).unwrap();
        Self { sidecar, over, token, at }
    }

    fn start(&self, script: &str, arguments: &[&str]) -> Running {
        let interpreter = if script.ends_with(".py") { PathBuf::from("python3") } else { node() };
        let mut command = Command::new(&interpreter);
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(script))
            .args(["--at-ms", &self.at.as_millisecond().to_string()])
            .args(arguments)
            .env("OUTRIGGER_TOKEN", &self.token)
            .env_remove("OUTRIGGER_SOCKET")
            .env_remove("OUTRIGGER_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        match self.over {
            Over::Tcp => command.env("OUTRIGGER_URL", format!("http://{}", self.sidecar.api)),
            Over::Socket => command.env("OUTRIGGER_SOCKET", &self.sidecar.socket),
        };
        let started = command.spawn();
        let mut child = started.unwrap_or_else(|error| {
            panic!("{}: {error}; `scripts/setup test` installs it", interpreter.display())
        });
        let output = BufReader::new(child.stdout.take().unwrap());
        Running { child, output, lines: Vec::new() }
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Run {
        self.start(script, arguments).finish()
    }

    fn get(&self, target: &str) -> String {
        let bearer = format!("Bearer {}", self.token);
        let reply = self.sidecar.client().send("GET", target, &[("Authorization", &bearer)], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.text()
    }

    /// The ids of all events that the log has, and the total of usage.
    fn kept(&self) -> (Vec<String>, Value) {
        let log = self.get("/v1/events/leads?from=earliest");
        let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let ids = events.map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        let day = &self.at.to_string()[..10];
        let usage = self.get(&format!("/v1/usage/leads_scored?group_by=model&from={day}T00:00:00Z"));
        let usage: Value = serde_json::from_str(&usage).unwrap();
        let groups = usage["points"].as_array().unwrap();
        assert!(groups.iter().all(|point| point["group"] == "demo-1" || point["count"] == 0), "{usage}");
        (ids, usage["total"].clone())
    }

    /// Asserts that each of so many requests is in the log once and counted once.
    fn assert_kept_once(&self, requests: usize) {
        let (ids, total) = self.kept();
        let expected: BTreeSet<String> =
            (0..requests).map(|number| format!("{}-{number:06}", self.at.as_millisecond())).collect();
        assert_eq!(ids.len(), requests, "{ids:?}");
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(total, requests.to_string());
    }
}

/// A script that runs.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    lines: Vec<Value>,
}

impl Running {
    /// Reads so many more lines, or what there is to the end.
    fn read(&mut self, lines: usize) {
        for line in (&mut self.output).lines().take(lines) {
            let line = line.unwrap();
            self.lines.push(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }

    fn finish(mut self) -> Run {
        self.read(usize::MAX);
        let code = self.child.wait().unwrap().code();
        let summary = self.lines.pop().unwrap();
        Run { code, requests: self.lines, summary }
    }
}

/// What a script printed.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    requests: Vec<Value>,
    summary: Value,
}

impl Run {
    /// How many requests met this in the cache, or ended with this problem.
    fn count(&self, member: &str, value: &str) -> usize {
        self.requests.iter().filter(|request| request[member] == value).count()
    }

    /// Asserts that all of so many requests were done, and that the summary says so.
    fn assert_done(&self, requests: usize) {
        assert_eq!((self.code, self.requests.len()), (Some(0), requests), "{self:?}");
        assert!(self.requests.iter().all(|request| request["score"].is_number()), "{self:?}");
        assert_eq!(self.summary["requests"], requests, "{self:?}");
        let figures = ["p50_ms", "p95_ms", "p99_ms"].map(|name| self.summary[name].as_f64().unwrap());
        assert!(figures.is_sorted() && figures[0] > 0.0, "{self:?}");
        assert!(
            self.summary["seconds"].is_number() && self.summary["requests_per_s"].is_number(),
            "{self:?}"
        );
    }
}

#[test]
fn requests_over_tcp_and_over_the_socket_count_once_however_often_they_are_sent() {
    for (script, over) in SCRIPTS.iter().flat_map(|script| [(script, Over::Tcp), (script, Over::Socket)]) {
        let sidecar = Sidecar::dev();
        let mut scripts = Scripts::new(&sidecar, over, "enterprise");
        let arguments = ["--requests", "24", "--callers", "3", "--leads", "8"];
        let first = scripts.run(script, &arguments);
        first.assert_done(24);
        assert!(first.count("cache", "filled") >= 8, "{script} {over:?}: {first:?}");
        scripts.assert_kept_once(24);
        let again = scripts.run(script, &arguments);
        again.assert_done(24);
        assert_eq!(again.count("cache", "filled"), 0, "{script} {over:?}: {again:?}");
        scripts.assert_kept_once(24);
        // Other requests are others.
        scripts.at += Duration::from_millis(1);
        scripts.run(script, &["--requests", "2"]).assert_done(2);
        let (ids, total) = scripts.kept();
        assert_eq!((ids.len(), total), (26, Value::from("26")), "{script} {over:?}");
    }
}

/// `outrigger dev` with the shipped policies, where `new` stands in place of `old`.
fn with_policy(old: &str, new: &str) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("changed-policies");
    std::fs::create_dir(&policies).unwrap();
    let mut found = 0;
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        found += text.matches(old).count();
        std::fs::write(policies.join(path.file_name().unwrap()), text.replace(old, new)).unwrap();
    }
    assert_eq!(found, 1, "{old:?} in the shipped policies");
    Sidecar::dev_in(directory, &["--policies", policies.to_str().unwrap()])
}

#[test]
fn a_request_over_the_limit_says_when_it_can_pass_and_leaves_nothing() {
    for script in SCRIPTS {
        let sidecar = with_policy(
            "free: {requests: 100, per_ms: 60000, burst: 20}",
            "free: {requests: 1, per_ms: 3600000, burst: 5}",
        );
        let scripts = Scripts::new(&sidecar, Over::Tcp, "free");
        let run = scripts.run(script, &["--requests", "8"]);
        assert_eq!(
            (run.code, run.requests.len(), run.count("code", "rate_limited")),
            (Some(1), 8, 3),
            "{run:?}"
        );
        assert_eq!(run.summary["requests"], 5, "{run:?}");
        for request in &run.requests[5..] {
            assert_eq!(request["status"], 429, "{request}");
            assert!((3000..=3600).contains(&request["retry_after_s"].as_u64().unwrap()), "{request}");
            assert!(request["detail"].as_str().unwrap().contains("`api`"), "{request}");
        }
        scripts.assert_kept_once(5);
    }
}

#[test]
fn of_those_who_miss_a_lead_with_a_fill_lease_one_computes_it() {
    for script in SCRIPTS {
        let raw = "  scoring:\n    format: raw\n";
        let sidecar = with_policy(raw, &format!("{raw}    fill_lease_ms: 10000\n"));
        let scripts = Scripts::new(&sidecar, Over::Socket, "enterprise");
        let run = scripts.run(script, &["--requests", "12", "--callers", "6", "--leads", "1"]);
        run.assert_done(12);
        assert_eq!(run.count("cache", "filled"), 1, "{script}: {run:?}");
        assert_eq!(sidecar.metric("outrigger_cache_leases_total{outcome=\"granted\"}"), 1.0, "{script}");
        scripts.assert_kept_once(12);
    }
}

#[test]
fn what_was_refused_as_overloaded_is_sent_again_after_its_retry_after() {
    for script in SCRIPTS {
        let directory = tempfile::tempdir().unwrap();
        let more = "store: embedded\nevents: {}\nusage: {}\nlimits: {tenant_calls: 1}\n";
        let config = embedded_config(directory.path(), more);
        let sidecar = Sidecar::serve_in(directory, &config);
        let scripts = Scripts::new(&sidecar, Over::Tcp, "enterprise");
        // A call whose body is not there yet is the only one that this tenant may have.
        let mut held = sidecar.client();
        let head = format!(
            "PUT /v1/cache/profiles/slow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Length: 2\r\n\r\n1",
            scripts.token
        );
        held.write_raw(head.as_bytes()).unwrap();
        let running = scripts.start(script, &["--requests", "3"]);
        let refused = "outrigger_http_overloads_total{bound=\"tenant_calls\"}";
        wait_until("two calls too many", Duration::from_secs(20), || sidecar.metric(refused) >= 2.0);
        drop(held);
        let run = running.finish();
        run.assert_done(3);
        assert!(run.summary["seconds"].as_f64().unwrap() >= 1.0, "{script}: {run:?}");
        scripts.assert_kept_once(3);
    }
}

#[test]
fn requests_under_way_while_the_sidecar_is_killed_and_started_again_count_once() {
    for script in SCRIPTS {
        let sidecar = Sidecar::dev();
        let before = Scripts::new(&sidecar, Over::Socket, "enterprise");
        let mut running = before.start(script, &["--requests", "120", "--callers", "4"]);
        running.read(20);
        let (token, at) = (before.token.clone(), before.at);
        // The socket is at the same place afterwards.
        let sidecar = Sidecar::dev_in(sidecar.kill(), &[]);
        let after = Scripts { sidecar: &sidecar, over: Over::Socket, token, at };
        running.finish().assert_done(120);
        after.assert_kept_once(120);
    }
}
