//! The events that are sent: 200 bytes of data, an id of their own, a key of their caller's.

/// Bytes of an event's data.
pub(crate) const DATA_BYTES: usize = 200;
/// Each caller has so many keys, which no other caller uses: the order within a key is the caller's own.
const KEYS_OF_A_CALLER: u64 = 16;
const ID_DIGITS: usize = 12;
const KEY_DIGITS: usize = 7;
/// Keys of all callers.
pub(crate) const KEYS: usize = 256 * KEYS_OF_A_CALLER as usize;

/// The key of event `id` of a caller.
pub(crate) fn key(caller: u64, id: u64) -> u64 {
    caller * KEYS_OF_A_CALLER + id % KEYS_OF_A_CALLER
}

/// The data: JSON of [`DATA_BYTES`] bytes.
pub(crate) fn data() -> String {
    let text: String = ('a'..='z').cycle().take(DATA_BYTES - r#"{"text":""}"#.len()).collect();
    format!(r#"{{"text":"{text}"}}"#)
}

/// The context attributes as Outrigger keeps them.
pub(crate) fn attributes(tenant: &str, id: u64, key: u64) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{id:0ID_DIGITS$}","source":"/loadtest","type":"lead.made","datacontenttype":"application/json","partitionkey":"k{key:0KEY_DIGITS$}","tenantid":"{tenant}"}}"#
    )
}

/// A request over HTTP, whose ids and keys are changed in place.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    /// Where each event's id and key begin.
    places: Vec<(usize, usize)>,
}

impl Request {
    /// A publish of `events` events with ids of the client's.
    pub(crate) fn with_ids(host: &str, topic: &str, token: &str, events: usize) -> Self {
        let (id_mark, key_mark) = ("#".repeat(ID_DIGITS), "%".repeat(KEY_DIGITS));
        let one = format!(
            r#"{{"specversion":"1.0","id":"{id_mark}","source":"/loadtest","type":"lead.made","datacontenttype":"application/json","partitionkey":"k{key_mark}","data":{}}}"#,
            data()
        );
        let (media, body) = match events {
            1 => ("application/cloudevents+json", one),
            _ => {
                ("application/cloudevents-batch+json", format!("[{}]", vec![one.as_str(); events].join(",")))
            }
        };
        let bytes = post(host, &format!("/v1/events/{topic}"), token, media, &body);
        let starts = |mark: &str| -> Vec<usize> {
            let text = String::from_utf8_lossy(&bytes);
            text.match_indices(mark).map(|(at, _)| at).collect()
        };
        let places = starts(&id_mark).into_iter().zip(starts(&key_mark)).collect();
        Self { bytes, places }
    }

    /// A publish of one event as plain JSON, whose id Outrigger makes.
    pub(crate) fn plain(host: &str, topic: &str, token: &str) -> Self {
        let path = format!("/v1/events/{topic}?type=lead.made");
        Self { bytes: post(host, &path, token, "application/json", &data()), places: Vec::new() }
    }

    /// The bytes for the events from `first` on.
    pub(crate) fn from(&mut self, caller: u64, first: u64) -> &[u8] {
        for ((id_at, key_at), id) in self.places.iter().zip(first..) {
            write_digits(&mut self.bytes[*id_at..id_at + ID_DIGITS], id);
            write_digits(&mut self.bytes[*key_at..key_at + KEY_DIGITS], key(caller, id));
        }
        &self.bytes
    }
}

/// A POST with this body.
pub(crate) fn post(host: &str, path: &str, token: &str, media: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Writes a number's last digits.
pub(crate) fn write_digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_of_a_request_has_its_own_id_and_its_callers_key() {
        let mut request = Request::with_ids("h", "leads", "t", 3);
        let text = String::from_utf8(request.from(2, 40).to_vec()).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
        let found: Vec<_> = events
            .iter()
            .map(|event| {
                (event["id"].as_str().unwrap().to_owned(), event["partitionkey"].as_str().unwrap().to_owned())
            })
            .collect();
        let expected =
            [(40, 40), (41, 41), (42, 42)].map(|(id, key)| (format!("{id:012}"), format!("k{key:07}")));
        assert_eq!(found, expected);
        assert_eq!(data().len(), DATA_BYTES);
        assert_eq!(events[0]["data"].to_string().len(), DATA_BYTES);
    }
}
