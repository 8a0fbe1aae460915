//! JSON bodies: read quickly when right, explained with a pointer when wrong.

use http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::Problem;
use crate::error::ErrorKind;

/// 415 unless the request says `application/json`.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(http::header::CONTENT_TYPE);
    if given.is_some_and(|value| value.as_bytes() == b"application/json") {
        return Ok(());
    }
    let content_type = given.and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = content_type.split(';').next().unwrap_or("").trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Problem::new(
            ErrorKind::UnsupportedMediaType,
            "send the body with `Content-Type: application/json`",
        ))
    }
}

/// Reads `T`; the second, slower reading that finds the pointer happens only where the first fails.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    parse_part(body, "")
}

/// The same of a part of a body, which is at this pointer; `T` may borrow from it.
pub fn parse_part<'b, T: Deserialize<'b>>(part: &'b [u8], at: &str) -> Result<T, Problem> {
    serde_json::from_slice(part).map_err(|error| explain::<T>(part, at, &error))
}

fn explain<'b, T: Deserialize<'b>>(body: &'b [u8], at: &str, error: &serde_json::Error) -> Problem {
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io if at.is_empty() => {
            Problem::new(ErrorKind::Malformed, format!("the body is not JSON: {error}"))
        }
        Category::Syntax | Category::Eof | Category::Io => {
            Problem::new(ErrorKind::Malformed, "a part of the body is not JSON")
                .with_field(at.to_owned(), error.to_string())
        }
        Category::Data => {
            let mut reader = serde_json::Deserializer::from_slice(body);
            let found: Result<T, _> = serde_path_to_error::deserialize(&mut reader);
            let pointer = found.err().map(|error| pointer(error.path())).unwrap_or_default();
            Problem::new(ErrorKind::Invalid, "a field of the body is wrong")
                .with_field(format!("{at}{pointer}"), error.to_string())
        }
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                text.push('/');
                text.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    text
}
