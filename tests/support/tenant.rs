//! A caller of one tenant, over one connection.

use super::client::{Client, Reply};
use super::sidecar::Sidecar;

/// The caller.
pub struct Tenant {
    pub bearer: String,
    pub client: Client,
}

impl Tenant {
    pub fn new(sidecar: &Sidecar, tenant: &str) -> Self {
        Self { bearer: sidecar.bearer(tenant), client: sidecar.client() }
    }

    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut all = vec![("Authorization", self.bearer.as_str())];
        all.extend(headers);
        self.client.send(method, target, &all, body.as_bytes())
    }
}
