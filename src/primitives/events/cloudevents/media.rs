//! Media types, as far as they say what an event's data is.

use std::iter::Peekable;
use std::str::Chars;

/// What a media type (RFC 2046) says of the bytes that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Media {
    /// `*/json` or `*/*+json`.
    pub(super) json: bool,
    /// `text/*`.
    pub(super) text: bool,
    /// Whether it names no charset, or UTF-8 or its subset.
    pub(super) utf8: bool,
}

impl Media {
    /// Reads `type/subtype` with parameters; none where that is not what `text` is.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (essence, parameters) = text.split_once(';').map_or((text, None), |(e, p)| (e, Some(p)));
        let (kind, subtype) = essence.trim_matches([' ', '\t']).split_once('/')?;
        if !is_token(kind) || !is_token(subtype) {
            return None;
        }
        let subtype = subtype.to_ascii_lowercase();
        let charset = match parameters {
            Some(parameters) => charset(parameters)?,
            None => None,
        };
        let utf8 = charset.is_none_or(|charset| {
            ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
        });
        Some(Self {
            json: subtype == "json" || subtype.ends_with("+json"),
            text: kind.eq_ignore_ascii_case("text"),
            utf8,
        })
    }
}

/// `type/subtype` of a media type, in lower case.
pub(super) fn essence(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim_matches([' ', '\t']).to_ascii_lowercase()
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The charset among `name=value` parameters; none at all where they are no parameters.
fn charset(parameters: &str) -> Option<Option<String>> {
    let mut charset = None;
    let mut rest = parameters.chars().peekable();
    loop {
        skip_space(&mut rest);
        // An empty parameter, as in `a/b;`, is what RFC 9110 tells receivers to take.
        if rest.peek().is_none_or(|next| *next == ';') {
            if rest.next().is_none() {
                return Some(charset);
            }
            continue;
        }
        let name = token(&mut rest)?;
        if rest.next()? != '=' {
            return None;
        }
        let value = if rest.peek() == Some(&'"') { quoted(&mut rest)? } else { token(&mut rest)? };
        if name.eq_ignore_ascii_case("charset") {
            charset = Some(value);
        }
        skip_space(&mut rest);
        if !matches!(rest.next(), None | Some(';')) {
            return None;
        }
    }
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|next| matches!(next, ' ' | '\t')).is_some() {}
}

fn token(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let is_part = |next: &char| u8::try_from(*next).is_ok_and(is_token_byte);
    let text: String = std::iter::from_fn(|| rest.next_if(is_part)).collect();
    (!text.is_empty()).then_some(text)
}

fn quoted(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    rest.next();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(text),
            '\\' => text.push(rest.next()?),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_says_what_the_data_is() {
        let media = |json, text, utf8| Some(Media { json, text, utf8 });
        for (text, expected) in [
            ("application/json", media(true, false, true)),
            ("Application/JSON ; Charset=\"UTF-8\"", media(true, false, true)),
            ("application/vnd.lead+json;v=1", media(true, false, true)),
            ("text/json", media(true, true, true)),
            ("application/jsonlines", media(false, false, true)),
            ("text/plain", media(false, true, true)),
            ("text/plain; charset=latin1", media(false, true, false)),
            ("text/plain;", media(false, true, true)),
            ("a/b; x=\"a;b\\\"c\"; charset=us-ascii", media(false, false, true)),
            ("text", None),
            ("text/", None),
            ("/plain", None),
            ("text/pl ain", None),
            ("text/plain; charset", None),
            ("text/plain; charset=", None),
            ("text/plain; charset=\"utf-8", None),
            ("text/plain; a=b c=d", None),
            ("text/plain, text/html", None),
            ("text/é", None),
            ("", None),
        ] {
            assert_eq!(Media::parse(text), expected, "{text}");
        }
        assert_eq!(essence(" Application/CloudEvents+JSON ; charset=utf-8"), "application/cloudevents+json");
    }
}
