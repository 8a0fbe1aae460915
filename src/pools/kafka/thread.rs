//! A shard's producer on a thread of its own: what it does blocks.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::tail::last_committed;
use super::transaction::{Record, TransactionFailure, Transactions};
use super::{Kafka, KafkaFailure, Verdict};

/// Where a shard's cursor is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorPlace {
    /// The compacted topic.
    pub topic: String,
    /// The shard's own partition: nobody else writes there.
    pub partition: i32,
    /// The record's key.
    pub key: Vec<u8>,
}

/// A producer for one transactional id. Dropping it ends its thread after what that one is at.
#[derive(Debug)]
pub struct ShardProducer {
    commands: mpsc::Sender<Command>,
}

#[derive(Debug)]
enum Command {
    TakeOver(oneshot::Sender<Result<Option<Vec<u8>>, KafkaFailure>>),
    Deliver(Vec<Record>, Record, oneshot::Sender<Result<(), TransactionFailure>>),
}

impl ShardProducer {
    /// Starts the thread, which connects at the first takeover.
    pub fn start(
        kafka: Arc<Kafka>,
        transactional_id: String,
        cursor: CursorPlace,
    ) -> Result<Self, std::io::Error> {
        let (commands, mut received) = mpsc::channel(1);
        let thread = std::thread::Builder::new().name(format!("kafka-{}", cursor.partition));
        thread.spawn(move || {
            let mut transactions = None;
            while let Some(command) = received.blocking_recv() {
                run(command, &mut transactions, &kafka, &transactional_id, &cursor);
            }
        })?;
        Ok(Self { commands })
    }

    /// Fences whoever wrote under this id, and then reads the last cursor that was committed before that: none where
    /// there never was one. The producer before is given up.
    pub async fn take_over(&self) -> Result<Option<Vec<u8>>, KafkaFailure> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::TakeOver(reply)).await;
        if sent.is_err() {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Commits the records, in this order, with the cursor.
    pub async fn deliver(&self, records: Vec<Record>, cursor: Record) -> Result<(), TransactionFailure> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Deliver(records, cursor, reply)).await;
        if sent.is_err() {
            return Err(TransactionFailure::Unknown(gone()));
        }
        answer.await.unwrap_or_else(|_| Err(TransactionFailure::Unknown(gone())))
    }
}

fn run(
    command: Command,
    transactions: &mut Option<Transactions>,
    kafka: &Kafka,
    id: &str,
    cursor: &CursorPlace,
) {
    // Where nobody waits for an answer any more, its lease is gone; Kafka's fencing has decided what counts.
    match command {
        Command::TakeOver(reply) => {
            *transactions = None;
            let taken = Transactions::take_over(kafka, id).and_then(|taken| {
                let probe = probe(cursor);
                taken.deliver(&[], Some(&probe)).map_err(TransactionFailure::into_failure)?;
                let value = last_committed(kafka, &cursor.key, &probe)?;
                *transactions = Some(taken);
                Ok(value)
            });
            reply.send(taken).unwrap_or_else(|_| tracing::debug!(id, "nobody waits for the takeover"));
        }
        Command::Deliver(records, cursor, reply) => {
            let delivered = match transactions {
                Some(transactions) => transactions.deliver(&records, Some(&cursor)),
                None => Err(TransactionFailure::Unknown(KafkaFailure {
                    verdict: Verdict::Again,
                    text: "the shard was not taken over".to_owned(),
                })),
            };
            if matches!(delivered, Err(TransactionFailure::Unknown(_))) {
                *transactions = None;
            }
            reply.send(delivered).unwrap_or_else(|_| tracing::debug!(id, "nobody waits for the delivery"));
        }
    }
}

/// A record that no other takeover writes; compaction keeps the last one of them beside the cursor.
fn probe(cursor: &CursorPlace) -> Record {
    Record {
        topic: cursor.topic.clone(),
        partition: cursor.partition,
        key: [&cursor.key[..], b"-taken-over"].concat(),
        value: Some(Uuid::now_v7().to_string().into()),
        headers: Vec::new(),
    }
}

fn gone() -> KafkaFailure {
    KafkaFailure { verdict: Verdict::Again, text: "the producer's thread has ended".to_owned() }
}
