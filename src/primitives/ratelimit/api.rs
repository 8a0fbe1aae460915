//! `POST /v1/ratelimit/check`.

use std::sync::Arc;

use http::Method;
use http::header::{HeaderName, HeaderValue};
use serde_json::json;
use smallvec::SmallVec;

use super::metrics::RateLimitMetrics;
use super::wire::{
    CheckItem, CheckReply, CheckRequest, CheckResult, MAX_BODY_BYTES, MAX_CHECKS, problem_schema,
};
use super::{Asks, CHECK, Outcome, RateLimitError, RateLimits, Standing, TokenSource};
use crate::error::ErrorKind;
use crate::http::{Call, Content, Docs, Problem, Reply, ReplyDocs, Route, handler, json};
use crate::names::{Key, Name};
use crate::policy::Caller;

/// Registered for draft-ietf-httpapi-ratelimit-headers.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const POLICY_HEADER: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE_HEADER: HeaderName = HeaderName::from_static("ratelimit");

const REPLIES: &[ReplyDocs] = &[
    ReplyDocs {
        status: 200,
        meaning: "Every check passed and was taken. `RateLimit-Policy` and `RateLimit` say how the limits stand.",
        content: Some(Content {
            media_type: "application/json",
            schema: Some(schemars::SchemaGenerator::subschema_for::<CheckReply<'static>>),
        }),
    },
    ReplyDocs {
        status: 429,
        meaning: "A limit has not enough left; nothing was taken. `Retry-After` says when to come again.",
        content: Some(Content { media_type: "application/problem+json", schema: Some(problem_schema) }),
    },
];

struct State {
    source: Arc<dyn TokenSource>,
    metrics: RateLimitMetrics,
}

/// The primitive's routes.
pub(super) fn routes(source: Arc<dyn TokenSource>, metrics: RateLimitMetrics) -> Vec<Route> {
    let state = Arc::new(State { source, metrics });
    vec![Route {
        method: Method::POST,
        pattern: "/v1/ratelimit/check",
        action: CHECK,
        serves_fleets: false,
        operation: "check",
        docs: Docs {
            summary: "Takes from 1 to 16 limits, all or nothing.",
            request: Some(Content {
                media_type: "application/json",
                schema: Some(schemars::SchemaGenerator::subschema_for::<CheckRequest<String>>),
            }),
            replies: REPLIES,
            ..Docs::default()
        },
        handler: handler(&state, check),
    }]
}

async fn check(state: &State, mut call: Box<Call>) -> Result<Reply, Problem> {
    json::require_json(&call.headers)?;
    let body = call.bytes(MAX_BODY_BYTES).await?;
    // Borrowed from the body; a text with escapes needs a copy, and an error the second reading that explains it.
    if let Ok(request) = serde_json::from_slice::<CheckRequest<&str>>(&body) {
        return decide(state, &call.caller, &request).await;
    }
    decide(state, &call.caller, &json::parse::<CheckRequest<String>>(&body)?).await
}

async fn decide<S: AsRef<str>>(
    state: &State,
    caller: &Caller,
    request: &CheckRequest<S>,
) -> Result<Reply, Problem> {
    let (asks, places) = read(caller, &request.checks)?;
    let outcome = state.source.take(&asks).outcome().await;
    state.metrics.count(&outcome);
    let standings = places.iter().filter_map(|place| outcome.standings.get(*place));
    let results = request
        .checks
        .iter()
        .zip(standings)
        .map(|(check, standing)| CheckResult::new(check.limit.as_ref(), check.key.as_ref(), standing))
        .collect();
    answer(&asks, &outcome, results)
}

/// The request's checks as asks, and each check's place among them.
fn read<S: AsRef<str>>(
    caller: &Caller,
    checks: &[CheckItem<S>],
) -> Result<(Asks, SmallVec<[usize; 1]>), Problem> {
    if checks.is_empty() || checks.len() > MAX_CHECKS {
        return Err(wrong("/checks".to_owned(), format!("1 to {MAX_CHECKS} checks")));
    }
    let limits = caller.policies().get::<RateLimits>();
    let mut asks = Asks::new(limits.map_or(1, RateLimits::max_keys_per_tenant));
    let mut places = SmallVec::new();
    for (index, check) in checks.iter().enumerate() {
        let at = |field: &str| format!("/checks/{index}/{field}");
        let (text, key) = (check.limit.as_ref(), check.key.as_ref());
        let limit = limits.and_then(|limits| limits.limit(text));
        let name = match limit {
            Some(limit) => limit.name().clone(),
            None => Name::parse(text).map_err(|error| wrong(at("limit"), error.to_string()))?,
        };
        Key::check(key).map_err(|error| wrong(at("key"), error.to_string()))?;
        let permit =
            caller.permit(CHECK, &name).map_err(RateLimitError::from).map_err(|error| problem(&error))?;
        let limit = limit.ok_or(RateLimitError::UnknownLimit).map_err(|error| {
            problem(&error).with_field(at("limit"), format!("no policy names a limit `{name}`"))
        })?;
        let added = asks.add(&permit, limit.rule(&permit, key), key, check.cost);
        places.push(added.map_err(|error| match error {
            RateLimitError::OverBurst { .. } => wrong(at("cost"), error.to_string()),
            RateLimitError::Denied(_) | RateLimitError::UnknownLimit | RateLimitError::TwoTenants => {
                problem(&error)
            }
        })?);
    }
    Ok((asks, places))
}

fn problem(error: &RateLimitError) -> Problem {
    Problem::new(error.kind(), error.to_string())
}

fn wrong(pointer: String, detail: String) -> Problem {
    Problem::new(ErrorKind::Invalid, "a field of the body is wrong").with_field(pointer, detail)
}

fn answer(asks: &Asks, outcome: &Outcome, results: Vec<CheckResult<'_>>) -> Result<Reply, Problem> {
    let (policy, state) = headers(asks, outcome)?;
    let degraded = outcome.source.is_degraded();
    if outcome.allowed {
        let reply = Reply::json(&CheckReply { allowed: true, degraded, results })?;
        return Ok(reply.with_header(POLICY_HEADER, policy).with_header(STATE_HEADER, state));
    }
    let over = asks.as_slice().iter().zip(&outcome.standings).filter(|(_, standing)| standing.over);
    let mut violated: Vec<&str> = over.clone().map(|(ask, _)| ask.bucket().limit()).collect();
    violated.sort_unstable();
    violated.dedup();
    let retry_after_ms = over.map(|(_, standing)| standing.retry_after_ms).max().unwrap_or(0);
    let detail =
        format!("over {}; nothing was taken; the same call can pass in {retry_after_ms} ms", list(&violated));
    Err(Problem::new(ErrorKind::RateLimited, detail)
        .with_type(QUOTA_EXCEEDED)
        .with_extension("violated-policies", json!(violated))
        .with_extension("results", json!(results))
        .with_extension("degraded", json!(degraded))
        .retry_after_ms(retry_after_ms)
        .with_header(POLICY_HEADER, policy)
        .with_header(STATE_HEADER, state))
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(" and ")
}

/// `RateLimit-Policy` and `RateLimit`: an item for each limit, about the bucket of it that has least left.
fn headers(asks: &Asks, outcome: &Outcome) -> Result<(HeaderValue, HeaderValue), Problem> {
    let mut shown: SmallVec<[(usize, &Standing); 1]> = SmallVec::new();
    for (index, standing) in outcome.standings.iter().enumerate() {
        let limit = |index: usize| asks.as_slice().get(index).map(|ask| ask.bucket().limit());
        match shown.iter_mut().find(|(other, _)| limit(*other) == limit(index)) {
            Some((_, least)) if least.remaining <= standing.remaining => {}
            Some(held) => *held = (index, standing),
            None => shown.push((index, standing)),
        }
    }
    let mut policies: SmallVec<[&HeaderValue; 1]> = SmallVec::new();
    let mut state = String::with_capacity(64);
    let mut digits = itoa::Buffer::new();
    for (index, standing) in shown {
        let Some(ask) = asks.as_slice().get(index) else { continue };
        policies.push(&ask.rule().header);
        if !state.is_empty() {
            state.push_str(", ");
        }
        let seconds = standing.reset_ms.div_ceil(1000);
        state.push('"');
        state.push_str(ask.bucket().limit());
        state.push_str("\";r=");
        state.push_str(digits.format(standing.remaining));
        state.push_str(";t=");
        state.push_str(digits.format(seconds));
    }
    let policy = match policies.as_slice() {
        [one] => Ok((*one).clone()),
        several => HeaderValue::from_bytes(
            &several.iter().map(|value| value.as_bytes()).collect::<Vec<_>>().join(&b", "[..]),
        ),
    };
    policy.and_then(|policy| Ok((policy, HeaderValue::from_str(&state)?))).map_err(|error| {
        tracing::error!(%error, "a RateLimit header could not be written");
        Problem::new(ErrorKind::Internal, "the reply could not be written")
    })
}
