//! One request as a handler sees it: verified, authorised for its verb, routed; the body not read yet.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use compact_str::CompactString;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;

use super::budget::Share;
use super::{Problem, Query};
use crate::error::ErrorKind;
use crate::names::{Key, Name};
use crate::policy::Caller;

/// A routed call.
pub struct Call {
    /// Who calls, for which tenant, under which policies.
    pub caller: Caller,
    /// The method, so that a `GET` handler knows a `HEAD`.
    pub method: Method,
    /// The path's parameters, decoded.
    pub params: Params,
    /// The query's parameters, decoded.
    pub query: Query,
    /// The request's headers.
    pub headers: HeaderMap,
    /// When the whole call must be over; a streamed reply only where its caller named the time.
    pub deadline: Deadline,
    /// The body; read it through [`Call::bytes`] or [`Call::json`].
    pub body: Incoming,
    /// What the body takes of what is shared.
    pub(super) share: Share,
}

/// The instant at which a call must be over.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    instant: Instant,
    explicit: bool,
}

impl Deadline {
    /// At this instant, which the caller named or not.
    #[must_use]
    pub fn at(instant: Instant, explicit: bool) -> Self {
        Self { instant, explicit }
    }

    /// Whether the caller named it, with `Outrigger-Timeout-Ms`: then it bounds a streamed reply too.
    #[must_use]
    pub fn is_explicit(self) -> bool {
        self.explicit
    }

    /// The instant.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.instant
    }

    /// What is left of the call's time, at most `most`.
    #[must_use]
    pub fn budget(self, most: Duration) -> Duration {
        self.instant.saturating_duration_since(Instant::now()).min(most)
    }
}

/// The path's parameters.
#[derive(Debug, Clone, Default)]
pub struct Params(pub(super) SmallVec<[(&'static str, CompactString); 2]>);

impl Params {
    /// The parameter that the pattern names so; the pattern always fills it.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(held, _)| *held == name).map_or("", |(_, value)| value)
    }
}

impl Call {
    /// The path parameter `name` as a [`Name`]; 404 where it cannot be one, since nothing has that name.
    pub fn name_param(&self, name: &str) -> Result<Name, Problem> {
        Name::parse(self.params.get(name))
            .map_err(|error| Problem::new(ErrorKind::NotFound, error.to_string()))
    }

    /// The path parameter `name` as a [`Key`].
    pub fn key_param(&self, name: &str) -> Result<Key, Problem> {
        Key::parse(self.params.get(name))
            .map_err(|error| Problem::new(ErrorKind::Malformed, error.to_string()))
    }

    /// Cancelled once, when the process begins to stop. Streamed replies end then without looking at it; it is for a
    /// call that waits for something which may never come.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        self.share.connection().stopping()
    }

    /// The whole body, at most `max_bytes`; a body in one piece is not copied.
    pub async fn bytes(&mut self, max_bytes: usize) -> Result<Bytes, Problem> {
        let too_large =
            || Problem::new(ErrorKind::TooLarge, format!("the body may have {max_bytes} bytes at most"));
        if self.body.size_hint().lower() > max_bytes as u64 {
            return Err(too_large());
        }
        let mut first = Bytes::new();
        let mut rest: Option<BytesMut> = None;
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| {
                tracing::debug!(%error, "a request body broke off");
                Problem::new(ErrorKind::Malformed, "the body broke off")
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let held = rest.as_ref().map_or(first.len(), BytesMut::len);
            if held + data.len() > max_bytes {
                return Err(too_large());
            }
            // A body in one piece is bounded by its connection's window, and most bodies are.
            if held > 0 {
                let more = if rest.is_none() { held + data.len() } else { data.len() };
                self.share.take(more)?;
            }
            match &mut rest {
                Some(buffer) => buffer.extend_from_slice(&data),
                None if first.is_empty() => first = data,
                None => {
                    let hint = usize::try_from(self.body.size_hint().lower()).unwrap_or(0).min(max_bytes);
                    let mut buffer = BytesMut::with_capacity(first.len() + data.len() + hint);
                    buffer.extend_from_slice(&first);
                    buffer.extend_from_slice(&data);
                    rest = Some(buffer);
                }
            }
        }
        self.share.connection().body_is_unread(false);
        Ok(rest.map_or(first, BytesMut::freeze))
    }

    /// The body as JSON of `T`: 415 for another media type, 400 where it is no JSON, 422 with a pointer
    /// where a field is wrong.
    pub async fn json<T: DeserializeOwned>(&mut self, max_bytes: usize) -> Result<T, Problem> {
        super::json::require_json(&self.headers)?;
        let body = self.bytes(max_bytes).await?;
        super::json::parse(&body)
    }
}
