//! Names and keys as they appear in paths and bodies, checked once, at the edge.

use std::fmt;

use compact_str::CompactString;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// The longest key or id, in bytes after percent-decoding.
pub const MAX_KEY_BYTES: usize = 512;

/// The name of a limit, namespace, topic, metric or collection: `[a-z][a-z0-9_.-]{0,63}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(CompactString);

/// Why a text is not a [`Name`] or a [`Key`], in words for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not of the form of a name.
    #[error("a name is 1 to 64 characters of a-z, 0-9, `_`, `.` and `-`, and starts with a letter")]
    Name,
    /// Empty or too long.
    #[error("a key is 1 to 512 bytes")]
    KeyLength,
    /// A control character, or bytes that are not UTF-8.
    #[error("a key is UTF-8 without control characters")]
    KeyCharacters,
}

impl Name {
    /// Checks `text` and makes a name of it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if Self::is_valid(text) { Ok(Self(CompactString::new(text))) } else { Err(NameError::Name) }
    }

    /// Whether `text` is of the form of a name.
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        let bytes = text.as_bytes();
        matches!(bytes.first(), Some(b'a'..=b'z'))
            && bytes.len() <= MAX_NAME_BYTES
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-'))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", self.0)
    }
}

/// A key or id that the caller chose: 1 to 512 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(CompactString);

impl Key {
    /// Checks `text` and makes a key of it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        Self::check(text).map(|()| Self(CompactString::new(text)))
    }

    /// Whether `text` can be a key.
    pub fn check(text: &str) -> Result<(), NameError> {
        if text.is_empty() || text.len() > MAX_KEY_BYTES {
            return Err(NameError::KeyLength);
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::KeyCharacters);
        }
        Ok(())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Keys may be personal data (a phone number as a cache key), so `Debug` shows their length only.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lower_case_and_starts_with_a_letter() {
        let long = "a".repeat(64);
        let too_long = "a".repeat(65);
        for (text, valid) in [
            ("api", true),
            ("a", true),
            ("voice_minutes.v2-x", true),
            (long.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            ("9a", false),
            ("Api", false),
            ("a/b", false),
            ("a:b", false),
            ("ä", false),
        ] {
            assert_eq!(Name::parse(text).is_ok(), valid, "{text:?}");
        }
    }

    #[test]
    fn a_key_is_bounded_and_has_no_control_characters() {
        assert_eq!(Key::parse("").err(), Some(NameError::KeyLength));
        assert_eq!(Key::parse(&"k".repeat(513)).err(), Some(NameError::KeyLength));
        assert_eq!(Key::parse("a\nb").err(), Some(NameError::KeyCharacters));
        assert_eq!(Key::parse("a\u{85}b").err(), Some(NameError::KeyCharacters));
        assert!(Key::parse("leads/42:é{}").is_ok());
    }
}
