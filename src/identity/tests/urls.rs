//! Keys from a URL, against a real server that can be told to misbehave.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::super::refusal::Refusal;
use super::super::{AuthError, probe};
use super::*;
use crate::error::ErrorKind;

/// What the server does.
#[derive(Clone)]
enum Manner {
    Answer(Vec<u8>),
    Status(StatusCode),
    Redirect,
    /// The head, and then nothing.
    Stall,
    /// No answer at all.
    Hang,
    /// A body without end.
    Endless,
}

struct Server {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            requests: Arc::default(),
            tasks: Tasks::default(),
        };
        let (manner, requests, tasks) =
            (Arc::clone(&server.manner), Arc::clone(&server.requests), server.tasks.clone());
        server.tasks.spawn("key server", async move {
            while let Some(Ok((stream, _))) = tasks.stopping().run_until_cancelled(listener.accept()).await {
                let (manner, requests) = (Arc::clone(&manner), Arc::clone(&requests));
                let stopping = tasks.stopping().clone();
                tasks.spawn("key server connection", async move {
                    let service = service_fn(move |_: Request<Incoming>| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let manner = manner.lock().clone();
                        async move { Ok::<_, Infallible>(answer(manner).await) }
                    });
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    drop(stopping.run_until_cancelled(serving).await);
                });
            }
        });
        server
    }

    fn set(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn source(&self) -> KeySource {
        KeySource::url(format!("http://{}/jwks", self.address))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn answer(manner: Manner) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let full = |bytes: Vec<u8>| Full::new(Bytes::from(bytes)).boxed_unsync();
    let body = match manner {
        Manner::Answer(document) => full(document),
        Manner::Status(status) => {
            return Response::builder().status(status).body(full(b"{}".to_vec())).unwrap();
        }
        Manner::Redirect => {
            let builder = Response::builder().status(302).header("location", "http://127.0.0.1:1/");
            return builder.body(full(Vec::new())).unwrap();
        }
        Manner::Hang => std::future::pending().await,
        Manner::Stall => StreamBody::new(futures_util::stream::pending()).boxed_unsync(),
        Manner::Endless => {
            let piece = Frame::data(Bytes::from_static(&[b' '; 4096]));
            let pieces = std::iter::repeat_with(move || Ok(Frame::data(piece.data_ref().unwrap().clone())));
            StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
        }
    };
    Response::new(body)
}

/// Quick where the real ones are slow, slow where a test must not see a reading of its own accord.
fn timing() -> Timing {
    Timing {
        refresh: Duration::from_secs(3600),
        retry: Duration::from_secs(3600),
        cooldown: Duration::ZERO,
        unknown: Duration::ZERO,
        timeout: Duration::from_millis(300),
        stale: Duration::from_secs(3600),
    }
}

async fn ready(bench: &Bench) {
    until("the keys", || async { bench.gate.ready().is_ok() }).await;
}

#[tokio::test]
async fn a_set_that_lists_only_keys_for_other_uses_takes_the_key_before_back() {
    let old = Signer::es256("old");
    let server = Server::start(Manner::Answer(key_set(&[&old]))).await;
    let bench = Bench::new(
        &identity(server.source()),
        Some(Timing { refresh: Duration::from_millis(50), ..timing() }),
    );
    ready(&bench).await;
    let token = old.good();
    assert!(bench.ask(&token).await.is_ok());
    let mut encrypts = Signer::es256("encrypts");
    encrypts.jwk["use"] = serde_json::json!("enc");
    server.set(Manner::Answer(key_set(&[&encrypts])));
    let before = server.requests();
    until("two more readings", || async { server.requests() > before + 1 }).await;
    assert_eq!(bench.ask(&token).await.err(), Some(Refusal::KeysUnavailable));
    assert!(bench.gate.ready().is_err());
    server.set(Manner::Answer(key_set(&[&encrypts, &old])));
    ready(&bench).await;
    assert!(bench.ask(&token).await.is_ok());
}

#[tokio::test]
async fn a_rotation_is_picked_up_by_one_reading_that_all_callers_share() {
    let (old, new) = (Signer::es256("old"), Signer::es256("new"));
    let server = Server::start(Manner::Answer(key_set(&[&old]))).await;
    let timing = Timing { cooldown: Duration::from_secs(3600), ..timing() };
    let bench = Bench::new(&identity(server.source()), Some(timing));
    ready(&bench).await;
    let old_token = old.good();
    assert!(bench.ask(&old_token).await.is_ok());
    assert_eq!(server.requests(), 1);

    server.set(Manner::Answer(key_set(&[&new])));
    let callers = (0..50).map(|_| {
        let (gate, token) = (Arc::clone(&bench.gate), new.good());
        async move { ask(&gate, &token).await.map(drop) }
    });
    let found = futures_util::future::join_all(callers).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    assert_eq!(server.requests(), 2);

    // The key that is gone verifies nothing, not even a token that was cached; the cooldown holds.
    assert_eq!(bench.ask(&old_token).await.err(), Some(Refusal::UnknownKey));
    for kid in ["x", "y", "z"] {
        assert_eq!(bench.ask(&Signer::es256(kid).good()).await.err(), Some(Refusal::UnknownKey));
    }
    assert_eq!(server.requests(), 2);
    assert_eq!(
        bench.metric("outrigger_identity_key_fetches_total{issuer=\"users\",outcome=\"changed\"}"),
        2.0
    );
}

#[tokio::test]
async fn a_kid_that_a_reading_did_not_bring_asks_for_no_other() {
    let signer = Signer::es256("a");
    let server = Server::start(Manner::Answer(key_set(&[&signer]))).await;
    let timing = Timing { unknown: Duration::from_secs(3600), ..timing() };
    let bench = Bench::new(&identity(server.source()), Some(timing));
    ready(&bench).await;
    for _ in 0..5 {
        assert_eq!(bench.ask(&Signer::es256("b").good()).await.err(), Some(Refusal::UnknownKey));
    }
    assert_eq!(server.requests(), 2);
    assert_eq!(bench.ask(&Signer::es256("c").good()).await.err(), Some(Refusal::UnknownKey));
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn the_last_good_keys_serve_while_the_server_is_down_and_not_for_ever() {
    let signer = Signer::es256("a");
    let server = Server::start(Manner::Answer(key_set(&[&signer]))).await;
    let timing = Timing {
        refresh: Duration::from_millis(20),
        retry: Duration::from_millis(20),
        stale: Duration::from_millis(1500),
        ..timing()
    };
    let bench = Bench::new(&identity(server.source()), Some(timing));
    ready(&bench).await;
    let cached = signer.good();
    assert!(bench.ask(&cached).await.is_ok());

    server.set(Manner::Status(StatusCode::INTERNAL_SERVER_ERROR));
    let failed = "outrigger_identity_key_fetches_total{issuer=\"users\",outcome=\"failed\"}";
    until("failed readings", || async { bench.metric(failed) >= 2.0 }).await;
    assert!(bench.ask(&signer.good()).await.is_ok());
    assert!(bench.ask(&cached).await.is_ok());
    // Whether the real set has this kid cannot be known now: that is not the caller's fault.
    assert_eq!(bench.ask(&Signer::es256("b").good()).await.err(), Some(Refusal::KeysUnavailable));

    until("the keys to be too old", || async { bench.gate.ready().is_err() }).await;
    assert_eq!(bench.ask(&cached).await.err(), Some(Refusal::KeysUnavailable));
    assert_eq!(bench.metric("outrigger_identity_keys_count{issuer=\"users\"}"), 0.0);

    server.set(Manner::Answer(key_set(&[&signer])));
    ready(&bench).await;
    assert!(bench.ask(&cached).await.is_ok());
}

/// Readings follow each other at once; keys that are not confirmed are good for `stale`.
fn eager(stale: Duration) -> Timing {
    Timing { refresh: Duration::from_millis(20), retry: Duration::from_millis(20), stale, ..timing() }
}

#[tokio::test]
async fn an_empty_key_set_takes_every_key_back_at_once() {
    let signer = Signer::es256("a");
    let empty = b"{\"keys\": []}".to_vec();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[&signer])).unwrap();
    let server = Server::start(Manner::Answer(key_set(&[&signer]))).await;
    for source in [server.source(), KeySource::file(path.clone())] {
        let bench = Bench::new(&identity(source), Some(eager(Duration::from_secs(3600))));
        ready(&bench).await;
        let cached = signer.good();
        assert!(bench.ask(&cached).await.is_ok());

        server.set(Manner::Answer(empty.clone()));
        std::fs::write(&path, &empty).unwrap();
        until("the keys to be gone", || async { bench.gate.ready().is_err() }).await;
        let text = bench.gate.ready().unwrap_err();
        assert!(text.contains("issuer `users` has no keys") && text.contains("lists no keys"), "{text}");
        for token in [&cached, &signer.good(), &Signer::es256("b").good()] {
            let refusal = bench.ask(token).await.unwrap_err();
            assert_eq!(AuthError(refusal).kind(), ErrorKind::BackendUnavailable);
        }
        assert_eq!(bench.metric("outrigger_identity_keys_count{issuer=\"users\"}"), 0.0);

        server.set(Manner::Answer(key_set(&[&signer])));
        std::fs::write(&path, key_set(&[&signer])).unwrap();
        ready(&bench).await;
        assert!(bench.ask(&cached).await.is_ok());
    }
}

