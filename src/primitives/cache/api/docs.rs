//! What OpenAPI says about the routes.

use schemars::JsonSchema;

use super::batch::{BatchGetReply, BatchGetRequest, BatchPutReply, BatchPutRequest};
use super::write::InvalidateRequest;
use crate::http::{Content, Docs, Parameter, ReplyDocs};

const VERSION: Parameter = Parameter {
    name: "version",
    meaning: "The version of the value: 1 to 512 bytes; each version is an entry of its own.",
    kind: "string",
};
const WAIT_MS: Parameter = Parameter {
    name: "wait_ms",
    meaning: "How long to wait for the value that the holder of the fill lease writes, in milliseconds, 0 to 60000.",
    kind: "integer",
};
const TTL_MS: Parameter = Parameter {
    name: "ttl_ms",
    meaning: "The time to live, in milliseconds, from 1 to the namespace's bound.",
    kind: "integer",
};
const IF_MATCH: Parameter = Parameter {
    name: "If-Match",
    meaning: "`*` or entity tags, one of which the value must have.",
    kind: "string",
};
const IF_NONE_MATCH: Parameter = Parameter {
    name: "If-None-Match",
    meaning: "`*` or entity tags, none of which the value may have.",
    kind: "string",
};
const FILL_LEASE: Parameter = Parameter {
    name: "Outrigger-Fill-Lease",
    meaning: "The token of the 404 that asked for the fill.",
    kind: "string",
};
const CACHE_CONTROL: Parameter = Parameter {
    name: "Cache-Control",
    meaning: "`max-age`, in seconds, is the time to live where `ttl_ms` is not given.",
    kind: "string",
};
const BYTES: Content = Content { media_type: "*/*", schema: None };
const NO_CONTENT: ReplyDocs = ReplyDocs { status: 204, meaning: "Done.", content: None };

const fn json<T: JsonSchema>() -> Content {
    Content { media_type: "application/json", schema: Some(|generator| generator.subschema_for::<T>()) }
}

pub(super) const GET: Docs = Docs {
    summary: "Reads a value.",
    query: &[VERSION, WAIT_MS],
    headers: &[IF_MATCH, IF_NONE_MATCH],
    request: None,
    replies: &[
        ReplyDocs {
            status: 200,
            meaning: "The value, as it was written. Headers: `ETag`, `Age` in seconds, `Outrigger-Cache` (`l1`, `l2` or `stale`).",
            content: Some(BYTES),
        },
        ReplyDocs {
            status: 304,
            meaning: "The value is one that `If-None-Match` names. Headers as with 200.",
            content: None,
        },
    ],
    problems: &[412],
};

pub(super) const PUT: Docs = Docs {
    summary: "Writes a value.",
    query: &[VERSION, TTL_MS],
    headers: &[IF_MATCH, IF_NONE_MATCH, CACHE_CONTROL, FILL_LEASE],
    request: Some(BYTES),
    replies: &[ReplyDocs { status: 204, meaning: "It is stored. Header: `ETag`.", content: None }],
    problems: &[409, 412],
};

pub(super) const DELETE: Docs = Docs {
    summary: "Deletes a value and voids its fill lease; with the lease's token gives up that lease only.",
    query: &[VERSION],
    headers: &[FILL_LEASE],
    request: None,
    replies: &[NO_CONTENT],
    problems: &[],
};

pub(super) const BATCH_GET: Docs = Docs {
    summary: "Reads 1 to 100 values; each has its own answer, in the order of asking. Takes no fill lease.",
    query: &[],
    headers: &[],
    request: Some(json::<BatchGetRequest>()),
    replies: &[ReplyDocs {
        status: 200,
        meaning: "An answer for each item.",
        content: Some(json::<BatchGetReply>()),
    }],
    problems: &[],
};

pub(super) const BATCH_PUT: Docs = Docs {
    summary: "Writes 1 to 100 values; each has its own answer, in the order of asking.",
    query: &[],
    headers: &[],
    request: Some(json::<BatchPutRequest>()),
    replies: &[ReplyDocs {
        status: 200,
        meaning: "An answer for each item: some may be stored and others not.",
        content: Some(json::<BatchPutReply>()),
    }],
    problems: &[],
};

pub(super) const INVALIDATE: Docs = Docs {
    summary: "Makes all of the tenant's values in the namespace, or those of one version, misses at once.",
    query: &[],
    headers: &[],
    request: Some(json::<InvalidateRequest>()),
    replies: &[NO_CONTENT],
    problems: &[],
};
