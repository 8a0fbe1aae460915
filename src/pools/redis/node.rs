//! A node of the cluster: its connections, kept alive in the background, and whether it is of use now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::future::{AbortHandle, abortable};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;
use tokio_util::sync::CancellationToken;

use super::confirm::Confirming;
use super::connect::{Address, Dialed, Dialer, MAX_IN_FLIGHT, NodeError};
use super::metrics::InstanceMetrics;
use crate::pools::backoff::{Backoff, jittered};
use crate::tasks::Tasks;

/// A connection is asked this often whether it lives.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Without an answer for this long, calls no longer choose the connection.
const STALLED_AFTER: Duration = Duration::from_millis(200);
/// And after this much more it is closed, and dialed again.
const DEAD_AFTER: Duration = Duration::from_millis(550);
/// A connection that lived shorter counts as a failed attempt.
const STABLE_AFTER: Duration = Duration::from_secs(2);
/// And that is made sure of this much later: after a pause of this process itself the answer may lie unread.
const SURE_AFTER: Duration = Duration::from_millis(10);
/// A call's budget that ended this much ago, when that is noticed, ended while this process did not run.
const NOTICED_LATE: Duration = Duration::from_millis(2);
/// So much longer an answer is then looked for that came in time: whoever reads it runs again, too.
const UNREAD: Duration = Duration::from_millis(3);
/// Calls share the first connection up to this many, and with it its writes and reads: on two cores that gave more
/// operations a second than spreading them over two connections did.
const SHARED_WELL: usize = 128;
/// At the process's end a connection stays until no call has used it for this long.
const LINGER: Duration = Duration::from_millis(500);

/// Whether calls can be sent to a node.
#[derive(Debug, Clone)]
pub(super) enum NodeState {
    /// The first attempt, or the first after a loss, is under way: worth waiting for.
    Connecting,
    /// A connection answers.
    Up,
    /// None does.
    Down { since: Instant, error: NodeError },
}

/// What nodes and their keepers share.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) metrics: InstanceMetrics,
    pub(super) tasks: Tasks,
    /// Told whenever a node's state changes.
    pub(super) changed: Notify,
    /// Told when the topology should be asked for again.
    pub(super) refresh: Notify,
}

/// A node, with a fixed number of connections.
pub(super) struct Node {
    pub(super) address: Address,
    links: Box<[ArcSwapOption<Link>]>,
    states: Mutex<Box<[NodeState]>>,
    state: watch::Sender<NodeState>,
    /// When a redirection last led here, for nodes that the slot table does not name.
    pub(super) redirected_at: Mutex<Instant>,
    pub(super) retired: CancellationToken,
    pub(super) confirming: Confirming,
}

/// A live connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    in_flight: AtomicUsize,
    used: AtomicBool,
    stalled: AtomicBool,
    /// Set before anything else reacts to its end: what is sent afterwards was certainly not run.
    closed: Arc<AtomicBool>,
    /// Asks the keeper for a ping at once.
    doubt: Notify,
    ended: CancellationToken,
    abort: AbortHandle,
}

/// Why a call on a connection has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallError {
    /// It was not sent: too many calls wait for this connection.
    Full,
    /// It was not sent: the connection had ended before.
    Closed,
    /// It was not sent: it is none.
    Malformed,
    /// The budget ended first.
    Overrun,
    /// The connection was lost.
    Lost,
}

impl Node {
    /// A node whose connections are being made.
    pub(super) fn start(
        address: Address,
        connections: usize,
        shared: &Arc<Shared>,
        closed: &CancellationToken,
    ) -> Arc<Self> {
        let node = Arc::new(Self {
            address,
            links: (0..connections).map(|_| ArcSwapOption::empty()).collect(),
            states: Mutex::new((0..connections).map(|_| NodeState::Connecting).collect()),
            state: watch::Sender::new(NodeState::Connecting),
            redirected_at: Mutex::new(Instant::now()),
            retired: closed.child_token(),
            confirming: Confirming::default(),
        });
        for index in 0..connections {
            shared.tasks.spawn("redis connection", keep(Arc::clone(&node), index, Arc::clone(shared)));
        }
        node
    }

    pub(super) fn state(&self) -> watch::Ref<'_, NodeState> {
        self.state.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<NodeState> {
        self.state.subscribe()
    }

    /// The first connection that is not busy; otherwise the one with the fewest calls on it.
    pub(super) fn pick(&self) -> Option<Arc<Link>> {
        let mut best: Option<(usize, arc_swap::Guard<Option<Arc<Link>>>)> = None;
        for place in &self.links {
            let guard = place.load();
            let Some(link) = guard.as_ref().filter(|link| link.is_usable()) else { continue };
            let load = link.in_flight.load(Relaxed);
            if load < SHARED_WELL {
                return Some(Arc::clone(link));
            }
            if best.as_ref().is_none_or(|(least, _)| load < *least) {
                best = Some((load, guard));
            }
        }
        best.and_then(|(_, guard)| guard.as_ref().map(Arc::clone))
    }

