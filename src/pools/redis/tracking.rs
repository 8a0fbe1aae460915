//! Client tracking: a RESP3 connection of its own to each primary, whose pushes say which keys were written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::connect::{Address, Dialed, NodeError};
use super::core::Core;
use super::metrics::OpenConnection;
use crate::pools::backoff::Backoff;

/// Events that a receiver may be behind before it has lost some.
const EVENTS: usize = 1024;
const PING_EVERY: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// An answered ping says this much about the time after it was sent.
const CURRENT_FOR: Duration = Duration::from_secs(2);

/// What the tracking connections of a pool say.
#[derive(Debug, Clone)]
pub enum TrackingEvent {
    /// Somebody, this process too, wrote these keys, or they expired or were evicted.
    Invalidated(Arc<[Box<[u8]>]>),
    /// Everything may have changed: a tracking connection was lost, a shard moved, FLUSHALL.
    Flush,
}

/// The trackers of a pool.
pub(super) struct Trackers {
    began: Instant,
    all: Mutex<Vec<Arc<Tracker>>>,
    /// Milliseconds after `began` until which everything heard is current; 0: not current.
    current_until_ms: AtomicU64,
}

/// One subscription to some prefixes.
struct Tracker {
    prefixes: &'static [&'static str],
    sender: broadcast::Sender<TrackingEvent>,
    /// For each primary: when the last ping was sent that it answered.
    heard: Mutex<HashMap<Address, Option<Instant>>>,
}

impl Default for Trackers {
    fn default() -> Self {
        Self { began: Instant::now(), all: Mutex::default(), current_until_ms: AtomicU64::new(0) }
    }
}

impl Trackers {
    pub(super) fn are_current(&self) -> bool {
        self.milliseconds(Instant::now()) < self.current_until_ms.load(Relaxed)
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Works out anew until when all primaries of all trackers have been heard.
    fn recompute(&self) {
        let all = self.all.lock();
        let mut least: Option<Instant> = None;
        for tracker in all.iter() {
            let heard = tracker.heard.lock();
            let oldest = heard.values().min().copied().flatten();
            least = match (oldest, least) {
                (None, _) => None,
                (Some(oldest), None) => Some(oldest),
                (Some(oldest), Some(least)) => Some(oldest.min(least)),
            };
            if least.is_none() {
                break;
            }
        }
        let until = least.map_or(0, |sent| self.milliseconds(sent + CURRENT_FOR));
        self.current_until_ms.store(until, Relaxed);
    }
}

impl Core {
    /// Begins to follow keys with these prefixes.
    pub(super) fn track(
        self: &Arc<Self>,
        prefixes: &'static [&'static str],
    ) -> broadcast::Receiver<TrackingEvent> {
        let (sender, receiver) = broadcast::channel(EVENTS);
        let tracker = Arc::new(Tracker { prefixes, sender, heard: Mutex::default() });
        self.trackers.all.lock().push(Arc::clone(&tracker));
        self.trackers.recompute();
        self.shared.tasks.spawn("redis tracking", follow_topology(Arc::clone(self), tracker));
        receiver
    }

    fn flush(&self, tracker: &Tracker) {
        self.shared.metrics.flushes.inc();
        // No receiver: nobody holds anything that is old.
        tracker.sender.send(TrackingEvent::Flush).ok();
    }
}

/// Keeps a follower for each primary of the current topology.
async fn follow_topology(core: Arc<Core>, tracker: Arc<Tracker>) {
    let mut followers: HashMap<Address, CancellationToken> = HashMap::new();
    let mut generation = core.generation.subscribe();
    let stopping = core.shared.tasks.stopping().clone();
    let mut ranges = Vec::new();
    loop {
        let table = core.table.load_full();
        generation.borrow_and_update();
        let wanted = table.view.primaries();
        followers.retain(|address, stop| {
            let stays = wanted.contains(address);
            if !stays {
                stop.cancel();
                tracker.heard.lock().remove(address);
            }
            stays
        });
        for address in wanted {
            if followers.contains_key(&address) {
                continue;
            }
            let stop = core.closed.child_token();
            tracker.heard.lock().insert(address.clone(), None);
            let follower = follow(Arc::clone(&core), Arc::clone(&tracker), address.clone(), stop.clone());
            core.shared.tasks.spawn("redis tracking connection", follower);
            followers.insert(address, stop);
        }
        core.trackers.recompute();
        if ranges != table.view.ranges {
            // Whoever owns a slot now may have taken writes that nobody told us of.
            ranges.clone_from(&table.view.ranges);
            core.flush(&tracker);
        }
        tokio::select! {
            () = core.closed.cancelled() => return,
            () = stopping.cancelled() => return,
            changed = generation.changed() => if changed.is_err() { return },
        }
    }
}

