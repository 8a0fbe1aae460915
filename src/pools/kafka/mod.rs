//! Kafka through librdkafka: a transactional producer for each shard of the relay, on a thread of its own, and topics
//! made and checked.
//!
//! `settings.rs` says how to connect, `classify.rs` what a failure means, `transaction.rs` sends and commits, `tail.rs`
//! reads the last committed record of a partition, `thread.rs` keeps what blocks off the executor, `topics.rs` is for
//! operators. Nothing connects before it is used.

mod classify;
mod republish;
mod settings;
mod tail;
mod thread;
mod topics;
mod transaction;

pub use classify::Verdict;
pub use republish::Republisher;
pub use settings::{Kafka, KafkaSetupError};
pub use thread::{CursorPlace, ShardProducer};
pub use topics::{TopicMismatch, TopicReport, TopicWanted, ensure_topics, largest_batches};
pub use transaction::{Record, TransactionFailure};

/// Why Kafka did not do what was asked. The text is for the log; it holds no credential and nothing of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kafka: {text}")]
pub struct KafkaFailure {
    /// What to do about it.
    pub verdict: Verdict,
    /// What was tried, and what came of it.
    pub text: String,
}
