//! `proxy.yaml` and policy documents: read with positions, checked against their schema, every error at once.

mod alternatives;
mod complaint;
mod document;
mod findings;
mod identity;
mod kafka;
mod load;
mod meaning;
mod postgres;
mod proxy;
mod redact;
mod redis;
mod report;
mod scalar;
mod schema;
mod secret;
mod server;
mod source;
mod words;

pub use self::redis::{RedisInstance, RedisTls};
pub use document::{Document, MAX_DOCUMENT_BYTES, MAX_DOCUMENT_DEPTH};
pub use findings::{Finding, Findings, pointer_step};
pub use identity::{ClaimNames, DEVELOPMENT_AUDIENCE, DEVELOPMENT_ISSUER, Identity, Issuer, KeySource};
pub use kafka::{KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism};
pub use load::{Inspection, proxy_schema, read_text};
pub use postgres::{PostgresConfig, PostgresRole, PostgresTls};
pub use proxy::{Limits, Listeners, Log, LogFormat, LogLevel, ProxyConfig, Role, StoreChoice, Tls};
pub use report::{Diagnostic, Place, Report};
pub use schema::DocumentSchema;
pub use secret::{Secret, SecretError, SecretSource};
pub use server::{host_and_port, is_key_url, is_loopback};
pub use words::{nearest, one_of, with_nearest};

use schemars::{Schema, SchemaGenerator};

/// A primitive's section of `proxy.yaml`: `config` knows no primitive, so it is told.
#[derive(Clone, Copy)]
pub struct Section {
    /// The section's key.
    pub name: &'static str,
    /// Its schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Whether it needs `store`.
    pub needs_store: bool,
}
