//! What a handler answers.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::stream::StreamBody;
use super::{Broken, Problem};
use crate::error::ErrorKind;

/// What a reply may take without being counted, in bytes: the kernel's buffers hold as much for each connection.
pub(super) const SMALL_BYTES: usize = 16 * 1024;

/// A reply's body: nothing, bytes already in memory, or a stream.
#[derive(Debug, Default)]
pub struct ReplyBody(Inner);

#[derive(Debug)]
enum Inner {
    Bytes { bytes: Option<Bytes>, kept: Vec<Box<dyn Any + Send>> },
    Stream(Box<StreamBody>),
}

impl Default for Inner {
    fn default() -> Self {
        Self::Bytes { bytes: None, kept: Vec::new() }
    }
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
        match &self.0 {
            Inner::Bytes { bytes, kept: _ } => {
                bytes.as_ref().map(Bytes::len).filter(|length| *length > SMALL_BYTES)
            }
            Inner::Stream(_) => None,
        }
    }

    /// Whether it is a stream.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.0, Inner::Stream(_))
    }

    /// Keeps `value` until the bytes are written, or the stream ended.
    pub(super) fn keep(&mut self, value: impl Any + Send) {
        match &mut self.0 {
            Inner::Bytes { bytes: _, kept } => kept.push(Box::new(value)),
            Inner::Stream(stream) => stream.keep(Box::new(value)),
        }
    }

    /// What is left of it where only the head is sent: a stream's length stays unknown.
    pub(super) fn without_bytes(self) -> Self {
        match self.0 {
            Inner::Bytes { .. } => Self::default(),
            Inner::Stream(_) => Self(Inner::Stream(Box::new(StreamBody::of_nothing()))),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let (bytes, kept) = match &mut self.0 {
            Inner::Bytes { bytes, kept } => (bytes.take(), std::mem::take(kept)),
            Inner::Stream(stream) => {
                return stream.poll_bytes(context).map(|next| next.map(|bytes| bytes.map(Frame::data)));
            }
        };
        let bytes = bytes.map(|bytes| match kept.is_empty() {
            true => bytes,
            false => Bytes::from_owner(Kept { bytes, _kept: kept }),
        });
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Inner::Bytes { bytes: None, .. })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Bytes { bytes, kept: _ } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Inner::Stream(_) => SizeHint::default(),
        }
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
        let bytes = (!body.is_empty()).then_some(body);
        *self.0.body_mut() = ReplyBody(Inner::Bytes { bytes, kept: Vec::new() });
        self
    }

    /// 200 with a body that goes on: what `chunks` yields, each as soon as the connection has taken what came before.
    /// `futures_util::stream::unfold` makes such a stream of an async function.
    ///
    /// The call's time bounds what comes before this reply, and the stream only where its caller named a time. It ends
    /// between two chunks, when that is over and when the process stops, and `chunks` is dropped then, as it is when its
    /// reader leaves: so a chunk is one or several whole events or lines, and all that is kept for it is kept in it.
    /// Chunks of 16 KiB or less are the cheapest to count. An error breaks the stream off, so that its reader does not
    /// take what it has for all there is.
    #[must_use]
    pub fn stream(
        content_type: &'static str,
        chunks: impl Stream<Item = Result<Bytes, Broken>> + Send + 'static,
    ) -> Self {
        Self::streamed(content_type, chunks, false)
    }

    /// The same of a body whose end says that this was all: where its call's time is over or the process stops before,
    /// it breaks off.
    #[must_use]
    pub fn whole_stream(
        content_type: &'static str,
        chunks: impl Stream<Item = Result<Bytes, Broken>> + Send + 'static,
    ) -> Self {
        Self::streamed(content_type, chunks, true)
    }

    fn streamed(
        content_type: &'static str,
        chunks: impl Stream<Item = Result<Bytes, Broken>> + Send + 'static,
        whole: bool,
    ) -> Self {
        let mut reply = Self::new(StatusCode::OK)
            .with_header(CONTENT_TYPE, HeaderValue::from_static(content_type))
            .with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        *reply.0.body_mut() = ReplyBody(Inner::Stream(Box::new(StreamBody::new(Box::pin(chunks), whole))));
        reply
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

    /// Its body, where it is a stream.
    pub(super) fn stream_body(&mut self) -> Option<&mut StreamBody> {
        match &mut self.0.body_mut().0 {
            Inner::Bytes { .. } => None,
            Inner::Stream(stream) => Some(stream),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_make_no_ordinary_reply_larger() {
        struct OfBytes {
            _bytes: Option<Bytes>,
            _kept: Vec<Box<dyn Any + Send>>,
        }
        assert_eq!(size_of::<ReplyBody>(), size_of::<OfBytes>());
    }
}
