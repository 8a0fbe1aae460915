//! Newline-delimited JSON as it is written: one JSON text a line, each line ended by LF.

use bytes::{BufMut, BytesMut};
use serde::Serialize;

/// Its media type.
pub const MEDIA_TYPE: &str = "application/x-ndjson";
/// An empty line: what keeps an idle stream alive. Readers leave it out.
pub const HEARTBEAT: &[u8] = b"\n";

/// Writes `value` as a line; nothing where it cannot be written.
pub fn write_value<T: Serialize>(buffer: &mut BytesMut, value: &T) -> Result<(), serde_json::Error> {
    let before = buffer.len();
    let written = serde_json::to_writer((&mut *buffer).writer(), value);
    match written {
        Ok(()) => buffer.put_u8(b'\n'),
        Err(_) => buffer.truncate(before),
    }
    written
}

/// Writes a JSON text as a line, without parsing it: a line break in JSON is only ever between its tokens, where a
/// space says the same.
pub fn write_json_text(buffer: &mut BytesMut, text: &[u8]) {
    buffer.reserve(text.len() + 1);
    let begin = buffer.len();
    buffer.put_slice(text);
    if let Some(line) = buffer.get_mut(begin..) {
        line.iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    }
    buffer.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn a_text_of_several_lines_becomes_one_that_says_the_same() {
        let mut buffer = BytesMut::from("{\"before\":1}\n");
        write_json_text(&mut buffer, b"{\r\n  \"a\": [1,\n 2],\r \"b\": \"x\\ny\"\n}");
        let lines: Vec<&[u8]> = buffer[..].split(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2], b"");
        let read: Value = serde_json::from_slice(lines[1]).unwrap();
        assert_eq!(read, json!({"a": [1, 2], "b": "x\ny"}));
        assert_eq!(lines[0], b"{\"before\":1}");
    }

    #[test]
    fn what_cannot_be_written_leaves_no_half_of_a_line() {
        let mut buffer = BytesMut::from("1\n");
        let keys_that_are_no_text = std::collections::BTreeMap::from([(vec![1], 1)]);
        assert!(write_value(&mut buffer, &vec![keys_that_are_no_text]).is_err());
        assert_eq!(buffer, "1\n");
    }

    proptest! {
        #[test]
        fn every_value_is_one_line(texts in prop::collection::vec(any::<String>(), 0..8)) {
            let mut buffer = BytesMut::new();
            for text in &texts {
                write_value(&mut buffer, &json!({"text": text})).unwrap();
            }
            let whole = std::str::from_utf8(&buffer).unwrap();
            let read = whole.split_terminator('\n').map(|line| serde_json::from_str::<Value>(line).unwrap());
            let read: Vec<String> = read.map(|value| value["text"].as_str().unwrap().to_owned()).collect();
            prop_assert_eq!(read, texts);
        }
    }
}
