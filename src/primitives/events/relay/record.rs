//! An event as a Kafka record: CloudEvents' binary mode (Kafka protocol binding 1.0.2, section 3.2).

use bytes::Bytes;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Row;
use super::lanes::Numbered;
use crate::names::MAX_NAME_BYTES;
use crate::pools::kafka::Record;
use crate::primitives::events::groups::DeadReason;
use crate::primitives::events::{Data, Event};

/// The header with the event's number in its lane.
const SEQ: &str = "outrigger-seq";
/// The header of an event that an operator had sent again.
const REPLAY: &str = "outrigger-replay";

/// The record: topic `<prefix>.<topic>`, the lane's partition, key `<tenant>/<key>`, the payload as it came (null where
/// there is none), the attributes as headers. Its time is Kafka's own, so that retention counts from its arrival there;
/// `ce_time` has the event's. The error is the reason for the log.
pub(super) fn record(prefix: &str, send: &Numbered) -> Result<Record, String> {
    written(prefix, &send.row, (SEQ, Bytes::from(send.seq.to_string())))
}

/// The record of an event that is sent again: without a number in its lane, and marked.
pub(super) fn replayed(prefix: &str, row: &Row) -> Result<Record, String> {
    written(prefix, row, (REPLAY, Bytes::from_static(b"true")))
}

fn written(prefix: &str, row: &Row, more: (&str, Bytes)) -> Result<Record, String> {
    Ok(Record {
        topic: format!("{prefix}.{}", row.topic),
        partition: i32::from(row.lane),
        key: format!("{}/{}", row.event.tenant, row.event.key).into_bytes(),
        value: value(&row.event.data),
        headers: headers(&row.event.attributes, &row.event.data, more)?,
    })
}

/// What a record batch has beside its records (Kafka's message format 2).
const BATCH_OVERHEAD: usize = 61;

/// How large an event's record batch is at the most, in bytes, with nothing else in it and not compressed: what a broker
/// compares with `max.message.bytes`. None where its attributes are none.
pub(in super::super) fn batch_bytes(event: &Event, tenant: Uuid) -> Option<usize> {
    batch_bytes_with(event, tenant, &[])
}

/// The same of the dead letter that a group makes of it whose name is the longest.
pub(in super::super) fn letter_batch_bytes(event: &Event, tenant: Uuid) -> Option<usize> {
    let reason = DeadReason::Expired.as_str().len().max(DeadReason::Nacked.as_str().len());
    batch_bytes_with(event, tenant, &[("ce_dlqgroup".len(), MAX_NAME_BYTES), ("ce_dlqreason".len(), reason)])
}

/// With more headers, whose names and values have so many bytes.
fn batch_bytes_with(event: &Event, tenant: Uuid, more: &[(usize, usize)]) -> Option<usize> {
    let headers = headers(&event.attributes, &event.data, (SEQ, Bytes::from(u64::MAX.to_string()))).ok()?;
    let lengths = headers.iter().map(|(name, value)| (name.len(), value.len())).chain(more.iter().copied());
    let field = |bytes: usize| varint_bytes(bytes) + bytes;
    // A byte of attributes, and the distances from the batch's time and offset, which are 0.
    let mut mostly = 3;
    mostly += field(tenant.hyphenated().to_string().len() + 1 + event.key.len());
    mostly += field(event.data.bytes().len());
    mostly += varint_bytes(headers.len() + more.len());
    mostly += lengths.map(|(name, value)| field(name) + field(value)).sum::<usize>();
    Some(BATCH_OVERHEAD + field(mostly))
}

/// Of a signed number that is not below 0.
fn varint_bytes(number: usize) -> usize {
    let bits = usize::BITS - (number << 1).leading_zeros();
    usize::try_from(bits.max(1).div_ceil(7)).unwrap_or(usize::MAX)
}

fn value(data: &Data) -> Option<Bytes> {
    match data {
        Data::None => None,
        Data::Json(bytes) | Data::Text(bytes) | Data::Binary(bytes) => Some(bytes.clone()),
    }
}