#[tokio::test]
async fn the_keys_of_a_file_that_is_gone_serve_for_a_short_while() {
    let signer = Signer::es256("a");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[&signer])).unwrap();
    let source = KeySource::file(path.clone());
    assert_eq!(Timing::of(&source).stale, Duration::from_secs(300));
    let bench = Bench::new(&identity(source), Some(eager(Duration::from_millis(1500))));
    let cached = signer.good();
    assert!(bench.ask(&cached).await.is_ok());

    std::fs::remove_file(&path).unwrap();
    let failed = "outrigger_identity_key_fetches_total{issuer=\"users\",outcome=\"failed\"}";
    until("a failed reading", || async { bench.metric(failed) >= 1.0 }).await;
    assert!(bench.ask(&signer.good()).await.is_ok());
    until("the keys to be too old", || async { bench.gate.ready().is_err() }).await;
    assert_eq!(bench.ask(&cached).await.err(), Some(Refusal::KeysUnavailable));
}

#[tokio::test]
async fn a_symmetric_key_verifies_nothing_unless_the_configuration_says_so() {
    let (good, symmetric) = (Signer::es256("good"), Signer::hs256("shared", &[7; 32]));
    let server = Server::start(Manner::Answer(key_set(&[&good, &symmetric]))).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[&good, &symmetric])).unwrap();
    let refused = "outrigger_identity_symmetric_keys_count{issuer=\"users\"}";
    for source in [server.source(), KeySource::file(path.clone())] {
        let bench = Bench::new(&identity(source.clone()), Some(timing()));
        ready(&bench).await;
        assert!(bench.ask(&good.good()).await.is_ok(), "the other keys are used");
        assert_eq!(bench.ask(&symmetric.good()).await.err(), Some(Refusal::UnknownKey), "{source:?}");
        assert_eq!(bench.metric(refused), 1.0);
        let (count, named) = probe(&identity(source).issuers[0]).await.unwrap();
        assert!(count == 1 && named[0].starts_with("key 1 is symmetric (`oct`)"), "{named:?}");
    }
    let bench = Bench::new(&identity(KeySource::File { file: path, hs256: true }), Some(timing()));
    assert!(bench.ask(&symmetric.good()).await.is_ok());
    assert_eq!(bench.metric(refused), 0.0);
}

