//! Dialing one node: TCP without delay, TLS, the ACL user; and why it did not work.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::PoolError;
use crate::config::{RedisInstance, SecretSource, host_and_port};
use crate::tls;

/// Commands that a connection takes in before their sender has to wait; calls in flight are bounded by the same.
pub(super) const MAX_IN_FLIGHT: usize = 1024;

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    host: Arc<str>,
    port: u16,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// `host:port`, with an IPv6 host in brackets or bare.
    pub(super) fn parse(text: &str) -> Option<Self> {
        host_and_port(text).map(|(host, port)| Self::new(host, port))
    }

    /// Another node at `port` on `host`; an empty or unknown host means the host of this one.
    pub(super) fn sibling(&self, host: &str, port: u16) -> Self {
        if host.is_empty() || host == "?" {
            Self { host: Arc::clone(&self.host), port }
        } else {
            Self::new(host, port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a node cannot be used. The text is for operators; it holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NodeError {
    #[error("cannot connect to {0} ({1})")]
    Connect(Address, String),
    #[error("TLS with {0} failed ({1})")]
    Tls(Address, String),
    #[error("{0} does not answer within {bound_ms} ms", bound_ms = .1.as_millis())]
    Silent(Address, Duration),
    #[error("{1} (from {0})")]
    Password(Address, String),
    #[error("{0}")]
    Secret(String),
    #[error("{0} refused the connection: {1}")]
    Refused(Address, String),
    #[error("{0} is no node of a Redis Cluster ({1})")]
    NoCluster(Address, String),
    #[error("{0} is no longer in use")]
    Left(Address),
}

impl NodeError {
    /// What was seen and what to do, for the instance `name` of the configuration.
    pub(super) fn advice(&self, name: &str) -> String {
        format!("{self}: {}", self.hint(name))
    }

    /// What to do.
    pub(super) fn hint(&self, name: &str) -> String {
        match self {
            Self::Connect(..) => format!("is it running, and is `redis.{name}.nodes` right?"),
            Self::Tls(..) => format!("check `redis.{name}.tls`, and that the certificate names this host"),
            Self::Silent(..) => "is it stopped, overloaded, or cut off?".to_owned(),
            Self::Password(..) => {
                format!(
                    "the username or password is wrong: check redis.{name}.username and redis.{name}.password"
                )
            }
            Self::Secret(_) => format!("it is named by redis.{name}.password"),
            Self::Refused(..) | Self::Left(_) => "see its log".to_owned(),
            Self::NoCluster(..) => {
                format!("Outrigger needs a cluster: set `cluster-enabled yes`, or correct redis.{name}.nodes")
            }
        }
    }
}

/// A connection, and the future that moves its bytes: whoever drops that closes it.
pub(super) struct Dialed {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What takes the pushes of a connection; it must not block.
pub(super) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// How the nodes of an instance are dialed.
pub(super) struct Dialer {
    username: Option<String>,
    password: Option<SecretSource>,
    tls: Option<TlsConnector>,
    bound: Duration,
}

impl Dialer {
    pub(super) fn new(instance: &RedisInstance) -> Result<Self, PoolError> {
        let tls = instance.tls.as_ref().map(|tls| connector(tls.ca_file.as_deref())).transpose()?;
        Ok(Self {
            username: instance.username.clone(),
            password: instance.password.clone(),
            tls,
            bound: Duration::from_millis(instance.connect_timeout_ms),
        })
    }

    /// Connects and authenticates, within the configured bound. The password is read now, so that a rotated one counts.
    pub(super) async fn dial(&self, address: &Address, on_push: Option<OnPush>) -> Result<Dialed, NodeError> {
        match tokio::time::timeout(self.bound, self.dial_unbounded(address, on_push)).await {
            Ok(dialed) => dialed,
            Err(_) => Err(NodeError::Silent(address.clone(), self.bound)),
        }
    }

    async fn dial_unbounded(&self, address: &Address, on_push: Option<OnPush>) -> Result<Dialed, NodeError> {
        let mut user =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(name) = &self.username {
            user = user.set_username(name);
        }
        if let Some(source) = &self.password {
            let secret = source.read().map_err(|error| NodeError::Secret(error.to_string()))?;
            user = user.set_password(secret.expose());
        }
        let failed = |error: std::io::Error| NodeError::Connect(address.clone(), io_reason(&error));
        let stream = TcpStream::connect((&*address.host, address.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(connector) = &self.tls else { return greet(address, stream, &user, on_push).await };
        let wrong = |reason: String| NodeError::Tls(address.clone(), reason);
        let server =
            ServerName::try_from(address.host.to_string()).map_err(|error| wrong(error.to_string()))?;
        let stream = connector.connect(server, stream).await.map_err(|error| wrong(error.to_string()))?;
        greet(address, stream, &user, on_push).await
    }
}

async fn greet<S>(
    address: &Address,
    stream: S,
    user: &RedisConnectionInfo,
    on_push: Option<OnPush>,
) -> Result<Dialed, NodeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The caller's budget is the one bound of a command: the crate's own would cut it short.
    let mut config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(MAX_IN_FLIGHT);
    if let Some(on_push) = on_push {
        config = config.set_push_sender(move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        });
    }
    let greeted = MultiplexedConnection::new_with_config(user, stream, config).await;
    let (connection, driver) = greeted.map_err(|error| greeting_error(address, &error))?;
    Ok(Dialed { connection, driver: Box::pin(driver) })
}

fn greeting_error(address: &Address, error: &RedisError) -> NodeError {
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code}: {detail}"),
        _ => error.to_string(),
    };
    match error.code() {
        Some("WRONGPASS" | "NOAUTH") => NodeError::Password(address.clone(), text),
        _ if error.is_io_error() => NodeError::Connect(address.clone(), text),
        _ => NodeError::Refused(address.clone(), text),
    }
}

fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, PoolError> {
    let roots = match ca_file {
        Some(path) => {
            tls::authorities(path).map_err(|reason| PoolError::CaFile { path: path.to_owned(), reason })?
        }
        None => tls::public_authorities(),
    };
    let config =
        tls::client(roots, rustls::DEFAULT_VERSIONS).map_err(|error| PoolError::Tls(error.to_string()))?;
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for (text, shown) in [
            ("127.0.0.1:7000", Some("127.0.0.1:7000")),
            ("redis-0.redis:6379", Some("redis-0.redis:6379")),
            ("[::1]:6379", Some("[::1]:6379")),
            ("::1:6379", Some("[::1]:6379")),
            ("redis", None),
            (":6379", None),
            ("redis:0", None),
            ("redis:x", None),
        ] {
            assert_eq!(Address::parse(text).map(|address| address.to_string()).as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn a_node_without_a_host_is_where_the_one_is_that_named_it() {
        let asked = Address::new("10.0.0.1", 6379);
        assert_eq!(asked.sibling("", 6380), Address::new("10.0.0.1", 6380));
        assert_eq!(asked.sibling("?", 6380), Address::new("10.0.0.1", 6380));
        assert_eq!(asked.sibling("10.0.0.2", 6380), Address::new("10.0.0.2", 6380));
    }

    #[test]
    fn advice_says_what_was_seen_and_what_to_do() {
        let address = Address::new("127.0.0.1", 17_001);
        let refused = NodeError::Connect(address.clone(), "connection refused".to_owned());
        assert_eq!(
            refused.advice("main"),
            "cannot connect to 127.0.0.1:17001 (connection refused): is it running, and is `redis.main.nodes` right?"
        );
        let password = NodeError::Password(address, "WRONGPASS".to_owned());
        assert!(password.advice("main").contains("check redis.main.username and redis.main.password"));
    }
}
