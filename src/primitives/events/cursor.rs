//! A place in a tenant's topic, as clients hold it, and where a read begins.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::Position;
use crate::rfc3339;

const VERSION: u8 = 2;
/// A position and a time.
const BODY_BYTES: usize = 16;
/// 128 of HMAC's 256 bits: as many as RFC 2104, section 5, asks for at the least.
const TAG_BYTES: usize = 16;
/// A cursor's characters: 33 bytes in base64.
const TEXT_BYTES: usize = 44;

/// What cursors are made and checked with. It is the same for every sidecar of a store.
#[derive(Debug, Clone)]
pub struct CursorKey {
    codes: hmac::Key,
    streams: hmac::Key,
}

impl CursorKey {
    /// Keys that follow from these bytes, which are secret.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let key = |of: &str| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, of.as_bytes()).as_ref());
        Self { codes: key("cursor code"), streams: key("cursor stream") }
    }

    /// Every part but the topic has one length, so that the parts need none in front.
    fn code(&self, body: &[u8; BODY_BYTES], tenant: Uuid, topic: &str) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(&self.codes);
        context.update(&[VERSION]);
        context.update(body);
        context.update(tenant.as_bytes());
        context.update(topic.as_bytes());
        first(&context.sign())
    }

    /// Hides a body, or shows it again.
    fn mask(&self, body: &mut [u8; BODY_BYTES], code: &[u8; TAG_BYTES]) {
        let stream: [u8; BODY_BYTES] = first(&hmac::sign(&self.streams, code));
        body.iter_mut().zip(stream).for_each(|(byte, of_stream)| *byte ^= of_stream);
    }
}

/// Of the 32 bytes.
fn first<const N: usize>(tag: &hmac::Tag) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

/// An event's place, and when the event was accepted, so that a read looks into no older partition.
///
/// As text it is base64url, without padding, of 33 bytes: the version 2; the position and the time of acceptance as
/// big-endian 64-bit integers, encrypted, since positions are everybody's, and two of them say how much was published between; and
/// the code, the first 16 bytes of HMAC-SHA-256 over the version, those 16 in the clear, the tenant's 16 and the topic. They
/// are encrypted with the first 16 bytes of HMAC-SHA-256, by another key, over the code: a synthetic initialization vector
/// (Rogaway and Shrimpton, 2006), so that equal cursors are equal texts and nothing else is to be seen.
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
    /// The text that only this tenant can use in this topic.
    #[must_use]
    pub fn encode(&self, key: &CursorKey, tenant: Uuid, topic: &str) -> String {
        let mut body = self.body();
        let code = key.code(&body, tenant, topic);
        key.mask(&mut body, &code);
        URL_SAFE_NO_PAD.encode([[VERSION].as_slice(), &body, &code].concat())
    }

    /// The cursor that `text` is, where it was made with this key for this tenant and topic.
    pub fn decode(text: &str, key: &CursorKey, tenant: Uuid, topic: &str) -> Result<Self, CursorError> {
        if text.len() != TEXT_BYTES {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let (version, rest) = bytes.split_first().ok_or(CursorError)?;
        let (body, code) = rest.split_first_chunk::<BODY_BYTES>().ok_or(CursorError)?;
        let code = code.first_chunk::<TAG_BYTES>().ok_or(CursorError)?;
        let mut body = *body;
        key.mask(&mut body, code);
        verify_slices_are_equal(&key.code(&body, tenant, topic), code).map_err(|_| CursorError)?;
        if *version != VERSION {
            return Err(CursorError);
        }
        let (position, accepted_ms) = body.split_first_chunk::<8>().ok_or(CursorError)?;
        let accepted_ms = accepted_ms.first_chunk::<8>().ok_or(CursorError)?;
        Ok(Self {
            position: Position::new(i64::from_be_bytes(*position)),
            accepted_ms: i64::from_be_bytes(*accepted_ms),
        })
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        let numbers = self.position.number().to_be_bytes().into_iter().chain(self.accepted_ms.to_be_bytes());
        body.iter_mut().zip(numbers).for_each(|(to, from)| *to = from);
        body
    }
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
        assert_eq!(text, "AlnzJfxpXUT7E8d9G7vxbAQ2nCjJezg43P0NaaLSARzs");
        assert_eq!(Cursor::decode(&text, &key(1), TENANT, "leads"), Ok(cursor()));
    }

    #[test]
    fn cursors_of_neighbours_tell_nothing_of_their_places() {
        let bytes = |position: i64| {
            let cursor = Cursor { position: Position::new(position), ..cursor() };
            let text = cursor.encode(&key(1), TENANT, "leads");
            assert_eq!((text.len(), &text), (TEXT_BYTES, &cursor.encode(&key(1), TENANT, "leads")));
            URL_SAFE_NO_PAD.decode(text).unwrap()
        };
        let mut alike = 0;
        for position in 1_234_567..1_234_667 {
            let (one, next) = (bytes(position), bytes(position + 1));
            let place = position.to_be_bytes();
            assert!(!one.windows(3).any(|part| part == &place[5..]), "{position} is in {one:?}");
            alike += one[1..].iter().zip(&next[1..]).filter(|(one, next)| one == next).count();
        }
        // Of 3,200 bytes 12.5 are alike by chance.
        assert!(alike < 60, "{alike} bytes are alike");
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
    fn a_cursor_of_another_version_is_refused() {
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor().encode(&key(1), TENANT, "leads")).unwrap();
        bytes[0] = 1;
        let text = URL_SAFE_NO_PAD.encode(bytes);
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
