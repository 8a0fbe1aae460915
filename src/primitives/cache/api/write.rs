//! `PUT`, `DELETE` and `:invalidate`.

use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Api, Place, lease_token, version};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::names::Key;
use crate::primitives::cache::envelope::MAX_CONTENT_TYPE_BYTES;
use crate::primitives::cache::etag::{Conditions, MalformedCondition};
use crate::primitives::cache::policy::{Format, Namespace};
use crate::primitives::cache::{CacheError, DELETE, INVALIDATE, WRITE, Write};

/// The largest body of an `:invalidate`.
const MAX_INVALIDATE_BYTES: usize = 8 * 1024;

/// What `:invalidate` invalidates.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvalidateRequest {
    /// Only the entries of this version; without it all of the tenant's entries in the namespace.
    #[serde(default)]
    version: Option<String>,
}

pub(super) async fn put(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["version", "ttl_ms"])?;
    let place = Place::of(&call, WRITE)?;
    let address = place.address(&call.key_param("key")?, version(&call)?);
    let conditions = Conditions::from_headers(&call.headers)
        .map_err(|error: MalformedCondition| Problem::new(ErrorKind::Malformed, error.to_string()))?;
    let lease = lease_token(&call)?;
    let asked_ttl = call.query.get::<u64>("ttl_ms", "an integer, in milliseconds")?;
    let ttl_ms = ttl_ms(asked_ttl, &call.headers, &place.rules)?;
    let content_type = content_type(&call.headers, &place.rules)?;
    let body = call.bytes(place.rules.max_value_bytes).await?;
    let filled = lease.is_some();
    let max_tenant_bytes = place.max_tenant_bytes;
    let write = Write { body, content_type, ttl_ms, conditions, lease, max_tenant_bytes };
    let written = api.backend.put(&address, &place.rules, write, api.budget(&call)).await;
    api.count(&written, filled);
    Ok(Reply::new(StatusCode::NO_CONTENT).with_header(ETAG, written?.header()))
}

impl Api {
    pub(super) fn count<T>(&self, written: &Result<T, CacheError>, filled: bool) {
        match written {
            Ok(_) => {
                self.metrics.writes_stored.inc();
                if filled {
                    self.metrics.leases_filled.inc();
                }
            }
            Err(CacheError::LeaseVoid) => {
                self.metrics.writes_refused.inc();
                self.metrics.leases_void.inc();
            }
            Err(CacheError::PreconditionFailed | CacheError::TenantFull { .. }) => {
                self.metrics.writes_refused.inc();
            }
            Err(
                CacheError::Full(_) | CacheError::Unavailable | CacheError::Unknown | CacheError::Overloaded,
            ) => {
                self.metrics.writes_failed.inc();
            }
        }
    }
}

pub(super) async fn delete(api: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["version"])?;
    if call.headers.contains_key(IF_MATCH) || call.headers.contains_key(IF_NONE_MATCH) {
        return Err(Problem::new(
            ErrorKind::Malformed,
            "a DELETE of a cached value takes no `If-Match` or `If-None-Match`: leave them out",
        ));
    }
    let place = Place::of(&call, DELETE)?;
    let address = place.address(&call.key_param("key")?, version(&call)?);
    let lease = lease_token(&call)?;
    let returned = lease.is_some();
    api.backend.delete(&address, &place.rules, lease, api.budget(&call)).await?;
    if returned {
        api.metrics.leases_returned.inc();
    } else {
        api.metrics.deletes.inc();
    }
    Ok(Reply::no_content())
}

pub(super) async fn invalidate(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&[])?;
    let place = Place::of(&call, INVALIDATE)?;
    let request: InvalidateRequest = call.json(MAX_INVALIDATE_BYTES).await?;
    let version = request.version.as_deref().map(Key::parse).transpose().map_err(|error| {
        Problem::new(ErrorKind::Invalid, "a field of the body is wrong")
            .with_field("/version", error.to_string())
    })?;
    let version = version.as_ref().map(Key::as_str);
    api.backend.invalidate(&place.scope, &place.rules, version, api.budget(&call)).await?;
    Ok(Reply::no_content())
}

