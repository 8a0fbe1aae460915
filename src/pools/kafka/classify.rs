//! The one place that says what a failure of Kafka means.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::KafkaFailure;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again, with growing waits: brokers are away, changing leaders, or short of replicas; a topic is not there yet.
    Again,
    /// Another producer has taken the transactional id: give the shard up.
    Fenced,
    /// The broker takes everything but this event.
    RefusedEvent,
    /// An operator is needed: no permission, a wrong password, a setting that the cluster refuses.
    Fatal,
}

/// What an error of librdkafka means; `what` is what was tried.
pub(super) fn failure(what: &str, error: &KafkaError) -> KafkaFailure {
    let verdict = match error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_) => Verdict::Fatal,
        other => other.rdkafka_error_code().map_or(Verdict::Again, verdict),
    };
    KafkaFailure { verdict, text: format!("{what}: {}", text(error)) }
}

/// An error's text without a setting's value: that one may be a password.
fn text(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("the setting {key} is not taken"),
        other => other.to_string(),
    }
}

/// What a code means. What is not named here is tried again: that never loses an event, and the alarm of their age
/// tells who has to look.
pub(super) fn verdict(code: Code) -> Verdict {
    match code {
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TransactionCoordinatorFenced => Verdict::Fenced,
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord
        | Code::InvalidTimestamp => Verdict::RefusedEvent,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::InvalidTransactionTimeout
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedForMessageFormat
        | Code::InvalidConfig
        | Code::InvalidArgument => Verdict::Fatal,
        _ => Verdict::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_one_meaning() {
        for (code, expected) in [
            (Code::BrokerTransportFailure, Verdict::Again),
            (Code::AllBrokersDown, Verdict::Again),
            (Code::OperationTimedOut, Verdict::Again),
            (Code::MessageTimedOut, Verdict::Again),
            (Code::NotEnoughReplicas, Verdict::Again),
            (Code::UnknownTopicOrPartition, Verdict::Again),
            (Code::ConcurrentTransactions, Verdict::Again),
            (Code::InvalidProducerIdMapping, Verdict::Again),
            (Code::InvalidDifferentRecord, Verdict::Again),
            (Code::PurgeInflight, Verdict::Again),
            (Code::Fenced, Verdict::Fenced),
            (Code::InvalidProducerEpoch, Verdict::Fenced),
            (Code::MessageSizeTooLarge, Verdict::RefusedEvent),
            (Code::InvalidRecord, Verdict::RefusedEvent),
            (Code::SaslAuthenticationFailed, Verdict::Fatal),
            (Code::TopicAuthorizationFailed, Verdict::Fatal),
        ] {
            assert_eq!(verdict(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_setting_s_value_is_not_in_the_text() {
        let error = KafkaError::ClientConfig(
            rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "Invalid value canary".to_owned(),
            "sasl.password".to_owned(),
            "canary".to_owned(),
        );
        let failure = failure("connecting", &error);
        assert_eq!(failure.to_string(), "kafka: connecting: the setting sasl.password is not taken");
        assert_eq!(failure.verdict, Verdict::Fatal);
    }
}
