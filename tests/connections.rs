//! Connections: both protocols, slow and silent peers, replies that nobody reads.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::http2::Http2;
use support::sidecar::{ACME, GLOBEX, Sidecar, embedded_config};
use support::wait_until;

#[test]
fn head_is_answered_without_a_body_over_both_protocols() {
    let sidecar = Sidecar::dev();
    let bearer = format!("Authorization: {}", sidecar.bearer(ACME));
    let value = format!("http://{}/v1/cache/profiles/head", sidecar.api);
    let absent = format!("http://{}/v1/cache/profiles/absent", sidecar.api);
    let live = format!("http://{}/livez", sidecar.admin);
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl").args(["-sS", "-m", "10", "-H", &bearer]).args(arguments).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().to_ascii_lowercase()
    };
    curl(&["-X", "PUT", "-H", "Content-Type: text/plain", "-d", "hello", &value]);
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let head = curl(&[protocol, "-I", &value]);
        assert!(head.contains(" 200") && head.contains("content-length: 5\r"), "{protocol}: {head}");
        let head = curl(&[protocol, "-I", &absent]);
        assert!(head.contains(" 404") && head.contains("application/problem+json"), "{protocol}: {head}");
        assert!(curl(&[protocol, "-I", &live]).contains(" 200"), "{protocol}");
    }
}

#[test]
fn a_slow_head_and_an_idle_connection_are_ended() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(
        directory.path(),
        "limits: {header_read_timeout_ms: 300, idle_timeout_ms: 600, drain_timeout_ms: 5000}\n",
    );
    let sidecar = Sidecar::serve_in(directory, &config);
    let began = Instant::now();
    let mut slow = sidecar.client();
    slow.write_raw(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
    let mut idle = sidecar.client();
    assert!(slow.is_closed());
    assert!(idle.is_closed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn an_idle_http2_connection_is_kept_while_it_pings_and_ended_when_its_time_is_over() {
    const PING_ACK: (u8, u8) = (6, 1);
    const GOAWAY: u8 = 7;
    let directory = tempfile::tempdir().unwrap();
    let limits = "limits: {header_read_timeout_ms: 200, idle_timeout_ms: 1500}\n";
    let config = support::sidecar::embedded_config(directory.path(), limits);
    let sidecar = Sidecar::serve_in(directory, &config);
    let mut connection = Http2::open(&sidecar);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1000) {
        connection.ping();
        let mut frames = std::iter::from_fn(|| connection.next_frame());
        assert!(frames.any(|frame| frame == PING_ACK), "cut after {:?}", began.elapsed());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let rest: Vec<_> = std::iter::from_fn(|| connection.next_frame()).collect();
    assert!(rest.iter().any(|(kind, _)| *kind == GOAWAY), "ended without a GOAWAY: {rest:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn an_http2_peer_that_opens_no_window_for_its_replies_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let limits = "limits: {write_timeout_ms: 1000, header_read_timeout_ms: 60000, idle_timeout_ms: 60000}\n";
    let config = support::sidecar::embedded_config(directory.path(), limits);
    let sidecar = Sidecar::serve_in(directory, &config);
    let bearer = sidecar.bearer(ACME);
    let path = "/v1/cache/profiles/large";
    let put = sidecar.client().send("PUT", path, &[("Authorization", &bearer)], &vec![b'x'; 500_000]);
    assert_eq!(put.status, 204, "{}", put.text());
    let mut connection = Http2::open(&sidecar);
    for stream in [1, 3, 5] {
        connection.get(stream, path, &bearer);
    }
    let began = Instant::now();
    while connection.next_frame().is_some() {}
    let took = began.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn large_replies_that_nobody_reads_are_bounded_together() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let path = "/v1/cache/profiles/large";
    let value = vec![b'x'; 1_000_000];
    assert_eq!(sidecar.client().send("PUT", path, &[("Authorization", &bearer)], &value).status, 204);
    let get = || sidecar.client().send("GET", path, &[("Authorization", &bearer)], b"");
    // From now on it comes from memory: the store would refuse some of so many readings at once.
    assert_eq!(get().status, 200);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut connection = Http2::open(&sidecar);
        for stream in (1..200).step_by(2) {
            connection.get(stream, path, &bearer);
        }
        held.push(connection);
    }
    wait_until("a large reply to be refused", Duration::from_secs(20), || get().status == 503);
    get().problem(503, "overloaded");
    let small = sidecar.client().send("GET", "/v1/cache/profiles/absent", &[("Authorization", &bearer)], b"");
    assert_eq!(small.status, 404);
    drop(held);
    wait_until("room again", Duration::from_secs(20), || get().status == 200);
}

#[test]
fn a_head_over_its_bound_is_a_problem_document_over_http2_too_and_its_connection_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "limits: {header_bytes: 8192}\n");
    let sidecar = Sidecar::serve_in(directory, &config);
    let bearer = sidecar.bearer(ACME);
    let mut connection = Http2::open(&sidecar);
    let mut answer = |stream: u8, more: usize| {
        let padding = "x".repeat(more);
        let headers = [("authorization", bearer.as_str()), ("padding", padding.as_str())];
        connection.get_with(stream, "/v1/cache/scoring/absent", &headers);
        let data = connection.next_data().expect("an answer");
        serde_json::from_slice::<serde_json::Value>(&data).map_err(|_| data.len())
    };
    assert_eq!(answer(1, 5000).unwrap()["code"], "not_found");
    for (stream, more) in [(3, 8192), (5, 16_000), (7, 30_000)] {
        let problem = answer(stream, more).unwrap();
        assert_eq!((&problem["code"], &problem["status"]), (&"too_large".into(), &413.into()), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("limits.header_bytes"), "{problem}");
        assert!(problem["trace_id"].is_string(), "{problem}");
    }
    assert_eq!(answer(9, 0).unwrap()["code"], "not_found");

    // Four times the bound: the library's own refusal, a head that ends its stream.
    let padding = "x".repeat(40_000);
    connection.get_with(11, "/v1/cache/scoring/absent", &[("padding", &padding)]);
    let refused = std::iter::from_fn(|| connection.next_frame()).find(|(kind, _)| *kind == 1);
    assert_eq!(refused.map(|(_, flags)| flags & 1), Some(1));
    connection.get(13, "/v1/cache/scoring/absent", &bearer);
    assert!(connection.next_data().is_some());
}

