//! `proxy.yaml` and policy documents: read with positions, checked against their schema, every error at once.

mod findings;
mod identity;
mod proxy;
mod redis;
mod report;
mod secret;

pub use findings::{Finding, Findings, pointer_step};
pub use identity::{ClaimNames, DEVELOPMENT_AUDIENCE, DEVELOPMENT_ISSUER, Identity, Issuer, KeySource};
pub use proxy::{Limits, Listeners, Log, LogFormat, LogLevel, ProxyConfig, Role, Tls};
pub use redis::{RedisInstance, RedisTls};
pub use report::Report;
pub use secret::{Secret, SecretError, SecretSource};

use schemars::{Schema, SchemaGenerator};

/// A primitive's section of `proxy.yaml`: `config` knows no primitive, so it is told.
#[derive(Clone, Copy)]
pub struct Section {
    /// The section's key.
    pub name: &'static str,
    /// Its schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}
