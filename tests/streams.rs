//! Streamed replies, over a route table of this test's own, a real listener and real sockets: backpressure, ends, bounds.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/streaming.rs"]
mod streaming;
#[path = "support/mod.rs"]
mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use streaming::{Server, Setup};
use support::client::Client;
use support::http2::Http2;
use support::sidecar::{ACME, GLOBEX};
use support::wait_until;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
const SOON: Duration = Duration::from_secs(5);

/// Every chunk to the stream's proper end.
fn rest(client: &mut Client) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| client.read_chunk().unwrap()).collect()
}

/// The data of a connection with one stream, to the stream's proper end.
fn rest_of(connection: &mut Http2) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let (kind, flags, payload) = connection.read_frame().expect("the connection ended before the stream");
        assert_ne!(kind, RST_STREAM, "{payload:?}");
        if kind == DATA {
            bytes.extend(payload);
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return bytes;
        }
    }
}

#[test]
fn a_stream_goes_out_as_it_comes_and_its_connection_serves_the_next_call() {
    let server = Server::start(Setup::default());
    let mut client = server.client();
    for _ in 0..2 {
        server.ask(&mut client, "steps", ACME, "");
        let head = client.read_head().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(head.header("cache-control"), Some("no-store"));
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(head.header("content-length"), None);
        for step in 0..3 {
            server.state.steps.add_permits(1);
            let line = client.read_chunk().unwrap().unwrap();
            assert_eq!(line, format!("{{\"step\":{step}}}\n").into_bytes());
        }
        server.state.steps.add_permits(1);
        assert_eq!(client.read_chunk().unwrap(), None);
    }
    let mut connection = server.http2();
    for stream in [1, 3] {
        server.state.steps.add_permits(4);
        server.ask2(&mut connection, stream, "steps", ACME, &[]);
        assert_eq!(rest_of(&mut connection), b"{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n");
    }
    server.until_none_is_open();
    assert_eq!(server.ended("finished"), 4);
}

#[test]
fn a_stream_is_counted_once_when_it_begins_and_open_until_it_ends() {
    let server = Server::start(Setup::default());
    let mut client = server.client();
    server.ask(&mut client, "silent", ACME, "");
    assert_eq!(client.read_head().unwrap().status, 200, "the head waits for no chunk");
    let count = || {
        server.metric("outrigger_request_duration_seconds_count{primitive=\"streams\",operation=\"read\",outcome=\"ok\"}")
    };
    assert_eq!((count(), server.open()), (1, 1));
    drop(client);
    server.until_none_is_open();
    assert_eq!((count(), server.ended("left")), (1, 1));
}

#[test]
fn a_reader_that_stops_is_given_little_more_and_is_cut() {
    let server = Server::start(Setup { write_ms: 1000, ..Setup::default() });
    let mut client = server.client_that_takes_little();
    server.ask(&mut client, "endless?bytes=8192", ACME, "");
    assert_eq!(client.read_head().unwrap().status, 200);
    for _ in 0..100 {
        assert_eq!(client.read_chunk().unwrap().unwrap().len(), 8192);
    }
    // The kernel takes what its buffers hold; then nothing is asked for any more.
    let given = server.until_nothing_is_asked_for(100 * 8192);
    assert!(given < 16 << 20, "{given} bytes were asked for");
    assert_eq!(server.state.alive.load(Relaxed), 1, "it is cut too early for this test");
    wait_until("the watchdog", SOON, || server.state.alive.load(Relaxed) == 0);
    assert_eq!(server.state.given.load(Relaxed), given);
    server.until_none_is_open();
    assert_eq!(server.ended("left"), 1);
}

