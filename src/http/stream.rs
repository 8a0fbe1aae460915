//! A reply that goes on: a producer's chunks, each asked for when its connection has taken what came before.
//!
//! What a stream holds is bounded: its producer is asked for more only while less than [`SMALL_BYTES`] of it are on
//! their way, so that these and one small chunk fit in what its place reserves; a larger chunk is counted like a large
//! reply until it is written. One that takes nothing is cut by its connection's watchdog.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::budget::Share;
use super::connection::Unread;
use super::open_streams::{Ended, Place};
use super::pipeline::caught_now;
use super::reply::SMALL_BYTES;
use super::{ConnectionState, Deadline};

/// How often a chunk for which there is no room is tried again.
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

/// What a chunk counts at the least, in bytes: the server library and this file keep some hundred for each.
const LEAST_BYTES: usize = 512;

/// A producer failed: its reader is to see that what it has is not all. Whoever says so has logged why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream broke off")]
pub struct Broken;

/// What a producer is: it is polled when its connection wants more, and dropped once nobody does.
pub(super) type Producer = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

/// The body of a streamed reply.
pub(super) struct StreamBody {
    /// None once it ended.
    producer: Option<Producer>,
    opened: Option<Opened>,
    /// When it is over: its caller named the call's time.
    until: Option<Instant>,
    /// Whether its end says that this was all.
    whole: bool,
    kept: Vec<Box<dyn Any + Send>>,
}

/// A stream among the open ones.
struct Opened {
    place: Place,
    flow: Arc<Flow>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    until: Option<Pin<Box<Sleep>>>,
    no_room: Option<NoRoom>,
    whole: bool,
    broken: bool,
}

/// A chunk that its tenant has no room for now.
struct NoRoom {
    chunk: Bytes,
    again: Pin<Box<Sleep>>,
}

/// What the connection has of one stream and has not written yet.
struct Flow {
    bytes: AtomicUsize,
    taken: AtomicWaker,
    connection: Arc<ConnectionState>,
}

/// A chunk on its way; dropped by the server library once it is written, or never will be.
struct Chunk {
    bytes: Bytes,
    flow: Arc<Flow>,
    _unread: Unread,
    _share: Option<Share>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.flow.bytes.fetch_sub(self.bytes.len().max(LEAST_BYTES), Relaxed);
        self.flow.taken.wake();
    }
}

impl Flow {
    /// Waits until less than so many bytes of what the connection was given are on their way.
    fn poll_room(&self, less_than: usize, context: &Context<'_>) -> Poll<()> {
        let has_room = || self.bytes.load(Relaxed) < less_than;
        if has_room() {
            return Poll::Ready(());
        }
        self.taken.register(context.waker());
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for StreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBody").field("ended", &self.producer.is_none()).finish_non_exhaustive()
    }
}

impl StreamBody {
    /// A body of what `producer` says, once it is opened.
    pub(super) fn new(producer: Producer, whole: bool) -> Self {
        Self { producer: Some(producer), opened: None, until: None, whole, kept: Vec::new() }
    }

    /// A body of nothing whose length is not known: what HEAD gets of a stream.
    pub(super) fn of_nothing() -> Self {
        Self { producer: None, opened: None, until: None, whole: false, kept: Vec::new() }
    }

    /// Ends it with its call, where the caller named the call's time.
    pub(super) fn ends_with(&mut self, deadline: Deadline) {
        self.until = deadline.is_explicit().then(|| deadline.instant());
    }

    /// Lets it begin, in `place`.
    pub(super) fn open(&mut self, place: Place) {
        let connection = Arc::clone(place.connection());
        let stopping = Box::pin(connection.stopping().clone().cancelled_owned());
        let flow = Arc::new(Flow { bytes: AtomicUsize::new(0), taken: AtomicWaker::new(), connection });
        let until = self.until.map(|until| Box::pin(tokio::time::sleep_until(until.into())));
        let whole = self.whole;
        self.opened = Some(Opened { place, flow, stopping, until, no_room: None, whole, broken: false });
    }

