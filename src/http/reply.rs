//! What a handler answers.

use std::any::Any;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::Problem;
use crate::error::ErrorKind;

/// What a reply may take without being counted, in bytes: the kernel's buffers hold as much for each connection.
const SMALL_BYTES: usize = 16 * 1024;

/// A reply's body: nothing, or bytes already in memory.
#[derive(Debug, Default)]
pub struct ReplyBody {
    bytes: Option<Bytes>,
    kept: Vec<Box<dyn Any + Send>>,
}

/// Bytes, and what goes when the server library lets go of them: once they are written, or never will be.
struct Kept {
    bytes: Bytes,
    _kept: Vec<Box<dyn Any + Send>>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ReplyBody {
    /// Its length where it is large enough for what it takes to be counted.
    pub(super) fn large_bytes(&self) -> Option<usize> {
        self.bytes.as_ref().map(Bytes::len).filter(|length| *length > SMALL_BYTES)
    }

    /// Keeps `value` until the bytes are written.
    pub(super) fn keep(&mut self, value: impl Any + Send) {
        self.kept.push(Box::new(value));
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let kept = std::mem::take(&mut self.kept);
        let bytes = self.bytes.take().map(|bytes| match kept.is_empty() {
            true => bytes,
            false => Bytes::from_owner(Kept { bytes, _kept: kept }),
        });
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// A response in the making.
#[derive(Debug)]
pub struct Reply(Response<ReplyBody>);

impl Reply {
    /// An empty reply with this status.
    #[must_use]
    pub fn new(status: StatusCode) -> Self {
        let mut response = Response::new(ReplyBody::default());
        *response.status_mut() = status;
        Self(response)
    }

    /// 204.
    #[must_use]
    pub fn no_content() -> Self {
        Self::new(StatusCode::NO_CONTENT)
    }

    /// 200 with `value` as JSON.
    pub fn json<T: Serialize>(value: &T) -> Result<Self, Problem> {
        Self::new(StatusCode::OK).with_json(value)
    }

    /// With `value` as a JSON body.
    pub fn with_json<T: Serialize>(self, value: &T) -> Result<Self, Problem> {
        let mut body = Vec::with_capacity(256);
        serde_json::to_writer(&mut body, value).map_err(|error| {
            tracing::error!(%error, "a reply could not be written as json");
            Problem::new(ErrorKind::Internal, "the reply could not be written")
        })?;
        Ok(self.with_body("application/json", body))
    }

    /// With a body of a type known at compile time.
    #[must_use]
    pub fn with_body(self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.with_typed_body(HeaderValue::from_static(content_type), body)
    }

    /// With a body of a type known at run time.
    #[must_use]
    pub fn with_typed_body(mut self, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        self.0.headers_mut().insert(CONTENT_TYPE, content_type);
        let body = body.into();
        *self.0.body_mut() = ReplyBody { bytes: (!body.is_empty()).then_some(body), kept: Vec::new() };
        self
    }

    /// With a header, replacing an earlier one of the same name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// With a header, unless the reply has one of that name.
    #[must_use]
    pub fn with_default_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().entry(name).or_insert(value);
        self
    }

    /// Its body's length where it is large, and the body.
    pub(super) fn large_body(&mut self) -> Option<(usize, &mut ReplyBody)> {
        let body = self.0.body_mut();
        body.large_bytes().map(|length| (length, body))
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// The response to send.
    #[must_use]
    pub fn into_response(self) -> Response<ReplyBody> {
        self.0
    }
}
