//! A server of streams: the real pipeline and listener, with routes that only a test has.

#![allow(unreachable_pub, reason = "part of a test binary")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use outrigger::config::Identity;
use outrigger::http::headers::AllowedHosts;
use outrigger::http::listener::{self, Bound, ConnectionLimits};
use outrigger::http::observe::Observer;
use outrigger::http::pipeline::{Pipeline, PipelineHandle, RequestLimits};
use outrigger::http::table::RouteTable;
use outrigger::http::{
    Broken, Call, Docs, Load, LoadLimits, Patience, Problem, Reply, Route, handler, ndjson,
};
use outrigger::identity::dev::DevIdentity;
use outrigger::identity::{Gate, IdentityMetrics, TenantId};
use outrigger::policy::{Action, PolicyLoader, PolicySource};
use outrigger::tasks::Tasks;
use outrigger::telemetry::Registry;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::support::client::Client;
use super::support::http2::Http2;
use super::support::wait_until;

const READ: Action = Action::new("streams", "read");
const ACCESS: &str =
    "kind: access\nrules:\n  - {name: all, match: {scopes: [tenant:admin]}, allow: [{actions: ['*']}]}\n";

/// The bounds of a server, in milliseconds and bytes.
#[derive(Clone, Copy)]
pub struct Setup {
    pub request_ms: u64,
    pub head_ms: u64,
    pub idle_ms: u64,
    pub write_ms: u64,
    pub streams: usize,
    pub tenant_streams: usize,
    pub tenant_bytes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            request_ms: 10_000,
            head_ms: 10_000,
            idle_ms: 60_000,
            write_ms: 10_000,
            streams: 100,
            tenant_streams: 100,
            tenant_bytes: 64 << 20,
        }
    }
}

/// What the producers tell their test.
pub struct State {
    /// Bytes that producers were asked for.
    pub given: AtomicUsize,
    /// Producers that nobody dropped yet.
    pub alive: Arc<AtomicUsize>,
    /// A line of `steps`, or its end, for each.
    pub steps: Semaphore,
}

/// A producer's life.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(state: &State) -> Self {
        state.alive.fetch_add(1, Relaxed);
        Self(Arc::clone(&state.alive))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The route's state: shared with the producers, which outlive the call.
struct Streams(Arc<State>);

async fn read(streams: &Streams, call: Box<Call>) -> Result<Reply, Problem> {
    let state = Arc::clone(&streams.0);
    let number = |name: &str| call.query.text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    match call.params.get("name") {
        "steps" => Ok(reply(&state, stream::unfold((Arc::clone(&state), 0), step))),
        "silent" => Ok(reply(&state, stream::pending())),
        "endless" => {
            let chunk = Bytes::from(vec![b'x'; number("bytes")]);
            let given = Arc::clone(&state);
            let chunks = stream::repeat(chunk).inspect(move |chunk| {
                given.given.fetch_add(chunk.len(), Relaxed);
            });
            Ok(reply(&state, chunks.map(Ok)))
        }
        "beats" => {
            let mut every = tokio::time::interval(Duration::from_millis(number("every_ms") as u64));
            let beats = stream::poll_fn(move |context| every.poll_tick(context).map(Some));
            Ok(reply(&state, beats.map(|_| Ok(Bytes::from_static(ndjson::HEARTBEAT)))))
        }
        "whole" => {
            let first = stream::iter([Ok(Bytes::from_static(b"{}\n"))]);
            Ok(Reply::whole_stream(ndjson::MEDIA_TYPE, first.chain(stream::pending())))
        }
        "broken" => Ok(reply(&state, stream::iter([Ok(Bytes::from_static(b"{}\n")), Err(Broken)]))),
        "panics" => {
            let mut chunks = vec![Bytes::from_static(b"{}\n")].into_iter();
            let next = move || Ok(chunks.next().expect("a panic, as a test of it"));
            Ok(reply(&state, stream::repeat_with(next)))
        }
        "deadline" => Reply::json(&json!({"explicit": call.deadline.is_explicit()})),
        "until_stopping" => {
            call.stopping().cancelled().await;
            Reply::json(&json!({"stopping": true}))
        }
        _ => std::future::pending().await,
    }
}

async fn step((state, at): (Arc<State>, usize)) -> Option<(Result<Bytes, Broken>, (Arc<State>, usize))> {
    state.steps.acquire().await.unwrap().forget();
    let line = Bytes::from(format!("{{\"step\":{at}}}\n"));
    (at < 3).then_some((Ok(line), (state, at + 1)))
}

fn reply(state: &State, chunks: impl Stream<Item = Result<Bytes, Broken>> + Send + 'static) -> Reply {
    let alive = Alive::new(state);
    let chunks = chunks.inspect(move |_| {
        let _held = &alive;
    });
    Reply::stream(ndjson::MEDIA_TYPE, chunks)
}

