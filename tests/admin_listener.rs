//! The admin and the probe listener: health, metrics, the description.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::client::Client;
use support::sidecar::{ACME, BINARY, Sidecar};
use support::wait_until;

#[test]
fn health_says_how_it_is() {
    let sidecar = Sidecar::dev();
    for path in ["/livez", "/readyz", "/startupz"] {
        let reply = sidecar.admin_client().send("GET", path, &[], b"");
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok\n"), "{path}");
    }
    let mut verbose = String::new();
    // What is not needed to be ready may come up after it.
    wait_until("every backend", Duration::from_secs(20), || {
        verbose = sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
        !verbose.contains(" starting ")
    });
    for part in ["listeners", "policies", "keys"] {
        assert!(verbose.lines().any(|line| line.starts_with(part) && line.contains(" up")), "{verbose}");
    }
    sidecar.admin_client().send("GET", "/nothing", &[], b"").problem(404, "not_found");
    sidecar.admin_client().send("POST", "/livez", &[], b"").problem(405, "method_not_allowed");
    let output =
        Command::new(BINARY).args(["status", "--admin", &sidecar.admin.to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), verbose);
}

#[test]
fn the_probe_listener_says_whether_it_is_ready_and_not_why() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("admin: 127.0.0.1:0}", "admin: 127.0.0.1:0, probe: 127.0.0.1:0}");
    std::fs::write(&config, text).unwrap();
    let sidecar = Sidecar::serve_in(directory, &config);
    let ready = std::fs::read(sidecar.directory.path().join("ready.json")).unwrap();
    let ready: serde_json::Value = serde_json::from_slice(&ready).unwrap();
    let probe = ready["probe"].as_str().unwrap().parse().unwrap();
    let reply = Client::tcp(probe).send("GET", "/readyz?verbose", &[], b"");
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok\n"));
    assert!(sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text().contains("listeners"));
}

#[test]
fn a_page_of_another_port_cannot_drain() {
    let mut sidecar = Sidecar::dev();
    let own = sidecar.admin.to_string();
    let mut client = sidecar.admin_client();
    for (host, origin) in
        [("localhost", "http://localhost:3000"), (own.as_str(), "http://localhost:1"), (own.as_str(), "null")]
    {
        let request =
            format!("POST /drain HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nContent-Length: 0\r\n\r\n");
        client.write_raw(request.as_bytes()).unwrap();
        client.read_reply(false).unwrap().problem(403, "forbidden");
    }
    let request =
        format!("POST /drain HTTP/1.1\r\nHost: {own}\r\nOrigin: http://{own}\r\nContent-Length: 0\r\n\r\n");
    client.write_raw(request.as_bytes()).unwrap();
    assert_eq!(client.read_reply(false).unwrap().status, 202);
    assert_eq!(sidecar.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn metrics_see_each_request_once_and_name_no_tenant() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let mut client = sidecar.client();
    for _ in 0..7 {
        client
            .send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"")
            .problem(404, "not_found");
    }
    let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    let line = metrics
        .lines()
        .find(|line| {
            line.starts_with("outrigger_request_duration_seconds_count")
                && line.contains(r#"operation="get",outcome="refused""#)
        })
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(line.ends_with(" 7"), "{line}");
    assert!(!metrics.contains(ACME), "a tenant is in the metrics");
    let open =
        sidecar.admin_client().send("GET", "/metrics", &[("Accept", "application/openmetrics-text")], b"");
    assert!(open.text().ends_with("# EOF\n"));
}

#[test]
fn connections_that_ask_nothing_do_not_keep_the_kubelet_out() {
    let sidecar = Sidecar::dev();
    let mut silent: Vec<_> = (0..80).map(|_| sidecar.admin_client()).collect();
    for half in &mut silent {
        // Those that gave way already are closed.
        if half.write_raw(b"GET /livez HTTP/1.1\r\nHo").is_err() {
            continue;
        }
    }
    let began = Instant::now();
    let reply = sidecar.admin_client().send("GET", "/livez", &[], b"");
    assert_eq!(reply.status, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn the_description_in_the_repository_is_what_a_process_serves() {
    let sidecar = Sidecar::dev();
    let served = sidecar.client().send("GET", "/openapi.json", &[], b"").json();
    assert_eq!(served, sidecar.admin_client().send("GET", "/openapi.json", &[], b"").json());
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let pretty = serde_json::to_string_pretty(&served).unwrap() + "\n";
    if std::env::var_os("OUTRIGGER_REGENERATE").is_some() {
        std::fs::write(&path, &pretty).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == pretty, "docs/openapi.json is behind: run this test with OUTRIGGER_REGENERATE=1");
}
