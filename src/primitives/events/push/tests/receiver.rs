//! A receiver of webhooks that does as its path says.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::tasks::Tasks;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) at: Instant,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The event's data.
    pub(super) fn data(&self) -> String {
        let event: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        event["data"].as_str().unwrap().to_owned()
    }
}

/// The server.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    tasks: Tasks,
}

#[derive(Default)]
struct State {
    received: Mutex<Vec<Received>>,
    /// How many requests each path had.
    counts: Mutex<HashMap<String, u32>>,
    connections: Mutex<u32>,
    going_on: Mutex<HashMap<String, (u32, u32)>>,
}

type Answer = Result<Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>, std::io::Error>;

impl Receiver {
    pub(super) async fn start() -> Self {
        Self::serve(None).await
    }

    /// Over TLS, with the certificate and the key of these PEM files.
    pub(super) async fn start_tls(certificate: &Path, key: &Path) -> Self {
        let chain: Result<_, _> =
            rustls::pki_types::CertificateDer::pem_file_iter(certificate).unwrap().collect();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.unwrap(), key)
            .unwrap();
        Self::serve(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver =
            Self { address: listener.local_addr().unwrap(), state: Arc::default(), tasks: Tasks::default() };
        let (state, tasks) = (Arc::clone(&receiver.state), receiver.tasks.clone());
        receiver.tasks.spawn("receiver", async move {
            while let Some(Ok((stream, _))) = tasks.stopping().run_until_cancelled(listener.accept()).await {
                *state.connections.lock() += 1;
                stream.set_nodelay(true).unwrap();
                let (state, tls, stopping) = (Arc::clone(&state), tls.clone(), tasks.stopping().clone());
                tasks.spawn("receiver connection", async move {
                    let serving = async {
                        match tls {
                            None => connection(stream, state).await,
                            // A client that does not trust the certificate ends here.
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    connection(stream, state).await;
                                }
                            }
                        }
                    };
                    stopping.run_until_cancelled(serving).await;
                });
            }
        });
        receiver
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.state.received.lock().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.state.received.lock().len()
    }

    pub(super) fn connections(&self) -> u32 {
        *self.state.connections.lock()
    }

    /// How many requests of a path went on at once at the most.
    pub(super) fn most_at_once(&self, path: &str) -> u32 {
        self.state.going_on.lock().get(path).map_or(0, |(_, most)| *most)
    }

    /// When each of a path's requests came, by its data.
    pub(super) fn times(&self) -> HashMap<String, Instant> {
        self.state.received.lock().iter().map(|received| (received.data(), received.at)).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    // It ends with an error where the client, or the path, wants it so.
    drop(serving.await);
}

/// One request that goes on.
struct GoingOn(Arc<State>, String);

impl GoingOn {
    fn new(state: &Arc<State>, path: &str) -> Self {
        let mut all = state.going_on.lock();
        let (now, most) = all.entry(path.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        drop(all);
        Self(Arc::clone(state), path.to_owned())
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        if let Some((now, _)) = self.0.going_on.lock().get_mut(&self.1) {
            *now -= 1;
        }
    }
}

/// `/status/N`, `/slow/MS`, `/never`, `/hang/TIMES`, `/close`, `/handled-then-close/TIMES`, `/fail/TIMES`, `/throttle/SECONDS`,
/// `/throttle-hot/SECONDS`, `/fail-hot/`, `/hang-hot/` (events whose data is `hot`), `/redirect?URL`, `/endless`; 204 for any other. More steps after these tell subscriptions apart.
async fn answer(request: Request<Incoming>, state: Arc<State>) -> Answer {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let path = head.uri.path().to_owned();
    let _going_on = GoingOn::new(&state, &path);
    let received = Received { method: head.method, path: path.clone(), headers: head.headers, body, at };
    let is_hot = path.contains("-hot/") && received.data() == "hot";
    state.received.lock().push(received);
    let count = {
        let mut counts = state.counts.lock();
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        *count
    };
    let mut steps = path.trim_start_matches('/').split('/');
    let (what, number) =
        (steps.next().unwrap_or_default(), steps.next().and_then(|text| text.parse().ok()).unwrap_or(0));
    let closed = || Err(std::io::Error::other("closed, as the path says"));
    let status = |code: u16| Response::builder().status(code);
    let empty = || Full::new(Bytes::new()).boxed_unsync();
    let builder = match what {
        "status" => status(u16::try_from(number).unwrap()),
        "slow" => {
            tokio::time::sleep(Duration::from_millis(u64::from(number))).await;
            status(204)
        }
        "never" => std::future::pending().await,
        "hang" if count <= number => std::future::pending().await,
        "close" => return closed(),
        "handled-then-close" if count <= number => return closed(),
        "fail" if count <= number => status(500),
        "throttle" if count == 1 => status(429).header("retry-after", number.to_string()),
        "throttle-hot" if is_hot => status(429).header("retry-after", number.to_string()),
        "fail-hot" if is_hot => status(500),
        "hang-hot" if is_hot => std::future::pending().await,
        "redirect" => status(307).header("location", head.uri.query().unwrap()),
        "endless" => {
            let piece = Bytes::from_static(&[b'x'; 4096]);
            let pieces = std::iter::repeat_with(move || Ok(Frame::data(piece.clone())));
            return Ok(Response::new(StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()));
        }
        _ => status(204),
    };
    Ok(builder.body(empty()).unwrap())
}