#[tokio::test]
async fn a_server_that_misbehaves_brings_no_keys_and_is_named() {
    let signer = Signer::es256("a");
    let huge = [key_set(&[&signer]), vec![b' '; 300_000]].concat();
    for (manner, why) in [
        (Manner::Status(StatusCode::NOT_FOUND), "answered 404"),
        (Manner::Redirect, "redirects are not followed"),
        (Manner::Answer(b"<html>".to_vec()), "no usable key set"),
        (Manner::Answer(b"{\"keys\":[]}".to_vec()), "lists no keys"),
        (Manner::Answer(huge), "more than 262144 bytes"),
        (Manner::Endless, "more than 262144 bytes"),
        (Manner::Stall, "within 300 ms"),
        (Manner::Hang, "within 300 ms"),
    ] {
        let server = Server::start(manner).await;
        let bench = Bench::new(&identity(server.source()), Some(timing()));
        until(why, || async { bench.gate.ready().is_err_and(|text| text.contains(why)) }).await;
        let text = bench.gate.ready().unwrap_err();
        assert!(text.contains("issuer `users`") && text.contains(&server.address.to_string()), "{text}");
        let refusal = bench.ask(&signer.good()).await.unwrap_err();
        assert_eq!(AuthError(refusal).kind(), ErrorKind::BackendUnavailable, "{why}");
        // And once it behaves, the next call finds keys.
        server.set(Manner::Answer(key_set(&[&signer])));
        until("recovery", || async { bench.ask(&signer.good()).await.is_ok() }).await;
    }
}

#[tokio::test]
async fn a_caller_does_not_wait_past_its_deadline() {
    let server = Server::start(Manner::Hang).await;
    let timing = Timing { timeout: Duration::from_secs(3600), ..timing() };
    let bench = Bench::new(&identity(server.source()), Some(timing));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {}", Signer::es256("a").good()).parse().unwrap());
    let began = Instant::now();
    let found = bench
        .gate
        .principal(headers.get("authorization"), &Recent::default(), began + Duration::from_millis(100))
        .await;
    assert_eq!(found.err(), Some(AuthError(Refusal::KeysUnavailable)));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(bench.gate.ready().unwrap_err().contains("has not ended"));
}

#[tokio::test]
async fn a_probe_counts_keys_or_says_why_not() {
    let server = Server::start(Manner::Answer(key_set(&[&Signer::es256("a"), &Signer::es384("b")]))).await;
    assert_eq!(probe(&identity(server.source()).issuers[0]).await, Ok((2, Vec::new())));
    server.set(Manner::Status(StatusCode::FORBIDDEN));
    let text = probe(&identity(server.source()).issuers[0]).await.unwrap_err();
    assert!(text.contains("403") && text.contains("/jwks"), "{text}");
    let nowhere = KeySource::file("/nowhere/jwks.json");
    assert!(probe(&identity(nowhere).issuers[0]).await.unwrap_err().contains("/nowhere/jwks.json"));
}
