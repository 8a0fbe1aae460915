//! Just enough HTTP/1.1 to know where a reply ends and what its status is.

use thiserror::Error;

const MAX_HEADERS: usize = 64;

/// A whole reply at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The status code.
    pub(crate) status: u16,
    /// Bytes of the status line and the headers, with the empty line.
    pub(crate) head_bytes: usize,
    /// Bytes of the body.
    pub(crate) body_bytes: usize,
}

impl Reply {
    /// Head and body.
    pub(crate) fn total_bytes(&self) -> usize {
        self.head_bytes + self.body_bytes
    }
}

/// Why a reply cannot be read.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    /// Not HTTP/1.1.
    #[error("the reply is not HTTP/1.1: {0}")]
    Syntax(#[from] httparse::Error),
    /// No `Content-Length`: the lean client does not read chunked replies.
    #[error("the reply has no Content-Length (chunked replies are not supported)")]
    NoLength,
    /// A length that is no number.
    #[error("the reply's Content-Length is not a number")]
    BadLength,
}

/// The reply at the front of `buffer`, or `None` while its head is not complete. The body may still be on its way:
/// compare [`Reply::total_bytes`] with what has arrived.
pub(crate) fn parse_reply(buffer: &[u8]) -> Result<Option<Reply>, WireError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = response.parse(buffer)? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or(0);
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body_bytes = match length {
        Some(header) => std::str::from_utf8(header.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(WireError::BadLength)?,
        None if matches!(status, 100..=199 | 204 | 304) => 0,
        None => return Err(WireError::NoLength),
    };
    Ok(Some(Reply { status, head_bytes, body_bytes }))
}

/// The value of a header in a reply's head, if it is there and is text.
pub(crate) fn header_value(head: &[u8], name: &str) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(head).ok()?;
    let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(header.value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_measured_by_its_content_length() {
        let reply = parse_reply(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhel").unwrap().unwrap();
        assert_eq!((reply.status, reply.head_bytes, reply.body_bytes), (200, 38, 5));
    }

    #[test]
    fn an_incomplete_head_is_waited_for() {
        assert_eq!(parse_reply(b"HTTP/1.1 200 OK\r\ncontent-len").unwrap(), None);
        assert_eq!(parse_reply(b"").unwrap(), None);
    }

    #[test]
    fn a_204_needs_no_length_and_others_do() {
        let reply = parse_reply(b"HTTP/1.1 204 No Content\r\netag: \"1\"\r\n\r\n").unwrap().unwrap();
        assert_eq!((reply.status, reply.body_bytes), (204, 0));
        assert!(matches!(parse_reply(b"HTTP/1.1 200 OK\r\n\r\n"), Err(WireError::NoLength)));
        assert!(matches!(
            parse_reply(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"),
            Err(WireError::BadLength)
        ));
    }

    #[test]
    fn headers_are_found_by_any_case() {
        let head = b"HTTP/1.1 200 OK\r\noutrigger-cache: l2\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(header_value(head, "Outrigger-Cache").as_deref(), Some("l2"));
        assert_eq!(header_value(head, "age"), None);
    }
}
