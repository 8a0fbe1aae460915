//! Stopping: what is in flight ends, and the exit code says how.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use support::client::Client;
use support::sidecar::{ACME, BINARY, Sidecar, embedded_config};

const CHECK: &[u8] = br#"{"checks":[{"limit":"api","key":"k","cost":0}]}"#;

/// A connection whose request is under way: all of it but the rest of its body, from byte 10 on.
fn in_flight(sidecar: &Sidecar) -> Client {
    let bearer = sidecar.bearer(ACME);
    let mut busy = sidecar.client();
    let head = format!(
        "POST /v1/ratelimit/check HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        CHECK.len()
    );
    busy.write_raw(head.as_bytes()).unwrap();
    busy.write_raw(&CHECK[..10]).unwrap();
    let mut other = sidecar.client();
    let reply = other.send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"");
    reply.problem(404, "not_found");
    busy
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut sidecar = Sidecar::dev();
        let mut idle = sidecar.client();
        let mut busy = in_flight(&sidecar);
        sidecar.signal(signal);
        assert!(idle.is_closed(), "an idle connection was left open");
        busy.write_raw(&CHECK[10..]).unwrap();
        let reply = busy.read_reply(false).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let status = sidecar.wait(Duration::from_secs(10));
        assert_eq!(status.code(), Some(0));
        assert!(!sidecar.socket.exists(), "the socket file was left");
        assert!(!sidecar.directory.path().join("ready.json").exists(), "the ready file was left");
    }
}

#[test]
fn a_process_that_is_stopped_the_moment_it_is_ready_still_drains_and_exits_0() {
    for _ in 0..3 {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready.json");
        let mut child = Command::new(BINARY)
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !ready.exists() {
            assert!(Instant::now() < end, "it is not ready");
            std::thread::yield_now();
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(!ready.exists());
        assert!(!directory.path().join("data/outrigger.sock").exists());
    }
}

#[test]
fn post_drain_ends_the_process_in_order() {
    let mut sidecar = Sidecar::dev();
    let reply = sidecar.admin_client().send("POST", "/drain", &[], b"");
    assert_eq!(reply.status, 202);
    assert_eq!(sidecar.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_second_signal_cuts_what_is_in_flight_and_exits_1() {
    for signals in [[Signal::TERM, Signal::TERM], [Signal::INT, Signal::INT], [Signal::TERM, Signal::INT]] {
        let mut sidecar = Sidecar::dev();
        let mut idle = sidecar.client();
        let mut busy = in_flight(&sidecar);
        sidecar.signal(signals[0]);
        assert!(idle.is_closed(), "the drain has not begun");
        sidecar.signal(signals[1]);
        assert_eq!(sidecar.wait(Duration::from_secs(5)).code(), Some(1));
        assert!(busy.is_closed());
        assert!(!sidecar.socket.exists(), "the socket file was left");
        assert!(!sidecar.directory.path().join("ready.json").exists(), "the ready file was left");
        let log = sidecar.log();
        assert!(log.contains("was cut") && log.contains("stopped"), "{log}");
    }
}

#[test]
fn the_first_signal_after_post_drain_cuts_nothing() {
    let mut sidecar = Sidecar::dev();
    let mut idle = sidecar.client();
    let mut busy = in_flight(&sidecar);
    assert_eq!(sidecar.admin_client().send("POST", "/drain", &[], b"").status, 202);
    assert!(idle.is_closed(), "the drain has not begun");
    sidecar.signal(Signal::TERM);
    busy.write_raw(&CHECK[10..]).unwrap();
    assert_eq!(busy.read_reply(false).unwrap().status, 200);
    assert_eq!(sidecar.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_drain_that_reaches_its_bound_says_how_many_requests_it_cut_and_exits_0() {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "limits: {drain_timeout_ms: 300}\n");
    let mut sidecar = Sidecar::serve_in(directory, &config);
    let mut busy: Vec<Client> = (0..3).map(|_| in_flight(&sidecar)).collect();
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.wait(Duration::from_secs(5)).code(), Some(0));
    assert!(busy.iter_mut().all(Client::is_closed));
    let log = sidecar.log();
    let line = log.lines().find(|line| line.contains("requests_cut")).unwrap_or_else(|| panic!("{log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["level"], &line["requests_cut"]), (&"WARN".into(), &3.into()), "{line}");
    assert_eq!(line["drain_timeout_ms"], 300, "{line}");
}

#[test]
fn a_drain_in_which_everything_ended_cuts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "");
    let mut sidecar = Sidecar::serve_in(directory, &config);
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(!sidecar.log().contains("requests_cut"), "{}", sidecar.log());
}
