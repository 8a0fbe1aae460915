//! One event as it is kept, and its place in the log.

use bytes::Bytes;
use uuid::Uuid;

/// A CloudEvent 1.0 that was read and checked, ready to be kept.
///
/// Its attributes are kept as the JSON text that readers get and its payload as the bytes that the relay sends, so
/// that neither parses it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `id`. With `source`, and within a tenant's topic, it names the event.
    pub id: Box<str>,
    /// `source`.
    pub source: Box<str>,
    /// `type`.
    pub kind: Box<str>,
    /// What orders it among others: `partitionkey`, else `subject`, else `id`.
    pub key: Box<str>,
    /// Whether the id was made here, so that no other event can have it.
    pub id_is_ours: bool,
    /// Every context attribute, extensions and `tenantid` among them, as one JSON object without `data`.
    pub attributes: Bytes,
    /// The payload.
    pub data: Data,
}

/// An event's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// There is none.
    None,
    /// A JSON value, as it was written.
    Json(Bytes),
    /// UTF-8 text of another media type.
    Text(Bytes),
    /// Anything else; base64 in JSON.
    Binary(Bytes),
}

impl Data {
    /// How its form is kept in the store.
    #[must_use]
    pub fn form(&self) -> i16 {
        match self {
            Self::None => 0,
            Self::Json(_) => 1,
            Self::Text(_) => 2,
            Self::Binary(_) => 3,
        }
    }

    /// The payload of a kept form; none where no release of this program wrote such a form.
    #[must_use]
    pub fn of_form(form: i16, bytes: Bytes) -> Option<Self> {
        match form {
            0 => Some(Self::None),
            1 => Some(Self::Json(bytes)),
            2 => Some(Self::Text(bytes)),
            3 => Some(Self::Binary(bytes)),
            _ => None,
        }
    }

    /// Its bytes as they are kept: nothing where there is no payload, which is not the same as an empty one.
    #[must_use]
    pub(super) fn stored(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::Json(bytes) | Self::Text(bytes) | Self::Binary(bytes) => Some(bytes),
        }
    }

    /// Its bytes; none at all where there is no payload.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Json(bytes) | Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

/// An event's place in the log. Later events of a key have larger ones; there are gaps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(i64);

impl Position {
    /// Before every event.
    pub const START: Self = Self(0);

    /// The place with this number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }
}

/// An event as it is read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Where it is.
    pub position: Position,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: i64,
    /// Whose it is.
    pub tenant: Uuid,
    /// What orders it.
    pub key: Box<str>,
    /// `type`.
    pub kind: Box<str>,
    /// As [`Event::attributes`].
    pub attributes: Bytes,
    /// As [`Event::data`].
    pub data: Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_form_is_the_payload_s_own() {
        let bytes = Bytes::from_static(b"\"text\"");
        for data in [Data::Json(bytes.clone()), Data::Text(bytes.clone()), Data::Binary(bytes.clone())] {
            assert_eq!(Data::of_form(data.form(), bytes.clone()), Some(data));
        }
        assert_eq!(Data::of_form(Data::None.form(), Bytes::new()), Some(Data::None));
        assert_eq!(Data::of_form(4, bytes), None);
    }
}
