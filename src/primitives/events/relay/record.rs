//! An event as a Kafka record: CloudEvents' binary mode (Kafka protocol binding 1.0.2, section 3.2).

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Row;
use super::lanes::Numbered;
use crate::pools::kafka::Record;
use crate::primitives::events::Data;

/// The header with the event's number in its lane.
const SEQ: &str = "outrigger-seq";

/// The record: topic `<prefix>.<topic>`, the lane's partition, key `<tenant>/<key>`, the payload as it came (null where
/// there is none), the attributes as headers. Its time is Kafka's own, so that retention counts from its arrival there;
/// `ce_time` has the event's. The error is the reason for the log.
pub(super) fn record(prefix: &str, send: &Numbered) -> Result<Record, String> {
    let row = &send.row;
    Ok(Record {
        topic: format!("{prefix}.{}", row.topic),
        partition: i32::from(row.lane),
        key: format!("{}/{}", row.event.tenant, row.event.key).into_bytes(),
        value: value(&row.event.data),
        headers: headers(row, send.seq)?,
    })
}

fn value(data: &Data) -> Option<Bytes> {
    match data {
        Data::None => None,
        Data::Json(bytes) | Data::Text(bytes) | Data::Binary(bytes) => Some(bytes.clone()),
    }
}

fn headers(row: &Row, seq: u64) -> Result<Vec<(String, Bytes)>, String> {
    let attributes: Map<String, Value> =
        serde_json::from_slice(&row.event.attributes).map_err(|error| format!("attributes: {error}"))?;
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
    if !has_content_type && matches!(row.event.data, Data::Json(_)) {
        headers.push(("content-type".to_owned(), Bytes::from_static(b"application/json")));
    }
    headers.push((SEQ.to_owned(), Bytes::from(seq.to_string())));
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
