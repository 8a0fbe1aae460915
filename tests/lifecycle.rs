//! Starting, listening, draining, ending.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use support::client::Client;
use support::sidecar::{ACME, BINARY, Sidecar};
use support::wait_until;

const CHECK: &[u8] = br#"{"checks":[{"limit":"api","key":"k","cost":0}]}"#;

#[test]
fn the_socket_and_its_directory_are_closed_to_others() {
    let sidecar = Sidecar::dev();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sidecar.socket), 0o660);
    assert_eq!(mode(sidecar.socket.parent().unwrap()), 0o750);
}

#[test]
fn what_tenants_keep_is_closed_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let fresh = Sidecar::dev_in_subdirectory(directory, "data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o750);
    for name in ["cache.db", "cache.db-wal", "cache.db-shm", "cache.lock"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    let directory = fresh.kill();
    std::fs::set_permissions(data.join("cache.db"), std::fs::Permissions::from_mode(0o664)).unwrap();
    let again = Sidecar::dev_in_subdirectory(directory, "data");
    assert_eq!(mode(&data.join("cache.db")), 0o660);
    drop(again);
}

#[test]
fn a_flag_opens_nothing_that_the_configuration_may_not_open() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    for (flag, address) in [("--admin", "0.0.0.0:0"), ("--admin", "[::]:0"), ("--listen", "0.0.0.0:0")] {
        for command in [["serve", "--config"], ["dev", "--data"]] {
            let path = if command[0] == "serve" { config.clone() } else { directory.path().join("d") };
            let output = Command::new(BINARY).args(command).arg(path).args([flag, address]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?} {flag} {address}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(flag), "{output:?}");
        }
    }
}

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
fn health_says_how_it_is() {
    let sidecar = Sidecar::dev();
    for path in ["/livez", "/readyz", "/startupz"] {
        let reply = sidecar.admin_client().send("GET", path, &[], b"");
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok\n"), "{path}");
    }
    let verbose = sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
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
fn a_taken_port_is_exit_code_3_and_says_which() {
    let sidecar = Sidecar::dev();
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .args(["dev", "--admin", "127.0.0.1:0", "--listen", &sidecar.api.to_string(), "--data"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&sidecar.api.to_string()), "{text}");
}

#[test]
fn no_file_that_is_not_its_own_is_removed_or_written() {
    let directory = tempfile::tempdir().unwrap();
    let precious = directory.path().join("precious");
    std::fs::write(&precious, "kept").unwrap();
    for socket in ["precious", "link"] {
        let path = directory.path().join(socket);
        if socket == "link" {
            std::os::unix::fs::symlink(&precious, &path).unwrap();
        }
        let output = Command::new(BINARY)
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"))
            .arg("--socket")
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{socket}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no socket"), "{output:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept", "{socket}");
    }
    // The ready file's neighbour: a name that could be foreseen once.
    std::os::unix::fs::symlink(&precious, directory.path().join("ready.partial")).unwrap();
    let sidecar = Sidecar::dev_in(directory, &[]);
    assert_eq!(std::fs::read_to_string(sidecar.directory.path().join("precious")).unwrap(), "kept");
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_one_that_is_served_is_not() {
    let directory = Sidecar::dev().kill();
    assert!(directory.path().join("s/outrigger.sock").exists());
    let sidecar = Sidecar::dev_in(directory, &[]);
    let output = Command::new(BINARY)
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--socket"])
        .arg(&sidecar.socket)
        .arg("--data")
        .arg(sidecar.directory.path().join("other"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process"), "{output:?}");
    assert_eq!(sidecar.socket_client().send("GET", "/openapi.json", &[], b"").status, 200);
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let sidecar = Sidecar::dev();
    let output = Command::new(BINARY)
        .args(["dev", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--data"])
        .arg(sidecar.directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
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

/// An HTTP/2 connection with prior knowledge, and its frames.
struct Http2(Client);

impl Http2 {
    fn open(sidecar: &Sidecar) -> Self {
        let mut client = sidecar.client();
        client.write_raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        Self(client)
    }

    fn ping(&mut self) {
        self.0.write_raw(b"\0\0\x08\x06\0\0\0\0\0outrigge").unwrap();
    }

    /// A whole GET on this stream, its headers as literals without indexing (RFC 7541, 6.2.2).
    fn get(&mut self, stream: u8, path: &str, bearer: &str) {
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
            ("authorization", bearer),
        ] {
            block.extend([0, u8::try_from(name.len()).unwrap()]);
            block.extend(name.as_bytes());
            match u8::try_from(value.len()) {
                Ok(length) if length < 127 => block.push(length),
                _ => {
                    let rest = value.len() - 127;
                    block.extend([
                        127,
                        u8::try_from(rest % 128 + 128).unwrap(),
                        u8::try_from(rest / 128).unwrap(),
                    ]);
                }
            }
            block.extend(value.as_bytes());
        }
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        let mut frame = vec![0, length[0], length[1], 1, 5, 0, 0, 0, stream];
        frame.extend(block);
        self.0.write_raw(&frame).unwrap();
    }

    /// The next frame's type and flags; none at the end of the connection.
    fn next_frame(&mut self) -> Option<(u8, u8)> {
        let mut head = [0; 9];
        self.0.read_raw(&mut head).ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        self.0.read_raw(&mut vec![0; length]).ok()?;
        Some((head[3], head[4]))
    }
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
