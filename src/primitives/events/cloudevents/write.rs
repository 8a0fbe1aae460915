//! A kept event as CloudEvents has it: the JSON format, and binary mode's headers for Kafka.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::attributes::{Given, write_string};
use super::json::attributes_of;
use crate::primitives::events::Data;

/// The name of a Kafka header that says what the value is.
const CONTENT_TYPE: &str = "content-type";

/// Attributes that were kept are not the JSON object that this program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kept attributes of an event are not a JSON object of strings, booleans and integers")]
pub struct AttributesError;

/// Writes a kept event in the JSON format, on one line, with `extensions` after its own attributes; neither its
/// attributes nor its data are parsed.
///
/// The data is as it was sent but for line ends between its parts, which are spaces here: a reader of lines or of an
/// event stream would take them for the end of the event.
pub fn write_structured(out: &mut Vec<u8>, attributes: &[u8], data: &Data, extensions: &[(&str, &str)]) {
    out.reserve(attributes.len() + data.bytes().len() + 64);
    out.extend_from_slice(attributes.strip_suffix(b"}").unwrap_or(attributes));
    for (name, value) in extensions {
        write_name(out, name);
        write_string(out, value);
    }
    match data {
        Data::None => {}
        Data::Json(bytes) => {
            write_name(out, "data");
            let from = out.len();
            out.extend_from_slice(bytes);
            // JSON's strings have no line ends of their own: these are white space.
            for byte in out.iter_mut().skip(from).filter(|byte| matches!(**byte, b'\n' | b'\r')) {
                *byte = b' ';
            }
        }
        Data::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => {
                write_name(out, "data");
                write_string(out, text);
            }
            Err(_) => write_base64(out, bytes),
        },
        Data::Binary(bytes) => write_base64(out, bytes),
    }
    out.push(b'}');
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    out.push(b',');
    write_string(out, name);
    out.push(b':');
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    write_name(out, "data_base64");
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
}

/// The headers of a kept event's Kafka record in binary mode: `ce_` and the attribute's name, and `content-type`. Their
/// values are UTF-8 as it is. JSON data that names no type gets `application/json`, which the JSON format implies.
pub fn kafka_headers(attributes: &[u8], data: &Data) -> Result<Vec<(String, String)>, AttributesError> {
    let text = std::str::from_utf8(attributes).map_err(|_| AttributesError)?;
    let list = attributes_of(text).ok_or(AttributesError)?;
    let mut headers: Vec<_> = list
        .into_iter()
        .map(|(name, value)| {
            let name = if name == "datacontenttype" { CONTENT_TYPE.to_owned() } else { format!("ce_{name}") };
            let value = match value {
                Given::Text(text) => text.into_owned(),
                Given::Integer(number) => number.to_string(),
                Given::Boolean(value) => value.to_string(),
            };
            (name, value)
        })
        .collect();
    if matches!(data, Data::Json(_)) && !headers.iter().any(|(name, _)| name == CONTENT_TYPE) {
        headers.push((CONTENT_TYPE.to_owned(), "application/json".to_owned()));
    }
    Ok(headers)
}