    /// Has every connection pinged now: where one is silent the others likely are.
    fn doubt(&self) {
        for link in self.links.iter().filter_map(ArcSwapOption::load_full) {
            link.doubt.notify_one();
        }
    }

    fn report(&self, index: usize, state: NodeState, shared: &Shared) {
        let mut states = self.states.lock();
        if let Some(place) = states.get_mut(index) {
            *place = state;
        }
        let whole = combine(&states);
        let mut turned = false;
        let changed = self.state.send_if_modified(|current| match (&*current, &whole) {
            (NodeState::Up, NodeState::Up) | (NodeState::Connecting, NodeState::Connecting) => false,
            (NodeState::Down { error: old, .. }, NodeState::Down { error, .. }) => {
                let differs = old != error;
                if let (NodeState::Down { error: old, .. }, true) = (current, differs) {
                    old.clone_from(error);
                }
                differs
            }
            _ => {
                turned = true;
                *current = whole.clone();
                true
            }
        });
        drop(states);
        if turned {
            shared.refresh.notify_one();
        }
        if changed {
            shared.changed.notify_one();
        }
    }
}

/// Up if one is; otherwise down if one is, with its reason.
fn combine(states: &[NodeState]) -> NodeState {
    let up = states.iter().find(|state| matches!(state, NodeState::Up));
    let down = states.iter().find(|state| matches!(state, NodeState::Down { .. }));
    up.or(down).or(states.first()).cloned().unwrap_or(NodeState::Connecting)
}

impl Link {
    /// Runs one command; with `asking` on a node that is importing the key's slot.
    pub(super) async fn command(
        &self,
        command: &Cmd,
        asking: bool,
        deadline: tokio::time::Instant,
    ) -> Result<Value, CallError> {
        if asking {
            let mut pipeline = redis::Pipeline::with_capacity(2);
            pipeline.cmd("ASKING").add_command(command.clone());
            let answers = self.pipeline(&pipeline, 1, deadline).await?;
            return answers.into_iter().next().ok_or(CallError::Lost);
        }
        let _counted = self.enter()?;
        let mut connection = self.connection.clone();
        self.judge(answered_by(deadline, connection.send_packed_command(command)).await)
    }

    /// Runs a pipeline and returns its answers but the first `skipped`.
    pub(super) async fn pipeline(
        &self,
        pipeline: &redis::Pipeline,
        skipped: usize,
        deadline: tokio::time::Instant,
    ) -> Result<Vec<Value>, CallError> {
        let _counted = self.enter()?;
        let mut connection = self.connection.clone();
        let count = pipeline.len() - skipped;
        let answers = connection.send_packed_commands(pipeline, skipped, count);
        self.judge(answered_by(deadline, answers).await)
    }

    fn is_usable(&self) -> bool {
        !self.stalled.load(Relaxed) && !self.closed.load(Relaxed)
    }

    fn enter(&self) -> Result<Counted<'_>, CallError> {
        if self.closed.load(Relaxed) {
            return Err(CallError::Closed);
        }
        let counted = Counted(&self.in_flight);
        self.used.store(true, Relaxed);
        if self.in_flight.fetch_add(1, Relaxed) < MAX_IN_FLIGHT { Ok(counted) } else { Err(CallError::Full) }
    }

    fn judge<T>(&self, answer: Result<Result<T, redis::RedisError>, Elapsed>) -> Result<T, CallError> {
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.kind() == redis::ErrorKind::Client => Err(CallError::Malformed),
            Ok(Err(_)) => Err(CallError::Lost),
            Err(_) => {
                self.doubt.notify_one();
                Err(CallError::Overrun)
            }
        }
    }

    /// Closes the connection, such as one whose user was taken away.
    pub(super) fn close(&self) {
        self.abort.abort();
    }
}

