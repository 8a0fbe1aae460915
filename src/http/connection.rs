//! One connection's life: what its bytes are doing, and the watchdog that ends it when they stop.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use std::task::Waker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::budget::ConnectionLoad;
use super::protocol::Protocol;
use super::refusal;
use crate::clock;
use crate::identity::Recent;

/// How long each part of a connection's life may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// How long a peer may leave our bytes unread.
    pub write: Duration,
}

/// What the watchdog, the I/O and the service of one connection know of each other.
///
/// Times are milliseconds since `opened`, plus one, so that zero means "not now".
pub struct ConnectionState {
    /// By [`clock::monotonic_ms`].
    opened_ms: u64,
    in_flight: AtomicU32,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    write_since: AtomicU64,
    finish_since: AtomicU64,
    unread: AtomicU32,
    /// Of streams, whose requests are in flight until they end.
    unread_chunks: AtomicU32,
    unread_since: AtomicU64,
    http2: AtomicBool,
    body_unread: AtomicBool,
    draining: AtomicBool,
    gives_way: AtomicBool,
    waker: Mutex<Option<Waker>>,
    stopping: CancellationToken,
    /// Whose token its last requests carried.
    pub(super) recent: Recent,
    /// Whose calls its last one was counted among.
    pub(super) load: ConnectionLoad,
}

/// A large reply, or a chunk of a stream, that its peer has not read yet.
pub(super) struct Unread {
    connection: Arc<ConnectionState>,
    is_chunk: bool,
}

impl Unread {
    fn new(connection: &Arc<ConnectionState>, is_chunk: bool) -> Self {
        // Since when comes first: the watchdog may look in between, from another thread.
        if !connection.has_unread() {
            connection.unread_since.store(connection.now(), Relaxed);
        }
        connection.unread_of(is_chunk).fetch_add(1, Release);
        Self { connection: Arc::clone(connection), is_chunk }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.connection.unread_since.store(self.connection.now(), Relaxed);
        self.connection.unread_of(self.is_chunk).fetch_sub(1, Release);
    }
}

/// How long a stream's reader may leave bytes unread while the process stops: its stream is over, and whoever waits for
/// it to read waits for nothing.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Reads of a refused body in a row, before other connections have their turn.
const READS_A_POLL: usize = 32;

/// Why the watchdog wants a connection to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well.
    Live,
    /// Nothing is under way: it may end politely.
    Finish,
    /// The peer does not do its part: it is cut.
    Cut,
}