#[test]
fn an_http2_reader_that_opens_no_window_is_given_that_and_little_more_and_is_cut() {
    const WINDOW_BYTES: usize = 65_535;
    for chunk in [1000, 8192, 40_000, 300_000] {
        let server = Server::start(Setup { write_ms: 600, ..Setup::default() });
        let mut connection = server.http2();
        let began = Instant::now();
        server.ask2(&mut connection, 1, &format!("endless?bytes={chunk}"), ACME, &[]);
        let mut read = 0;
        while let Some((kind, _, payload)) = connection.read_frame() {
            read += if kind == DATA { payload.len() } else { 0 };
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(600)..SOON).contains(&took), "{chunk}: {took:?}");
        let given = server.state.given.load(Relaxed);
        assert_eq!(read, WINDOW_BYTES, "{chunk}");
        assert!(given <= WINDOW_BYTES + 16 * 1024 + chunk, "{chunk}: {given} bytes were asked for");
        server.until_none_is_open();
        assert_eq!(server.state.alive.load(Relaxed), 0);
    }
}

#[test]
fn no_timer_ends_a_stream_whose_reader_reads() {
    let server = Server::start(Setup {
        request_ms: 200,
        idle_ms: 200,
        head_ms: 200,
        write_ms: 200,
        ..Setup::default()
    });
    let (mut client, mut silent) = (server.client(), server.client());
    let (mut connection, mut silent2) = (server.http2(), server.http2());
    server.ask(&mut client, "beats?every_ms=50", ACME, "");
    server.ask(&mut silent, "silent", ACME, "");
    server.ask2(&mut connection, 1, "beats?every_ms=50", ACME, &[]);
    server.ask2(&mut silent2, 1, "silent", ACME, &[]);
    for client in [&mut client, &mut silent] {
        assert_eq!(client.read_head().unwrap().status, 200);
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(client.read_chunk().unwrap().as_deref(), Some(&b"\n"[..]));
        assert_eq!(connection.next_data().as_deref(), Some(&b"\n"[..]), "cut after {:?}", began.elapsed());
    }
    assert_eq!(server.state.alive.load(Relaxed), 4);
}

#[test]
fn a_time_that_the_caller_names_ends_a_stream_cleanly() {
    let server = Server::start(Setup::default());
    for path in ["silent", "beats?every_ms=20", "endless?bytes=1000"] {
        let mut client = server.client();
        let began = Instant::now();
        server.ask(&mut client, path, ACME, "Outrigger-Timeout-Ms: 300\r\n");
        assert_eq!(client.read_head().unwrap().status, 200);
        rest(&mut client);
        let took = began.elapsed();
        assert!((Duration::from_millis(300)..SOON).contains(&took), "{path}: {took:?}");
        server.ask(&mut client, "deadline", ACME, "");
        assert_eq!(client.read_reply(false).unwrap().json()["explicit"], false, "{path}");
        server.ask(&mut client, "deadline", ACME, "Outrigger-Timeout-Ms: 300\r\n");
        assert_eq!(client.read_reply(false).unwrap().json()["explicit"], true, "{path}");
    }
    for path in ["silent", "beats?every_ms=20"] {
        let mut connection = server.http2();
        let began = Instant::now();
        server.ask2(&mut connection, 1, path, ACME, &[("outrigger-timeout-ms", "300")]);
        rest_of(&mut connection);
        let took = began.elapsed();
        assert!((Duration::from_millis(300)..SOON).contains(&took), "{path}: {took:?}");
    }
    server.until_none_is_open();
    assert_eq!(server.ended("timed_out"), 5);
}

#[test]
fn a_stream_whose_end_means_something_breaks_off_when_it_is_cut() {
    let server = Server::start(Setup::default());
    let mut client = server.client();
    server.ask(&mut client, "whole", ACME, "Outrigger-Timeout-Ms: 300\r\n");
    assert_eq!(client.read_head().unwrap().status, 200);
    assert_eq!(client.read_chunk().unwrap().as_deref(), Some(&b"{}\n"[..]));
    let cut = client.read_chunk();
    assert!(cut.is_err(), "it looks whole: {cut:?}");
    server.until_none_is_open();
    assert_eq!(server.ended("broken"), 1);
}

#[test]
fn the_call_s_time_bounds_what_comes_before_a_stream() {
    let server = Server::start(Setup { request_ms: 200, ..Setup::default() });
    let mut client = server.client();
    server.ask(&mut client, "never", ACME, "");
    client.read_reply(false).unwrap().problem(504, "deadline_exceeded");
    assert_eq!((server.open(), server.ended("left")), (0, 0));
}

