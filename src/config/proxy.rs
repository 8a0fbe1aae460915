//! `proxy.yaml`, as the process uses it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Identity, KafkaConfig, PostgresConfig, RedisInstance, SecretSource};

/// A validated configuration.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Where it listens.
    #[serde(default)]
    pub listeners: Listeners,
    /// Whose tokens it accepts.
    pub identity: Identity,
    /// What this process does.
    #[serde(default = "default_roles")]
    #[schemars(length(min = 1))]
    pub roles: Vec<Role>,
    /// Where embedded backends keep their data; needed where one is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The directory of the policy documents.
    pub policies: PathBuf,
    /// Redis Clusters, by the name that primitives give.
    #[serde(default)]
    pub redis: BTreeMap<String, RedisInstance>,
    /// Where events are kept, and whatever else commits together; needed where one of them is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreChoice>,
    /// The database of `store: postgres`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresConfig>,
    /// Where relays carry events to; needed for the role `relay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaConfig>,
    /// The bounds of connections, requests and the embedded databases.
    #[serde(default)]
    pub limits: Limits,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    /// Each configured primitive's section, by its name; validated against the primitive's own schema.
    #[serde(skip_deserializing)]
    #[schemars(skip)]
    pub sections: BTreeMap<String, Value>,
}

impl ProxyConfig {
    /// The environment variables that secrets are read from: for this process alone.
    pub fn secret_variables(&self) -> impl Iterator<Item = &str> {
        let redis = self.redis.values().filter_map(|instance| instance.password.as_ref());
        let postgres = self.postgres.iter().flat_map(PostgresConfig::roles).map(|role| &role.password);
        let kafka = self.kafka.iter().filter_map(|kafka| kafka.sasl.as_ref()).map(|sasl| &sasl.password);
        redis.chain(postgres).chain(kafka).filter_map(|secret| match secret {
            SecretSource::Env(name) => Some(name.as_str()),
            SecretSource::File(_) => None,
        })
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Serves calls.
    Api,
    /// Sends events to the external URLs of subscriptions. To an application's own port its sidecar sends them.
    Push,
    /// Carries events to Kafka. Two or three processes of a deployment do, so that pods that come and go move nothing.
    Relay,
}

/// Where what commits together is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreChoice {
    /// `durable.db` in the data directory, for one process.
    Embedded,
    /// A PostgreSQL database, for a fleet.
    Postgres,
}

/// Where the process listens.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listeners {
    /// The API. An address that is not loopback needs `allow_remote: true` and `tls`.
    #[schemars(extend("format" = "socket-address"))]
    pub api: SocketAddr,
    /// The admin listener, on loopback.
    #[schemars(extend("format" = "socket-address"))]
    pub admin: SocketAddr,
    /// Health and metrics for the kubelet and Prometheus.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "socket-address"))]
    pub probe: Option<SocketAddr>,
    /// The API on a unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// More names that a Host or Origin header may have, without ports. Only names whose DNS is yours: this list is
    /// what stops DNS rebinding.
    pub allowed_hosts: Vec<String>,
    /// Lets `api` be an address that other machines reach; only with `tls`.
    pub allow_remote: bool,
    /// TLS 1.3 on the API's TCP listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 7780)),
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 7781)),
            probe: None,
            socket: None,
            allowed_hosts: Vec::new(),
            allow_remote: false,
            tls: None,
        }
    }
}

impl Listeners {
    /// What `proxy.yaml` may say of the addresses holds for those that flags put in their place too.
    pub fn check_reach(&self) -> Result<(), &'static str> {
        if !self.admin.ip().is_loopback() {
            return Err(
                "the admin listener is for this machine alone: `--admin` takes an address on loopback",
            );
        }
        let remote = self.allow_remote && self.tls.is_some();
        if !(remote || self.api.ip().is_loopback()) {
            return Err(
                "other machines would reach the API: `--listen` takes an address on loopback, unless \
                        the configuration has both `allow_remote: true` and `tls`",
            );
        }
        Ok(())
    }
}

