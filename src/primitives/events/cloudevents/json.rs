//! The JSON event format: one event, or a batch. The data is never made into a tree.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::attributes::{Checked, Given, MAX_ATTRIBUTES, check_once};
use super::error::{EventError, Place, Wrong};
use super::media::Media;
use super::{Context, malformed, text_of, values};
use crate::primitives::events::{Data, Event};

/// Base64 of RFC 4648, section 4; some writers leave its padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads one event.
pub(super) fn structured(body: &Bytes, context: &Context<'_>) -> Result<Vec<Event>, EventError> {
    let element: Element<'_> = serde_json::from_str(text_of(body)?).map_err(|error| malformed(&error))?;
    let mut wrong = Wrong::default();
    let event = read_element(element, Place::Body, body, context, &mut wrong);
    wrong.into_result(event.into_iter().collect())
}

/// Reads a batch.
pub(super) fn batch(body: &Bytes, context: &Context<'_>) -> Result<Vec<Event>, EventError> {
    let text = text_of(body)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let elements = reader
        .deserialize_any(BatchVisitor { most: context.max_batch })
        .and_then(|elements| reader.end().map(|()| elements))
        .map_err(|error| malformed(&error))?;
    let mut wrong = Wrong::default();
    let Some((elements, count)) = elements else {
        wrong.invalid(
            String::new(),
            "a batch is a JSON array of events; one alone is of `application/cloudevents+json`",
        );
        return wrong.into_result(Vec::new());
    };
    if !(1..=context.max_batch).contains(&count) {
        let most = context.max_batch;
        wrong.invalid(
            String::new(),
            format!("1 to {most} events in one call to this topic; there are {count}"),
        );
        return wrong.into_result(Vec::new());
    }
    let read = |(index, element)| read_element(element, Place::Item(index), body, context, &mut wrong);
    let events = elements.into_iter().enumerate().filter_map(read).collect();
    wrong.into_result(events)
}

/// What the event format has in the place of an event.
enum Element<'a> {
    /// An object's members in order, and how many there are.
    Members(Vec<(Cow<'a, str>, &'a RawValue)>, usize),
    /// No object.
    Other,
}

fn read_element(
    element: Element<'_>,
    place: Place,
    body: &Bytes,
    context: &Context<'_>,
    wrong: &mut Wrong,
) -> Option<Event> {
    let (members, count) = match element {
        Element::Members(members, count) => (members, count),
        Element::Other => {
            wrong.invalid(place.event(), "an event is a JSON object");
            return None;
        }
    };
    if count > members.len() {
        wrong.invalid(
            place.event(),
            format!("at most {MAX_ATTRIBUTES} attributes; there are {count} members"),
        );
        return None;
    }
    let before = wrong.count();
    check_once(members.iter().map(|(name, _)| &**name), place, wrong);
    let (mut data, mut base64) = (None, None);
    let mut attributes = Vec::with_capacity(members.len());
    for (name, value) in members {
        match &*name {
            "data" => data = Some(value),
            "data_base64" => base64 = Some(value),
            _ => match read_value(value) {
                Ok(None) => {}
                Ok(Some(value)) => attributes.push((name, Some(value))),
                Err(detail) => {
                    wrong.invalid(place.attribute(&name), detail);
                    attributes.push((name, None));
                }
            },
        }
    }
    let checked = Checked::new(attributes, place, context, wrong);
    let data = match read_data(data, base64, checked.media, body) {
        Ok(data) => data,
        Err((name, detail)) => {
            wrong.invalid(place.attribute(name), detail);
            return None;
        }
    };
    let event = checked.with(data, false, context, wrong)?;
    (wrong.count() == before).then_some(event)
}

