//! `GET /v1/events/{topic}`: pages of the log, as they are asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::HeaderName;

use super::{Api, readable_topic, store_problem};
use crate::error::ErrorKind;
use crate::http::{Broken, Call, Problem, Reply, SseEvent, StreamForm, ndjson, write_comment};
use crate::primitives::events::arrivals::Waiter;
use crate::primitives::events::cloudevents::write_structured;
use crate::primitives::events::metrics::EventsMetrics;
use crate::primitives::events::{
    Audience, Cursor, CursorKey, Logged, Position, READ, ReadFrom, Scan, page, place,
};
use crate::store::{Store, StoreError};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Of one page, which a stream holds until it is read, in bytes and events.
const PAGE_BYTES: i64 = 64 * 1024;
const PAGE_ROWS: u32 = 200;
/// What a chunk has at the most, but for one event that is larger, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;
/// How long a reader of server-sent events that lost its connection waits before it comes back, in milliseconds.
const RETRY_MS: u64 = 1000;
/// The longest time without a look, where nothing was told.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The longest list of types.
const MAX_TYPES: usize = 32;

pub(super) async fn read(api: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["from", "type", "follow"])?;
    let (audience, _) = readable_topic(&call, READ)?;
    let form = StreamForm::accepted(&call.headers)?;
    let follows = match (form, call.query.get::<bool>("follow", "`true` or `false`")?) {
        (StreamForm::EventStream, Some(false)) => {
            return Err(wrong(
                "?follow",
                "server-sent events follow the topic: `application/x-ndjson` can end at its head",
            ));
        }
        (StreamForm::EventStream, _) => true,
        (StreamForm::Ndjson, follow) => follow.unwrap_or(false),
    };
    let key = api.cursor_key().await?;
    let from = from(&call, &audience, &key, form)?;
    let after = place(&api.store, &audience, from).await.map_err(|error| store_problem(&error))?;
    let after_ms = if let ReadFrom::Cursor(cursor) = from { cursor.accepted_ms } else { 0 };
    let scan = Scan {
        after,
        after_ms,
        kinds: kinds(&call)?,
        max_rows: PAGE_ROWS,
        max_bytes: PAGE_BYTES,
        ..Scan::new(&audience)
    };
    let waiter = follows.then(|| api.arrivals.waiter(&audience));
    let mut tail = Tail {
        store: api.store.clone(),
        audience,
        scan,
        key,
        form,
        follows,
        waiter,
        heartbeat: api.heartbeat,
        metrics: Arc::clone(&api.metrics),
        told: after,
        ready: VecDeque::new(),
        at_head: false,
    };
    // The first page is read before the reply, so that a store that does not answer is a problem and no broken stream.
    tail.read_page().await.map_err(|error| store_problem(&error))?;
    if form == StreamForm::EventStream {
        let mut first = BytesMut::new();
        write_comment(&mut first, "events follow");
        let retry = SseEvent { retry_ms: Some(RETRY_MS), ..SseEvent::default() };
        retry
            .write_to(&mut first)
            .map_err(|_| Problem::new(ErrorKind::Internal, "the stream cannot begin"))?;
        tail.ready.push_front(first.freeze());
    }
    let (media_type, chunks) = (form.media_type(), stream::unfold(Some(tail), Tail::next));
    Ok(if follows { Reply::stream(media_type, chunks) } else { Reply::whole_stream(media_type, chunks) })
}

fn wrong(pointer: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(ErrorKind::Invalid, "a query parameter is wrong").with_field(pointer, detail.into())
}

/// Where the read begins. `Last-Event-ID` is a reader's that comes back: it counts before `from`.
fn from(call: &Call, audience: &Audience, key: &CursorKey, form: StreamForm) -> Result<ReadFrom, Problem> {
    let (owner, scope) = (audience.owner(), audience.cursor_scope());
    let topic = scope.as_str();
    if let Some(last) = call.headers.get(LAST_EVENT_ID).filter(|last| !last.is_empty()) {
        let cursor = last.to_str().ok().and_then(|text| Cursor::decode(text, key, owner, topic).ok());
        return cursor.map(ReadFrom::Cursor).ok_or_else(|| {
            Problem::new(ErrorKind::Invalid, "a header is wrong")
                .with_field("last-event-id", "the `id` of an event of this topic, as it was received")
        });
    }
    match call.query.text("from") {
        Some(text) => {
            ReadFrom::parse(text, key, owner, topic).map_err(|error| wrong("?from", error.to_string()))
        }
        // Who follows wants what comes; who reads to the end wants what there is.
        None if form == StreamForm::EventStream => Ok(ReadFrom::Latest),
        None => Ok(ReadFrom::Earliest),
    }
}

