//! Binary mode: attributes in `ce-*` headers, the data as the body.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use percent_encoding::percent_decode;
use serde_json::value::RawValue;

use super::attributes::{Attribute, Checked, Given, MAX_ATTRIBUTES, check_once};
use super::error::{EventError, Place, Wrong};
use super::media::Media;
use super::{Context, values};
use crate::primitives::events::{Data, Event};

/// What the headers of attributes begin with.
const PREFIX: &str = "ce-";

/// Whether a request is in binary mode: it has any attribute in a header, so that one that was forgotten is named.
pub(super) fn is_meant(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// Reads the event.
pub(super) fn binary(
    headers: &HeaderMap,
    body: &Bytes,
    context: &Context<'_>,
) -> Result<Vec<Event>, EventError> {
    let mut wrong = Wrong::default();
    let place = Place::Headers;
    let mut attributes: Vec<Attribute<'_>> = Vec::new();
    let mut count = 0;
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(PREFIX) {
            Some("datacontenttype") => {
                wrong.invalid("ce-datacontenttype".to_owned(), "the header `Content-Type` instead");
                continue;
            }
            Some(name) => name,
            None if *name == CONTENT_TYPE => "datacontenttype",
            None => continue,
        };
        count += 1;
        if attributes.len() > MAX_ATTRIBUTES {
            continue;
        }
        let text = if name == "datacontenttype" {
            value.to_str().map(Cow::Borrowed).map_err(|_| "a media type (RFC 2046), such as application/json")
        } else {
            decoded(value)
        };
        match text {
            Ok(text) => attributes.push((Cow::Borrowed(name), Some(Given::Text(text)))),
            Err(detail) => {
                wrong.invalid(place.attribute(name), detail);
                attributes.push((Cow::Borrowed(name), None));
            }
        }
    }
    // Room for `tenantid` beside them.
    if count > MAX_ATTRIBUTES + 1 {
        wrong.invalid(String::new(), format!("at most {MAX_ATTRIBUTES} attributes; there are {count}"));
        return wrong.into_result(Vec::new());
    }
    check_once(attributes.iter().map(|(name, _)| &**name), place, &mut wrong);
    let checked = Checked::new(attributes, place, context, &mut wrong);
    let data = match data(checked.media, body) {
        Ok(data) => data,
        Err(detail) => {
            wrong.invalid(String::new(), detail);
            Data::None
        }
    };
    let event = checked.with(data, false, context, &mut wrong);
    wrong.into_result(event.into_iter().collect())
}

/// A header's value: double quotes and their escapes taken off, then percent-decoded once. A `%` that two hexadecimal
/// digits do not follow stands for itself, since earlier versions of the binding did not encode it.
fn decoded(value: &HeaderValue) -> Result<Cow<'_, str>, &'static str> {
    let bytes = value.as_bytes();
    if let Ok(text) = value.to_str()
        && !text.contains(['%', '"'])
    {
        return Ok(Cow::Borrowed(text));
    }
    let unquoted = unquoted(bytes).ok_or("no lone double quote: it is written %22")?;
    let text = String::from_utf8(percent_decode(&unquoted).collect());
    text.map(Cow::Owned).map_err(|_| "UTF-8, percent-encoded")
}

fn unquoted(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len());
    let mut quoted = false;
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => quoted = !quoted,
            b'\\' if quoted => text.push(*rest.next()?),
            other => text.push(*other),
        }
    }
    (!quoted).then_some(text)
}

/// The payload. An empty body is none, and bytes that no `Content-Type` describes are just bytes.
fn data(media: Option<Media>, body: &Bytes) -> Result<Data, String> {
    if body.is_empty() {
        return Ok(Data::None);
    }
    match media {
        Some(media) if media.json => {
            let text = std::str::from_utf8(body).map_err(|error| format!("JSON in UTF-8: {error}"))?;
            serde_json::from_str::<&RawValue>(text)
                .map_err(|error| format!("JSON, as `Content-Type` says: {error}"))?;
            values::depth(text)?;
            Ok(Data::Json(body.clone()))
        }
        Some(media) if media.text && media.utf8 && std::str::from_utf8(body).is_ok() => {
            Ok(Data::Text(body.clone()))
        }
        Some(_) | None => Ok(Data::Binary(body.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_s_value_is_unquoted_and_percent_decoded_once() {
        for (raw, expected) in [
            ("plain", Ok("plain")),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", Ok("Euro € 😀")),
            ("%e2%82%ac", Ok("€")),
            ("%41%2541", Ok("A%41")),
            ("\"a \\\"b\\\" c\"", Ok("a \"b\" c")),
            ("x\"y%20z\"", Ok("xy z")),
            ("100%", Ok("100%")),
            ("%zz", Ok("%zz")),
            ("", Ok("")),
            ("%C0%A0", Err("UTF-8, percent-encoded")),
            ("%ff", Err("UTF-8, percent-encoded")),
            ("5\" pipe", Err("no lone double quote: it is written %22")),
            ("\"a\\", Err("no lone double quote: it is written %22")),
        ] {
            let value = HeaderValue::from_str(raw).unwrap();
            assert_eq!(decoded(&value).as_deref(), expected.as_ref().map(|text| *text), "{raw}");
        }
        let raw = HeaderValue::from_bytes("é".as_bytes()).unwrap();
        assert_eq!(decoded(&raw).as_deref(), Ok("é"));
    }

    #[test]
    fn the_body_is_what_its_media_type_says() {
        let bytes = |text: &'static [u8]| Bytes::from_static(text);
        for (media, body, expected) in [
            ("application/json", bytes(b" {\"a\": 1} "), Data::Json(bytes(b" {\"a\": 1} "))),
            ("text/plain", bytes(b"a"), Data::Text(bytes(b"a"))),
            ("text/plain; charset=latin1", bytes(b"a"), Data::Binary(bytes(b"a"))),
            ("text/plain", bytes(b"\xff"), Data::Binary(bytes(b"\xff"))),
            ("application/xml", bytes(b"<a/>"), Data::Binary(bytes(b"<a/>"))),
            ("", bytes(b"{}"), Data::Binary(bytes(b"{}"))),
            ("application/json", bytes(b""), Data::None),
        ] {
            assert_eq!(data(Media::parse(media), &body), Ok(expected), "{media}");
        }
        for body in [bytes(b"{"), bytes(b"\"\xff\""), bytes(b"1 2")] {
            assert!(data(Media::parse("text/json"), &body).is_err(), "{body:?}");
        }
    }
}