#[test]
fn a_drain_ends_every_stream_at_once_and_cleanly() {
    let server = Server::start(Setup { write_ms: 60_000, ..Setup::default() });
    let paths = ["silent", "beats?every_ms=20", "endless?bytes=1000", "until_stopping"];
    let mut readers = Vec::new();
    for path in paths {
        let mut client = server.client();
        server.ask(&mut client, path, ACME, "");
        readers.push(std::thread::spawn(move || {
            let head = client.read_head().unwrap();
            assert_eq!(head.status, 200);
            if head.header("content-length").is_none() {
                rest(&mut client);
                assert!(client.is_closed(), "{path}");
            }
        }));
    }
    // The endless one would be bounded by its window, which this client does not open.
    for path in ["silent", "beats?every_ms=20"] {
        let mut connection = server.http2();
        server.ask2(&mut connection, 1, path, ACME, &[]);
        readers.push(std::thread::spawn(move || {
            rest_of(&mut connection);
            while connection.read_frame().is_some() {}
        }));
    }
    wait_until("the streams", SOON, || server.open() == 5 && server.state.alive.load(Relaxed) == 5);
    let began = Instant::now();
    assert!(server.stop(Duration::from_secs(20)), "the drain reached its bound");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(server.state.alive.load(Relaxed), 0);
    assert_eq!(server.ended("stopping"), 5);
}

#[test]
fn a_drain_waits_for_no_reader_that_takes_nothing() {
    // The watchdog looks every half of the shortest bound; the others are over the drain's.
    let server =
        Server::start(Setup { write_ms: 60_000, head_ms: 60_000, idle_ms: 1000, ..Setup::default() });
    let mut client = server.client_that_takes_little();
    server.ask(&mut client, "endless?bytes=100000", ACME, "");
    // With the small ones the library waits for a window before it asks for more, and does not see the stream's end.
    let mut connections = [server.http2(), server.http2()];
    for (connection, path) in connections.iter_mut().zip(["endless?bytes=100000", "endless?bytes=1000"]) {
        server.ask2(connection, 1, path, ACME, &[]);
    }
    wait_until("the streams", SOON, || server.open() == 3);
    server.until_nothing_is_asked_for(200_000);
    let began = Instant::now();
    assert!(server.stop(Duration::from_secs(20)), "the drain reached its bound");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(server.state.alive.load(Relaxed), 0);
}

#[test]
fn a_reader_that_leaves_drops_its_producer() {
    let server = Server::start(Setup::default());
    let open = |at: usize| wait_until("a stream", SOON, || server.state.alive.load(Relaxed) == at);
    let mut client = server.client();
    server.ask(&mut client, "silent", ACME, "");
    let mut connection = server.http2();
    for stream in [1, 3, 5] {
        server.ask2(&mut connection, stream, "silent", ACME, &[]);
    }
    open(4);
    drop(client);
    open(3);
    connection.reset(3);
    open(2);
    drop(connection);
    open(0);
    server.until_none_is_open();
    assert_eq!(server.ended("left"), 4);
}

