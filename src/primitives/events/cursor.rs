//! A place in a tenant's topic, as clients hold it, and where a read begins.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::Position;
use crate::rfc3339;

const VERSION: u8 = 1;
const BODY_BYTES: usize = 17;
/// 128 of HMAC's 256 bits: as many as RFC 2104, section 5, asks for at the least.
const TAG_BYTES: usize = 16;
/// A cursor's characters: 33 bytes in base64.
const TEXT_BYTES: usize = 44;

/// What cursors are made and checked with. It is the same for every sidecar of a store.
#[derive(Debug, Clone)]
pub struct CursorKey(hmac::Key);

impl CursorKey {
    /// A key of these bytes, which are secret.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }
}

/// An event's place, and when the event was accepted, so that a read looks into no older partition.
///
/// As text it is base64url, without padding, of 33 bytes: the version 1, the position and the time of acceptance as
/// big-endian 64-bit integers, and the first 16 bytes of HMAC-SHA-256 over those 17, the tenant's 16 and the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The event's place; what is read from the cursor comes after it.
    pub position: Position,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: i64,
}

/// A text is no cursor of this tenant and topic: foreign, forged, cut off, or of another kind altogether. Which of
/// them is not said, so that a cursor tells nothing about other tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no cursor of this topic: take one from the `cursor` or `id` of an event of the same topic")]
pub struct CursorError;

impl Cursor {
    /// The text that only this tenant can read in this topic.
    #[must_use]
    pub fn encode(&self, key: &CursorKey, tenant: Uuid, topic: &str) -> String {
        let body = self.body();
        let mut bytes = [0; BODY_BYTES + TAG_BYTES];
        let tag = tag(&body, key, tenant, topic);
        let all = body.iter().chain(tag.as_ref().iter());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The cursor that `text` is, where it was made with this key for this tenant and topic.
    pub fn decode(text: &str, key: &CursorKey, tenant: Uuid, topic: &str) -> Result<Self, CursorError> {
        if text.len() != TEXT_BYTES {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (body, given) = bytes.split_first_chunk::<BODY_BYTES>().ok_or(CursorError)?;
        let right = tag(body, key, tenant, topic);
        let right = right.as_ref().get(..TAG_BYTES).ok_or(CursorError)?;
        verify_slices_are_equal(right, given).map_err(|_| CursorError)?;
        let (version, numbers) = body.split_first().ok_or(CursorError)?;
        let (position, accepted_ms) = numbers.split_first_chunk::<8>().ok_or(CursorError)?;
        let accepted_ms = accepted_ms.first_chunk::<8>().ok_or(CursorError)?;
        if *version != VERSION {
            return Err(CursorError);
        }
        Ok(Self {
            position: Position::new(i64::from_be_bytes(*position)),
            accepted_ms: i64::from_be_bytes(*accepted_ms),
        })
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [VERSION; BODY_BYTES];
        let numbers = self.position.number().to_be_bytes().into_iter().chain(self.accepted_ms.to_be_bytes());
        body.iter_mut().skip(1).zip(numbers).for_each(|(to, from)| *to = from);
        body
    }
}

/// Every part but the topic has one length, so that the parts need none in front.
fn tag(body: &[u8; BODY_BYTES], key: &CursorKey, tenant: Uuid, topic: &str) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&key.0);
    context.update(body);
    context.update(tenant.as_bytes());
    context.update(topic.as_bytes());
    context.sign()
}

/// Where a read begins: `from=` of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The earliest event that is kept.
    Earliest,
    /// The next event that is accepted.
    Latest,
    /// The first event that was accepted at this time or later, in milliseconds since 1970.
    Time(i64),
    /// The event after this one.
    Cursor(Cursor),
}

/// Why a text is no [`ReadFrom`], in words for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadFromError {
    /// It looks like a time and is none.
    #[error(
        "a time is RFC 3339 with its offset, such as 2026-01-31T09:30:00Z; in a query `+` is written %2B"
    )]
    Time,
    /// It is no cursor of this topic.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// It is none of the four.
    #[error(
        "give `earliest`, `latest`, an RFC 3339 time such as 2026-01-31T09:30:00Z, or the `cursor` of an event"
    )]
    Other,
}

