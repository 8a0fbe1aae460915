//! A shard's cursor as it stands in Kafka: JSON, version 1, one record for each transaction.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Shard;
use super::lanes::{Cursor, OrderedKey, Released};
use crate::primitives::events::Position;

const VERSION: u32 = 1;

/// `{"v":1,"shards":4,"epoch":"…","position":17,"mark":"…","seqs":{"leads":{"3":9}}}`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    v: u32,
    shards: u16,
    epoch: Uuid,
    position: i64,
    mark: Option<Uuid>,
    /// By topic, then lane.
    seqs: BTreeMap<Box<str>, BTreeMap<u16, u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<KeptRelease>,
}

/// `{"order":7,"topic":"leads","tenant":"…","key":"…","positions":[17,19]}`.
#[derive(Debug, Serialize, Deserialize)]
struct KeptRelease {
    order: i64,
    topic: Box<str>,
    tenant: Uuid,
    key: Box<str>,
    positions: Vec<i64>,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// Why a cursor in Kafka cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It is none of ours, or damaged.
    #[error("the cursor in Kafka cannot be read: {0}")]
    Malformed(String),
    /// A later release wrote it.
    #[error("the cursor in Kafka has version {0}, and this release reads {VERSION}: start the later release")]
    Version(u32),
    /// Lanes were grouped otherwise.
    #[error(
        "the cursor in Kafka is of {cursor} shards, and {configured} are configured: their number cannot change"
    )]
    Shards {
        /// When it was written.
        cursor: u16,
        /// Now.
        configured: u16,
    },
}

/// The record's value.
pub(super) fn encode(cursor: &Cursor, shard: Shard) -> Result<Vec<u8>, serde_json::Error> {
    let mut seqs: BTreeMap<Box<str>, BTreeMap<u16, u64>> = BTreeMap::new();
    for ((topic, lane), seq) in &cursor.seqs {
        seqs.entry(topic.clone()).or_default().insert(*lane, *seq);
    }
    serde_json::to_vec(&Kept {
        v: VERSION,
        shards: shard.count(),
        epoch: cursor.epoch,
        position: cursor.position.number(),
        mark: cursor.mark,
        seqs,
        released: cursor.released.as_ref().map(|released| KeptRelease {
            order: released.order,
            topic: released.key.topic.clone(),
            tenant: released.key.tenant,
            key: released.key.key.clone(),
            positions: released.positions.iter().map(|position| position.number()).collect(),
        }),
    })
}

/// The cursor of a record's value.
pub(super) fn decode(value: &[u8], shard: Shard) -> Result<Cursor, CursorError> {
    let malformed = |error: serde_json::Error| CursorError::Malformed(error.to_string());
    // The version first: a later one may look otherwise.
    let version: Version = serde_json::from_slice(value).map_err(malformed)?;
    if version.v != VERSION {
        return Err(CursorError::Version(version.v));
    }
    let kept: Kept = serde_json::from_slice(value).map_err(malformed)?;
    if kept.shards != shard.count() {
        return Err(CursorError::Shards { cursor: kept.shards, configured: shard.count() });
    }
    let lanes = |(topic, lanes): (Box<str>, BTreeMap<u16, u64>)| {
        lanes.into_iter().map(move |(lane, seq)| ((topic.clone(), lane), seq))
    };
    Ok(Cursor {
        epoch: kept.epoch,
        position: Position::new(kept.position),
        mark: kept.mark,
        seqs: kept.seqs.into_iter().flat_map(lanes).collect(),
        released: kept.released.map(|released| Released {
            order: released.order,
            key: OrderedKey { topic: released.topic, tenant: released.tenant, key: released.key },
            positions: released.positions.into_iter().map(Position::new).collect(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was_and_a_foreign_one_is_refused() {
        let shard = Shard::new(3, 4);
        let cursor = Cursor {
            epoch: Uuid::from_u128(5),
            position: Position::new(i64::MAX),
            mark: Some(Uuid::from_u128(6)),
            seqs: BTreeMap::from([
                (("leads".into(), 3), 9),
                (("leads".into(), 7), 1),
                (("sla".into(), 3), 2),
            ]),
            released: Some(Released {
                order: 4,
                key: OrderedKey { topic: "leads".into(), tenant: Uuid::from_u128(8), key: "k".into() },
                positions: vec![Position::new(3), Position::new(9)],
            }),
        };
        let value = encode(&cursor, shard).unwrap();
        assert_eq!(decode(&value, shard), Ok(cursor));
        let other = Err(CursorError::Shards { cursor: 4, configured: 8 });
        assert_eq!(decode(&value, Shard::new(3, 8)), other);
        assert_eq!(decode(br#"{"v":2,"lanes":[]}"#, shard), Err(CursorError::Version(2)));
        for wrong in [&b"{}"[..], b"", br#"{"v":1}"#] {
            assert!(matches!(decode(wrong, shard), Err(CursorError::Malformed(_))));
        }
    }
}
