//! Problem documents for requests that hyper refuses by itself.
//!
//! hyper answers what it cannot parse with a bare status line and `content-length: 0`, before any service
//! sees a request. A caller then has nothing to read, so the connection's writer puts a problem document
//! in its place. A refusal is always the last thing on its connection.

use crate::error::ErrorKind;

use super::Problem;
use super::problem::appearance;

/// What a caller is told whose head is too large.
pub(super) const HEAD_TOO_LARGE: &str = "the request head is larger than `limits.header_bytes` allows";

/// What is written instead of a bare refusal.
pub(super) struct Substitute {
    bytes: Vec<u8>,
    written: usize,
    replaces: usize,
}

impl Substitute {
    /// What is still to be written.
    #[must_use]
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or(&[])
    }

    /// Notes that `count` more bytes were written.
    pub(super) fn advance(&mut self, count: usize) {
        self.written += count;
    }

    /// How many of hyper's bytes this stands for.
    #[must_use]
    pub(super) fn replaces(&self) -> usize {
        self.replaces
    }
}

/// Whether `bytes` are a bare refusal of hyper's: an error head without a content type and without a body.
#[must_use]
pub(super) fn is_one(bytes: &[u8]) -> bool {
    status_of(bytes).is_some()
}

fn status_of(bytes: &[u8]) -> Option<u16> {
    let line = bytes.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" 4")?;
    let head = std::str::from_utf8(bytes).ok()?;
    let bare = head.ends_with("\r\n\r\n")
        && head.contains("content-length: 0\r\n")
        && !head.contains("content-type:");
    let digits = line.get(..2).filter(|_| bare)?;
    std::str::from_utf8(digits).ok()?.parse::<u16>().ok().map(|rest| 400 + rest)
}

/// The problem document in place of a bare refusal; none where `bytes` are something else.
#[must_use]
pub(super) fn substitute_for(bytes: &[u8]) -> Option<Substitute> {
    let status = status_of(bytes)?;
    let (kind, detail) = match status {
        431 => (ErrorKind::TooLarge, HEAD_TOO_LARGE),
        414 => (ErrorKind::TooLarge, "the request target is too long"),
        _ => (ErrorKind::Malformed, "this is not a well-formed HTTP request"),
    };
    let trace = super::trace::Trace::default();
    let problem = Problem::new(kind, detail);
    let status = appearance(kind).status;
    let body = problem.document(trace.id()).to_string();
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        body.len()
    );
    Some(Substitute { bytes: (head + &body).into_bytes(), written: 0, replaces: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_replaced() {
        for (bytes, expected) in [
            (
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                Some("HTTP/1.1 400 "),
            ),
            (
                "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n",
                Some("HTTP/1.1 413 "),
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", None),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n\r\n",
                None,
            ),
            ("HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nhello", None),
        ] {
            let found = substitute_for(bytes.as_bytes());
            let start = found.map(|found| String::from_utf8_lossy(&found.bytes[..13]).into_owned());
            assert_eq!(start.as_deref(), expected, "{bytes}");
        }
    }
}
