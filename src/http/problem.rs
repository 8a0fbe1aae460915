//! Problem documents (RFC 9457): the one place where an error becomes a response.

use std::borrow::Cow;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::ErrorKind;
use crate::identity::AuthError;
use crate::policy::Denied;

/// A field of the request that is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// RFC 6901 pointer into the request body, `?name` for a query parameter, or a header's name in lower case.
    pub pointer: String,
    /// What would be right.
    pub detail: String,
}

/// An error on its way to the client. The text is for the client; what is for the log goes to the log.
#[derive(Debug, Clone)]
pub struct Problem {
    inner: Box<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    type_uri: Option<&'static str>,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    extensions: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// How a kind of error looks on the wire.
#[derive(Debug, Clone, Copy)]
pub struct Appearance {
    /// The status code.
    pub status: StatusCode,
    /// The `code` member.
    pub code: &'static str,
    /// The `title` member.
    pub title: &'static str,
    /// Whether the same request can succeed later.
    pub retryable: bool,
}

/// The table from a kind of error to its appearance.
#[must_use]
pub const fn appearance(kind: ErrorKind) -> Appearance {
    use StatusCode as S;
    let (status, code, title, retryable) = match kind {
        ErrorKind::Malformed => (S::BAD_REQUEST, "malformed", "The request is malformed", false),
        ErrorKind::Unauthenticated => {
            (S::UNAUTHORIZED, "unauthenticated", "The request needs a valid token", false)
        }
        ErrorKind::Forbidden => (S::FORBIDDEN, "forbidden", "Policy does not allow this", false),
        ErrorKind::NotFound => (S::NOT_FOUND, "not_found", "There is nothing here", false),
        ErrorKind::MethodNotAllowed => {
            (S::METHOD_NOT_ALLOWED, "method_not_allowed", "This path has other methods", false)
        }
        ErrorKind::Conflict => (S::CONFLICT, "conflict", "The current state does not allow this", false),
        ErrorKind::PreconditionFailed => {
            (S::PRECONDITION_FAILED, "precondition_failed", "The precondition does not hold", false)
        }
        ErrorKind::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", "Over a size limit", false),
        ErrorKind::UnsupportedMediaType => {
            (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "This media type is not taken here", false)
        }
        ErrorKind::Invalid => {
            (S::UNPROCESSABLE_ENTITY, "invalid", "The request is understood and wrong", false)
        }
        ErrorKind::PreconditionRequired => {
            (S::PRECONDITION_REQUIRED, "precondition_required", "If-Match is needed", false)
        }
        ErrorKind::RateLimited => (S::TOO_MANY_REQUESTS, "rate_limited", "Rate limit exceeded", true),
        ErrorKind::QuotaExhausted => (S::TOO_MANY_REQUESTS, "quota_exhausted", "The quota is used up", false),
        ErrorKind::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Too much to do right now", true),
        ErrorKind::BackendUnavailable => {
            (S::SERVICE_UNAVAILABLE, "backend_unavailable", "A backing service does not answer", true)
        }
        ErrorKind::OutcomeUnknown => {
            (S::SERVICE_UNAVAILABLE, "outcome_unknown", "It is not known whether this was done", true)
        }
        ErrorKind::DeadlineExceeded => {
            (S::GATEWAY_TIMEOUT, "deadline_exceeded", "The call's time ran out", true)
        }
        ErrorKind::Misdirected => {
            (S::MISDIRECTED_REQUEST, "misdirected", "This request is for another host", false)
        }
        ErrorKind::IdempotencyKeyReused => (
            S::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "The idempotency key belongs to another request",
            false,
        ),
        ErrorKind::IdempotencyInProgress => {
            (S::CONFLICT, "idempotency_in_progress", "The first request with this key is still running", true)
        }
        ErrorKind::IdempotencyNotSupported => {
            (S::BAD_REQUEST, "idempotency_not_supported", "Idempotency-Key is not taken here", false)
        }
        ErrorKind::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "A defect of Outrigger", false),
    };
    Appearance { status, code, title, retryable }
}

impl Problem {
    /// A problem of this kind; `detail` says what would be right.
    #[must_use]
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                type_uri: None,
                detail: detail.into(),
                errors: Vec::new(),
                extensions: Map::new(),
                headers: Vec::new(),
            }),
        }
    }

    /// With a registered problem type instead of `about:blank`.
    #[must_use]
    pub fn with_type(mut self, uri: &'static str) -> Self {
        self.inner.type_uri = Some(uri);
        self
    }

    /// With a wrong field named.
    #[must_use]
    pub fn with_field(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.inner.errors.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        self
    }

    /// With an extension member.
    #[must_use]
    pub fn with_extension(mut self, name: &str, value: Value) -> Self {
        self.inner.extensions.insert(name.to_owned(), value);
        self
    }

    /// With a response header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.inner.headers.push((name, value));
        self
    }

    /// With `Retry-After`, in whole seconds, rounded up so that it is never early.
    #[must_use]
    pub fn retry_after_ms(self, ms: u64) -> Self {
        self.with_header(http::header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)))
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The text for the client.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.inner.detail
    }

    /// 405 with the methods that the path has.
    #[must_use]
    pub fn method_not_allowed(allowed: &[Method]) -> Self {
        let list = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let problem = Self::new(ErrorKind::MethodNotAllowed, format!("this path takes {list}"));
        match HeaderValue::from_str(&list) {
            Ok(value) => problem.with_header(http::header::ALLOW, value),
            Err(_) => problem,
        }
    }

    /// The problem document, with the trace id that finds it in the logs.
    #[must_use]
    pub fn document(&self, trace_id: &str) -> Value {
        let Inner { kind, type_uri, detail, errors, extensions, headers: _ } = &*self.inner;
        let look = appearance(*kind);
        let mut document = Map::new();
        document.insert("type".to_owned(), Value::from(type_uri.unwrap_or("about:blank")));
        document.insert("title".to_owned(), Value::from(look.title));
        document.insert("status".to_owned(), Value::from(look.status.as_u16()));
        document.insert("detail".to_owned(), Value::from(detail.as_ref()));
        document.insert("code".to_owned(), Value::from(look.code));
        document.insert("retryable".to_owned(), Value::from(look.retryable));
        document.insert("trace_id".to_owned(), Value::from(trace_id));
        if !errors.is_empty() {
            let errors = errors
                .iter()
                .map(|field| serde_json::json!({"pointer": field.pointer, "detail": field.detail}));
            document.insert("errors".to_owned(), errors.collect());
        }
        document.extend(extensions.clone());
        Value::Object(document)
    }

    /// The response, with the trace id that finds it in the logs.
    #[must_use]
    pub fn into_reply(self, trace_id: &str) -> super::Reply {
        let body = self.document(trace_id).to_string();
        let Inner { kind, headers, .. } = *self.inner;
        let mut reply =
            super::Reply::new(appearance(kind).status).with_body("application/problem+json", body);
        for (name, value) in headers {
            reply = reply.with_header(name, value);
        }
        if kind == ErrorKind::Unauthenticated {
            reply =
                reply.with_default_header(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(kind, ErrorKind::Overloaded | ErrorKind::BackendUnavailable) {
            reply = reply.with_default_header(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        reply
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let problem = Self::new(error.kind(), error.to_string());
        match (error.kind(), HeaderValue::from_str(&error.challenge())) {
            (ErrorKind::Unauthenticated, Ok(value)) => {
                problem.with_header(http::header::WWW_AUTHENTICATE, value)
            }
            _ => problem,
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::new(ErrorKind::Forbidden, denied.to_string())
    }
}