impl ReadFrom {
    /// Reads `earliest`, `latest`, an RFC 3339 time, or a cursor of this tenant and topic.
    pub fn parse(text: &str, key: &CursorKey, tenant: Uuid, topic: &str) -> Result<Self, ReadFromError> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            // No cursor begins with a digit: the first bits of its version are those of `A`.
            text if text.starts_with(|first: char| first.is_ascii_digit()) => {
                let time = rfc3339::instant(text).ok_or(ReadFromError::Time)?;
                Ok(Self::Time(time.as_millisecond()))
            }
            text if text.len() == TEXT_BYTES => Ok(Self::Cursor(Cursor::decode(text, key, tenant, topic)?)),
            text if text.starts_with('A') => Err(CursorError.into()),
            _ => Err(ReadFromError::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TENANT: Uuid = Uuid::from_u128(0x0190_c7a8_3c5e_7f00_8000_0000_0000_00a1);

    fn key(byte: u8) -> CursorKey {
        CursorKey::new(&[byte; 32])
    }

    fn cursor() -> Cursor {
        Cursor { position: Position::new(1_234_567), accepted_ms: 1_767_225_600_123 }
    }

    /// Written down once: clients hold cursors for weeks.
    #[test]
    fn a_cursor_s_text_never_changes() {
        let text = cursor().encode(&key(1), TENANT, "leads");
        assert_eq!(text, "AQAAAAAAEtaHAAABm3baqHtkcXIVc0JZMsQAJo0OLiQF");
        assert_eq!(Cursor::decode(&text, &key(1), TENANT, "leads"), Ok(cursor()));
    }

    #[test]
    fn a_cursor_of_another_tenant_topic_or_key_is_refused() {
        let text = cursor().encode(&key(1), TENANT, "leads");
        for (key, tenant, topic) in
            [(key(1), Uuid::nil(), "leads"), (key(1), TENANT, "lead"), (key(2), TENANT, "leads")]
        {
            assert_eq!(Cursor::decode(&text, &key, tenant, topic), Err(CursorError));
        }
    }

    #[test]
    fn a_cursor_of_another_version_is_refused_though_its_code_is_right() {
        let mut body = cursor().body();
        body[0] = 2;
        let tag = tag(&body, &key(1), TENANT, "leads");
        let text = URL_SAFE_NO_PAD.encode([&body, &tag.as_ref()[..TAG_BYTES]].concat());
        assert_eq!(Cursor::decode(&text, &key(1), TENANT, "leads"), Err(CursorError));
    }

    #[test]
    fn a_read_begins_where_from_says() {
        let text = cursor().encode(&key(1), TENANT, "leads");
        let parse = |text: &str| ReadFrom::parse(text, &key(1), TENANT, "leads");
        assert_eq!(parse("earliest"), Ok(ReadFrom::Earliest));
        assert_eq!(parse("latest"), Ok(ReadFrom::Latest));
        assert_eq!(parse("1970-01-01T00:00:02+00:00"), Ok(ReadFrom::Time(2000)));
        assert_eq!(parse(&text), Ok(ReadFrom::Cursor(cursor())));
        for (text, error) in [
            ("2026-01-31", ReadFromError::Time),
            ("2026-01-31T00:00:00 02:00", ReadFromError::Time),
            ("1767225600", ReadFromError::Time),
            ("", ReadFromError::Other),
            ("Earliest", ReadFromError::Other),
            ("yesterday", ReadFromError::Other),
            (&text[..43], ReadFromError::Cursor(CursorError)),
            (&text.replace('A', "B"), ReadFromError::Cursor(CursorError)),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
            assert!(error.to_string().len() > 40);
        }
    }

    proptest! {
        #[test]
        fn every_cursor_comes_back_and_no_changed_one_does(
            position: i64, accepted_ms: i64, at in 0..33_usize, bit in 0..8_u32, topic in "[a-z.]{1,9}",
        ) {
            let cursor = Cursor { position: Position::new(position), accepted_ms };
            let text = cursor.encode(&key(3), TENANT, &topic);
            prop_assert_eq!(Cursor::decode(&text, &key(3), TENANT, &topic), Ok(cursor));
            let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            bytes[at] ^= 1 << bit;
            let changed = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(Cursor::decode(&changed, &key(3), TENANT, &topic), Err(CursorError));
        }

        #[test]
        fn any_text_is_read_or_refused_in_words(text in "\\PC{0,50}") {
            if let Err(error) = ReadFrom::parse(&text, &key(3), TENANT, "leads") {
                prop_assert!(error.to_string().len() > 40);
            }
        }
    }
}