/// Waits for an answer until `deadline`, and a little longer where this process was kept from noticing it: the
/// answer may have come in time and lie unread.
async fn answered_by<T>(
    deadline: tokio::time::Instant,
    answer: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut answer = std::pin::pin!(answer);
    let answered = tokio::time::timeout_at(deadline, &mut answer).await;
    if answered.is_err() && deadline.elapsed() > NOTICED_LATE {
        return tokio::time::timeout(UNREAD, answer).await;
    }
    answered
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Keeps one connection of a node for as long as the node belongs to the cluster.
async fn keep(node: Arc<Node>, index: usize, shared: Arc<Shared>) {
    keep_connected(&node, index, &shared).await;
    // Whoever still waits for this node must not wait for ever.
    let error = NodeError::Left(node.address.clone());
    node.report(index, NodeState::Down { since: Instant::now(), error }, &shared);
}

async fn keep_connected(node: &Arc<Node>, index: usize, shared: &Shared) {
    let mut backoff = Backoff::default();
    let stopping = shared.tasks.stopping();
    loop {
        let dialed = tokio::select! {
            () = node.retired.cancelled() => return,
            () = stopping.cancelled() => return,
            dialed = shared.dialer.dial(&node.address, None) => dialed,
        };
        match dialed {
            Ok(dialed) => {
                let began = Instant::now();
                let ended = hold(node, index, shared, dialed).await;
                if matches!(ended, Ended::Finished) {
                    return;
                }
                shared.metrics.reconnects.inc();
                shared.refresh.notify_one();
                if began.elapsed() > STABLE_AFTER {
                    backoff.reset();
                }
            }
            Err(error) => node.report(index, NodeState::Down { since: Instant::now(), error }, shared),
        }
        tokio::select! {
            () = node.retired.cancelled() => return,
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

enum Ended {
    /// By itself.
    Lost,
    /// Given up; the node's state says why.
    GivenUp,
    /// Nobody needs it any more.
    Finished,
}

/// Offers a connection to callers until it is lost or no longer wanted.
async fn hold(node: &Arc<Node>, index: usize, shared: &Shared, dialed: Dialed) -> Ended {
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    let closed = Arc::new(AtomicBool::new(false));
    let (driver, abort) = abortable(dialed.driver);
    let close = Arc::clone(&closed);
    shared.tasks.spawn("redis driver", async move {
        driver.await.ok();
        close.store(true, Relaxed);
        drop(guard);
    });
    let link = Arc::new(Link {
        connection: dialed.connection,
        in_flight: AtomicUsize::new(0),
        used: AtomicBool::new(false),
        stalled: AtomicBool::new(false),
        closed,
        doubt: Notify::new(),
        ended,
        abort,
    });
    if let Some(place) = node.links.get(index) {
        place.store(Some(Arc::clone(&link)));
    }
    node.report(index, NodeState::Up, shared);
    shared.metrics.connections.inc();
    let how = watch_over(node, index, shared, &link).await;
    if let Some(place) = node.links.get(index) {
        place.store(None);
    }
    link.abort.abort();
    shared.metrics.connections.dec();
    if matches!(how, Ended::Lost) {
        node.report(index, NodeState::Connecting, shared);
    }
    how
}

async fn watch_over(node: &Arc<Node>, index: usize, shared: &Shared, link: &Link) -> Ended {
    loop {
        tokio::select! {
            () = link.ended.cancelled() => return Ended::Lost,
            () = node.retired.cancelled() => return Ended::Finished,
            () = shared.tasks.stopping().cancelled() => {
                linger(node, link).await;
                return Ended::Finished;
            }
            () = link.doubt.notified() => {}
            () = tokio::time::sleep(jittered(PING_EVERY)) => {}
        }
        if let Err(error) = ping(node, index, shared, link).await {
            node.report(index, NodeState::Down { since: Instant::now(), error }, shared);
            return Ended::GivenUp;
        }
    }
}

/// Requests that are still being answered may need the connection: it goes when they are done with it.
async fn linger(node: &Node, link: &Link) {
    while link.in_flight.load(Relaxed) > 0 || link.used.swap(false, Relaxed) {
        tokio::select! {
            () = link.ended.cancelled() => return,
            () = node.retired.cancelled() => return,
            () = tokio::time::sleep(LINGER) => {}
        }
    }
}

/// `Err` where the connection has to be given up. While an answer is late, calls choose other connections.
async fn ping(node: &Node, index: usize, shared: &Shared, link: &Link) -> Result<(), NodeError> {
    let mut connection = link.connection.clone();
    let command = redis::cmd("PING");
    let mut answer = std::pin::pin!(connection.send_packed_command(&command));
    let mut answered = tokio::time::timeout(STALLED_AFTER, &mut answer).await;
    if answered.is_err() {
        answered = tokio::time::timeout(SURE_AFTER, &mut answer).await;
    }
    let answered = match answered {
        Ok(answered) => answered,
        Err(_) => {
            link.stalled.store(true, Relaxed);
            node.doubt();
            let silent = NodeError::Silent(node.address.clone(), STALLED_AFTER);
            node.report(index, NodeState::Down { since: Instant::now(), error: silent.clone() }, shared);
            let late = tokio::time::timeout(DEAD_AFTER, answer).await.map_err(|_| silent)?;
            link.stalled.store(false, Relaxed);
            if late.is_ok() {
                node.report(index, NodeState::Up, shared);
            }
            late
        }
    };
    match answered {
        Ok(Value::ServerError(error)) if matches!(error.code(), "NOAUTH" | "WRONGPASS") => {
            Err(NodeError::Password(node.address.clone(), super::reply::text(&error)))
        }
        // Any other answer is a sign of life; a connection that is lost ends by itself.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_up_while_one_connection_is() {
        let down = || NodeState::Down {
            since: Instant::now(),
            error: NodeError::Connect(Address::new("127.0.0.1", 1), "connection refused".to_owned()),
        };
        for (states, up, down) in [
            (vec![NodeState::Up, down()], true, false),
            (vec![down(), NodeState::Connecting], false, true),
            (vec![NodeState::Connecting, NodeState::Connecting], false, false),
        ] {
            let whole = combine(&states);
            assert_eq!(matches!(whole, NodeState::Up), up, "{states:?}");
            assert_eq!(matches!(whole, NodeState::Down { .. }), down, "{states:?}");
        }
    }
}
