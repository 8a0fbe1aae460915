//! W3C trace context: the caller's trace id, or one made here when something needs it.

use std::cell::OnceCell;

use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace a request belongs to.
///
/// A trace id of our own is made only where a problem or a log line shows it: most calls show none, and
/// random bytes cost as much as the rest of the pipeline's checks.
#[derive(Debug, Default)]
pub struct Trace {
    id: OnceCell<Box<str>>,
}

impl Trace {
    /// The trace that `traceparent` names; a header that is not of its form counts as none (W3C Trace Context, 3.2).
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let id = OnceCell::new();
        if let Some(given) =
            headers.get(&TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(trace_id)
        {
            id.get_or_init(|| Box::from(given));
        }
        Self { id }
    }

    /// 32 lower-case hexadecimal digits.
    pub fn id(&self) -> &str {
        self.id.get_or_init(|| {
            Box::from(uuid::Uuid::new_v4().simple().encode_lower(&mut uuid::Uuid::encode_buffer()) as &str)
        })
    }
}

fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zeros = |text: &str| text.bytes().all(|b| b == b'0');
    let shaped = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let valid = shaped
        && version != "ff"
        && !zeros(trace)
        && !zeros(parent)
        && (version != "00" || parts.next().is_none());
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_taken_only_from_a_well_formed_header() {
        let good = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (header, expected) in [
            (format!("00-{good}-00f067aa0ba902b7-01"), Some(good)),
            (format!("01-{good}-00f067aa0ba902b7-01-more"), Some(good)),
            (format!("00-{good}-00f067aa0ba902b7-01-more"), None),
            (format!("ff-{good}-00f067aa0ba902b7-01"), None),
            (format!("00-{}-00f067aa0ba902b7-01", good.to_uppercase()), None),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None),
            ("nonsense".to_owned(), None),
        ] {
            assert_eq!(trace_id(&header), expected, "{header}");
        }
    }

    #[test]
    fn a_trace_without_a_header_has_one_id_of_its_own() {
        let trace = Trace::from_headers(&HeaderMap::new());
        assert_eq!(trace.id().len(), 32);
        assert_eq!(trace.id(), trace.id());
    }
}
