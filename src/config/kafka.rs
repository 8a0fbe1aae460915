//! `kafka:` in `proxy.yaml`: where the relay carries the log of events to.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretSource;

/// A Kafka cluster, 3.7 or later.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Some of its brokers, `host:port`; the others are learnt from them.
    #[schemars(length(min = 1, max = 64))]
    pub brokers: Vec<String>,
    /// With it, connections are TLS, the server's name verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<KafkaTls>,
    /// Who we are; without it nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
    /// What topics and transactional ids begin with: two systems in one cluster take two.
    #[serde(default = "default_prefix")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9_-]{1,64}$"))]
    pub prefix: String,
    /// How often a transaction begins at most, for each shard, in milliseconds: what is accepted meanwhile shares one.
    #[serde(default = "default_transaction_ms")]
    #[schemars(range(min = 1, max = 1000))]
    pub transaction_ms: u64,
    /// How long Kafka may take for a transaction, in milliseconds; then it is aborted and tried again. A relay that
    /// dies holds readers up for as long, unless another one takes its shard over before.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 1000, max = 300_000))]
    pub timeout_ms: u64,
    /// Copies of a topic that is made; where there are fewer brokers, one on each.
    #[serde(default = "default_replication")]
    #[schemars(range(min = 1, max = 9))]
    pub replication: u16,
    /// Whether this process is not ready without it.
    #[serde(default)]
    pub required: bool,
}

/// TLS to Kafka.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaTls {
    /// The certificate authority, PEM; without it those of the operating system, which the container image has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// A user of Kafka.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSasl {
    /// How the password is proved.
    #[serde(default)]
    pub mechanism: SaslMechanism,
    /// The user.
    pub username: String,
    /// The password; read at each takeover of a shard, so that a rotated one is taken.
    pub password: SecretSource,
}

/// How a password is proved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SaslMechanism {
    /// RFC 7677 with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// RFC 7677.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The password itself (RFC 4616): over TLS only, or on loopback.
    #[serde(rename = "PLAIN")]
    Plain,
}

impl SaslMechanism {
    /// Its registered name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

fn default_prefix() -> String {
    "outrigger".to_owned()
}

fn default_transaction_ms() -> u64 {
    10
}

fn default_timeout_ms() -> u64 {
    15_000
}

fn default_replication() -> u16 {
    3
}

impl KafkaConfig {
    /// With these brokers, and every default.
    #[must_use]
    pub fn of_brokers(brokers: Vec<String>) -> Self {
        Self {
            brokers,
            tls: None,
            sasl: None,
            prefix: default_prefix(),
            transaction_ms: default_transaction_ms(),
            timeout_ms: default_timeout_ms(),
            replication: default_replication(),
            required: false,
        }
    }

    /// Takes relative files as relative to `base`.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(sasl) = &mut self.sasl {
            sasl.password.resolve(base);
        }
        if let Some(file) = self.tls.as_mut().and_then(|tls| tls.ca_file.as_mut()) {
            *file = base.join(&*file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<KafkaConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn brokers_are_enough_and_nothing_unknown_is_taken() {
        let config = read(r#"{"brokers": ["kafka:9092"]}"#).unwrap();
        let defaults = (config.transaction_ms, config.timeout_ms, config.replication, config.required);
        assert_eq!(defaults, (10, 15_000, 3, false));
        assert_eq!(config.prefix, "outrigger");
        for wrong in [
            r#"{"brokers": ["kafka:9092"], "acks": 1}"#,
            r#"{"brokers": ["kafka:9092"], "tls": {"verify": false}}"#,
            r#"{"brokers": ["kafka:9092"], "sasl": {"username": "u", "password": "literal"}}"#,
            r#"{"brokers": ["kafka:9092"], "sasl": {"mechanism": "GSSAPI", "username": "u", "password": "${env:P}"}}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_relative_to_the_configuration() {
        let text = r#"{"brokers": ["b:1"], "tls": {"ca_file": "ca.pem"},
            "sasl": {"mechanism": "SCRAM-SHA-256", "username": "u", "password": "${file:p}"}}"#;
        let mut config = read(text).unwrap();
        config.resolve(Path::new("/etc/o"));
        assert_eq!(config.tls.unwrap().ca_file.unwrap(), Path::new("/etc/o/ca.pem"));
        let sasl = config.sasl.unwrap();
        assert_eq!(
            (sasl.password.to_string().as_str(), sasl.mechanism.as_str()),
            ("${file:/etc/o/p}", "SCRAM-SHA-256")
        );
    }
}
