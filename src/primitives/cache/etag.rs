//! Entity tags and the conditions that name them (RFC 9110, 8.8.3 and 13.1).

use aws_lc_rs::digest;
use http::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

/// The most tags that a condition may list.
const MAX_TAGS: usize = 32;

/// A strong entity tag: SHA-1 over the content, because that is the hash that Redis's scripts can compute
/// too. It tells a tenant's own values apart; nothing is trusted because of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Etag([u8; 20]);

impl Etag {
    /// The tag of a body alone, for values whose content type policy fixes.
    pub(super) fn of_body(body: &[u8]) -> Self {
        Self::from_digest(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, body))
    }

    /// The tag of a body and its content type: two representations with the same bytes differ.
    pub(super) fn of_typed(content_type: &[u8], body: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        context.update(content_type);
        context.update(b"\n");
        context.update(body);
        Self::from_digest(&context.finish())
    }

    pub(super) fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// 40 hexadecimal digits, as `redis.sha1hex` writes them.
    pub(super) fn hex(&self) -> [u8; 40] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 40];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    /// As the `ETag` header has it.
    pub(super) fn header(&self) -> HeaderValue {
        let mut text = [b'"'; 42];
        text[1..41].copy_from_slice(&self.hex());
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
    }

    fn from_digest(digest: &digest::Digest) -> Self {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(&digest.as_ref()[..20]);
        Self(bytes)
    }

    fn parse(opaque: &str) -> Option<Self> {
        let mut bytes = [0; 20];
        if opaque.len() != 40 || !opaque.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&opaque[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

/// The tags of one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tags {
    /// `*`: whatever is there.
    Any,
    /// One of these; tags that no value here can have are left out.
    Listed(Vec<Etag>),
}

impl Tags {
    fn holds(&self, current: Option<&Etag>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Listed(tags), Some(current)) => tags.contains(current),
        }
    }
}

/// What must hold about the current value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// `If-Match`, by strong comparison.
    pub(super) if_match: Option<Tags>,
    /// `If-None-Match`, by weak comparison.
    pub(super) if_none_match: Option<Tags>,
}

/// What the conditions say about the current value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on.
    Holds,
    /// `If-Match` does not hold: 412.
    Mismatch,
    /// `If-None-Match` does not hold: 304 to a read, 412 to a write.
    NotModified,
}

/// A condition that is no list of entity tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`If-Match` and `If-None-Match` are `*` or up to 32 quoted entity tags")]
pub(crate) struct MalformedCondition;

impl Conditions {
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, MalformedCondition> {
        Ok(Self {
            if_match: tags(headers, &IF_MATCH, false)?,
            if_none_match: tags(headers, &IF_NONE_MATCH, true)?,
        })
    }

    /// In the order of RFC 9110, 13.2.2.
    pub(super) fn judge(&self, current: Option<&Etag>) -> Verdict {
        if self.if_match.as_ref().is_some_and(|tags| !tags.holds(current)) {
            return Verdict::Mismatch;
        }
        if self.if_none_match.as_ref().is_some_and(|tags| tags.holds(current)) {
            return Verdict::NotModified;
        }
        Verdict::Holds
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Tags>, MalformedCondition> {
    let mut found = None;
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| MalformedCondition)?;
        if text.trim() == "*" {
            if found.is_some() {
                return Err(MalformedCondition);
            }
            found = Some(Tags::Any);
            continue;
        }
        match found.get_or_insert_with(|| Tags::Listed(Vec::new())) {
            Tags::Any => return Err(MalformedCondition),
            Tags::Listed(list) => read_list(text, weak, list)?,
        }
    }
    Ok(found)
}

/// Adds the tags of a comma-separated list; a weak one only where `weak` ones count.
fn read_list(text: &str, weak: bool, list: &mut Vec<Etag>) -> Result<(), MalformedCondition> {
    let mut rest = text.trim();
    let mut read = 0;
    while !rest.is_empty() {
        let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |after| (true, after));
        let quoted = quoted.strip_prefix('"').ok_or(MalformedCondition)?;
        let (opaque, after) = quoted.split_once('"').ok_or(MalformedCondition)?;
        read += 1;
        if read > MAX_TAGS || opaque.bytes().any(|b| b <= b' ') {
            return Err(MalformedCondition);
        }
        if weak || !is_weak {
            list.extend(Etag::parse(opaque));
        }
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').ok_or(MalformedCondition)?.trim_start_matches([',', ' ', '\t']);
        }
    }
    if read == 0 { Err(MalformedCondition) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_judged_as_rfc_9110_says() {
        let (a, b) = (Etag::of_body(b"a"), Etag::of_body(b"b"));
        let text = |etag: Etag| etag.header().to_str().unwrap().to_owned();
        let (ta, tb) = (text(a), text(b));
        let both = format!("{tb}, {ta}");
        let weak = format!("W/{ta}");
        let foreign = format!("\"x\",{ta}");
        for (name, value, current, expected) in [
            ("if-match", "*", None, Some(Verdict::Mismatch)),
            ("if-match", "*", Some(a), Some(Verdict::Holds)),
            ("if-match", &ta, Some(a), Some(Verdict::Holds)),
            ("if-match", &tb, Some(a), Some(Verdict::Mismatch)),
            ("if-match", &both, Some(a), Some(Verdict::Holds)),
            ("if-match", &weak, Some(a), Some(Verdict::Mismatch)),
            ("if-match", &foreign, Some(a), Some(Verdict::Holds)),
            ("if-none-match", "*", None, Some(Verdict::Holds)),
            ("if-none-match", "*", Some(a), Some(Verdict::NotModified)),
            ("if-none-match", &weak, Some(a), Some(Verdict::NotModified)),
            ("if-none-match", &tb, Some(a), Some(Verdict::Holds)),
            ("if-none-match", &both, Some(b), Some(Verdict::NotModified)),
            ("if-match", "abc", Some(a), None),
            ("if-match", "", Some(a), None),
            ("if-match", "\"a\" \"b\"", Some(a), None),
            ("if-none-match", "\"a", Some(a), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            let found = Conditions::from_headers(&headers).ok().map(|c| c.judge(current.as_ref()));
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_tag_tells_content_types_apart_and_reads_back() {
        assert_ne!(Etag::of_typed(b"text/plain", b"x"), Etag::of_typed(b"text/html", b"x"));
        let tag = Etag::of_body(b"");
        assert_eq!(&tag.hex(), b"da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(Etag::parse(std::str::from_utf8(&tag.hex()).unwrap()), Some(tag));
    }
}
