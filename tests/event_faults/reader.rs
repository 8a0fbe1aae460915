//! Reads a topic from its beginning, in each of the ways that there are, and goes on from its last cursor.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

use crate::load::{KINDS, Load, TOPIC};
use crate::support::doors::{CALL_MS, Caller, Heard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `application/x-ndjson` that follows.
    Lines,
    /// `text/event-stream`, resumed by `Last-Event-ID`.
    ServerSent,
    /// Pages to the head, again and again.
    Pages,
    /// Follows, and wants one type only.
    OneType,
}

pub const WAYS: [Way; 4] = [Way::Lines, Way::ServerSent, Way::Pages, Way::OneType];

impl Way {
    /// Whether it reads events of this type.
    pub fn wants(self, kind: &str) -> bool {
        self != Self::OneType || kind == KINDS[0]
    }
}

pub struct Reader<'l> {
    load: &'l Load<'l>,
    caller: Caller<'l>,
    way: Way,
    cursor: Option<String>,
    /// Ids, in the order in which they were read.
    read: Vec<String>,
    /// Connections that ended.
    pub resumed: u64,
}

impl<'l> Reader<'l> {
    pub fn new(load: &'l Load<'l>, way: Way, seed: u64) -> Self {
        Self { load, caller: Caller::new(load.doors, seed), way, cursor: None, read: Vec::new(), resumed: 0 }
    }

    pub fn run(mut self) -> (Way, Vec<String>, u64) {
        while !self.load.read.load(Relaxed) {
            if self.way == Way::Pages {
                self.page()
            } else {
                self.follow()
            }
            self.resumed += 1;
            self.caller.rest();
        }
        (self.way, self.read, self.resumed)
    }

    fn target(&self) -> String {
        let mut target = format!("/v1/events/{TOPIC}?from=");
        target.push_str(match &self.cursor {
            Some(cursor) if self.way != Way::ServerSent => cursor,
            _ => "earliest",
        });
        match self.way {
            Way::Lines => target.push_str("&follow=true"),
            Way::OneType => target.push_str(&format!("&follow=true&type={}", KINDS[0])),
            Way::ServerSent | Way::Pages => {}
        }
        target
    }

    fn page(&mut self) {
        let target = self.target();
        // A reply that was cut in the middle counts for nothing: it is asked for again.
        let Heard::Reply(reply) = self.caller.call("GET", &target, &[], "") else { return };
        if matches!(reply.status, 503 | 504) {
            return;
        }
        assert_eq!(reply.status, 200, "{}", reply.text());
        for line in reply.text().lines() {
            self.line(line);
        }
    }

    fn follow(&mut self) {
        let Some((mut client, bearer)) = self.caller.open() else { return };
        let mut headers = vec![("Authorization", bearer.as_str()), ("Outrigger-Timeout-Ms", CALL_MS)];
        let cursor = self.cursor.clone();
        if self.way == Way::ServerSent {
            headers.push(("Accept", "text/event-stream"));
            headers.extend(cursor.as_ref().map(|cursor| ("Last-Event-ID", cursor.as_str())));
        }
        let asked = client.write_request("GET", &self.target(), &headers, b"");
        let Ok(head) = asked.and_then(|()| client.read_head()) else { return };
        if matches!(head.status, 503 | 504) {
            return;
        }
        assert_eq!(head.status, 200, "{head:?}");
        let (mut text, mut id) = (Vec::new(), None);
        while !self.load.read.load(Relaxed) {
            let Ok(Some(chunk)) = client.read_chunk() else { return };
            text.extend(chunk);
            // What came whole counts; the rest of a broken stream does not.
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = std::str::from_utf8(&line).unwrap().trim_end();
                if self.way == Way::ServerSent {
                    self.server_sent(line, &mut id);
                } else {
                    self.line(line);
                }
            }
        }
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            return;
        }
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let cursor = event["cursor"].as_str().unwrap().to_owned();
        self.got(&event, cursor);
    }

    /// An event is whole with the empty line after it.
    fn server_sent(&mut self, line: &str, pending: &mut Option<(String, Value)>) {
        if let Some(cursor) = line.strip_prefix("id: ") {
            *pending = Some((cursor.to_owned(), Value::Null));
        } else if let (Some(data), Some((_, event))) = (line.strip_prefix("data: "), pending.as_mut()) {
            *event = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        } else if line.is_empty()
            && let Some((cursor, event)) = pending.take()
        {
            if event.is_null() {
                // Without data it says where the stream is, and is no event.
                self.cursor = Some(cursor);
            } else {
                self.got(&event, cursor);
            }
        }
    }

    fn got(&mut self, event: &Value, cursor: String) {
        self.read.push(event["id"].as_str().unwrap().to_owned());
        self.cursor = Some(cursor);
        self.load.readers[self.way as usize].store(self.read.len(), Relaxed);
    }
}
