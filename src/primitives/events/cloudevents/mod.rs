//! CloudEvents 1.0.2 to [`Event`]s and back: the four forms that a request can have. Pure but for the clock that a plain
//! event's `time` and id are from.

mod attributes;
mod binary;
mod error;
mod json;
mod media;
mod plain;
#[cfg(test)]
mod tests;
mod values;
mod write;

pub use error::EventError;
pub use write::{AttributesError, kafka_headers, write_structured};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use uuid::Uuid;

use super::Event;
use media::{Media, essence};

/// Extensions of events that Outrigger gives, and takes from nobody.
const RESERVED: [&str; 3] = ["cursor", "dlqgroup", "dlqreason"];

const FORMS: &str = "send `application/cloudevents+json`, `application/cloudevents-batch+json`, `ce-*` headers with a body of any type, or `application/json`";

/// For whom and for which topic a request is read.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Whose the events are.
    pub tenant: Uuid,
    /// The topic's name.
    pub topic: &'a str,
    /// The largest event, as [`Event::bytes`] counts.
    pub max_event_bytes: usize,
    /// The most events in a batch.
    pub max_batch: usize,
    /// What the brokers take, where the topic is relayed.
    pub broker: Option<BrokerBound<'a>>,
    /// The same of the topic's dead letters: an event that its consumers give up goes there, with more headers.
    pub broker_of_letters: Option<BrokerBound<'a>>,
}

/// What Kafka takes in a topic.
#[derive(Debug, Clone, Copy)]
pub struct BrokerBound<'a> {
    /// The topic's name in Kafka.
    pub kafka_topic: &'a str,
    /// Its `max.message.bytes`.
    pub max_message_bytes: usize,
}

/// Reads the events of a request, one or a batch, or says everything that is wrong with them.
///
/// The body's media type decides: the JSON format, its batches, else binary mode where there is any `ce-*` header, else
/// plain JSON. `query_type` (`?type=`) and `idempotency_key` are plain JSON's only, and refused with another form.
pub fn read(
    headers: &HeaderMap,
    query_type: Option<&str>,
    idempotency_key: Option<&str>,
    body: &Bytes,
    context: &Context<'_>,
) -> Result<Vec<Event>, EventError> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity") {
        return Err(EventError::UnsupportedMediaType("send the body as it is, without `Content-Encoding`"));
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let content_type = types.next().map(|value| value.to_str().unwrap_or_default()).unwrap_or_default();
    if types.next().is_some() {
        return Err(EventError::Malformed("`Content-Type` is there twice: send it once".to_owned()));
    }
    let essence = essence(content_type);
    let is_plain = essence == "application/json" && !binary::is_meant(headers);
    if !is_plain && idempotency_key.is_some() {
        return Err(EventError::IdempotencyNotSupported);
    }
    if !is_plain && query_type.is_some() {
        let mut wrong = error::Wrong::default();
        wrong.invalid(
            "?type".to_owned(),
            "left out: it names the type of plain JSON, and a CloudEvent has its own",
        );
        return wrong.into_result(Vec::new());
    }
    let is_json = is_plain || essence.starts_with("application/cloudevents");
    if is_json && !Media::parse(content_type).is_some_and(|media| media.utf8) {
        return Err(EventError::UnsupportedMediaType(
            "send JSON in UTF-8, and a media type that says so or nothing",
        ));
    }
    match essence.as_str() {
        "application/cloudevents+json" => json::structured(body, context),
        "application/cloudevents-batch+json" => json::batch(body, context),
        _ if is_plain => plain::plain(query_type, idempotency_key, body, context),
        _ if !is_json && binary::is_meant(headers) => binary::binary(headers, body, context),
        _ => Err(EventError::UnsupportedMediaType(FORMS)),
    }
}

fn text_of(body: &Bytes) -> Result<&str, EventError> {
    std::str::from_utf8(body)
        .map_err(|error| EventError::Malformed(format!("the body is not UTF-8: {error}")))
}

fn malformed(error: &serde_json::Error) -> EventError {
    EventError::Malformed(format!("the body is not JSON: {error}"))
}
