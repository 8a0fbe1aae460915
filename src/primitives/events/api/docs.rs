//! What OpenAPI says about the routes.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::groups::{AckRequest, ExtendRequest, NackRequest, PullRequest, SeekRequest, SettleReply};
use super::publish::PublishReply;
use crate::http::{Content, Docs, Parameter, ReplyDocs, ndjson, sse};

const fn json<T: JsonSchema>() -> Content {
    Content { media_type: "application/json", schema: Some(|generator| generator.subschema_for::<T>()) }
}

/// The JSON form of an event (CloudEvents 1.0.2).
fn cloud_event(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "description": "A CloudEvent 1.0 in the JSON format, with its extensions.",
        "required": ["specversion", "id", "source", "type", "tenantid"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string"},
            "source": {"type": "string"},
            "type": {"type": "string"},
            "subject": {"type": "string"},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"type": "string"},
            "partitionkey": {"type": "string"},
            "tenantid": {"type": "string", "format": "uuid"},
            "cursor": {"type": "string"},
            "data": true,
            "data_base64": {"type": "string"}
        }
    })
}

fn deliveries(generator: &mut SchemaGenerator) -> Schema {
    let event = cloud_event(generator);
    json_schema!({
        "type": "object",
        "required": ["deliveries"],
        "properties": {"deliveries": {"type": "array", "items": {
            "type": "object",
            "required": ["receipt", "attempt", "event"],
            "properties": {
                "receipt": {"type": "string", "description": "What acks, nacks and extends this delivery."},
                "attempt": {"type": "integer", "description": "1, and 1 more for each failure of this event."},
                "event": event
            }
        }}}
    })
}

fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!(true)
}

pub(super) const PUBLISH: Docs = Docs {
    summary: "Appends events: plain JSON (the body is `data`), one CloudEvent or a batch of up to the topic's `max_batch` in \
              the JSON format (`application/cloudevents+json`, `application/cloudevents-batch+json`), or one in binary mode (`ce-*` \
              headers). All are kept, or none.",
    query: &[Parameter {
        name: "type",
        meaning: "The type of a plain JSON event; without it the topic's name.",
        kind: "string",
    }],
    headers: &[Parameter {
        name: "Idempotency-Key",
        meaning: "The id of a plain JSON event, 1 to 255 characters.",
        kind: "string",
    }],
    request: Some(Content { media_type: "application/json", schema: Some(any_json) }),
    replies: &[ReplyDocs {
        status: 202,
        meaning: "They are durable, and can be read.",
        content: Some(json::<PublishReply>()),
    }],
    // Faster than its tenant may, or more than it may keep.
    problems: &[429],
};

pub(super) const READ: Docs = Docs {
    summary: "Reads a topic in order: as NDJSON up to its head, or on and on with `follow=true`; as server-sent events on and on.",
    query: &[
        Parameter {
            name: "from",
            meaning: "`earliest` (without it, for NDJSON), `latest` (for server-sent events), an RFC 3339 time, or an event's cursor, \
                      after which the read goes on.",
            kind: "string",
        },
        Parameter {
            name: "type",
            meaning: "Only events of this type, or of these, with commas between; 32 at the most.",
            kind: "string",
        },
        Parameter { name: "follow", meaning: "Whether NDJSON goes on at the head.", kind: "boolean" },
    ],
    headers: &[Parameter {
        name: "Last-Event-ID",
        meaning: "The `id` of the last server-sent event received: the read goes on after it, whatever `from` says.",
        kind: "string",
    }],
    request: None,
    replies: &[
        ReplyDocs {
            status: 200,
            meaning: "Events, each with the extension `cursor`; an empty line is a heartbeat.",
            content: Some(Content { media_type: ndjson::MEDIA_TYPE, schema: Some(cloud_event) }),
        },
        ReplyDocs {
            status: 200,
            meaning: "Events; `id` is the cursor.",
            content: Some(Content { media_type: sse::MEDIA_TYPE, schema: Some(cloud_event) }),
        },
    ],
    problems: &[],
};

const fn of_group(summary: &'static str, request: Content, replies: &'static [ReplyDocs]) -> Docs {
    Docs { summary, query: &[], headers: &[], request: Some(request), replies, problems: &[] }
}

/// A call that begins the group where there is none: 429 where its tenant has as many of the topic as policy allows.
const fn begins_group(docs: Docs) -> Docs {
    Docs { problems: &[429], ..docs }
}

const SETTLED: &[ReplyDocs] = &[ReplyDocs {
    status: 200,
    meaning: "How many receipts were good, and which were not.",
    content: Some(json::<SettleReply>()),
}];

pub(super) const PULL: Docs = begins_group(of_group(
    "Leases the next events to a consumer of a group. While one of a key is leased or delayed, no later one of that key is \
     delivered outside the same pull.",
    json::<PullRequest>(),
    &[ReplyDocs {
        status: 200,
        meaning: "What may be worked on now, in order; nothing where there is nothing.",
        content: Some(Content { media_type: "application/json", schema: Some(deliveries) }),
    }],
));
pub(super) const ACK: Docs = of_group("Says that deliveries are done.", json::<AckRequest>(), SETTLED);
pub(super) const NACK: Docs = of_group(
    "Gives deliveries back, to be delivered again after `delay_ms`. After the policy's attempts an event goes to `{topic}.dlq`.",
    json::<NackRequest>(),
    SETTLED,
);
pub(super) const EXTEND: Docs =
    of_group("Makes leases end `lease_ms` from now, and never earlier.", json::<ExtendRequest>(), SETTLED);
pub(super) const SEEK: Docs = begins_group(of_group(
    "Moves a group: what comes after the place is delivered next, and every receipt is void.",
    json::<SeekRequest>(),
    &[ReplyDocs { status: 204, meaning: "Done.", content: None }],
));
