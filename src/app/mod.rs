//! The composition root: configuration -> pools, stores -> primitives -> listeners; and the order of shutdown.

mod build;
mod lifecycle;
mod ready;

pub use build::StartError;
pub use lifecycle::{Child, Reason, Signals};
pub use ready::ReadyFile;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Admin;
use crate::policy::Reloader;
use crate::store::sqlite::Sqlite;
use crate::tasks::Tasks;

/// A process that serves: every listener bound, backends connecting by themselves.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    admin: Arc<Admin>,
    reloader: Arc<Reloader>,
    cache_db: Option<Arc<Sqlite>>,
    tasks: Tasks,
    drain_bound: Duration,
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
    /// The API's base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.api)
    }
}