/// The time to live: what the caller names, else `Cache-Control: max-age`, else the namespace's.
fn ttl_ms(asked: Option<u64>, headers: &HeaderMap, rules: &Namespace) -> Result<u64, Problem> {
    let (ttl_ms, field) = match asked {
        Some(ttl_ms) => (Some(ttl_ms), "?ttl_ms"),
        None => (max_age_ms(headers)?, "Cache-Control"),
    };
    within_bound(ttl_ms, rules).map_err(|bound| {
        Problem::new(ErrorKind::Invalid, "the time to live is out of its bounds").with_field(field, bound)
    })
}

/// A time to live within the namespace's bound, or the words for that bound.
pub(super) fn within_bound(ttl_ms: Option<u64>, rules: &Namespace) -> Result<u64, String> {
    let ttl_ms = ttl_ms.unwrap_or(rules.default_ttl_ms);
    if (1..=rules.max_ttl_ms).contains(&ttl_ms) {
        Ok(ttl_ms)
    } else {
        Err(format!("from 1 to {} ms in this namespace", rules.max_ttl_ms))
    }
}

/// `max-age` of `Cache-Control` (RFC 9111, 5.2), in milliseconds.
fn max_age_ms(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let wrong = || Problem::new(ErrorKind::Malformed, "`Cache-Control: max-age=…` is a number of seconds");
    for value in headers.get_all(CACHE_CONTROL) {
        let text = value.to_str().map_err(|_| wrong())?;
        for directive in text.split(',') {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            if name.trim().eq_ignore_ascii_case("max-age") {
                let seconds: u64 = argument.trim().trim_matches('"').parse().map_err(|_| wrong())?;
                return Ok(Some(seconds.saturating_mul(1000)));
            }
        }
    }
    Ok(None)
}

/// The content type to keep: the caller's, or `application/octet-stream`. A raw namespace keeps none, so
/// the caller's must be the policy's, or missing.
fn content_type(headers: &HeaderMap, rules: &Namespace) -> Result<HeaderValue, Problem> {
    let encoded = headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity");
    if encoded {
        return Err(Problem::new(
            ErrorKind::UnsupportedMediaType,
            "send the value without `Content-Encoding`: readers get it exactly as it was sent, and would not know the encoding",
        ));
    }
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return Ok(rules.content_type.clone()) };
    if values.next().is_some() {
        return Err(Problem::new(ErrorKind::Malformed, "send one Content-Type header"));
    }
    checked_content_type(value, rules).map_err(|what| Problem::new(ErrorKind::Malformed, what))
}

/// A content type that can be kept, or the words for what would be right.
pub(super) fn checked_content_type(value: &HeaderValue, rules: &Namespace) -> Result<HeaderValue, String> {
    if rules.format == Format::Raw {
        return Ok(rules.content_type.clone());
    }
    let fits = value.to_str().is_ok_and(|text| !text.is_empty() && text.len() <= MAX_CONTENT_TYPE_BYTES);
    if fits {
        Ok(value.clone())
    } else {
        Err(format!("a content type is 1 to {MAX_CONTENT_TYPE_BYTES} characters of visible ASCII"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_age_is_found_among_directives() {
        for (text, expected) in [
            ("max-age=60", Ok(Some(60_000))),
            ("no-transform, Max-Age=1", Ok(Some(1000))),
            ("max-age=\"5\"", Ok(Some(5000))),
            ("s-maxage=5", Ok(None)),
            ("", Ok(None)),
            ("max-age", Err(ErrorKind::Malformed)),
            ("max-age=-1", Err(ErrorKind::Malformed)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_str(text).unwrap());
            assert_eq!(max_age_ms(&headers).map_err(|problem| problem.kind()), expected, "{text}");
        }
    }
}
