//! Building an [`App`] from a configuration, in the order of what needs what.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio_rustls::TlsAcceptor;

use super::databases::Opener;
use super::{Addresses, App};
use crate::admin::{Admin, Audience};
use crate::config::{Limits, Listeners, ProxyConfig, Report, Role};
use crate::http::headers::AllowedHosts;
use crate::http::listener::{self, Bound, ConnectionLimits, Server, Services};
use crate::http::observe::Observer;
use crate::http::pipeline::{Pipeline, PipelineHandle, RequestLimits};
use crate::http::table::{RouteError, RouteTable};
use crate::http::{Load, LoadLimits, Patience, Route, openapi};
use crate::identity::{Gate, IdentityMetrics};
use crate::policy::{Policies, PolicyLoader, PolicySource, Reloader};
use crate::pools::kafka::Kafka;
use crate::pools::redis::{RedisMetrics, RedisPool};
use crate::primitives::{self, BuildError, RelayParts, Resources, events};
use crate::store::Store;
use crate::store::postgres::PostgresMetrics;
use crate::tasks::Tasks;
use crate::telemetry::{HealthBoard, MetricError, Registry};

/// Why a process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration or a policy is wrong: everything wrong, with places.
    #[error("{0}")]
    Report(Report),
    /// A socket cannot be bound.
    #[error("cannot listen on {what} {address}: {source}")]
    Bind {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Data cannot be opened.
    #[error("cannot open {path}: {reason}")]
    Data {
        /// What.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A primitive cannot be built from its section.
    #[error("{primitive}: {source}")]
    Primitive {
        /// Its section.
        primitive: &'static str,
        /// Why not.
        source: BuildError,
    },
    /// A defect: two routes or two metrics clash.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A defect: two metrics clash.
    #[error(transparent)]
    Metric(#[from] MetricError),
}

impl App {
    /// Builds everything and binds every listener. Backends connect by themselves, afterwards.
    pub async fn start(config: ProxyConfig) -> Result<Self, StartError> {
        let metrics = Registry::with_process_metrics()?;
        let board = HealthBoard::default();
        let tasks = Tasks::default();
        let policies = PolicySource::new(Policies::default());
        let reloader = start_policies(&config, &policies, &metrics, &tasks)?;
        let gate =
            Arc::new(Gate::new(&config.identity, &IdentityMetrics::new(&metrics)?, &tasks).map_err(
                |error| StartError::Data { path: "identity".to_owned(), reason: error.to_string() },
            )?);
        let opener = Opener { config: &config, board: &board, metrics: &metrics, tasks: &tasks };
        let counts = PostgresMetrics::new(&metrics)?;
        let (cache_db, store) = (opener.cache()?, opener.store(&counts)?);
        let resources = Resources {
            redis: start_redis(&config, &board, &metrics, &tasks)?,
            cache_db: cache_db.clone(),
            data_dir: config.data_dir.clone(),
            store: store.clone(),
            policies: policies.clone(),
            roles: config.roles.clone(),
            relay: start_relay(&config, opener.relayed(&counts)?, &metrics)?,
            metrics: metrics.clone(),
            health: board.clone(),
            tasks: tasks.clone(),
        };
        let routes = RouteTable::new(build_primitives(&config, &resources)?)?;
        let description = Bytes::from(openapi::describe(routes.routes()).to_string());
        let hosts = AllowedHosts::new(config.listeners.allowed_hosts.iter().map(String::as_str));
        let observer = Observer::new(&metrics, &routes, config.log.requests)?;
        let connections = observer.connections.clone();
        let admin = Arc::new(Admin {
            board,
            metrics: metrics.clone(),
            keys: keys_ready(&gate),
            listening: AtomicBool::new(false),
            drain: tasks.stopping().child_token(),
            config: config_view(&config, &policies)?,
            openapi: description.clone(),
            hosts: hosts.clone(),
        });
        let limits = request_limits(&config.limits);
        let load = Load::new(load_limits(&config.limits), &metrics)?;
        let pipeline = Arc::new(Pipeline {
            hosts,
            limits,
            load,
            gate,
            policies,
            routes,
            observer,
            openapi: description,
        });
        let servers = Servers::new(&config, api_services(&pipeline), &admin, connections, &metrics, &tasks)?;
        let api = servers.api.clone();
        let addresses = servers.listen(&config.listeners).await?;
        admin.listening.store(true, Relaxed);
        let drain_bound = Duration::from_millis(config.limits.drain_timeout_ms);
        let durable_db = store.and_then(|store| match store {
            Store::Sqlite(database) => Some(database),
            Store::Postgres(_) => None,
        });
        let databases = durable_db.into_iter().chain(cache_db).collect();
        Ok(Self { addresses, admin, reloader, databases, tasks, drain_bound, api })
    }
}

fn load_limits(limits: &Limits) -> LoadLimits {
    LoadLimits {
        bytes: limits.all_bytes(),
        tenant_bytes: limits.one_tenant_bytes(),
        tenant_calls: limits.tenant_calls,
        streams: limits.streams,
        tenant_streams: limits.tenant_streams,
    }
}

fn api_services(pipeline: &Arc<Pipeline>) -> Services {
    let pipeline = Arc::clone(pipeline);
    Arc::new(move || {
        let handle = PipelineHandle::new(Arc::clone(&pipeline));
        Box::new(move |request, connection| {
            Box::pin(Pipeline::serve(Arc::clone(&handle), request, connection))
        })
    })
}

fn start_policies(
    config: &ProxyConfig,
    source: &PolicySource,
    metrics: &Registry,
    tasks: &Tasks,
) -> Result<Arc<Reloader>, StartError> {
    let configured = primitives::ALL.iter().filter(|primitive| config.section(primitive.name).is_some());
    let kinds = configured.map(|primitive| &primitive.policy).collect();
    let actions = primitives::ALL.iter().flat_map(|primitive| primitive.actions).copied().collect();
    let all_kinds = primitives::ALL.iter().map(|primitive| primitive.policy.name);
    let issuers = config.identity.issuers.iter().map(|issuer| issuer.name.clone());
    let loader = PolicyLoader::new(config.policies.clone(), kinds, actions)
        .ignoring(all_kinds)
        .with_issuers(issuers)
        .with_data_dir(config.data_dir.is_some());
    Reloader::start(loader, source.clone(), metrics, tasks).map_err(StartError::Report)
}

fn start_redis(
    config: &ProxyConfig,
    board: &HealthBoard,
    metrics: &Registry,
    tasks: &Tasks,
) -> Result<BTreeMap<String, Arc<RedisPool>>, StartError> {
    let pool_metrics = RedisMetrics::new(metrics)?;
    let pools = config.redis.iter().map(|(name, instance)| {
        let health = board.add(format!("redis.{name}"), instance.required);
        RedisPool::new(name, instance.clone(), health, &pool_metrics, tasks)
            .map(|pool| (name.clone(), pool))
            .map_err(|error| StartError::Data { path: format!("redis.{name}"), reason: error.to_string() })
    });
    pools.collect()
}

fn start_relay(
    config: &ProxyConfig,
    log: Option<Store>,
    metrics: &Registry,
) -> Result<Option<RelayParts>, StartError> {
    let Some(kafka) = config.kafka.clone() else { return Ok(None) };
    if let Some(section) = config.section(events::PRIMITIVE.name) {
        events::announce_shards(section, metrics)?;
    }
    let Some(log) = log else { return Ok(None) };
    let data = |reason| StartError::Data { path: "kafka".to_owned(), reason };
    let kafka = Kafka::new(kafka).map_err(|error| data(error.to_string()))?;
    Ok(Some(RelayParts { log, kafka: Arc::new(kafka) }))
}

fn build_primitives(config: &ProxyConfig, resources: &Resources) -> Result<Vec<Route>, StartError> {
    let (mut routes, serves) = (Vec::new(), config.has_role(Role::Api));
    for primitive in primitives::ALL {
        let Some(section) = config.section(primitive.name) else { continue };
        let built = (primitive.build)(section.clone(), resources);
        let built = built.map_err(|source| StartError::Primitive { primitive: primitive.name, source })?;
        // Who only relays serves no call.
        routes.extend(built.into_iter().filter(|_| serves));
    }
    Ok(routes)
}

fn keys_ready(gate: &Arc<Gate>) -> crate::admin::KeysReady {
    let gate = Arc::clone(gate);
    Arc::new(move || gate.ready())
}

fn config_view(
    config: &ProxyConfig,
    policies: &PolicySource,
) -> Result<crate::admin::ConfigView, StartError> {
    let mut redacted = serde_json::to_value(config)
        .map_err(|error| StartError::Data { path: "/config".to_owned(), reason: error.to_string() })?;
    let issuers = redacted.pointer_mut("/identity/issuers").and_then(serde_json::Value::as_array_mut);
    for url in issuers.into_iter().flatten().filter_map(|issuer| issuer.pointer_mut("/jwks/url")) {
        // Its query may hold a key, so that messages leave it out too.
        if let Some((shown, _)) = url.as_str().and_then(|text| text.split_once('?')) {
            *url = serde_json::Value::from(format!("{shown}?[redacted]"));
        }
    }
    let policies = policies.clone();
    Ok(Arc::new(
        move || serde_json::json!({"config": redacted, "policy_generation": policies.current().generation()}),
    ))
}

fn request_limits(limits: &Limits) -> RequestLimits {
    RequestLimits {
        timeout: Duration::from_millis(limits.request_timeout_ms),
        max_timeout: Duration::from_millis(limits.max_request_timeout_ms),
        body_bytes: limits.body_bytes,
    }
}

/// The servers of one process.
struct Servers {
    api: Arc<Server>,
    admin: Arc<Server>,
    probe: Arc<Server>,
    tls: Option<TlsAcceptor>,
}

impl Servers {
    fn new(
        config: &ProxyConfig,
        api: Services,
        admin: &Arc<Admin>,
        connections: prometheus::IntGauge,
        metrics: &Registry,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let limits = connection_limits(&config.limits);
        let operators =
            metrics.gauge("outrigger_admin_connections_open", "Open admin and probe connections.")?;
        let few = ConnectionLimits { connections: 64, ..limits };
        let tls = config.listeners.tls.as_ref().map(|tls| {
            listener::tls_acceptor(&tls.certificate, &tls.key)
                .map_err(|reason| StartError::Data { path: tls.certificate.display().to_string(), reason })
        });
        Ok(Self {
            api: Server::new(api, limits, connections, tasks.clone()),
            admin: Server::new(admin.services(Audience::Operator), few, operators.clone(), tasks.clone()),
            probe: Server::new(admin.services(Audience::Probe), few, operators, tasks.clone()),
            tls: tls.transpose()?,
        })
    }

    /// Binds everything first, so that a taken port leaves nothing half-started; then serves.
    async fn listen(self, listeners: &Listeners) -> Result<Addresses, StartError> {
        let api = bind("the API's", listeners.api).await?;
        let admin = bind("the admin", listeners.admin).await?;
        let probe = match listeners.probe {
            Some(address) => Some(bind("the probe", address).await?),
            None => None,
        };
        let socket = listeners.socket.as_deref().map(|path| {
            listener::bind_unix(path).map_err(|source| StartError::Bind {
                what: "the unix socket",
                address: path.display().to_string(),
                source,
            })
        });
        let socket = socket.transpose()?;
        let addresses = Addresses {
            api: api.1,
            admin: admin.1,
            probe: probe.as_ref().map(|(_, address)| *address),
            socket: listeners.socket.clone(),
            tls: self.tls.is_some(),
        };
        self.api.listen(match self.tls {
            Some(acceptor) => Bound::Tls(api.0, acceptor),
            None => Bound::Tcp(api.0),
        });
        self.admin.listen(Bound::Tcp(admin.0));
        if let Some((listener, _)) = probe {
            self.probe.listen(Bound::Tcp(listener));
        }
        if let Some(socket) = socket {
            self.api.listen(socket);
        }
        Ok(addresses)
    }
}

async fn bind(
    what: &'static str,
    address: SocketAddr,
) -> Result<(tokio::net::TcpListener, SocketAddr), StartError> {
    let error = |source| StartError::Bind { what, address: address.to_string(), source };
    let listener = listener::bind_tcp(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

fn connection_limits(limits: &Limits) -> ConnectionLimits {
    ConnectionLimits {
        connections: limits.max_connections,
        head_bytes: limits.header_bytes,
        patience: Patience {
            head: Duration::from_millis(limits.header_read_timeout_ms),
            idle: Duration::from_millis(limits.idle_timeout_ms),
            write: Duration::from_millis(limits.write_timeout_ms),
        },
    }
}
