//! Records that are sent again by an operator: in transactions that no cursor belongs to.

use std::sync::Arc;

use super::transaction::{Record, TransactionFailure, Transactions};
use super::{Kafka, KafkaFailure, Verdict};

/// A producer for one command.
pub struct Republisher {
    transactions: Transactions,
}

impl Republisher {
    /// Connects, and fences whoever had the id before: two commands do not send at the same time.
    pub async fn start(kafka: Arc<Kafka>, transactional_id: String) -> Result<Self, KafkaFailure> {
        let started = tokio::task::spawn_blocking(move || Transactions::take_over(&kafka, &transactional_id));
        let transactions = started.await.map_err(|error| ended(&error))??;
        Ok(Self { transactions })
    }

    /// Commits the records, in this order, or none of them.
    pub async fn send(self, records: Vec<Record>) -> Result<Self, TransactionFailure> {
        let sent = tokio::task::spawn_blocking(move || {
            self.transactions.deliver(&records, None)?;
            Ok(self)
        });
        sent.await.map_err(|error| TransactionFailure::Unknown(ended(&error)))?
    }
}

fn ended(error: &tokio::task::JoinError) -> KafkaFailure {
    KafkaFailure { verdict: Verdict::Again, text: format!("the producer's thread has ended: {error}") }
}
