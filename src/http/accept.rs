//! Which form a streamed reply takes: what the caller's `Accept` says (RFC 9110, 12.5.1).

use http::HeaderMap;
use http::header::{ACCEPT, HeaderValue};

use super::{Problem, ndjson, sse};
use crate::error::ErrorKind;

/// The form of a streamed reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamForm {
    /// Server-sent events.
    EventStream,
    /// A JSON text a line.
    Ndjson,
}

impl StreamForm {
    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::EventStream => sse::MEDIA_TYPE,
            Self::Ndjson => ndjson::MEDIA_TYPE,
        }
    }

    /// What keeps a stream of this form alive while there is nothing to say.
    #[must_use]
    pub fn heartbeat(self) -> &'static [u8] {
        match self {
            Self::EventStream => sse::HEARTBEAT,
            Self::Ndjson => ndjson::HEARTBEAT,
        }
    }

    /// The form that a caller accepts: the one of the higher quality, then the one that is named more exactly, then
    /// NDJSON, which is also for callers that say nothing.
    ///
    /// 422 where it accepts neither: the contract has no 406, and RFC 9110's other way, to answer all the same, would
    /// have a client wait for the end of what never ends. 400 where an `Accept` cannot be read.
    pub fn accepted(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut given = headers.get_all(ACCEPT).iter().peekable();
        if given.peek().is_none() {
            return Ok(Self::Ndjson);
        }
        let mut ranges = Vec::new();
        for value in given {
            read_ranges(value, &mut ranges).ok_or_else(|| {
                Problem::new(ErrorKind::Malformed, "`Accept` is a list of media ranges with `q` from 0 to 1")
            })?;
        }
        let [events, lines] = [Self::EventStream, Self::Ndjson].map(|form| form.preference(&ranges));
        match (events.filter(|found| found.quality > 0), lines.filter(|found| found.quality > 0)) {
            (Some(events), Some(lines)) if events > lines => Ok(Self::EventStream),
            (_, Some(_)) => Ok(Self::Ndjson),
            (Some(_), None) => Ok(Self::EventStream),
            (None, None) => Err(Problem::new(
                ErrorKind::Invalid,
                format!("this is `{}` or `{}`: accept one of them", sse::MEDIA_TYPE, ndjson::MEDIA_TYPE),
            )),
        }
    }

    /// What the most exact range that fits says.
    fn preference(self, ranges: &[Range]) -> Option<Preference> {
        let (kind, _) = self.media_type().split_once('/')?;
        let fitting = ranges.iter().filter_map(|range| {
            let exactness = match range.media.split_once('/')? {
                ("*", "*") => 0,
                (of, "*") if of == kind => 1,
                _ if range.media == self.media_type() => 2,
                _ => return None,
            };
            Some(Preference { quality: range.quality, exactness })
        });
        fitting.max_by_key(|found| (found.exactness, found.quality))
    }
}

/// One of what a caller accepts.
struct Range {
    media: String,
    /// In thousandths.
    quality: u16,
}

/// How a caller likes a form; the order is that of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    quality: u16,
    exactness: u8,
}

fn read_ranges(value: &HeaderValue, ranges: &mut Vec<Range>) -> Option<()> {
    for element in value.to_str().ok()?.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        let mut parts = element.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        media.split_once('/').filter(|(kind, of)| !kind.is_empty() && !of.is_empty())?;
        let weight = parts.find_map(|part| {
            let (name, weight) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then_some(weight.trim())
        });
        ranges.push(Range { media, quality: weight.map_or(Some(1000), thousandths)? });
    }
    Some(())
}

/// A `qvalue` (RFC 9110, 12.4.2): from 0 to 1, with three decimals at the most.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest: u16 = format!("{decimals:0<3}").parse().ok()?;
    match (whole, rest) {
        ("0", rest) => Some(rest),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_accept_says() {
        const EVENTS: Result<StreamForm, ErrorKind> = Ok(StreamForm::EventStream);
        const LINES: Result<StreamForm, ErrorKind> = Ok(StreamForm::Ndjson);
        for (accept, expected) in [
            (&[][..], LINES),
            (&[""], Err(ErrorKind::Invalid)),
            (&["*/*"], LINES),
            (&["text/event-stream"], EVENTS),
            (&["Text/Event-Stream; charset=utf-8"], EVENTS),
            (&["application/x-ndjson"], LINES),
            (&["application/*"], LINES),
            (&["text/*"], EVENTS),
            (&["text/event-stream, application/x-ndjson"], LINES),
            (&["text/event-stream", "application/x-ndjson;q=0.9"], EVENTS),
            (&["text/event-stream;q=0.5,application/x-ndjson;q=0.501"], LINES),
            (&["text/event-stream, */*"], EVENTS),
            (&["application/json, text/plain, */*"], LINES),
            (&["application/x-ndjson;q=0, */*"], EVENTS),
            (&["text/event-stream;q=0, */*;q=0.1"], LINES),
            (&["text/event-stream;q=0.2, text/*"], EVENTS),
            (&["text/event-stream;q=0.2, */*"], LINES),
            (&["text/event-stream;q=0"], Err(ErrorKind::Invalid)),
            (&["*/*;q=0"], Err(ErrorKind::Invalid)),
            (&["application/json"], Err(ErrorKind::Invalid)),
            (&["text/event-stream;q=1.000"], EVENTS),
            (&["text/event-stream;q=1.1"], Err(ErrorKind::Malformed)),
            (&["text/event-stream;q=0.0001"], Err(ErrorKind::Malformed)),
            (&["text/event-stream;q=-1"], Err(ErrorKind::Malformed)),
            (&["text/event-stream;q="], Err(ErrorKind::Malformed)),
            (&["events"], Err(ErrorKind::Malformed)),
            (&["text/"], Err(ErrorKind::Malformed)),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, HeaderValue::from_static(value));
            }
            let found = StreamForm::accepted(&headers).map_err(|problem| problem.kind());
            assert_eq!(found, expected, "{accept:?}");
        }
    }

    #[test]
    fn what_is_named_fits_its_form() {
        for form in [StreamForm::EventStream, StreamForm::Ndjson] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(form.media_type()))]);
            assert_eq!(StreamForm::accepted(&headers).ok(), Some(form));
            assert_eq!(form.heartbeat().last(), Some(&b'\n'));
        }
    }
}