/// A certificate and its key, PEM files.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The bounds of connections, requests and the embedded databases.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// API connections at once; more wait in the kernel's backlog.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: usize,
    /// The largest request head, in bytes.
    #[schemars(range(min = 8192, max = 1_048_576))]
    pub header_bytes: usize,
    /// The largest body of any route, in bytes; routes have tighter bounds of their own.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub body_bytes: u64,
    /// What the bodies of one tenant that are on their way take together at the most, in bytes, and likewise its large
    /// replies that are not yet read; one of `body_bytes` always fits. All tenants together have 256 MiB of each, and the more
    /// the others have, the less one may have.
    #[schemars(range(min = 1_048_576, max = 1_073_741_824))]
    pub tenant_bytes: usize,
    /// Calls of one tenant that wait at once, for a body or a backend; more are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tenant_calls: usize,
    /// Streamed replies of one tenant that are open at once, fewer beside others that have many; more are refused. Each takes
    /// 32 KiB of `tenant_bytes`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub tenant_streams: usize,
    /// Streamed replies of all tenants that are open at once; more are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub streams: usize,
    /// A call's time where its caller names none, in milliseconds; of a streamed reply, the time to its beginning.
    #[schemars(range(min = 1, max = 600_000))]
    pub request_timeout_ms: u64,
    /// The longest time that a caller may ask for, in milliseconds.
    #[schemars(range(min = 1, max = 600_000))]
    pub max_request_timeout_ms: u64,
    /// From the first byte of a request to the end of its head, in milliseconds.
    #[schemars(range(min = 50, max = 600_000))]
    pub header_read_timeout_ms: u64,
    /// Between two requests of a connection, in milliseconds.
    #[schemars(range(min = 50, max = 86_400_000))]
    pub idle_timeout_ms: u64,
    /// How long a peer may leave a reply unread, in milliseconds.
    #[schemars(range(min = 50, max = 600_000))]
    pub write_timeout_ms: u64,
    /// How long requests in flight may take to end when the process stops, in milliseconds.
    #[schemars(range(min = 0, max = 600_000))]
    pub drain_timeout_ms: u64,
    /// The largest that `cache.db` becomes over all tenants, in bytes; then new values are refused until others end or
    /// are deleted.
    #[schemars(range(min = 16_777_216, max = 1_099_511_627_776_u64))]
    pub cache_db_bytes: u64,
    /// The largest that `durable.db` becomes over all tenants, in bytes; then what would add to it is refused until
    /// what is kept ends.
    #[schemars(range(min = 16_777_216, max = 1_099_511_627_776_u64))]
    pub durable_db_bytes: u64,
    /// Of these how many in a hundred one tenant's events, groups and usage take at the most, less where others keep much; then
    /// what it would add is 429 until what it keeps ends, and the others have the rest.
    #[schemars(range(min = 1, max = 100))]
    pub durable_db_tenant_percent: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            header_bytes: 32_768,
            body_bytes: 16 * 1024 * 1024,
            tenant_bytes: 64 * 1024 * 1024,
            tenant_calls: 8192,
            tenant_streams: 64,
            streams: 1024,
            request_timeout_ms: 10_000,
            max_request_timeout_ms: 60_000,
            header_read_timeout_ms: 10_000,
            idle_timeout_ms: 300_000,
            write_timeout_ms: 30_000,
            drain_timeout_ms: 20_000,
            cache_db_bytes: 4 * 1024 * 1024 * 1024,
            durable_db_bytes: 16 * 1024 * 1024 * 1024,
            durable_db_tenant_percent: 50,
        }
    }
}

/// What the bodies, and likewise the replies, that are on their way take together at the most; one of the largest
/// always fits.
const ALL_BYTES: usize = 256 * 1024 * 1024;

impl Limits {
    fn largest_body(&self) -> usize {
        usize::try_from(self.body_bytes).unwrap_or(usize::MAX)
    }

    /// What all tenants together may have on their way, in bytes.
    #[must_use]
    pub fn all_bytes(&self) -> usize {
        ALL_BYTES.max(self.largest_body())
    }

    /// The same of one tenant.
    #[must_use]
    pub fn one_tenant_bytes(&self) -> usize {
        self.tenant_bytes.max(self.largest_body())
    }
}

/// What is logged.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least level.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether each request gets a line.
    pub requests: bool,
}

/// The least level that is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What is wrong and mends itself.
    Warn,
    /// What changes.
    #[default]
    Info,
    /// How it works.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As filters write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

fn default_roles() -> Vec<Role> {
    vec![Role::Api]
}

impl ProxyConfig {
    /// What `outrigger dev` serves: embedded backends in `data`, tokens of the development issuer there.
    #[must_use]
    pub fn embedded(data: &Path, policies: &Path) -> Self {
        let embedded = json!({"backend": "embedded"});
        Self {
            listeners: Listeners::default(),
            identity: Identity::development(&data.join("identity")),
            roles: vec![Role::Api, Role::Push],
            data_dir: Some(data.to_owned()),
            policies: policies.to_owned(),
            redis: BTreeMap::new(),
            store: Some(StoreChoice::Embedded),
            postgres: None,
            kafka: None,
            limits: Limits::default(),
            log: Log { format: LogFormat::Text, ..Log::default() },
            sections: [
                ("cache", embedded.clone()),
                ("ratelimit", embedded),
                ("events", json!({})),
                ("usage", json!({})),
            ]
            .map(|(name, section)| (name.to_owned(), section))
            .into(),
        }
    }

    /// Whether this process has a role.
    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// A primitive's section, where it is configured.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&Value> {
        self.sections.get(name)
    }
}