/// An attribute's value; none for `null`, which is the same as leaving it out.
fn read_value(value: &RawValue) -> Result<Option<Given<'_>>, &'static str> {
    let text = value.get();
    match text.bytes().next() {
        Some(b'"') => read_string(value).map(|text| Some(Given::Text(text))),
        Some(b't') => Ok(Some(Given::Boolean(true))),
        Some(b'f') => Ok(Some(Given::Boolean(false))),
        Some(b'n') => Ok(None),
        Some(b'-' | b'0'..=b'9') => text.parse().map(|number| Some(Given::Integer(number))).map_err(
            |_| "a whole number from -2147483648 to 2147483647, without decimals; a larger one as a string",
        ),
        _ => Err("a string, a boolean or a 32-bit integer; what has parts of its own belongs in `data`"),
    }
}

fn read_string(value: &RawValue) -> Result<Cow<'_, str>, &'static str> {
    serde_json::from_str::<Text<'_>>(value.get())
        .map(|text| text.0)
        .map_err(|_| "a JSON string whose \\u escapes are whole characters")
}

/// The payload, or which member is wrong and what would be right.
fn read_data(
    data: Option<&RawValue>,
    base64: Option<&RawValue>,
    media: Option<Media>,
    body: &Bytes,
) -> Result<Data, (&'static str, &'static str)> {
    let base64 = base64.filter(|value| value.get() != "null");
    match (data, base64) {
        (Some(_), Some(_)) => Err(("data_base64", "either `data` or `data_base64`")),
        (None, None) => Ok(Data::None),
        (None, Some(value)) => {
            let refused = ("data_base64", "a string of base64 (RFC 4648, section 4)");
            let text = read_string(value).map_err(|_| refused)?;
            let bytes = BASE64.decode(text.as_bytes()).map_err(|_| refused)?;
            Ok(Data::Binary(bytes.into()))
        }
        (Some(value), None) if media.is_none_or(|media| media.json) => {
            values::depth(value.get()).map_err(|detail| ("data", detail))?;
            Ok(Data::Json(body.slice_ref(value.get().as_bytes())))
        }
        // Under another type `null` is no text, and can mean nothing but that there is none.
        (Some(value), None) if value.get() == "null" => Ok(Data::None),
        (Some(value), None) => match read_string(value) {
            Ok(Cow::Borrowed(text)) => Ok(Data::Text(body.slice_ref(text.as_bytes()))),
            Ok(Cow::Owned(text)) => Ok(Data::Text(text.into())),
            Err(_) => Err((
                "data",
                "a JSON string, since `datacontenttype` is not JSON; bytes that are no text go in `data_base64`",
            )),
        },
    }
}

/// A string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Deserialize<'a> for Element<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'a> Visitor<'a> for ElementVisitor {
    type Value = Element<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut count) = (Vec::with_capacity(16), 0);
        while let Some(Text(name)) = map.next_key()? {
            count += 1;
            // Room for `tenantid` and both kinds of data beside the attributes.
            if members.len() < MAX_ATTRIBUTES + 3 {
                members.push((name, map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Element::Members(members, count))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element::Other)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Element::Other)
    }
}

/// Reads the elements of an array, at most `most` of them, and counts the rest.
struct BatchVisitor {
    most: usize,
}

impl<'a> Visitor<'a> for BatchVisitor {
    type Value = Option<(Vec<Element<'a>>, usize)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch of events")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut elements, mut count) = (Vec::new(), 0);
        while elements.len() < self.most {
            match seq.next_element()? {
                Some(element) => elements.push(element),
                None => return Ok(Some((elements, count))),
            }
            count += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Some((elements, count)))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// What attributes' JSON text holds, for those who need them one by one.
pub(super) fn attributes_of(text: &str) -> Option<Vec<(Cow<'_, str>, Given<'_>)>> {
    let Ok(Element::Members(members, _)) = serde_json::from_str(text) else { return None };
    members
        .into_iter()
        .filter_map(|(name, value)| match read_value(value) {
            Ok(Some(value)) => Some(Some((name, value))),
            Ok(None) => None,
            Err(_) => Some(None),
        })
        .collect()
}
