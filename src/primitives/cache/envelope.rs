//! How a value is kept in Redis, byte by byte; `docs/cache.md` has the table.
//!
//! An `envelope` value is a header, its content type and its body. The companion of a `raw` value is the
//! same header with neither.

use super::etag::Etag;
use super::generation::Stamp;

/// `ogc` and the format's version.
const MAGIC: &[u8; 4] = b"ogc1";
/// Everything before the content type.
pub const HEADER_BYTES: usize = 58;
/// The longest content type that is kept.
pub const MAX_CONTENT_TYPE_BYTES: usize = 256;

/// What is kept about a value beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// When it was written, in milliseconds since the epoch.
    pub written_at_ms: u64,
    /// From when on it is no longer fresh.
    pub expires_at_ms: u64,
    pub(super) stamp: Stamp,
    pub(super) etag: Etag,
}

/// A value as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What is kept about it.
    pub header: Header,
    /// Its content type; empty in a companion.
    pub content_type: &'a str,
    /// Its content; empty in a companion.
    pub body: &'a [u8],
}

/// Bytes that are no envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not one of this program's, or of a version that it does not know.
    #[error("not an envelope of a known version")]
    Magic,
    /// It ends too early.
    #[error("the envelope is cut off")]
    Short,
    /// Its content type is too long or no visible ASCII.
    #[error("the envelope's content type is no media type")]
    ContentType,
}

/// Reads what [`encode`] wrote. Any bytes are safe to give.
pub fn decode(bytes: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(EnvelopeError::Magic)?;
    let (written, rest) = rest.split_first_chunk::<8>().ok_or(EnvelopeError::Short)?;
    let (expires, rest) = rest.split_first_chunk::<8>().ok_or(EnvelopeError::Short)?;
    let (stamp, rest) = rest.split_first_chunk::<16>().ok_or(EnvelopeError::Short)?;
    let (etag, rest) = rest.split_first_chunk::<20>().ok_or(EnvelopeError::Short)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or(EnvelopeError::Short)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > MAX_CONTENT_TYPE_BYTES {
        return Err(EnvelopeError::ContentType);
    }
    let (content_type, body) = rest.split_at_checked(length).ok_or(EnvelopeError::Short)?;
    let content_type = std::str::from_utf8(content_type)
        .ok()
        .filter(|text| text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\t')))
        .ok_or(EnvelopeError::ContentType)?;
    let header = Header {
        written_at_ms: u64::from_be_bytes(*written),
        expires_at_ms: u64::from_be_bytes(*expires),
        stamp: Stamp::from_bytes(*stamp),
        etag: Etag::from_bytes(*etag),
    };
    Ok(Envelope { header, content_type, body })
}

/// The bytes of a value; `content_type` is at most [`MAX_CONTENT_TYPE_BYTES`] long.
pub(super) fn encode(header: &Header, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + content_type.len() + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&header.written_at_ms.to_be_bytes());
    bytes.extend_from_slice(&header.expires_at_ms.to_be_bytes());
    bytes.extend_from_slice(header.stamp.as_bytes());
    bytes.extend_from_slice(header.etag.as_bytes());
    let length = u16::try_from(content_type.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content_type.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(written: u64, expires: u64, stamp: [u8; 16], etag: [u8; 20]) -> Header {
        Header {
            written_at_ms: written,
            expires_at_ms: expires,
            stamp: Stamp::from_bytes(stamp),
            etag: Etag::from_bytes(etag),
        }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let bytes = encode(&header(1, 2, [3; 16], [4; 20]), "a/b", b"xy");
        assert_eq!(&bytes[..4], b"ogc1");
        assert_eq!(bytes[4..12], 1_u64.to_be_bytes());
        assert_eq!(bytes[12..20], 2_u64.to_be_bytes());
        assert_eq!(bytes[20..36], [3; 16]);
        assert_eq!(bytes[36..56], [4; 20]);
        assert_eq!(bytes[56..58], [0, 3]);
        assert_eq!(&bytes[HEADER_BYTES..], b"a/bxy");
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let good = encode(&header(1, 2, [3; 16], [4; 20]), "a/b", b"");
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err(), "{cut}");
        }
        let mut other = good.clone();
        other[3] = b'2';
        assert_eq!(decode(&other), Err(EnvelopeError::Magic));
        let mut long = good.clone();
        long[56] = 0xff;
        assert_eq!(decode(&long), Err(EnvelopeError::ContentType));
        let mut control = good;
        control[HEADER_BYTES] = b'\n';
        assert_eq!(decode(&control), Err(EnvelopeError::ContentType));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            times in any::<(u64, u64)>(), stamp in any::<[u8; 16]>(), etag in any::<[u8; 20]>(),
            content_type in "[ -~]{0,256}", body in proptest::collection::vec(any::<u8>(), 0..512),
        ) {
            let header = header(times.0, times.1, stamp, etag);
            let bytes = encode(&header, &content_type, &body);
            prop_assert_eq!(decode(&bytes), Ok(Envelope { header, content_type: &content_type, body: &body }));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(MAGIC);
            }
            if let Ok(envelope) = decode(&bytes) {
                prop_assert_eq!(encode(&envelope.header, envelope.content_type, envelope.body), bytes);
            }
        }
    }
}
