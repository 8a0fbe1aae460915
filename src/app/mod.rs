//! The composition root: configuration -> pools, stores -> primitives -> listeners; and the order of shutdown.

mod build;
mod databases;
mod lifecycle;
mod ready;

pub use build::StartError;
pub use lifecycle::{Child, Reason, Signals};
pub use ready::ReadyFile;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Admin;
use crate::http::listener::Server;
use crate::policy::Reloader;
use crate::store::sqlite::Sqlite;
use crate::tasks::Tasks;

/// A process that serves: every listener bound, backends connecting by themselves.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    admin: Arc<Admin>,
    reloader: Arc<Reloader>,
    /// Closed at the end, in this order.
    databases: Vec<Arc<Sqlite>>,
    tasks: Tasks,
    drain_bound: Duration,
    /// Asked, at the end, what it has not finished.
    api: Arc<Server>,
}

/// The addresses bound, with real ports where the configuration says 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The API over TCP.
    pub api: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The probe listener.
    pub probe: Option<SocketAddr>,
    /// The API over a unix socket.
    pub socket: Option<PathBuf>,
    /// Whether the API's TCP listener speaks TLS.
    pub tls: bool,
}

impl Addresses {
    /// The API's base URL, for callers on this machine: where it listens on every address, the loopback one.
    #[must_use]
    pub fn url(&self) -> String {
        let ip = match self.api.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let address = SocketAddr::new(ip, self.api.port());
        format!("{}://{address}", if self.tls { "https" } else { "http" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_one_that_can_be_called() {
        for (api, tls, url) in [
            ("127.0.0.1:1", false, "http://127.0.0.1:1"),
            ("10.0.0.7:1", true, "https://10.0.0.7:1"),
            ("0.0.0.0:1", true, "https://127.0.0.1:1"),
            ("[::]:1", true, "https://[::1]:1"),
        ] {
            let api: SocketAddr = api.parse().unwrap();
            let addresses = Addresses { api, admin: api, probe: None, socket: None, tls };
            assert_eq!(addresses.url(), url);
        }
    }
}