#[test]
fn streams_are_bounded_by_tenant_and_together() {
    let server = Server::start(Setup { streams: 3, tenant_streams: 2, ..Setup::default() });
    let opened = |tenant: &str| {
        let mut client = server.client();
        server.ask(&mut client, "silent", tenant, "");
        let head = client.read_head().unwrap();
        (head.status == 200).then_some(client).ok_or(head)
    };
    let refused = |tenant: &str, names: &str| {
        let mut client = server.client();
        server.ask(&mut client, "silent", tenant, "");
        let reply = client.read_reply(false).unwrap();
        assert!(reply.problem(503, "overloaded")["detail"].as_str().unwrap().contains(names), "{reply:?}");
        assert!(reply.header("retry-after").is_some());
    };
    let first = opened(ACME).unwrap();
    let second = opened(ACME).unwrap();
    refused(ACME, "limits.tenant_streams");
    let others = opened(GLOBEX).unwrap();
    refused(GLOBEX, "limits.streams");
    let mut head = server.client();
    let reply = head.send("HEAD", "/v1/streams/silent", &[("Authorization", &server.bearer(ACME))], b"");
    assert_eq!((reply.status, reply.header("content-length")), (200, None), "HEAD opens none");
    let mut ordinary = server.client();
    server.ask(&mut ordinary, "deadline", ACME, "");
    assert_eq!(ordinary.read_reply(false).unwrap().status, 200, "other calls are not refused");
    let overloads =
        |bound: &str| server.metric(&format!("outrigger_http_overloads_total{{bound=\"{bound}\"}}"));
    assert_eq!((overloads("tenant_streams"), overloads("streams")), (1, 1));
    assert_eq!(server.state.alive.load(Relaxed), 3, "what was refused is dropped");
    drop(first);
    wait_until("room again", SOON, || server.open() == 2);
    refused(GLOBEX, "limits.tenant_streams");
    let third = opened(&uuid::Uuid::new_v4().to_string()).unwrap();
    drop((second, others, third));
    server.until_none_is_open();
}

#[test]
fn a_large_chunk_waits_for_room_in_its_tenant_s_share() {
    let server = Server::start(Setup { tenant_bytes: 1 << 20, ..Setup::default() });
    let mut holds = server.http2();
    server.ask2(&mut holds, 1, "endless?bytes=700000", ACME, &[]);
    wait_until("the first chunk", SOON, || server.state.given.load(Relaxed) == 700_000);
    let mut waits = server.client();
    server.ask(&mut waits, "endless?bytes=700000", ACME, "");
    assert_eq!(waits.read_head().unwrap().status, 200);
    wait_until("the second chunk", SOON, || server.state.given.load(Relaxed) == 1_400_000);
    let mut other = server.client();
    server.ask(&mut other, "endless?bytes=700000", GLOBEX, "");
    assert_eq!(other.read_head().unwrap().status, 200);
    for _ in 0..20 {
        assert_eq!(other.read_chunk().unwrap().unwrap().len(), 700_000);
    }
    drop(other);
    wait_until("the other tenant's to end", SOON, || server.state.alive.load(Relaxed) == 2);
    let given = server.state.given.load(Relaxed);
    let mut small = server.client();
    server.ask(&mut small, "beats?every_ms=10", ACME, "");
    assert_eq!(small.read_head().unwrap().status, 200);
    for _ in 0..20 {
        assert_eq!(small.read_chunk().unwrap().as_deref(), Some(&b"\n"[..]));
    }
    assert_eq!(server.state.given.load(Relaxed), given, "a chunk went out that there was no room for");
    drop(holds);
    assert_eq!(waits.read_chunk().unwrap().unwrap().len(), 700_000);
}

#[test]
fn a_stream_that_fails_does_not_look_like_one_that_ended() {
    let server = Server::start(Setup::default());
    for path in ["broken", "panics"] {
        let mut client = server.client();
        server.ask(&mut client, path, ACME, "");
        assert_eq!(client.read_head().unwrap().status, 200);
        assert_eq!(client.read_chunk().unwrap().as_deref(), Some(&b"{}\n"[..]));
        assert!(client.read_chunk().is_err(), "{path}");
        assert!(client.is_closed(), "{path}");
        let mut connection = server.http2();
        server.ask2(&mut connection, 1, path, ACME, &[]);
        let mut frames = std::iter::from_fn(|| connection.read_frame());
        let last =
            frames.find(|(kind, flags, _)| *kind == RST_STREAM || (*kind == DATA && flags & END_STREAM != 0));
        assert_eq!(last.map(|(kind, _, _)| kind), Some(RST_STREAM), "{path}");
        server.state.steps.add_permits(4);
        server.ask2(&mut connection, 3, "steps", ACME, &[]);
        assert_eq!(rest_of(&mut connection).len(), 33, "the connection's other streams go on");
    }
    server.until_none_is_open();
    assert_eq!(server.ended("broken"), 4);
}