impl ConnectionState {
    /// A connection just opened; `stopping` is cancelled when the process begins to stop.
    #[must_use]
    pub(super) fn new(stopping: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            opened_ms: clock::monotonic_ms(),
            in_flight: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            write_since: AtomicU64::new(0),
            finish_since: AtomicU64::new(0),
            unread: AtomicU32::new(0),
            unread_chunks: AtomicU32::new(0),
            unread_since: AtomicU64::new(0),
            http2: AtomicBool::new(false),
            body_unread: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            gives_way: AtomicBool::new(false),
            waker: Mutex::new(None),
            stopping: stopping.clone(),
            recent: Recent::default(),
            load: ConnectionLoad::default(),
        })
    }

    /// Says which protocol it turned out to be.
    pub(super) fn speaks(&self, protocol: Protocol) {
        self.http2.store(protocol == Protocol::Http2, Relaxed);
    }

    /// Ends once the connection is to end: for one that has no [`Watched`] yet.
    pub(super) async fn told_to_end(&self) {
        std::future::poll_fn(|context| {
            *self.waker.lock() = Some(context.waker().clone());
            let told = self.draining.load(Relaxed) || self.gives_way.load(Relaxed);
            if told { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// A request's head was read whole.
    pub(super) fn request_began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        self.idle_since.store(0, Relaxed);
    }

    /// A request's reply was made, a streamed one ended, or its caller went away.
    pub(super) fn request_ended(&self) {
        if self.in_flight.fetch_sub(1, Relaxed) == 1 {
            self.idle_since.store(self.now(), Relaxed);
        }
    }

    /// Whether a request has a body that was not read to its end yet.
    pub(super) fn body_is_unread(&self, is_unread: bool) {
        self.body_unread.store(is_unread, Relaxed);
    }

    /// Notes a large reply, unread until what this returns is dropped. Each one that is read gives the others time.
    pub(super) fn reply_unread(self: &Arc<Self>) -> Unread {
        Unread::new(self, false)
    }

    /// The same of a chunk of a stream.
    pub(super) fn chunk_unread(self: &Arc<Self>) -> Unread {
        Unread::new(self, true)
    }

    fn unread_of(&self, is_chunk: bool) -> &AtomicU32 {
        if is_chunk { &self.unread_chunks } else { &self.unread }
    }

    fn has_unread(&self) -> bool {
        self.unread.load(Acquire) > 0 || self.unread_chunks.load(Acquire) > 0
    }

    /// Cancelled once, when the process begins to stop.
    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Requests without a reply, and large replies that are not read yet.
    pub(super) fn unfinished(&self) -> usize {
        (self.in_flight.load(Relaxed) + self.unread.load(Relaxed)) as usize
    }

    /// Whether it may be ended for another's sake: nothing is in flight, no large reply unread, and it was open for
    /// long enough to have asked something.
    pub(super) fn may_give_way(&self) -> bool {
        self.in_flight.load(Relaxed) == 0
            && self.unread.load(Relaxed) == 0
            && self.write_since.load(Relaxed) == 0
            && !self.gives_way.load(Relaxed)
            && self.now() > 100
    }

    /// Whether a head is on its way: such a connection gives way after those that are silent.
    pub(super) fn is_in_a_head(&self) -> bool {
        self.head_since.load(Relaxed) != 0
    }

    /// Ends the connection for another's sake, unless a request came meanwhile.
    pub(super) fn give_way(&self) {
        self.gives_way.store(true, Relaxed);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Asks the connection to finish what is in flight and close.
    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    fn now(&self) -> u64 {
        clock::monotonic_ms() - self.opened_ms + 1
    }

    fn verdict(&self, patience: Patience) -> Verdict {
        let now = self.now();
        let over = |since: &AtomicU64, bound: Duration| {
            let since = since.load(Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) >= bound.as_millis()
        };
        let unfinished = self.in_flight.load(Relaxed) == 0 && over(&self.finish_since, patience.head);
        let ends_a_stream = self.draining.load(Relaxed) && self.unread_chunks.load(Acquire) > 0;
        let write = if ends_a_stream { patience.write.min(DRAIN_PATIENCE) } else { patience.write };
        // In HTTP/2 a peer that opens no window leaves a reply unread without one write that waits.
        let unread = self.http2.load(Relaxed) && self.has_unread() && over(&self.unread_since, write);
        if unread || over(&self.write_since, write) || over(&self.head_since, patience.head) || unfinished {
            Verdict::Cut
        } else if over(&self.idle_since, patience.idle) {
            Verdict::Finish
        } else {
            Verdict::Live
        }
    }
}

/// A connection future under a watchdog.
///
/// The watchdog looks every half of the shortest bound and costs a request nothing but two stores.
pub(super) struct Watched<C> {
    connection: Pin<Box<C>>,
    state: Arc<ConnectionState>,
    patience: Patience,
    tick: Pin<Box<Sleep>>,
    finish: fn(Pin<&mut C>),
    finishing: bool,
}

impl<C> Watched<C> {
    /// Watches `connection`; `finish` asks it to end after what is in flight.
    pub(super) fn new(
        connection: C,
        state: &Arc<ConnectionState>,
        patience: Patience,
        finish: fn(Pin<&mut C>),
    ) -> Self {
        let tick = Box::pin(tokio::time::sleep(Self::period(patience)));
        Self {
            connection: Box::pin(connection),
            state: Arc::clone(state),
            patience,
            tick,
            finish,
            finishing: false,
        }
    }

    fn period(patience: Patience) -> Duration {
        (patience.head.min(patience.idle).min(patience.write) / 2).max(Duration::from_millis(10))
    }

    fn finish(&mut self) {
        if !self.finishing {
            self.finishing = true;
            self.state.finish_since.store(self.state.now(), Relaxed);
            (self.finish)(self.connection.as_mut());
        }
    }
}

impl<C, E> Future for Watched<C>
where
    C: Future<Output = Result<(), E>>,
{
    /// `None` where the watchdog cut it.
    type Output = Option<Result<(), E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        {
            let mut waker = this.state.waker.lock();
            if !waker.as_ref().is_some_and(|held| held.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
        }
        if this.state.draining.load(Relaxed) {
            this.finish();
        }
        if this.state.gives_way.load(Relaxed) && this.state.in_flight.load(Relaxed) == 0 {
            return Poll::Ready(None);
        }
        while this.tick.as_mut().poll(context).is_ready() {
            match this.state.verdict(this.patience) {
                Verdict::Live => {}
                Verdict::Finish => this.finish(),
                Verdict::Cut => return Poll::Ready(None),
            }
            let next = tokio::time::Instant::now() + Self::period(this.patience);
            this.tick.as_mut().reset(next);
        }
        this.connection.as_mut().poll(context).map(Some)
    }
}

/// The connection's bytes, watched; and the server library's own bare refusals turned into problem documents.
pub(super) struct WatchedIo<S> {
    stream: S,
    state: Arc<ConnectionState>,
    substitute: Option<refusal::Substitute>,
    shut: bool,
}

impl<S> WatchedIo<S> {
    /// Watches `stream` for `state`.
    pub(super) fn new(stream: S, state: Arc<ConnectionState>) -> Self {
        Self { stream, state, substitute: None, shut: false }
    }

    fn note_write<T>(&self, result: &Poll<T>) {
        match result {
            Poll::Pending => {
                if self.state.write_since.load(Relaxed) == 0 {
                    self.state.write_since.store(self.state.now(), Relaxed);
                }
            }
            Poll::Ready(_) => {
                if self.state.write_since.load(Relaxed) != 0 {
                    self.state.write_since.store(0, Relaxed);
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> WatchedIo<S> {
    fn poll_substitute(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(substitute) = &mut self.substitute else { return Poll::Ready(Ok(0)) };
        while !substitute.rest().is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, substitute.rest()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            substitute.advance(written);
        }
        let length = substitute.replaces();
        self.substitute = None;
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let state = &self.state;
        // In HTTP/2 bytes between requests are pings and window updates as well as heads; there the idle bound holds.
        if buffer.filled().len() > before
            && !state.http2.load(Relaxed)
            && state.in_flight.load(Relaxed) == 0
            && state.head_since.load(Relaxed) == 0
        {
            state.head_since.store(state.now(), Relaxed);
            state.idle_since.store(0, Relaxed);
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.substitute.is_none() {
            self.substitute = refusal::substitute_for(bytes);
        }
        let result = if self.substitute.is_some() {
            self.poll_substitute(context)
        } else {
            Pin::new(&mut self.stream).poll_write(context, bytes)
        };
        self.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        if self.substitute.is_some() || first.is_some_and(|slice| refusal::is_one(slice)) {
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.shut = true;
            self.state.finish_since.store(self.state.now(), Relaxed);
        }
        if !self.state.body_unread.load(Relaxed) || self.state.http2.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        self.poll_discard(context).map(Ok)
    }
}

impl<S: AsyncRead + Unpin> WatchedIo<S> {
    /// Reads what a peer still sends of a body that was refused, until it ends, breaks or the watchdog cuts it: to
    /// close on bytes that nobody read is a reset, which can reach the peer before it has read why.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 16 * 1024];
        for _ in 0..READS_A_POLL {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
