//! What a value of each of CloudEvents' types may be.

use fluent_uri::{Uri, UriRef};

use super::media::Media;
use crate::rfc3339;

/// What is wrong with a value, and what would be right.
pub(super) type Verdict = Result<(), &'static str>;

/// The most levels of arrays and objects in JSON data. Readers get an event inside a few more, and JSON libraries stop
/// at 128 (serde_json) or 1000 (Jackson) levels.
const MAX_JSON_DEPTH: usize = 100;

/// A String: no control characters and no code points that Unicode keeps from being characters.
pub(super) fn string(text: &str) -> Verdict {
    let refused = |c: char| {
        c.is_control() || matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE
    };
    let plain = text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    if plain || !text.chars().any(refused) {
        Ok(())
    } else {
        Err("a string has no control characters (U+0000 to U+001F, U+007F to U+009F) and no noncharacters")
    }
}

/// A String that says something.
pub(super) fn filled(text: &str) -> Verdict {
    if text.is_empty() { Err("not empty; leave it out instead, where it is optional") } else { string(text) }
}

/// A URI-reference (RFC 3986) that is not empty.
pub(super) fn uri_reference(text: &str) -> Verdict {
    match UriRef::parse(text) {
        Ok(_) if !text.is_empty() => Ok(()),
        _ => Err(
            "a URI-reference (RFC 3986) that is not empty, such as /crm/leads or https://example.com/crm; other characters, spaces among them, are percent-encoded",
        ),
    }
}

/// A URI (RFC 3986), which has a scheme.
pub(super) fn uri(text: &str) -> Verdict {
    match Uri::parse(text) {
        Ok(_) => Ok(()),
        Err(_) => Err("an absolute URI (RFC 3986), such as https://example.com/schemas/lead.json"),
    }
}

/// A Timestamp (RFC 3339).
pub(super) fn time(text: &str) -> Verdict {
    rfc3339::instant(text).map(|_| ()).ok_or("an RFC 3339 time with its offset, such as 2026-01-31T09:30:00Z")
}

/// A media type (RFC 2046).
pub(super) fn media_type(text: &str) -> Verdict {
    Media::parse(text).map(|_| ()).ok_or("a media type (RFC 2046), such as application/json")
}

/// The version of the specification.
pub(super) fn version(text: &str) -> Verdict {
    if text == "1.0" { Ok(()) } else { Err("`1.0`, the only version that is taken") }
}

/// Whether the arrays and objects of JSON text, which is right otherwise, are within each other too deeply.
pub(super) fn depth(json: &str) -> Verdict {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return Err("at most 100 levels of arrays and objects");
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A type, its check, what is right and what is wrong.
    type Case = (&'static str, fn(&str) -> Verdict, &'static [&'static str], &'static [&'static str]);

    #[test]
    fn a_value_of_each_type_is_taken_or_refused() {
        let cases: [Case; 4] = [
            (
                "string",
                string,
                &["", "a b", "é \u{1F600}", "\u{FDCF}\u{FFFD}\u{10FFFD}"],
                &["a\n", "\0", "\u{7f}", "\u{85}", "\u{9f}", "\u{FDD0}", "\u{FFFE}", "\u{10FFFF}"],
            ),
            (
                "URI-reference",
                uri_reference,
                &[
                    "/crm",
                    "crm",
                    "1-555-123-4567",
                    "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
                    "?a#b",
                    "a%20b",
                ],
                &["", "a b", "%zz", "é", "a#b#c", "http://[::1", "1:2", "a\\b", "a\"b"],
            ),
            ("URI", uri, &["https://example.com/s#a", "urn:a:b"], &["", "/s", "s.json", "https://a b"]),
            ("version", version, &["1.0"], &["1", "1.0.2", "0.3", ""]),
        ];
        for (what, check, right, wrong) in cases {
            for text in right {
                assert_eq!(check(text), Ok(()), "{what} {text:?}");
            }
            for text in wrong {
                assert!(check(text).is_err(), "{what} {text:?}");
            }
        }
    }

    #[test]
    fn depth_counts_what_is_open_outside_of_strings() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(depth(&nested(100)), Ok(()));
        assert!(depth(&nested(101)).is_err());
        assert_eq!(depth(&format!("[{}]", vec!["[]"; 200].join(","))), Ok(()));
        assert_eq!(depth(&format!(r#""\"{}\\""#, "[".repeat(200))), Ok(()));
        assert!(depth(&format!(r#"["\\",{}]"#, nested(100))).is_err());
    }
}
