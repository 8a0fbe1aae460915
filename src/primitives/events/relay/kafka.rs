//! A shard's way into Kafka: names, the transaction, the cursor in it.

use std::sync::Arc;

use bytes::Bytes;

use super::Shard;
use super::cursor::{CursorError, decode, encode};
use super::lanes::Cursor;
use crate::pools::kafka::{
    CursorPlace, Kafka, KafkaFailure, Record, ShardProducer, TopicWanted, TransactionFailure, Verdict,
};

/// No topic of events may have this name: it is the cursors'.
pub const RESERVED_TOPIC: &str = "cursors";

/// The topics that the relay needs: one for each of the policies' with its lanes, and the cursors' with a partition for
/// each shard, so that a shard's cursor is never behind another one's open transaction.
#[must_use]
pub fn topics(kafka: &Kafka, topics: &[(&str, u16)], shards: u16) -> Vec<TopicWanted> {
    let prefix = &kafka.config().prefix;
    let wanted = |(name, partitions, is_compacted): (&str, u16, bool)| TopicWanted {
        name: format!("{prefix}.{name}"),
        partitions,
        is_compacted,
    };
    let events = topics.iter().map(|(name, lanes)| (*name, *lanes, false));
    events.chain([(RESERVED_TOPIC, shards, true)]).map(wanted).collect()
}

/// A shard's producer, and what its records are called.
pub(super) struct Egress {
    producer: ShardProducer,
    place: CursorPlace,
    shard: Shard,
}

/// Why a shard was not taken over.
#[derive(Debug)]
pub(super) enum TakeoverError {
    Kafka(KafkaFailure),
    Cursor(CursorError),
}

impl Egress {
    pub(super) fn start(kafka: Arc<Kafka>, shard: Shard) -> Result<Self, std::io::Error> {
        let prefix = kafka.config().prefix.clone();
        let place = CursorPlace {
            topic: format!("{prefix}.{RESERVED_TOPIC}"),
            partition: i32::from(shard.number()),
            key: shard.number().to_string().into_bytes(),
        };
        let id = format!("{prefix}.relay.{}", shard.number());
        let producer = ShardProducer::start(kafka, id, place.clone())?;
        Ok(Self { producer, place, shard })
    }

    /// Fences the predecessor, then reads the committed cursor.
    pub(super) async fn take_over(&self) -> Result<Option<Cursor>, TakeoverError> {
        let value = self.producer.take_over().await.map_err(TakeoverError::Kafka)?;
        let cursor = value.map(|value| decode(&value, self.shard)).transpose();
        cursor.map_err(TakeoverError::Cursor)
    }

    /// Commits the records and the cursor, or none of them.
    pub(super) async fn deliver(
        &self,
        records: Vec<Record>,
        cursor: &Cursor,
    ) -> Result<(), TransactionFailure> {
        let value = encode(cursor, self.shard).map_err(|error| {
            let text = format!("defect: the cursor cannot be written: {error}");
            TransactionFailure::Unknown(KafkaFailure { verdict: Verdict::Fatal, text })
        })?;
        let cursor = Record {
            topic: self.place.topic.clone(),
            partition: self.place.partition,
            key: self.place.key.clone(),
            value: Some(Bytes::from(value)),
            headers: Vec::new(),
        };
        self.producer.deliver(records, cursor).await
    }
}