/// A server in this process, on a runtime of its own.
pub struct Server {
    pub state: Arc<State>,
    address: SocketAddr,
    identity: DevIdentity,
    registry: Registry,
    tasks: Tasks,
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

impl Server {
    pub fn start(setup: Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("identity");
        let policies = directory.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        std::fs::write(policies.join("access.yaml"), ACCESS).unwrap();
        let identity = DevIdentity::open_or_create(&keys).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = runtime.enter();
        let (registry, tasks) = (Registry::default(), Tasks::default());
        let metrics = IdentityMetrics::new(&registry).unwrap();
        let gate = Gate::new(&Identity::development(&keys), &metrics, &tasks).unwrap();
        let state = Arc::new(State { given: 0.into(), alive: Arc::default(), steps: Semaphore::new(0) });
        let policies = PolicyLoader::new(policies, Vec::new(), vec![READ]).load(1);
        let policies = policies.unwrap_or_else(|report| panic!("{report}"));
        let routes = RouteTable::new(vec![Route {
            method: http::Method::GET,
            pattern: "/v1/streams/{name}",
            action: READ,
            serves_fleets: false,
            operation: "read",
            docs: Docs::default(),
            handler: handler(&Arc::new(Streams(Arc::clone(&state))), read),
        }]);
        let routes = routes.unwrap();
        let observer = Observer::new(&registry, &routes, false).unwrap();
        let connections = observer.connections.clone();
        let pipeline = Arc::new(Pipeline {
            hosts: AllowedHosts::new([]),
            limits: request_limits(setup),
            load: Load::new(load_limits(setup), &registry).unwrap(),
            gate: Arc::new(gate),
            policies: PolicySource::new(policies),
            routes,
            observer,
            openapi: Bytes::new(),
        });
        let services: listener::Services = Arc::new(move || {
            let handle = PipelineHandle::new(Arc::clone(&pipeline));
            Box::new(move |request, connection| {
                Box::pin(Pipeline::serve(Arc::clone(&handle), request, connection))
            })
        });
        let limits = connection_limits(setup);
        let server = listener::Server::new(services, limits, connections, tasks.clone());
        let bound = runtime.block_on(listener::bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let address = bound.local_addr().unwrap();
        server.listen(Bound::Tcp(bound));
        drop(_entered);
        Self { state, address, identity, registry, tasks, runtime, _directory: directory }
    }

    pub fn client(&self) -> Client {
        Client::tcp(self.address)
    }

    /// One whose kernel buffer is small.
    pub fn client_that_takes_little(&self) -> Client {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let socket = socket.unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 65_536).unwrap();
        rustix::net::connect(&socket, &self.address).unwrap();
        Client::of(socket.into())
    }

    pub fn http2(&self) -> Http2 {
        Http2::over(self.client())
    }

    pub fn bearer(&self, tenant: &str) -> String {
        let tenant = TenantId::parse(tenant).unwrap();
        format!("Bearer {}", self.identity.mint_admin(tenant, "s", Duration::from_secs(600)).unwrap())
    }

    /// Sends a GET of a stream.
    pub fn ask(&self, client: &mut Client, stream: &str, tenant: &str, headers: &str) {
        let bearer = self.bearer(tenant);
        let head = format!(
            "GET /v1/streams/{stream} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n{headers}\r\n"
        );
        client.write_raw(head.as_bytes()).unwrap();
    }

    /// The same over HTTP/2.
    pub fn ask2(&self, connection: &mut Http2, at: u8, stream: &str, tenant: &str, more: &[(&str, &str)]) {
        let bearer = self.bearer(tenant);
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(more);
        connection.get_with(at, &format!("/v1/streams/{stream}"), &headers);
    }

    pub fn metric(&self, name: &str) -> u64 {
        let text = self.registry.render().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name}: {text}"))
    }

    pub fn open(&self) -> u64 {
        self.metric("outrigger_http_streams_open")
    }

    pub fn until_none_is_open(&self) {
        wait_until("every stream's end", Duration::from_secs(5), || self.open() == 0);
    }

    /// Waits until producers were asked for more than so many bytes, and then for none for a while; returns how many.
    pub fn until_nothing_is_asked_for(&self, more_than: usize) -> usize {
        let mut given = (0, Instant::now());
        wait_until("the producers not to be asked", Duration::from_secs(5), || {
            let now = self.state.given.load(Relaxed);
            if now != given.0 {
                given = (now, Instant::now());
            }
            now >= more_than && given.1.elapsed() > Duration::from_millis(400)
        });
        given.0
    }

    pub fn ended(&self, how: &str) -> u64 {
        self.metric(&format!("outrigger_http_streams_ended_total{{how=\"{how}\"}}"))
    }

    /// Drains, as SIGTERM does; `false` where it reached its bound.
    pub fn stop(&self, bound: Duration) -> bool {
        self.runtime.block_on(self.tasks.stop(bound))
    }
}

fn request_limits(setup: Setup) -> RequestLimits {
    RequestLimits {
        timeout: Duration::from_millis(setup.request_ms),
        max_timeout: Duration::from_secs(60),
        body_bytes: 1 << 20,
    }
}

fn load_limits(setup: Setup) -> LoadLimits {
    LoadLimits {
        bytes: 256 << 20,
        tenant_bytes: setup.tenant_bytes,
        tenant_calls: 100,
        streams: setup.streams,
        tenant_streams: setup.tenant_streams,
    }
}

fn connection_limits(setup: Setup) -> ConnectionLimits {
    ConnectionLimits {
        connections: 100,
        head_bytes: 32_768,
        patience: Patience {
            head: Duration::from_millis(setup.head_ms),
            idle: Duration::from_millis(setup.idle_ms),
            write: Duration::from_millis(setup.write_ms),
        },
    }
}
