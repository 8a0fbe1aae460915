//! Plain JSON: the body is the data, and the attributes are made here where the request does not say.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::attributes::{Checked, Given};
use super::error::{EventError, Place, Wrong};
use super::{Context, malformed, text_of, values};
use crate::primitives::events::{Data, Event};

/// Reads the event: `id` is the idempotency key, else a UUIDv7; `type` the query's, else the topic's name; `source`
/// the path that it was sent to, so that a key sent again is the same event; `time` now; `datacontenttype` JSON.
pub(super) fn plain(
    query_type: Option<&str>,
    idempotency_key: Option<&str>,
    body: &Bytes,
    context: &Context<'_>,
) -> Result<Vec<Event>, EventError> {
    let value: &RawValue = serde_json::from_str(text_of(body)?).map_err(|error| malformed(&error))?;
    let mut wrong = Wrong::default();
    if let Err(detail) = values::depth(value.get()) {
        wrong.invalid(String::new(), detail);
    }
    let id = idempotency_key.map_or_else(|| Cow::Owned(Uuid::now_v7().to_string()), Cow::Borrowed);
    let kind = query_type.unwrap_or(context.topic);
    let attributes = [
        ("specversion", Cow::Borrowed("1.0")),
        ("id", id),
        ("source", Cow::Owned(source(context.topic))),
        ("type", Cow::Borrowed(kind)),
        ("time", Cow::Owned(format!("{:.3}", Timestamp::now()))),
        ("datacontenttype", Cow::Borrowed("application/json")),
    ];
    let attributes = attributes.map(|(name, text)| (Cow::Borrowed(name), Some(Given::Text(text)))).into();
    let checked = Checked::new(attributes, Place::Plain, context, &mut wrong);
    let data = Data::Json(body.slice_ref(value.get().as_bytes()));
    let event = checked.with(data, idempotency_key.is_none(), context, &mut wrong);
    wrong.into_result(event.into_iter().collect())
}

/// The `source` of a topic's plain events.
fn source(topic: &str) -> String {
    format!("/v1/events/{topic}")
}
