//! Rows for tests.

use bytes::Bytes;
use uuid::Uuid;

use super::Row;
use crate::primitives::events::{Data, Logged, Position};

pub(super) fn row(position: i64, lane: u16, key: &str) -> Row {
    Row {
        topic: "t".into(),
        lane,
        event: Logged {
            position: Position::new(position),
            accepted_ms: 0,
            tenant: Uuid::nil(),
            key: key.into(),
            kind: "k".into(),
            attributes: Bytes::from_static(b"{}"),
            data: Data::None,
        },
    }
}
