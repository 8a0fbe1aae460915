//! Connections to addresses that were checked.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::Reach;

/// How long looking a name up and connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lookups that go on at once, in all: each holds a thread until the system's resolver answers, which nothing can cut.
const MAX_LOOKUPS: usize = 64;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL has no host, or no port that can be known.
    #[error("the URL names no host and port")]
    Url,
    /// The name has no address, or the resolver failed.
    #[error("its name cannot be looked up: {0}")]
    Lookup(std::io::Error),
    /// None of its addresses is one that may be reached.
    #[error("none of its addresses may be reached from here: private, loopback, link-local or reserved")]
    Refused,
    /// No address took the connection.
    #[error("it cannot be reached: {0}")]
    Unreachable(std::io::Error),
    /// It took too long.
    #[error("there was no connection within {} ms", CONNECT_TIMEOUT.as_millis())]
    Timeout,
}

/// Lookups of names, bounded in all.
#[derive(Debug, Clone)]
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

/// Makes connections. It looks a name up once, and connects to an address of that very answer, so that a name whose
/// address changes between the check and the connection (DNS rebinding) gains nothing.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    reach: Reach,
    lookups: Lookups,
}

impl Connector {
    pub(super) fn new(reach: Reach, lookups: Lookups) -> Self {
        Self { reach, lookups }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        let connecting = async {
            let addresses = self.addresses(&uri).await?;
            let mut last = std::io::Error::other("no address");
            for address in self.allowed(addresses)? {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        stream.set_nodelay(true).map_err(ConnectError::Unreachable)?;
                        return Ok(TokioIo::new(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(ConnectError::Unreachable(last))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// Those of `addresses` that may be reached, of which there is at least one.
    fn allowed(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, ConnectError> {
        let allowed: Vec<_> =
            addresses.into_iter().filter(|address| self.reach.allows(address.ip())).collect();
        if allowed.is_empty() { Err(ConnectError::Refused) } else { Ok(allowed) }
    }

    async fn addresses(&self, uri: &Uri) -> Result<Vec<SocketAddr>, ConnectError> {
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(ConnectError::Url)?;
        let port = uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        });
        let port = port.ok_or(ConnectError::Url)?;
        if let Some(address) = literal(host) {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let permit = Arc::clone(&self.lookups.0).acquire_owned().await;
        let permit = permit.map_err(|error| ConnectError::Lookup(std::io::Error::other(error)))?;
        let host = host.to_owned();
        let looking = tokio::task::spawn_blocking(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
            drop(permit);
            found
        });
        looking.await.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(ConnectError::Lookup)
    }
}

/// The address that a URL's host is, where it is one.
#[must_use]
pub fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_name_s_addresses_only_those_that_may_be_reached_are_tried() {
        let connector = Connector::new(Reach::Public, Lookups::default());
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 443)).collect()
        };
        let mixed = addresses(&["10.0.0.1", "8.8.8.8", "::1", "169.254.169.254"]);
        assert_eq!(connector.allowed(mixed).unwrap(), addresses(&["8.8.8.8"]));
        let private = addresses(&["10.0.0.1", "::ffff:127.0.0.1"]);
        assert!(matches!(connector.allowed(private), Err(ConnectError::Refused)));
        assert!(matches!(connector.allowed(Vec::new()), Err(ConnectError::Refused)));
    }

    #[tokio::test]
    async fn names_and_odd_spellings_of_this_machine_are_refused_as_public() {
        for url in [
            "https://localhost/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://0/",
            "https://169.254.169.254/latest/meta-data/",
        ] {
            let connector = Connector::new(Reach::Public, Lookups::default());
            let result = connector.connect(url.parse().unwrap()).await;
            assert!(matches!(result, Err(ConnectError::Refused)), "{url}: {result:?}");
        }
    }
}
