//! Listeners: TCP, TLS over TCP, and a unix socket, all serving one kind of service.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus::IntGauge;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::connection::{ConnectionState, Patience, Watched, WatchedIo};
use super::protocol::{Peek, Protocol, protocol_of};
use super::trace::Trace;
use super::{Problem, ReplyBody, refusal};
use crate::error::ErrorKind;
use crate::tasks::Tasks;

/// A reply on its way.
pub type ReplyFuture = Pin<Box<dyn Future<Output = Response<ReplyBody>> + Send>>;
/// What a connection is served by: one reply for each request, never an error.
pub type Service = Box<dyn Fn(Request<Incoming>, Arc<ConnectionState>) -> ReplyFuture + Send + Sync>;
/// What a listener serves: makes each connection its own service.
pub type Services = Arc<dyn Fn() -> Service + Send + Sync>;

/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// What the HTTP/2 library takes of a head, in the bounds of ours: it refuses with an empty 431, we with a problem.
const HEAD_BOUNDS: usize = 4;

/// The bounds of a listener and its connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at once; more wait in the kernel's backlog.
    pub connections: usize,
    /// The largest request head, in bytes.
    pub head_bytes: usize,
    /// How long each part of a connection's life may take.
    pub patience: Patience,
}

/// Serves connections and ends them politely. Shared, since each connection keeps it.
pub struct Server {
    services: Services,
    limits: ConnectionLimits,
    slots: Arc<Semaphore>,
    open: Mutex<Open>,
    gauge: IntGauge,
    tasks: Tasks,
    http1: http1::Builder,
    http2: http2::Builder<StreamTasks>,
}

/// Runs each stream of an HTTP/2 connection as a task of the process: a drain waits for those of a cut connection too.
#[derive(Clone)]
struct StreamTasks(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        self.0.spawn_serving("stream", stream);
    }
}

/// The open connections, so that a drain reaches each.
#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<ConnectionState>>,
}

impl Open {
    fn add(&mut self, state: &Arc<ConnectionState>) -> u64 {
        self.next += 1;
        self.connections.insert(self.next, Arc::clone(state));
        self.next
    }

    /// Ends the oldest connection that has nothing in flight.
    fn end_an_idle_one(&self) {
        let idle = self.connections.iter().filter(|(_, connection)| connection.may_give_way());
        let next = idle.min_by_key(|(number, connection)| (connection.is_in_a_head(), **number));
        if let Some((_, connection)) = next {
            connection.give_way();
        }
    }
}

/// A bound socket.
pub enum Bound {
    /// TCP, plain.
    Tcp(TcpListener),
    /// TCP with TLS.
    Tls(TcpListener, TlsAcceptor),
    /// A unix socket; its file goes when this goes.
    Unix(UnixListener, SocketFile),
}

/// A unix socket's file, removed on drop.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the socket file was already gone");
        }
    }
}

/// Binds TCP at `address`.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// An acceptor of TLS 1.3 alone, from PEM files. The error is text for the operator.
pub fn tls_acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, String> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("{}: {error}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Binds a unix socket at `path`, 0660, its directory made 0750 where it is not there.
///
/// A socket file that nothing listens on is left from a killed process and is replaced; one that answers
/// belongs to a running process and is an error, and so is any other kind of file: it is never removed.
pub fn bind_unix(path: &Path) -> io::Result<Bound> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is there: name another path, or remove it",
            ));
        }
        Ok(_) => must_be_left_over(path)?,
    }
    // Bound under another name and renamed, so that no umask opens it to others before its mode is set.
    // The name is short, since a socket's path has 107 bytes at the most.
    let temporary = path.with_file_name(format!(".{:08x}", uuid::Uuid::new_v4().as_fields().0));
    let listener = UnixListener::bind(&temporary)?;
    let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))
        .and_then(|()| std::fs::rename(&temporary, path));
    match placed {
        Ok(()) => Ok(Bound::Unix(listener, SocketFile(path.to_owned()))),
        Err(error) => {
            std::fs::remove_file(&temporary)?;
            Err(error)
        }
    }
}

