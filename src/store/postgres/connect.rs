//! One connection: the server that takes writes, SCRAM, TLS 1.3 with the server's name verified.
//!
//! A server that hangs takes connections and says nothing, and one whose machine is gone not even that. So the next server
//! is tried beside one that has not answered soon, and the one that was good last is tried first.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding, SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{PostgresConfig, PostgresRole, SecretSource, host_and_port, is_loopback};
use crate::telemetry::MetricError;
use crate::tls;

/// Why the pool cannot be made: the configuration is wrong in a way that its schema cannot see.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not `host:port`.
    #[error("`{0}` is no server: write `host:port`")]
    Server(String),
    /// A password would cross a network in the clear.
    #[error("`{0}` is not on loopback: connections to it need `postgres.tls`")]
    Plain(String),
    /// The certificate authority's file.
    #[error("`postgres.tls.ca_file` ({path}): {reason}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(String),
    /// The pool's own bounds.
    #[error("{0}")]
    Pool(#[from] deadpool_postgres::BuildError),
    /// A defect: two metrics clash.
    #[error(transparent)]
    Metric(#[from] MetricError),
}

/// A server that has not answered after this time is tried beside the next one.
const STAGGER: Duration = Duration::from_millis(300);

type Connected = (Client, JoinHandle<()>);

/// Makes the connections of one role.
pub(super) struct Connector {
    password: SecretSource,
    tls: Option<MakeRustlsConnect>,
    servers: Vec<(String, u16)>,
    /// Which of them took writes last.
    good: AtomicUsize,
}

impl Connector {
    /// The role's connector, and the settings it starts from.
    pub(super) fn new(database: &PostgresConfig, role: &PostgresRole) -> Result<(Self, Config), StartError> {
        let mut settings = Config::new();
        settings
            .user(&role.user)
            .dbname(&database.database)
            .application_name("outrigger")
            .connect_timeout(Duration::from_millis(database.connect_timeout_ms))
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let mut servers = Vec::with_capacity(database.servers.len());
        for server in &database.servers {
            let (host, port) = host_and_port(server).ok_or_else(|| StartError::Server(server.clone()))?;
            if database.tls.is_none() && !is_loopback(host) {
                return Err(StartError::Plain(server.clone()));
            }
            servers.push((host.to_owned(), port));
        }
        let (password, good) = (role.password.clone(), AtomicUsize::new(0));
        let Some(settings_of_tls) = &database.tls else {
            settings.ssl_mode(SslMode::Disable);
            return Ok((Self { password, tls: None, servers, good }, settings));
        };
        let roots = match &settings_of_tls.ca_file {
            Some(path) => {
                tls::authorities(path).map_err(|reason| StartError::CaFile { path: path.clone(), reason })?
            }
            None => tls::public_authorities(),
        };
        let config = tls::client(roots, &[&rustls::version::TLS13])
            .map_err(|error| StartError::Tls(error.to_string()))?;
        settings.ssl_mode(SslMode::Require).channel_binding(ChannelBinding::Prefer);
        let tls = Some(MakeRustlsConnect::new(config));
        Ok((Self { password, tls, servers, good }, settings))
    }

    async fn connect_to(&self, server: usize, settings: &Config) -> (usize, Result<Connected, Error>) {
        let mut settings = settings.clone();
        if let Some((host, port)) = self.servers.get(server) {
            settings.host(host).port(*port);
        }
        let connected = match &self.tls {
            Some(tls) => {
                settings.connect(tls.clone()).await.map(|(client, connection)| (client, drive(connection)))
            }
            None => settings.connect(NoTls).await.map(|(client, connection)| (client, drive(connection))),
        };
        (server, connected)
    }

    /// A connection to whichever server takes writes. Who calls it bounds its time.
    async fn connect_to_any(&self, settings: &Config) -> Result<Connected, Error> {
        let (good, count) = (self.good.load(Relaxed), self.servers.len().max(1));
        let mut waiting = (0..count).map(|step| (good + step) % count);
        let mut trying = FuturesUnordered::new();
        trying.extend(waiting.next().map(|server| self.connect_to(server, settings)));
        loop {
            tokio::select! {
                Some((server, connected)) = trying.next() => match connected {
                    Ok(connected) => {
                        self.good.store(server, Relaxed);
                        return Ok(connected);
                    }
                    Err(error) if trying.is_empty() && waiting.len() == 0 => return Err(error),
                    Err(_) => {}
                },
                () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {}
            }
            trying.extend(waiting.next().map(|server| self.connect_to(server, settings)));
        }
    }
}

impl Connect for Connector {
    fn connect(&self, settings: &Config) -> BoxFuture<'_, Result<Connected, Error>> {
        let mut settings = settings.clone();
        async move {
            match self.password.read() {
                Ok(password) => {
                    settings.password(password.expose());
                }
                // The server refuses a connection without one, in words that say so.
                Err(error) => tracing::warn!(%error, "the database password cannot be read"),
            }
            self.connect_to_any(&settings).await
        }
        .boxed()
    }
}

/// Moves a connection's bytes until its client is dropped.
#[allow(clippy::disallowed_methods, reason = "the pool ends it by dropping the client, and wants its handle")]
fn drive(connection: impl Future<Output = Result<(), Error>> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to PostgreSQL ended");
        }
    })
}
