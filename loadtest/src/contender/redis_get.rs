//! `loadtest contender redis-get`: bare hyper with one multiplexed Redis GET a request.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncCommands as _, Cmd, RedisError};

use super::http::{Handler, ListenArgs, serve};

const TIMEOUT: Duration = Duration::from_secs(5);
const SEED_AT_ONCE: usize = 256;
const SEED_TTL_S: u64 = 3600;

/// Options of the Redis contender.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RedisGetArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// What comes before the request path's last segment in a Redis key
    #[arg(long, default_value = "")]
    key_prefix: String,
    /// What comes after it
    #[arg(long, default_value = "")]
    key_suffix: String,
    /// Cluster nodes, host:port or redis:// URLs, with commas between
    #[arg(long, env = "REDIS_NODES", hide_env_values = true, value_delimiter = ',', required = true)]
    redis_nodes: Vec<String>,
}

#[derive(Clone)]
struct RedisGet {
    connection: ClusterConnection,
    prefix: String,
    suffix: String,
}

impl Handler for RedisGet {
    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let key = request.uri().path().rsplit('/').next().unwrap_or_default();
        let mut redis_key = String::with_capacity(self.prefix.len() + key.len() + self.suffix.len());
        redis_key.push_str(&self.prefix);
        redis_key.push_str(key);
        redis_key.push_str(&self.suffix);
        let found: Result<Option<Bytes>, RedisError> = self.connection.clone().get(redis_key).await;
        match found {
            Ok(Some(value)) => Response::new(Full::new(value)),
            Ok(None) => plain(StatusCode::NOT_FOUND, "no such key in Redis".to_owned()),
            Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

/// Serves until SIGTERM.
///
/// # Errors
/// An address that cannot be bound, or no cluster.
pub(crate) async fn run(arguments: RedisGetArgs) -> Result<()> {
    let connection = connect(&arguments.redis_nodes).await?;
    let handler = RedisGet { connection, prefix: arguments.key_prefix, suffix: arguments.key_suffix };
    serve(arguments.listen, handler).await
}

/// A cluster connection as the contender uses it: TCP_NODELAY on, which the crate leaves off.
///
/// # Errors
/// No node answers.
pub(crate) async fn connect(nodes: &[String]) -> Result<ClusterConnection> {
    let urls =
        nodes.iter().map(|node| if node.contains("://") { node.clone() } else { format!("redis://{node}") });
    let client = ClusterClient::builder(urls)
        .tcp_settings(TcpSettings::default().set_nodelay(true))
        .connection_timeout(TIMEOUT)
        .response_timeout(TIMEOUT)
        .build()?;
    client.get_async_connection().await.with_context(|| format!("no Redis Cluster at {}", nodes.join(", ")))
}

/// Stores `value` under every key `prefix + 8 digits + suffix`, for an hour: the fill for runs without Outrigger.
///
/// # Errors
/// Redis refuses.
pub(crate) async fn seed(
    nodes: &[String],
    prefix: &str,
    suffix: &str,
    keys: u64,
    value: &[u8],
) -> Result<()> {
    let connection = connect(nodes).await?;
    let mut first = 0;
    while first < keys {
        let last = keys.min(first + SEED_AT_ONCE as u64);
        let mut writes = tokio::task::JoinSet::new();
        for key in first..last {
            let mut connection = connection.clone();
            let (name, value) = (format!("{prefix}{key:08}{suffix}"), value.to_vec());
            writes.spawn(async move { connection.set_ex::<_, _, ()>(name, value, SEED_TTL_S).await });
        }
        while let Some(written) = writes.join_next().await {
            written??;
        }
        first = last;
    }
    Ok(())
}

/// Stores one value for an hour.
///
/// # Errors
/// Redis refuses.
pub(crate) async fn store(nodes: &[String], key: &str, value: &[u8]) -> Result<()> {
    Ok(connect(nodes).await?.set_ex(key, value, SEED_TTL_S).await?)
}

/// Process ids of the cluster's nodes; the caller may use only those of its own machine.
///
/// # Errors
/// A node does not answer.
pub(crate) async fn node_pids(nodes: &[String]) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for node in nodes {
        let url = if node.contains("://") { node.clone() } else { format!("redis://{node}") };
        let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        let info: String = Cmd::new().arg("INFO").arg("server").query_async(&mut connection).await?;
        match info.lines().find_map(|line| line.strip_prefix("process_id:")).map(|text| text.trim().parse()) {
            Some(Ok(pid)) => pids.push(pid),
            _ => bail!("{node} does not tell its process id"),
        }
    }
    Ok(pids)
}