/// Most clients write a body whole before they read, and take a connection that breaks meanwhile for the answer.
#[test]
fn who_sends_a_body_that_is_refused_can_send_it_all_and_reads_why() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let body = vec![b'x'; 24 << 20];
    for (bearer, status, code) in
        [("Bearer nonsense", 401, "unauthenticated"), (bearer.as_str(), 413, "too_large")]
    {
        for mut client in [sidecar.client(), sidecar.socket_client()] {
            let reply = client.send("PUT", "/v1/cache/profiles/large", &[("Authorization", bearer)], &body);
            reply.problem(status, code);
            assert!(client.is_closed(), "what follows a body that nobody read is no request");
        }
    }
}

#[test]
fn tenants_that_share_an_http2_connection_read_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "");
    let sidecar = Sidecar::serve_in(directory, &config);
    let bearers = [ACME, GLOBEX].map(|tenant| sidecar.bearer(tenant));
    let path = "/v1/cache/profiles/shared";
    for (bearer, value) in bearers.iter().zip(["of acme", "of globex"]) {
        let headers = [("Authorization", bearer.as_str())];
        assert_eq!(sidecar.client().send("PUT", path, &headers, value.as_bytes()).status, 204);
    }
    let mut connection = Http2::open(&sidecar);
    // One's twice in a row, so that the connection remembers its token when the other's comes.
    for (number, whose) in [0, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0].into_iter().enumerate() {
        connection.get(u8::try_from(2 * number + 1).unwrap(), path, &bearers[whose]);
        let expected: &[u8] = if whose == 0 { b"of acme" } else { b"of globex" };
        assert_eq!(connection.next_data().unwrap(), expected, "call {number}");
    }
}
