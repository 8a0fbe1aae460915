//! `POST /v1/events/{topic}`.

use std::sync::Arc;

use http::{HeaderName, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{ANSWER, Api, no_such_topic};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::primitives::events::broker_limits::BrokerLimit;
use crate::primitives::events::cloudevents::{self, Context, EventError};
use crate::primitives::events::{Batch, EventsPolicy, PUBLISH};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Of a whole body, in bytes: a batch may have many events, and each has its own bound.
pub(super) const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// What became of the events.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PublishReply {
    /// Events that are in the log now, and were not before.
    accepted: usize,
    /// Events that were there already: the same `source` and `id` within the topic's `dedupe_ms`.
    duplicates: usize,
    /// The events' ids, in the order of the request.
    ids: Vec<String>,
}

pub(super) async fn publish(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["type"])?;
    let name = call.name_param("topic")?;
    let permit = call.caller.permit(PUBLISH, &name)?;
    let policy = call.caller.policies().get::<EventsPolicy>();
    let rate = policy.and_then(|policy| policy.rate(&permit)).map(Arc::clone);
    let topic = policy.and_then(|policy| policy.topic(&name)).map(Arc::clone);
    let topic = topic.ok_or_else(|| no_such_topic(&name))?;
    let key = idempotency_key(&call)?;
    let body = call.bytes(MAX_BODY_BYTES).await?;
    let (broker, of_letters) = (api.broker_limits.of(&name), api.broker_limits.of(&topic.dead_letters));
    let context = Context {
        tenant: *permit.tenant().as_uuid(),
        topic: name.as_str(),
        max_event_bytes: topic.max_event_bytes,
        max_batch: topic.max_batch,
        broker: broker.as_deref().map(BrokerLimit::bound),
        broker_of_letters: of_letters.as_deref().map(BrokerLimit::bound),
    };
    let events = cloudevents::read(&call.headers, call.query.text("type"), key.as_deref(), &body, &context)?;
    let batch = Batch::new(&permit, topic, events);
    if let Some(rate) = rate {
        let tenant = *permit.tenant().as_uuid();
        let taken = api.rates.take(tenant, &rate, batch.len() as u64, batch.bytes());
        taken.inspect_err(|_| api.metrics.rate_limited.inc())?;
    }
    let ids = batch.ids().map(str::to_owned).collect();
    let appended = api.publisher.publish(permit, batch).await.map_err(|error| ANSWER.of_group(&error))?;
    let reply = PublishReply { accepted: appended.accepted, duplicates: appended.duplicates, ids };
    Reply::new(StatusCode::ACCEPTED).with_json(&reply)
}

/// `Idempotency-Key`, bare or quoted.
fn idempotency_key(call: &Call) -> Result<Option<String>, Problem> {
    let mut values = call.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let bare =
        text.map(|text| text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text));
    let fits = bare.filter(|key| (1..=255).contains(&key.len()));
    fits.map(|key| Some(key.to_owned())).ok_or_else(|| {
        Problem::new(ErrorKind::Malformed, "a header is wrong")
            .with_field("idempotency-key", "once, 1 to 255 visible characters, bare or quoted")
    })
}

impl From<EventError> for Problem {
    fn from(error: EventError) -> Self {
        error.fields().iter().fold(Self::new(error.kind(), error.to_string()), |problem, field| {
            problem.with_field(field.pointer.clone(), field.detail.clone())
        })
    }
}
