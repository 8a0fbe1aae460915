//! The one path parser. Authorisation and dispatch see the same parsed path, so they cannot disagree.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::Problem;
use crate::error::ErrorKind;

/// The longest path, in bytes as sent.
pub const MAX_PATH_BYTES: usize = 4096;
/// The most segments a path may have.
const MAX_SEGMENTS: usize = 32;

/// A request path: its segments decoded once, and the custom verb where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedPath<'a> {
    /// The decoded segments. An encoded slash is part of its segment.
    pub segments: SmallVec<[Cow<'a, str>; 4]>,
    /// The text after the last raw `:` of the last segment, only looked for where `custom_verbs` asks.
    pub verb: Option<&'a str>,
}

/// Parses a raw request path (no query).
///
/// 400 for an empty segment, a dot segment in any spelling, a broken escape, and text that does not decode
/// to UTF-8 without control characters. `custom_verbs` is true for POST alone.
pub fn parse(raw: &str, custom_verbs: bool) -> Result<ParsedPath<'_>, Problem> {
    if raw.len() > MAX_PATH_BYTES {
        return Err(malformed("the path is longer than 4096 bytes"));
    }
    let Some(rest) = raw.strip_prefix('/') else {
        return Err(malformed("the path must start with `/`"));
    };
    let (rest, verb) = if custom_verbs { split_verb(rest) } else { (rest, None) };
    let mut segments = SmallVec::new();
    let mut rest = Some(rest);
    while let Some(text) = rest {
        if segments.len() == MAX_SEGMENTS {
            return Err(malformed("the path has too many segments"));
        }
        // By bytes: for texts this short the string searcher costs more than it saves.
        let slash = text.bytes().position(|byte| byte == b'/');
        let segment = slash.map_or(text, |at| &text[..at]);
        rest = slash.map(|at| &text[at + 1..]);
        segments.push(decode(segment)?);
    }
    Ok(ParsedPath { segments, verb })
}

/// Splits a custom verb off: the last raw colon counts, and only in the last segment.
fn split_verb(rest: &str) -> (&str, Option<&str>) {
    let last_segment = rest.bytes().rposition(|byte| byte == b'/').map_or(0, |slash| slash + 1);
    match rest[last_segment..].bytes().rposition(|byte| byte == b':') {
        Some(colon) => (&rest[..last_segment + colon], Some(&rest[last_segment + colon + 1..])),
        None => (rest, None),
    }
}

fn decode(segment: &str) -> Result<Cow<'_, str>, Problem> {
    if segment.is_empty() {
        return Err(malformed("the path has an empty segment; a slash inside a key is written `%2F`"));
    }
    // One pass tells most segments: ASCII, nothing to decode, nothing to refuse.
    let (mut simple, mut plain) = (true, true);
    for byte in segment.bytes() {
        simple &= matches!(byte, b' '..=b'~');
        plain &= byte != b'%';
    }
    if simple && plain && !segment.starts_with('.') {
        return Ok(Cow::Borrowed(segment));
    }
    if !plain && !escapes_are_whole(segment) {
        return Err(malformed("a `%` in the path must be followed by two hexadecimal digits"));
    }
    let decoded = if plain {
        Cow::Borrowed(segment)
    } else {
        percent_decode_str(segment).decode_utf8().map_err(|_| malformed("the path must decode to UTF-8"))?
    };
    if decoded == "." || decoded == ".." {
        return Err(malformed("the path has a dot segment"));
    }
    if decoded.chars().any(char::is_control) {
        return Err(malformed("the path has a control character"));
    }
    if !plain && decoded.split('/').any(|part| part == "." || part == "..") {
        return Err(malformed("the path has a dot segment behind an encoded slash"));
    }
    Ok(decoded)
}

fn escapes_are_whole(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

fn malformed(detail: &'static str) -> Problem {
    Problem::new(ErrorKind::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(raw: &str, custom_verbs: bool) -> Option<(Vec<String>, Option<String>)> {
        let path = parse(raw, custom_verbs).ok()?;
        Some((path.segments.iter().map(|s| s.to_string()).collect(), path.verb.map(str::to_owned)))
    }

    #[test]
    fn a_custom_verb_follows_the_last_raw_colon_of_a_post() {
        for (raw, post, expected, verb) in [
            ("/v1/events/leads:pull", true, vec!["v1", "events", "leads"], Some("pull")),
            ("/v1/events/leads:pull", false, vec!["v1", "events", "leads:pull"], None),
            ("/v1/events/leads%3Apull", true, vec!["v1", "events", "leads:pull"], None),
            ("/v1/objects/b/a:b:presign", true, vec!["v1", "objects", "b", "a:b"], Some("presign")),
            ("/v1/a:b/c", true, vec!["v1", "a:b", "c"], None),
            ("/v1/cache/scoring/a%2Fb", false, vec!["v1", "cache", "scoring", "a/b"], None),
            ("/v1/cache/scoring/%25", false, vec!["v1", "cache", "scoring", "%"], None),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(segments(raw, post), Some((expected, verb.map(str::to_owned))), "{raw}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        for raw in [
            "",
            "v1",
            "/",
            "//",
            "/v1//x",
            "/v1/",
            "/v1/../x",
            "/v1/%2e%2e/x",
            "/v1/%2E./x",
            "/v1/./x",
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/%00",
            "/v1/%0a",
            "/v1/%7f",
            "/v1/%ff",
            "/v1/%c0%ae",
            "/v1/a%2f..%2fb",
            "/v1/%c2%85",
        ] {
            assert!(parse(raw, false).is_err(), "{raw:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_never_holds_a_dot_segment(raw in "\\PC{0,60}", post: bool) {
            if let Ok(path) = parse(&raw, post) {
                for segment in &path.segments {
                    prop_assert!(!segment.is_empty());
                    prop_assert!(segment != "." && segment != "..");
                    prop_assert!(!segment.chars().any(char::is_control));
                }
            }
        }

        #[test]
        fn an_encoded_key_comes_back_whole(key in "[a-zA-Z0-9:%/{} é-]{1,40}") {
            prop_assume!(key.split('/').all(|part| part != "." && part != ".."));
            let encoded = percent_encoding::utf8_percent_encode(&key, percent_encoding::NON_ALPHANUMERIC).to_string();
            let raw = format!("/v1/cache/scoring/{encoded}");
            let path = parse(&raw, true).map_err(|p| TestCaseError::fail(p.detail().to_owned()))?;
            prop_assert_eq!(path.segments[3].as_ref(), key.as_str());
            prop_assert_eq!(path.verb, None);
        }
    }
}