/// Keeps one tracking connection until `stop`.
async fn follow(core: Arc<Core>, tracker: Arc<Tracker>, address: Address, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let stopping = core.shared.tasks.stopping().clone();
    loop {
        let listened = tokio::select! {
            () = stop.cancelled() => return,
            () = stopping.cancelled() => return,
            listened = listen(&core, &tracker, &address, &mut backoff) => listened,
        };
        if hear(&core, &tracker, &address, None) {
            core.flush(&tracker);
        }
        if let Err(error) = listened {
            tracing::debug!(instance = core.name, %error, "a tracking connection ended");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

/// Notes when the last ping was sent that was answered. Says whether there was one before.
fn hear(core: &Core, tracker: &Tracker, address: &Address, sent: Option<Instant>) -> bool {
    // An address that is gone has left the topology: its follower's last word does not count.
    let before = tracker.heard.lock().get_mut(address).and_then(|place| std::mem::replace(place, sent));
    core.trackers.recompute();
    before.is_some()
}

/// Connects, subscribes, and listens until the connection is lost.
async fn listen(
    core: &Core,
    tracker: &Arc<Tracker>,
    address: &Address,
    backoff: &mut Backoff,
) -> Result<(), NodeError> {
    let sender = tracker.sender.clone();
    let metrics = core.shared.metrics.flushes.clone();
    let on_push = Arc::new(move |push: PushInfo| {
        if let Some(event) = event(push) {
            if matches!(event, TrackingEvent::Flush) {
                metrics.inc();
            }
            sender.send(event).ok();
        }
    });
    let Dialed { mut connection, driver } = core.shared.dialer.dial(address, Some(on_push)).await?;
    let mut subscribe = redis::cmd("CLIENT");
    subscribe.arg("TRACKING").arg("ON").arg("BCAST");
    for prefix in tracker.prefixes {
        subscribe.arg("PREFIX").arg(*prefix);
    }
    let silent = || NodeError::Silent(address.clone(), ANSWER_WITHIN);
    let session = async {
        let answer = tokio::time::timeout(ANSWER_WITHIN, connection.send_packed_command(&subscribe)).await;
        if let Ok(Ok(Value::ServerError(error))) = &answer {
            core.trouble.note(error, address);
            return Err(NodeError::Refused(address.clone(), super::reply::text(error)));
        }
        answer.map_err(|_| silent())?.map_err(|_| silent())?;
        // What was read before this moment was not watched.
        core.flush(tracker);
        let _open = OpenConnection::count(&core.shared.metrics);
        let command = redis::cmd("PING");
        loop {
            // On the same connection, so that the answer comes after every push that was due before.
            let sent = Instant::now();
            let answer = tokio::time::timeout(ANSWER_WITHIN, connection.send_packed_command(&command)).await;
            answer.map_err(|_| silent())?.map_err(|_| silent())?;
            hear(core, tracker, address, Some(sent));
            backoff.reset();
            tokio::time::sleep(PING_EVERY).await;
        }
    };
    tokio::select! {
        () = driver => Ok(()),
        ended = session => ended,
    }
}

/// `invalidate` with a list of keys, or with null where everything was flushed.
fn event(push: PushInfo) -> Option<TrackingEvent> {
    match push.kind {
        PushKind::Invalidate => match push.data.into_iter().next() {
            Some(Value::Array(keys)) => {
                let bytes = |key| match key {
                    Value::BulkString(bytes) => Some(bytes.into_boxed_slice()),
                    _ => None,
                };
                Some(TrackingEvent::Invalidated(keys.into_iter().filter_map(bytes).collect()))
            }
            _ => Some(TrackingEvent::Flush),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_names_keys_or_means_everything() {
        let push = |data| PushInfo { kind: PushKind::Invalidate, data };
        let keys = Value::Array(vec![Value::BulkString(b"a".to_vec()), Value::BulkString(b"b".to_vec())]);
        match event(push(vec![keys])) {
            Some(TrackingEvent::Invalidated(keys)) => {
                assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), [b"a", b"b"])
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(event(push(vec![Value::Nil])), Some(TrackingEvent::Flush)));
        assert!(event(PushInfo { kind: PushKind::Message, data: Vec::new() }).is_none());
    }
}
