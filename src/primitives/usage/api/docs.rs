//! What OpenAPI says about the routes.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::conflicts::ConflictsReply;
use super::read::{ListReply, ReadReply};
use super::record::RecordReply;
use crate::http::{Content, Docs, Parameter, ReplyDocs};

const fn json<T: JsonSchema>() -> Content {
    Content { media_type: "application/json", schema: Some(|generator| generator.subschema_for::<T>()) }
}

fn records(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["records"],
        "additionalProperties": false,
        "properties": {"records": {"type": "array", "minItems": 1, "maxItems": 10000, "items": {
            "type": "object",
            "required": ["metric", "value", "time", "idempotency_key"],
            "additionalProperties": false,
            "properties": {
                "metric": {"type": "string", "description": "A metric of the usage policy."},
                "value": {
                    "type": ["number", "string"],
                    "description": "At most 38 digits, 9 of them decimals; a number is read from its text."
                },
                "time": {"type": "string", "format": "date-time", "description": "When it was used."},
                "idempotency_key": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 512,
                    "description": "Unique per tenant, metric and UTC day of `time`. One that grows, as a UUID version 7 or a number, is quickest."
                },
                "tags": {"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 256}},
                "metadata": {"type": "object", "description": "Kept with the record; 4096 bytes at the most."},
                "corrects": {
                    "type": "string",
                    "description": "The key of a record that was counted, of the same metric and UTC day, which this one, whose value is negative, takes back in part or as a whole."
                }
            }
        }}}
    })
}

pub(super) const RECORD: Docs = Docs {
    summary: "Counts usage records, each key once: all of them, or none. As JSON, or as NDJSON (`application/x-ndjson`) with a record on \
              each line.",
    query: &[],
    headers: &[],
    request: Some(Content { media_type: "application/json", schema: Some(records) }),
    replies: &[ReplyDocs {
        status: 202,
        meaning: "They are counted and durable; with `ack: spool` in the policy of all of their metrics they are durable, and counted soon.",
        content: Some(json::<RecordReply>()),
    }],
    problems: &[409, 429],
};

pub(super) const LIST: Docs = Docs {
    summary: "Lists the metrics that the caller may read.",
    query: &[],
    headers: &[],
    request: None,
    replies: &[ReplyDocs { status: 200, meaning: "By name.", content: Some(json::<ListReply<'static>>()) }],
    problems: &[],
};

pub(super) const READ: Docs = Docs {
    summary: "Reads exact totals of a metric between two instants, by hours (UTC), days, months or as one; days and months are those of \
              the policy's time zone.",
    query: &[
        Parameter {
            name: "from",
            meaning: "The first instant, RFC 3339: the beginning of a window.",
            kind: "string",
        },
        Parameter {
            name: "to",
            meaning: "The instant after the last, likewise; without it the end of the window that now is in.",
            kind: "string",
        },
        Parameter {
            name: "window",
            meaning: "`hour`, `day`, `month`, or `total` (without it).",
            kind: "string",
        },
        Parameter { name: "group_by", meaning: "A tag that the metric's policy names.", kind: "string" },
        Parameter {
            name: "cursor",
            meaning: "The `next_cursor` of the page before, with all else as it was.",
            kind: "string",
        },
    ],
    headers: &[],
    request: None,
    replies: &[ReplyDocs {
        status: 200,
        meaning: "10,000 points at the most, and where the next page begins if there is one.",
        content: Some(json::<ReadReply<'static>>()),
    }],
    problems: &[],
};

pub(super) const CONFLICTS: Docs = Docs {
    summary: "Lists records that were accepted with `ack: spool` and not counted, since their keys are others', as they were found; of any \
              name that the caller may read, also of a metric that the policy no longer names.",
    query: &[
        Parameter {
            name: "from",
            meaning: "Those that were found from this instant on, RFC 3339.",
            kind: "string",
        },
        Parameter { name: "cursor", meaning: "The `next_cursor` of the page before.", kind: "string" },
    ],
    headers: &[],
    request: None,
    replies: &[ReplyDocs {
        status: 200,
        meaning: "1,000 at the most, and where the next page begins if there may be one.",
        content: Some(json::<ConflictsReply<'static>>()),
    }],
    problems: &[],
};
