//! Request bytes, prepared once; only the key's digits change from call to call.

use std::ops::Range;

/// In a path or a body, the place of the key's eight digits.
pub(crate) const KEY_MARK: &str = "{key}";
const KEY_DIGITS: usize = 8;

/// What to send, before it is bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestSpec {
    /// `GET`, `POST`, `PUT`.
    pub(crate) method: String,
    /// Path and query; may hold [`KEY_MARK`] once.
    pub(crate) path: String,
    /// Headers apart from `Host` and `Content-Length`.
    pub(crate) headers: Vec<(String, String)>,
    /// The body; may hold [`KEY_MARK`] once where the path does not.
    pub(crate) body: Vec<u8>,
    /// How many keys the calls walk through, 1 for always the same.
    pub(crate) keys: u64,
}

/// The bytes of a request, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct PreparedRequest {
    bytes: Vec<u8>,
    key_at: Option<Range<usize>>,
    keys: u64,
    next_key: u64,
}

impl RequestSpec {
    /// The bytes for a server that is called `host`.
    pub(crate) fn prepare(&self, host: &str) -> PreparedRequest {
        let mut bytes = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if !self.body.is_empty() || self.method != "GET" {
            let grown =
                if find(&self.body, KEY_MARK.as_bytes()).is_some() { KEY_DIGITS - KEY_MARK.len() } else { 0 };
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len() + grown).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        let key_at = find(&bytes, KEY_MARK.as_bytes()).map(|start| {
            bytes.splice(start..start + KEY_MARK.len(), *b"00000000");
            start..start + KEY_DIGITS
        });
        PreparedRequest { bytes, key_at, keys: self.keys.max(1), next_key: 0 }
    }
}

impl PreparedRequest {
    /// The bytes of the next call. Keys are walked in a circle, so that a cache smaller than the circle never hits.
    pub(crate) fn next(&mut self) -> &[u8] {
        if let Some(place) = self.key_at.clone() {
            let mut rest = self.next_key;
            for digit in self.bytes[place].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            self.next_key = (self.next_key + 1) % self.keys;
        }
        &self.bytes
    }

    /// Starts the walk at key `index`, so that several threads do not follow one another.
    pub(crate) fn start_at(&mut self, index: u64) {
        self.next_key = index % self.keys;
    }

    /// Bytes of one request.
    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_goes_around_in_place() {
        let spec =
            RequestSpec { method: "GET".into(), path: "/k{key}".into(), keys: 2, ..RequestSpec::default() };
        let mut request = spec.prepare("h");
        let seen: Vec<String> = (0..3).map(|_| String::from_utf8(request.next().to_vec()).unwrap()).collect();
        assert_eq!(seen[0], "GET /k00000000 HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(seen[1], "GET /k00000001 HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(seen[2], seen[0]);
        assert_eq!(request.size_bytes(), seen[0].len());
    }

    #[test]
    fn a_key_in_the_body_counts_in_the_length() {
        let spec = RequestSpec {
            method: "POST".into(),
            path: "/".into(),
            body: b"<{key}>".to_vec(),
            keys: 100_000_000,
            ..RequestSpec::default()
        };
        let mut request = spec.prepare("h");
        request.start_at(12_345);
        let text = String::from_utf8(request.next().to_vec()).unwrap();
        assert!(text.ends_with("Content-Length: 10\r\n\r\n<00012345>"), "{text}");
    }

    #[test]
    fn a_post_without_a_body_says_so() {
        let spec = RequestSpec { method: "POST".into(), path: "/".into(), ..RequestSpec::default() };
        let text = String::from_utf8(spec.prepare("h").next().to_vec()).unwrap();
        assert!(text.contains("Content-Length: 0\r\n"), "{text}");
    }
}