/// Whether the socket file at `path` is refused by the kernel because nobody listens. Without blocking, since a
/// process that hangs lets a connection wait for ever.
fn must_be_left_over(path: &Path) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let address = rustix::net::SocketAddrUnix::new(path)?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(()),
        Ok(()) | Err(rustix::io::Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves this socket"))
        }
        Err(error) => Err(error.into()),
    }
}

impl Server {
    /// A server of `service`; `gauge` counts its open connections.
    #[must_use]
    pub fn new(services: Services, limits: ConnectionLimits, gauge: IntGauge, tasks: Tasks) -> Arc<Self> {
        // hyper's own head timeout also ends idle connections, so the watchdog does both instead.
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.head_bytes.max(8192));
        let mut http2 = http2::Builder::new(StreamTasks(tasks.clone()));
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(HEAD_BOUNDS * limits.head_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS);
        Arc::new(Self {
            services,
            limits,
            slots: Arc::new(Semaphore::new(limits.connections)),
            open: Mutex::default(),
            gauge,
            tasks,
            http1,
            http2,
        })
    }

    /// Requests that have no reply yet, or a large one that is not read yet.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.open.lock().connections.values().map(|connection| connection.unfinished()).sum()
    }

    /// Accepts from `bound` until the process begins to stop.
    pub fn listen(self: &Arc<Self>, bound: Bound) {
        let server = Arc::clone(self);
        self.tasks.spawn_serving("accept", async move {
            let stopping = server.tasks.stopping().clone();
            tokio::select! {
                () = stopping.cancelled() => {}
                () = server.accept_from(&bound) => {}
            }
            drop(bound);
            for connection in server.open.lock().connections.values() {
                connection.drain();
            }
        });
    }

    async fn accept_from(self: &Arc<Self>, bound: &Bound) {
        loop {
            let Some(slot) = self.slot().await else { return };
            let accepted = match bound {
                Bound::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    set_nodelay(&stream);
                    self.start(stream, slot);
                }),
                Bound::Tls(listener, acceptor) => listener.accept().await.map(|(stream, _)| {
                    set_nodelay(&stream);
                    self.start_tls(stream, acceptor.clone(), slot);
                }),
                Bound::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| self.start(stream, slot))
                }
            };
            if let Err(error) = accepted {
                // Out of file descriptors, most often: a pause lets connections end, where a loop would spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Room for one more connection. Where there is none an idle one gives way, so that whoever opens many and
    /// asks nothing does not keep others out: kubelet would end the process.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                return Some(slot);
            }
            self.open.lock().end_an_idle_one();
            let freed = Arc::clone(&self.slots).acquire_owned();
            if let Ok(slot) = tokio::time::timeout(Duration::from_millis(50), freed).await {
                return slot.ok();
            }
        }
    }

    fn start_tls(
        self: &Arc<Self>,
        stream: tokio::net::TcpStream,
        acceptor: TlsAcceptor,
        slot: OwnedSemaphorePermit,
    ) {
        let server = Arc::clone(self);
        self.tasks.spawn_serving("handshake", async move {
            match tokio::time::timeout(server.limits.patience.head, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let protocol = if http2 { Protocol::Http2 } else { Protocol::Http1 };
                    let entered = server.enter(slot);
                    server.converse(stream, protocol, &entered.state).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a tls handshake failed"),
                Err(_) => tracing::debug!("a tls handshake took too long"),
            }
        });
    }

    /// Counts a connection in; what drains them all finds it from now on.
    fn enter(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Entered {
        let state = ConnectionState::new(self.tasks.stopping());
        let number = self.open.lock().add(&state);
        if self.tasks.stopping().is_cancelled() {
            state.drain();
        }
        self.gauge.inc();
        Entered { state, number, server: Arc::clone(self), _slot: slot }
    }

    fn start<S>(self: &Arc<Self>, stream: S, slot: OwnedSemaphorePermit)
    where
        S: Peek + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = Arc::clone(self);
        let entered = self.enter(slot);
        self.tasks.spawn_serving("connection", async move {
            let first = tokio::select! {
                () = entered.state.told_to_end() => return,
                first = tokio::time::timeout(server.limits.patience.idle, protocol_of(&stream)) => first,
            };
            match first {
                Ok(Ok(protocol)) => server.converse(stream, protocol, &entered.state).await,
                Ok(Err(error)) => tracing::debug!(%error, "a connection ended before its first byte"),
                Err(_) => tracing::debug!("a connection said nothing"),
            }
        });
    }

    async fn converse<S>(&self, stream: S, protocol: Protocol, state: &Arc<ConnectionState>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        state.speaks(protocol);
        let io = TokioIo::new(WatchedIo::new(stream, Arc::clone(state)));
        let serve = (self.services)();
        let service = service_fn(|request| {
            let in_flight = InFlight::begin(state);
            let head_only = request.method() == Method::HEAD;
            let reply = match protocol {
                Protocol::Http2 if http2_head_bytes(&request) > self.limits.head_bytes => refuse_head(),
                Protocol::Http1 | Protocol::Http2 => serve(request, Arc::clone(state)),
            };
            async move {
                let mut reply = reply.await;
                if reply.body().is_stream() && !head_only {
                    // In flight until it ends, so that no idle bound ends it and a drain waits for it.
                    reply.body_mut().keep(in_flight);
                } else {
                    if reply.body().large_bytes().is_some() {
                        reply.body_mut().keep(in_flight.0.reply_unread());
                    }
                    drop(in_flight);
                }
                Ok::<_, Infallible>(if head_only { without_body(reply) } else { reply })
            }
        });
        let patience = self.limits.patience;
        let ended = match protocol {
            Protocol::Http1 => {
                let connection = self.http1.serve_connection(io, service);
                Watched::new(connection, state, patience, |connection| connection.graceful_shutdown()).await
            }
            Protocol::Http2 => {
                let connection = self.http2.serve_connection(io, service);
                Watched::new(connection, state, patience, |connection| connection.graceful_shutdown()).await
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a connection ended"),
            None => tracing::debug!("a connection was cut: its peer was too slow"),
        }
    }
}