/// `type`, one or several with commas between.
fn kinds(call: &Call) -> Result<Vec<String>, Problem> {
    let Some(text) = call.query.text("type") else { return Ok(Vec::new()) };
    let kinds: Vec<String> = text.split(',').map(|kind| kind.trim().to_owned()).collect();
    let is_wrong = |kind: &String| kind.is_empty() || kind.chars().any(char::is_control);
    if kinds.len() > MAX_TYPES || kinds.iter().any(is_wrong) {
        return Err(wrong(
            "?type",
            format!("1 to {MAX_TYPES} types without control characters, with commas between"),
        ));
    }
    Ok(kinds)
}

/// A reader's place in the log.
struct Tail {
    store: Store,
    audience: Audience,
    scan: Scan,
    key: CursorKey,
    form: StreamForm,
    follows: bool,
    waiter: Option<Waiter>,
    heartbeat: Duration,
    metrics: Arc<EventsMetrics>,
    /// Where the reader would come back to.
    told: Position,
    /// Chunks that were not asked for yet.
    ready: VecDeque<Bytes>,
    at_head: bool,
}

type Chunk = Result<Bytes, Broken>;

impl Tail {
    /// The next chunk, as soon as there is one.
    async fn next(tail: Option<Self>) -> Option<(Chunk, Option<Self>)> {
        let mut tail = tail?;
        let heartbeat = tokio::time::Instant::now() + tail.heartbeat;
        loop {
            if let Some(chunk) = tail.ready.pop_front() {
                return Some((Ok(chunk), Some(tail)));
            }
            // Also where a long way to the head has nothing that is wanted.
            if tail.follows && tokio::time::Instant::now() >= heartbeat {
                return Some((Ok(tail.heartbeat_chunk()), Some(tail)));
            }
            if tail.at_head {
                if !tail.follows {
                    return None;
                }
                tail.wait(heartbeat).await;
            }
            if let Err(error) = tail.read_page().await {
                tracing::warn!(%error, topic = %tail.audience.topic(), "a stream of events broke off");
                return Some((Err(Broken), None));
            }
        }
    }

    /// What says that the stream lives. A reader of server-sent events that looked through a part of the log without an event
    /// for it is told where it is: without data the `id` alone dispatches nothing, and it comes back there.
    fn heartbeat_chunk(&mut self) -> Bytes {
        let mut chunk = BytesMut::from(self.form.heartbeat());
        if self.form == StreamForm::EventStream && self.scan.after > self.told {
            let cursor = self.cursor(self.scan.after, self.scan.after_ms);
            let place = SseEvent { id: Some(&cursor), ..SseEvent::default() };
            match place.write_to(&mut chunk) {
                Ok(()) => self.told = self.scan.after,
                Err(error) => tracing::error!(%error, "a place cannot be written as a server-sent event"),
            }
        }
        chunk.freeze()
    }

    fn cursor(&self, position: Position, accepted_ms: i64) -> String {
        let cursor = Cursor { position, accepted_ms };
        cursor.encode(&self.key, self.audience.owner(), &self.audience.cursor_scope())
    }

    async fn wait(&mut self, heartbeat: tokio::time::Instant) {
        let until = heartbeat.min(tokio::time::Instant::now() + LOOK_AGAIN);
        if let Some(waiter) = &mut self.waiter {
            tokio::select! {
                () = waiter.arrival() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn read_page(&mut self) -> Result<(), StoreError> {
        if let Some(waiter) = &mut self.waiter {
            waiter.looks();
        }
        let page = page(&self.store, &self.audience, &self.scan).await?;
        self.metrics.read.inc_by(page.events.len() as u64);
        if let Some(last) = page.events.last() {
            self.told = last.position;
        }
        (self.scan.after, self.scan.after_ms) = (page.next, page.next_ms);
        self.at_head = page.at_head;
        let mut chunk = BytesMut::new();
        for event in &page.events {
            let before = chunk.len();
            self.write(&mut chunk, event);
            if chunk.len() > CHUNK_BYTES && before > 0 {
                let rest = chunk.split_off(before);
                self.ready.push_back(std::mem::replace(&mut chunk, rest).freeze());
            }
        }
        if !chunk.is_empty() {
            self.ready.push_back(chunk.freeze());
        }
        Ok(())
    }

    fn write(&self, out: &mut BytesMut, event: &Logged) {
        let cursor = self.cursor(event.position, event.accepted_ms);
        let mut text = Vec::new();
        match self.form {
            StreamForm::Ndjson => {
                write_structured(&mut text, &event.attributes, &event.data, &[("cursor", &cursor)]);
                ndjson::write_json_text(out, &text);
            }
            StreamForm::EventStream => {
                write_structured(&mut text, &event.attributes, &event.data, &[]);
                let data = String::from_utf8_lossy(&text);
                let event = SseEvent { id: Some(&cursor), data: Some(&data), ..SseEvent::default() };
                if let Err(error) = event.write_to(out) {
                    tracing::error!(%error, "an event cannot be written as a server-sent event");
                }
            }
        }
    }
}
