//! How to connect, and where librdkafka's log goes.

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::classify::verdict;
use super::{KafkaFailure, Verdict};
use crate::config::{KafkaConfig, SaslMechanism, host_and_port, is_loopback};

/// How long a broker may take to answer a request, in milliseconds. librdkafka's default is 60 s: a stopped broker is
/// noticed sooner.
pub(super) const SOCKET_TIMEOUT_MS: u64 = 10_000;

/// A cluster, as it is configured. Making it connects to nothing.
#[derive(Debug, Clone)]
pub struct Kafka {
    pub(super) config: KafkaConfig,
}

/// Why a cluster cannot be used as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaSetupError {
    /// None is named.
    #[error("brokers: name at least one broker, `host:port`")]
    NoBrokers,
    /// One is no address.
    #[error("brokers: `{0}` is not `host:port`")]
    Broker(String),
    /// A password would travel in clear.
    #[error("sasl.mechanism: PLAIN sends the password itself: set `tls`, or use SCRAM-SHA-512")]
    PlainWithoutTls,
}

impl Kafka {
    /// Checks what can be checked without connecting.
    pub fn new(config: KafkaConfig) -> Result<Self, KafkaSetupError> {
        let mut is_local = true;
        for broker in &config.brokers {
            let address = host_and_port(broker).ok_or_else(|| KafkaSetupError::Broker(broker.clone()))?;
            is_local &= is_loopback(address.0);
        }
        if config.brokers.is_empty() {
            return Err(KafkaSetupError::NoBrokers);
        }
        let is_plain = config.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == SaslMechanism::Plain);
        if is_plain && config.tls.is_none() && !is_local {
            return Err(KafkaSetupError::PlainWithoutTls);
        }
        Ok(Self { config })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &KafkaConfig {
        &self.config
    }

    /// What every client is made with. Reads the password as it is now.
    pub(super) fn settings(&self) -> Result<ClientConfig, KafkaFailure> {
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", self.config.brokers.join(","))
            .set("client.id", "outrigger")
            .set("socket.timeout.ms", SOCKET_TIMEOUT_MS.to_string())
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.ms", "50")
            .set("retry.backoff.max.ms", "500")
            .set_log_level(RDKafkaLogLevel::Info);
        let (tls, sasl) = (&self.config.tls, &self.config.sasl);
        settings.set(
            "security.protocol",
            match (tls.is_some(), sasl.is_some()) {
                (false, false) => "plaintext",
                (true, false) => "ssl",
                (false, true) => "sasl_plaintext",
                (true, true) => "sasl_ssl",
            },
        );
        if let Some(tls) = tls {
            let authority = tls.ca_file.as_ref().map_or("probe".into(), |file| file.to_string_lossy());
            settings
                .set("ssl.ca.location", authority)
                .set("enable.ssl.certificate.verification", "true")
                .set("ssl.endpoint.identification.algorithm", "https");
        }
        if let Some(sasl) = sasl {
            let password = sasl.password.read().map_err(|error| KafkaFailure {
                verdict: Verdict::Again,
                text: format!("sasl.password: {error}"),
            })?;
            settings
                .set("sasl.mechanism", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", password.expose());
        }
        Ok(settings)
    }
}

/// Sends librdkafka's log to ours, and keeps what last kept a client from its brokers: its calls say no more of that than
/// that they took too long. Its lines name brokers, topics and settings' names; it has no debug contexts on.
#[derive(Debug, Default)]
pub(super) struct Log {
    trouble: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Log {
    /// What was in the way before is over.
    pub(super) fn forget(&self) {
        *self.trouble.lock() = None;
    }

    /// The failure with what was in the way, where it says nothing of that itself; what needs an operator decides.
    pub(super) fn explain(&self, failure: KafkaFailure) -> KafkaFailure {
        match &*self.trouble.lock() {
            Some((code, reason)) if failure.verdict == Verdict::Again => {
                let verdict = if verdict(*code) == Verdict::Fatal { Verdict::Fatal } else { Verdict::Again };
                KafkaFailure { verdict, text: format!("{} ({reason})", failure.text) }
            }
            _ => failure,
        }
    }
}

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => tracing::error!(facility, message, "librdkafka"),
            RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "librdkafka"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, message, "librdkafka");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    /// librdkafka has said it in its log too.
    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut trouble = self.trouble.lock();
        let is_cause = !matches!(code, RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AllBrokersDown);
        // A refused client's connections also break off.
        let is_kept = trouble.as_ref().is_some_and(|(kept, _)| verdict(*kept) == Verdict::Fatal);
        if is_cause && (!is_kept || verdict(code) == Verdict::Fatal) {
            *trouble = Some((code, reason.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KafkaSasl, KafkaTls, SecretSource};

    fn with_sasl(broker: &str, mechanism: SaslMechanism, tls: Option<KafkaTls>) -> KafkaConfig {
        let password = SecretSource::Env("CARGO_PKG_NAME".to_owned());
        let sasl = Some(KafkaSasl { mechanism, username: "relay".to_owned(), password });
        KafkaConfig { sasl, tls, ..KafkaConfig::of_brokers(vec![broker.to_owned()]) }
    }

    #[test]
    fn a_password_does_not_travel_in_clear() {
        let tls = || Some(KafkaTls { ca_file: None });
        for (broker, mechanism, tls, expected) in [
            ("kafka:9092", SaslMechanism::Plain, None, Err(KafkaSetupError::PlainWithoutTls)),
            ("kafka:9092", SaslMechanism::Plain, tls(), Ok("sasl_ssl")),
            ("127.0.0.1:9092", SaslMechanism::Plain, None, Ok("sasl_plaintext")),
            ("kafka:9092", SaslMechanism::ScramSha512, None, Ok("sasl_plaintext")),
        ] {
            let kafka = Kafka::new(with_sasl(broker, mechanism, tls));
            let protocol =
                kafka.map(|kafka| kafka.settings().unwrap().get("security.protocol").map(ToOwned::to_owned));
            assert_eq!(protocol, expected.map(|name| Some(name.to_owned())));
        }
    }

    #[test]
    fn librdkafka_was_built_with_tls_and_scram() {
        let kafka = Kafka::new(with_sasl("127.0.0.1:1", SaslMechanism::ScramSha256, None)).unwrap();
        let native = kafka.settings().unwrap().create_native_config().unwrap();
        let features = native.get("builtin.features").unwrap();
        for feature in ["ssl", "sasl_scram", "sasl_plain"] {
            assert!(features.split(',').any(|built| built == feature), "{features}");
        }
        let shown = format!("{:?}", kafka.settings().unwrap());
        assert!(!shown.contains(env!("CARGO_PKG_NAME")) || !shown.contains("sasl.password"), "{shown}");
    }

    #[test]
    fn brokers_are_addresses() {
        let new = |brokers: &[&str]| {
            Kafka::new(KafkaConfig::of_brokers(brokers.iter().map(|name| (*name).to_owned()).collect()))
                .map(|_| ())
        };
        assert_eq!(new(&[]), Err(KafkaSetupError::NoBrokers));
        assert_eq!(new(&["kafka"]), Err(KafkaSetupError::Broker("kafka".to_owned())));
        assert_eq!(new(&["kafka:9092", "[::1]:9092"]), Ok(()));
    }
}
