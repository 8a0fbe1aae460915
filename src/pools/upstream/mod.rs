//! HTTP to servers that policy names and nobody here runs: to addresses that were checked, within bounds of time and
//! size, with nothing of this process's own.
//!
//! - A name is looked up once for a connection, and the connection goes to an address of that answer that [`Reach`]
//!   allows. TLS (1.2 or later) and `Host` have the URL's name. Any port: the URL is policy's, and TLS keeps a request
//!   from being taken for another protocol's.
//! - Redirects are not followed: a 3xx is an answer like others. So there is no second address to be checked.
//! - No variable of the environment counts: no proxy, no further authorities; no cookies, no client certificate.
//! - HTTP/1.1, connections kept and used again by one target only.

mod address;
mod connect;

pub use address::Reach;
pub use connect::{ConnectError, Lookups, literal};

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use crate::error::cause_of;
use crate::tls;
use connect::Connector;

/// What is read of an answer's body, so that its connection can be used again; a longer one costs the connection.
const MAX_ANSWER_BYTES: usize = 65_536;
/// And how long that may take.
const ANSWER_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection without a request is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// TLS to a target cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of authorities cannot be used.
    #[error("the certificates of `ca_file` cannot be read: {0}")]
    Authorities(String),
    /// rustls refuses the settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection.
    #[error("{0}")]
    Unreachable(String),
    /// None of its addresses may be reached.
    #[error("none of its addresses may be reached from here")]
    Refused,
    /// Its certificate, or its TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// It took too long. The server may have handled the request.
    #[error("it did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection ended, or the answer is not HTTP. The server may have handled the request.
    #[error("the connection broke off: {0}")]
    Broken(String),
}

/// An answer's head.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
}

/// What targets share: the public authorities, and the bound on lookups.
#[derive(Clone)]
pub struct Upstreams {
    public: ClientConfig,
    lookups: Lookups,
}

impl Upstreams {
    /// With the public authorities.
    pub fn new() -> Result<Self, SetupError> {
        let public = tls::client(tls::public_authorities(), rustls::DEFAULT_VERSIONS)?;
        Ok(Self { public, lookups: Lookups::default() })
    }

    /// A target: its addresses as `reach` says, its certificate by the authorities of `ca_file` or the public ones,
    /// and at most so many idle connections.
    pub fn target(
        &self,
        reach: Reach,
        ca_file: Option<&Path>,
        max_idle: usize,
    ) -> Result<Upstream, SetupError> {
        let config = match ca_file {
            None => self.public.clone(),
            Some(path) => {
                let roots = tls::authorities(path).map_err(SetupError::Authorities)?;
                tls::client(roots, rustls::DEFAULT_VERSIONS)?
            }
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(reach, self.lookups.clone()));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(max_idle)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Upstream { client })
    }
}

/// A target, and the connections to it. Clones share them.
#[derive(Clone)]
pub struct Upstream {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
}

impl Upstream {
    /// Sends a request, and waits for the answer's head for at most `timeout`, connecting included.
    pub async fn send(&self, request: Request<Full<Bytes>>, timeout: Duration) -> Result<Answer, SendError> {
        let sent = tokio::time::timeout(timeout, self.client.request(request)).await;
        let response = sent.map_err(|_| SendError::Timeout(timeout))?.map_err(|error| why(&error))?;
        let (head, body) = response.into_parts();
        finish(body).await;
        Ok(Answer { status: head.status, headers: head.headers })
    }
}

/// Reads the rest of an answer, so that the next request can have the connection. What it says does not matter, and
/// where it is long, slow or broken the connection is closed.
async fn finish(body: Incoming) {
    let reading = Limited::new(body, MAX_ANSWER_BYTES).collect();
    match tokio::time::timeout(ANSWER_BODY_TIMEOUT, reading).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an answer's body was left unread"),
        Err(_) => tracing::debug!("an answer's body was left unread: it took too long"),
    }
}

fn why(error: &hyper_util::client::legacy::Error) -> SendError {
    let mut causes =
        std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |cause| cause_of(*cause));
    for cause in causes.by_ref() {
        match cause.downcast_ref::<ConnectError>() {
            Some(ConnectError::Refused) => return SendError::Refused,
            Some(other) => return SendError::Unreachable(other.to_string()),
            None => {}
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return SendError::Tls(tls.to_string());
        }
    }
    let last = std::iter::successors(std::error::Error::source(error), |cause| cause.source()).last();
    let text = last.map_or_else(|| error.to_string(), ToString::to_string);
    if error.is_connect() { SendError::Unreachable(text) } else { SendError::Broken(text) }
}
