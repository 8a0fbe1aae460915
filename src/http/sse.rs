//! Server-sent events as they are written: the event stream format of the WHATWG HTML standard, 9.2.5 and 9.2.6.

use bytes::{BufMut, BytesMut};

/// Its media type.
pub const MEDIA_TYPE: &str = "text/event-stream";
/// A comment that says nothing: what keeps an idle stream alive.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// A field that this format cannot carry: readers would take the rest of its line for another field, or leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` of a server-sent event has a line break or a NUL")]
pub struct FieldError(&'static str);

/// One event. Without `data` readers dispatch nothing, and still take its `id` for the one to resume from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SseEvent<'e> {
    /// What a reader that comes back sends as `Last-Event-ID`.
    pub id: Option<&'e str>,
    /// Its type; without one it is a `message`.
    pub event: Option<&'e str>,
    /// Its text. Every line break in it, CR LF and CR too, is LF to its reader.
    pub data: Option<&'e str>,
    /// How long a reader that lost its connection waits before it comes back, in milliseconds.
    pub retry_ms: Option<u64>,
}

impl SseEvent<'_> {
    /// Writes it whole, with the empty line that ends it; nothing where a field cannot be written.
    pub fn write_to(&self, buffer: &mut BytesMut) -> Result<(), FieldError> {
        for (name, value, forbidden) in
            [("id", self.id, &['\r', '\n', '\0'][..]), ("event", self.event, &['\r', '\n'])]
        {
            if value.is_some_and(|value| value.contains(forbidden)) {
                return Err(FieldError(name));
            }
        }
        if let Some(id) = self.id {
            write_field(buffer, "id", id);
        }
        if let Some(event) = self.event {
            write_field(buffer, "event", event);
        }
        if let Some(retry_ms) = self.retry_ms {
            write_field(buffer, "retry", itoa::Buffer::new().format(retry_ms));
        }
        if let Some(data) = self.data {
            lines_of(data).for_each(|line| write_field(buffer, "data", line));
        }
        buffer.put_u8(b'\n');
        Ok(())
    }
}

/// Writes a comment: readers leave it out.
pub fn write_comment(buffer: &mut BytesMut, text: &str) {
    lines_of(text).for_each(|line| write_field(buffer, "", line));
    buffer.put_u8(b'\n');
}

fn write_field(buffer: &mut BytesMut, name: &str, value: &str) {
    buffer.reserve(name.len() + value.len() + 3);
    buffer.put_slice(name.as_bytes());
    // Readers take one space after the colon away, so that a value may begin with one.
    buffer.put_slice(b": ");
    buffer.put_slice(value.as_bytes());
    buffer.put_u8(b'\n');
}

/// The lines of `text`, one at the least, split where a reader of this format would: at CR LF, LF and CR.
fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = text.find(['\r', '\n']) else { return rest.take() };
        let (line, break_and_rest) = text.split_at(at);
        let width = if break_and_rest.starts_with("\r\n") { 2 } else { 1 };
        rest = break_and_rest.get(width..);
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Reader {
        last_event_id: String,
        retry_ms: Option<u64>,
        /// Type and data of what was dispatched.
        dispatched: Vec<(String, String)>,
    }

    /// The standard's own steps (9.2.6), for text that ends with an empty line.
    fn read(stream: &[u8]) -> Reader {
        let text = std::str::from_utf8(stream).unwrap().replace("\r\n", "\n").replace('\r', "\n");
        let (mut reader, mut id, mut event, mut data) =
            (Reader::default(), String::new(), String::new(), String::new());
        for line in text.split('\n') {
            if line.is_empty() {
                reader.last_event_id.clone_from(&id);
                let (event, data) = (std::mem::take(&mut event), std::mem::take(&mut data));
                if let Some(data) = data.strip_suffix('\n') {
                    reader.dispatched.push((event, data.to_owned()));
                }
                continue;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "id" if !value.contains('\0') => value.clone_into(&mut id),
                "event" => value.clone_into(&mut event),
                "data" => data.extend([value, "\n"]),
                "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                    reader.retry_ms = value.parse().ok();
                }
                _ => {}
            }
        }
        reader
    }

    fn written(event: SseEvent<'_>) -> BytesMut {
        let mut buffer = BytesMut::new();
        event.write_to(&mut buffer).unwrap();
        buffer
    }

    #[test]
    fn an_event_is_written_as_the_standard_has_it() {
        let whole = SseEvent { id: Some("c1"), event: Some("lead"), data: Some("a\nb"), retry_ms: Some(500) };
        for (event, text) in [
            (whole, "id: c1\nevent: lead\nretry: 500\ndata: a\ndata: b\n\n"),
            (SseEvent { data: Some(""), ..SseEvent::default() }, "data: \n\n"),
            (
                SseEvent { data: Some(" a\r\n\rb\n"), ..SseEvent::default() },
                "data:  a\ndata: \ndata: b\ndata: \n\n",
            ),
            (SseEvent { id: Some("c2"), ..SseEvent::default() }, "id: c2\n\n"),
        ] {
            assert_eq!(written(event), text);
        }
    }

    #[test]
    fn what_would_end_a_line_or_an_id_is_refused_and_nothing_is_written() {
        for (id, event, field) in [
            ("a\nb", "", "id"),
            ("a\rb", "", "id"),
            ("a\0", "", "id"),
            ("", "a\nb", "event"),
            ("", "\r", "event"),
        ] {
            let mut buffer = BytesMut::new();
            let refused = SseEvent { id: Some(id), event: Some(event), data: Some("x"), retry_ms: None };
            assert_eq!(refused.write_to(&mut buffer), Err(FieldError(field)));
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn comments_dispatch_nothing_and_move_nothing() {
        let mut buffer = written(SseEvent { id: Some("c1"), data: Some("x"), ..SseEvent::default() });
        let before = read(&buffer);
        buffer.extend_from_slice(HEARTBEAT);
        write_comment(&mut buffer, "data: y\nid: c2");
        assert_eq!(read(&buffer), before);
        assert_eq!(before.dispatched, [(String::new(), "x".to_owned())]);
    }

    proptest! {
        #[test]
        fn a_reader_of_the_standard_reads_what_was_written(
            events in prop::collection::vec(
                (
                    prop::option::of("[^\r\n\0]{0,8}"),
                    prop::option::of("[^\r\n]{0,8}"),
                    prop::option::of("([ :a\r\n\u{e9}\u{1f980}]|data: |id: ){0,12}"),
                    prop::option::of(0..100_000_u64),
                ),
                0..6,
            )
        ) {
            let mut buffer = BytesMut::new();
            let mut expected = Reader::default();
            for (id, event, data, retry_ms) in &events {
                let (id, event, data) = (id.as_deref(), event.as_deref(), data.as_deref());
                SseEvent { id, event, data, retry_ms: *retry_ms }.write_to(&mut buffer).unwrap();
                expected.last_event_id = id.map_or(expected.last_event_id, str::to_owned);
                expected.retry_ms = retry_ms.or(expected.retry_ms);
                let data = data.map(|data| data.replace("\r\n", "\n").replace('\r', "\n"));
                expected.dispatched.extend(data.map(|data| (event.unwrap_or_default().to_owned(), data)));
            }
            prop_assert_eq!(read(&buffer), expected);
        }
    }
}