/// The size of a head as HTTP/2 counts it (RFC 9113, 6.5.2): names, values, and 32 bytes for each.
fn http2_head_bytes(request: &Request<Incoming>) -> usize {
    let uri = request.uri();
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let pseudo = path
        + uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.scheme_str().map_or(0, str::len)
        + request.method().as_str().len()
        + 4 * (32 + ":authority".len());
    let header = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    request.headers().iter().map(header).sum::<usize>() + pseudo
}

/// 413, as in HTTP/1 (`refusal.rs`).
fn refuse_head() -> ReplyFuture {
    let problem = Problem::new(ErrorKind::TooLarge, refusal::HEAD_TOO_LARGE);
    Box::pin(async move { problem.into_reply(Trace::default().id()).into_response() })
}

/// A reply to HEAD: the head that GET would get, `Content-Length` with it. hyper leaves the body away in HTTP/1
/// only; in HTTP/2 it would be sent, and clients reset the stream.
fn without_body(reply: Response<ReplyBody>) -> Response<ReplyBody> {
    let (mut head, body) = reply.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, body.without_bytes())
}

/// A connection among the open ones, for as long as this is held.
struct Entered {
    state: Arc<ConnectionState>,
    number: u64,
    server: Arc<Server>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.server.open.lock().connections.remove(&self.number);
        self.server.gauge.dec();
    }
}

/// Counts a request in and, however it ends, out.
struct InFlight(Arc<ConnectionState>);

impl InFlight {
    fn begin(state: &Arc<ConnectionState>) -> Self {
        state.request_began();
        Self(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

fn set_nodelay(stream: &tokio::net::TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
}