    /// Keeps `value` until nobody has this body any more.
    pub(super) fn keep(&mut self, value: Box<dyn Any + Send>) {
        self.kept.push(value);
    }

    /// The next bytes for the connection.
    pub(super) fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let Some(producer) = &mut self.producer else { return Poll::Ready(None) };
        let Some(opened) = &mut self.opened else {
            tracing::error!("a defect: a stream that nobody counts, of a route that needs no token");
            self.producer = None;
            return Poll::Ready(Some(Err(Broken)));
        };
        let ended = match ready!(opened.poll_next(producer, context)) {
            Ok(bytes) => return Poll::Ready(Some(Ok(bytes))),
            Err(ended) => ended,
        };
        opened.place.ended(ended);
        self.producer = None;
        Poll::Ready((ended == Ended::Broken).then_some(Err(Broken)))
    }
}

impl Opened {
    fn poll_next(
        &mut self,
        producer: &mut Producer,
        context: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Ended>> {
        if !self.broken {
            let ended = if self.stopping.as_mut().poll(context).is_ready() {
                Some(Ended::Stopping)
            } else {
                let is_over =
                    self.until.as_mut().is_some_and(|until| until.as_mut().poll(context).is_ready());
                is_over.then_some(Ended::TimedOut)
            };
            match ended {
                // Ended properly it would look like all there is.
                Some(_) if self.whole => self.broken = true,
                Some(ended) => return Poll::Ready(Err(ended)),
                None => {}
            }
        }
        if self.broken {
            return self.poll_broken(context);
        }
        ready!(self.flow.poll_room(SMALL_BYTES, context));
        loop {
            let chunk = match &mut self.no_room {
                Some(held) => {
                    ready!(held.again.as_mut().poll(context));
                    std::mem::take(&mut held.chunk)
                }
                None => match ready!(poll_producer(producer, context)) {
                    Some(Ok(chunk)) => chunk,
                    Some(Err(Broken)) => return self.poll_broken(context),
                    None => return Poll::Ready(Err(Ended::Finished)),
                },
            };
            self.no_room = None;
            if chunk.is_empty() {
                continue;
            }
            match self.counted(chunk) {
                Ok(counted) => return Poll::Ready(Ok(counted)),
                Err(chunk) => {
                    let again = Box::pin(tokio::time::sleep(ROOM_INTERVAL));
                    self.no_room = Some(NoRoom { chunk, again });
                }
            }
        }
    }

    /// The server library drops what it has not written yet with a body that breaks off: it is written first.
    fn poll_broken(&mut self, context: &Context<'_>) -> Poll<Result<Bytes, Ended>> {
        self.broken = true;
        self.flow.poll_room(1, context).map(|()| Err(Ended::Broken))
    }

    /// The chunk, counted until it is written; as it came where there is no room for it.
    fn counted(&self, chunk: Bytes) -> Result<Bytes, Bytes> {
        let share = match chunk.len() {
            length if length > SMALL_BYTES => match self.place.room_for(length) {
                Some(share) => Some(share),
                None => return Err(chunk),
            },
            _ => None,
        };
        self.flow.bytes.fetch_add(chunk.len().max(LEAST_BYTES), Relaxed);
        let unread = self.flow.connection.chunk_unread();
        let flow = Arc::clone(&self.flow);
        Ok(Bytes::from_owner(Chunk { bytes: chunk, flow, _unread: unread, _share: share }))
    }
}

/// A producer that panics breaks its own stream: in HTTP/1.1 it is polled by its connection's task.
fn poll_producer(producer: &mut Producer, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
    caught_now(|| Ok(producer.as_mut().poll_next(context))).unwrap_or(Poll::Ready(Some(Err(Broken))))
}
