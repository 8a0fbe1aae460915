//! Every refusal, and that what was read is what is written.

mod forms;
mod properties;
mod refusals;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use uuid::Uuid;

use super::{Context, EventError, read, write_structured};
use crate::primitives::events::Event;

const TENANT: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";
const STRUCTURED: &[(&str, &str)] = &[("content-type", "application/cloudevents+json")];
const BATCH: &[(&str, &str)] = &[("content-type", "application/cloudevents-batch+json; charset=UTF-8")];
const PLAIN: &[(&str, &str)] = &[("content-type", "application/json")];

fn context() -> Context<'static> {
    Context {
        tenant: Uuid::parse_str(TENANT).unwrap(),
        topic: "leads",
        max_event_bytes: 4096,
        max_batch: 3,
        broker: None,
        broker_of_letters: None,
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn given(pairs: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Vec<Event>, EventError> {
    read(&headers(pairs), None, None, &body.into(), &context())
}

/// The event of a structured request.
fn structured(body: impl Into<Bytes>) -> Event {
    given(STRUCTURED, body).unwrap().pop().unwrap()
}

fn written(event: &Event, extensions: &[(&str, &str)]) -> String {
    let mut out = Vec::new();
    write_structured(&mut out, &event.attributes, &event.data, extensions);
    String::from_utf8(out).unwrap()
}

fn value(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).unwrap()
}