fn headers(attributes: &[u8], data: &Data, more: (&str, Bytes)) -> Result<Vec<(String, Bytes)>, String> {
    let attributes: Map<String, Value> =
        serde_json::from_slice(attributes).map_err(|error| format!("attributes: {error}"))?;
    let mut headers = Vec::with_capacity(attributes.len() + 2);
    let mut has_content_type = false;
    for (name, value) in attributes {
        let text = match value {
            Value::String(text) => text,
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Null => continue,
            Value::Array(_) | Value::Object(_) => {
                return Err(format!("attributes: {name} is neither text, number nor boolean"));
            }
        };
        let is_content_type = name == "datacontenttype";
        has_content_type |= is_content_type;
        let name = if is_content_type { "content-type".to_owned() } else { format!("ce_{name}") };
        headers.push((name, Bytes::from(text)));
    }
    if !has_content_type && matches!(data, Data::Json(_)) {
        headers.push(("content-type".to_owned(), Bytes::from_static(b"application/json")));
    }
    headers.push((more.0.to_owned(), more.1));
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitives::events::relay::rows::row;

    fn numbered(attributes: &'static [u8], data: Data) -> Numbered {
        let mut row = row(7, 3, "order/4");
        row.event.attributes = Bytes::from_static(attributes);
        row.event.data = data;
        Numbered { row, seq: 12 }
    }

    fn shown(record: &Record) -> Vec<(&str, &str)> {
        record.headers.iter().map(|(name, value)| (&**name, std::str::from_utf8(value).unwrap())).collect()
    }

    #[test]
    fn attributes_are_headers_and_the_payload_is_the_value() {
        let attributes =
            br#"{"specversion":"1.0","id":"a","datacontenttype":"text/plain","rank":3,"hot":true}"#;
        let made =
            record("outrigger", &numbered(attributes, Data::Text(Bytes::from_static(b"hello")))).unwrap();
        assert_eq!((&*made.topic, made.partition), ("outrigger.t", 3));
        assert_eq!(made.key, b"00000000-0000-0000-0000-000000000000/order/4");
        assert_eq!(made.value.as_deref(), Some(&b"hello"[..]));
        let mut headers = shown(&made);
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("ce_hot", "true"),
                ("ce_id", "a"),
                ("ce_rank", "3"),
                ("ce_specversion", "1.0"),
                ("content-type", "text/plain"),
                ("outrigger-seq", "12"),
            ]
        );
    }

    #[test]
    fn a_batch_is_as_large_as_kafka_s_format_says() {
        let event = Event {
            id: "a".into(),
            source: "/".into(),
            kind: "k".into(),
            key: "k".into(),
            id_is_ours: false,
            attributes: Bytes::from_static(br#"{"id":"a"}"#),
            data: Data::Text(Bytes::from_static(b"abc")),
        };
        // The record: 3, key 1 + 38, value 1 + 3, one byte for the number of headers, `ce_id` 1 + 5 + 1 + 1, and
        // `outrigger-seq` 1 + 13 + 1 + 20. Its length takes 2, the batch 61.
        assert_eq!(batch_bytes(&event, Uuid::nil()), Some(61 + 2 + 3 + 39 + 4 + 1 + 8 + 35));
        // `ce_dlqgroup` 1 + 11 + 2 + 64, `ce_dlqreason` 1 + 12 + 1 + 7.
        assert_eq!(letter_batch_bytes(&event, Uuid::nil()), Some(61 + 2 + 3 + 39 + 4 + 1 + 8 + 35 + 78 + 21));
        let large = Event { data: Data::Text(vec![b'x'; 10_000].into()), ..event };
        assert_eq!(batch_bytes(&large, Uuid::nil()), Some(61 + 3 + 3 + 39 + 10_003 + 1 + 8 + 35));
    }

    #[test]
    fn no_payload_is_null_and_json_says_what_it_is() {
        let none = record("o", &numbered(b"{}", Data::None)).unwrap();
        assert_eq!((none.value.clone(), shown(&none)), (None, vec![("outrigger-seq", "12")]));
        let json = record("o", &numbered(b"{}", Data::Json(Bytes::from_static(b"1")))).unwrap();
        assert_eq!(shown(&json)[0], ("content-type", "application/json"));
    }

    #[test]
    fn attributes_that_are_none_are_refused() {
        for wrong in [&b"[]"[..], b"{", br#"{"id":{}}"#] {
            assert!(record("o", &numbered(wrong, Data::None)).is_err());
        }
    }
}
