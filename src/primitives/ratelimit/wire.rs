//! The request and the replies as they are on the wire.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::Standing;

/// Checks in one call at the most.
pub(super) const MAX_CHECKS: usize = 16;
/// A request's body at the most: 16 keys of 512 bytes, each escaped as JSON can.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;

/// The request. `S` borrows from the body where its texts have no escapes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckRequest<S> {
    pub(super) checks: Vec<CheckItem<S>>,
}

/// One check of the request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckItem<S> {
    pub(super) limit: S,
    pub(super) key: S,
    #[serde(default = "one")]
    pub(super) cost: u64,
}

fn one() -> u64 {
    1
}

impl<S> JsonSchema for CheckRequest<S> {
    fn schema_name() -> Cow<'static, str> {
        "RateLimitCheck".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["checks"],
            "additionalProperties": false,
            "properties": {"checks": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_CHECKS,
                "description": "All or nothing. Checks of the same limit and key add up.",
                "items": {
                    "type": "object",
                    "required": ["limit", "key"],
                    "additionalProperties": false,
                    "properties": {
                        "limit": {"type": "string", "pattern": "^[a-z][a-z0-9_.-]{0,63}$"},
                        "key": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 512,
                            "description": "1 to 512 bytes of UTF-8 without control characters.",
                        },
                        "cost": {
                            "type": "integer",
                            "minimum": 0,
                            "default": 1,
                            "description": "How many tokens; 0 looks. At most the limit's burst.",
                        },
                    },
                },
            }},
        })
    }
}

/// The reply where every check passed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RateLimitDecision")]
pub(super) struct CheckReply<'a> {
    /// Always true; a call that is not allowed is a 429.
    pub(super) allowed: bool,
    /// Whether this was decided without the backend, or the limits may not have been held exactly.
    pub(super) degraded: bool,
    /// Each check, in the request's order.
    pub(super) results: Vec<CheckResult<'a>>,
}

/// One check's bucket.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RateLimitResult")]
pub(super) struct CheckResult<'a> {
    /// The limit.
    pub(super) limit: &'a str,
    /// The key.
    pub(super) key: &'a str,
    /// What is left of the burst now.
    pub(super) remaining: u64,
    /// 0, or when the same cost would pass.
    pub(super) retry_after_ms: u64,
    /// When the burst is full again.
    pub(super) reset_ms: u64,
}

impl<'a> CheckResult<'a> {
    pub(super) fn new(limit: &'a str, key: &'a str, standing: &Standing) -> Self {
        let Standing { remaining, retry_after_ms, reset_ms, over: _ } = *standing;
        Self { limit, key, remaining, retry_after_ms, reset_ms }
    }
}

/// The schema of the 429.
pub(super) fn problem_schema(generator: &mut SchemaGenerator) -> Schema {
    let result = generator.subschema_for::<CheckResult<'static>>();
    json_schema!({
        "description": "RFC 9457, of the type `quota-exceeded`.",
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "type": "object",
        "required": ["violated-policies", "results", "degraded"],
        "properties": {
            "violated-policies": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The names of the limits that have not enough left.",
            },
            "results": {"type": "array", "items": result},
            "degraded": {"type": "boolean"},
        },
    })
}
