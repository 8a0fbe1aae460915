//! When each event was accepted, when it was received, how often, and in which order within its key.
//!
//! Whoever receives writes here: a consumer that pulls, a poller of an outbox; a reader of Kafka's topic could.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::message::KEYS;
use crate::generator::Tally;

/// Every event of one open loop, by its id.
#[derive(Debug)]
pub(crate) struct Ledger {
    first: u64,
    drawn: AtomicU64,
    begin: Instant,
    /// Nanoseconds since `begin`; 0 is not yet.
    accepted: Vec<AtomicU64>,
    received: Vec<AtomicU64>,
    times: Vec<AtomicU8>,
    /// The last id received of each key.
    last: Vec<AtomicU64>,
    out_of_order: AtomicU64,
    of_others: AtomicU64,
    in_hand: AtomicU64,
}

/// What became of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Accepted.
    pub(crate) accepted: u64,
    /// Accepted, and never received.
    pub(crate) missing: u64,
    /// Received more than once.
    pub(crate) repeated: u64,
    /// Received after a later one of their key.
    pub(crate) out_of_order: u64,
}

impl Ledger {
    /// For `events` events with the ids from `first` on.
    pub(crate) fn new(first: u64, events: usize) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            first,
            drawn: AtomicU64::new(0),
            begin: Instant::now(),
            accepted: zeros(events),
            received: zeros(events),
            times: (0..events).map(|_| AtomicU8::new(0)).collect(),
            last: zeros(KEYS),
            out_of_order: AtomicU64::new(0),
            of_others: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
        }
    }

    /// Ids for a call; none where there are none left.
    pub(crate) fn draw(&self, events: u64) -> Option<u64> {
        let at = self.drawn.fetch_add(events, Ordering::Relaxed);
        (at + events <= self.accepted.len() as u64).then_some(self.first + at)
    }

    /// The call with these events has ended.
    pub(crate) fn accepted(&self, first: u64, events: u64) {
        let now = self.now();
        for id in first..first + events {
            if let Some(accepted) = self.place(id).and_then(|place| self.accepted.get(place)) {
                accepted.store(now, Ordering::Release);
            }
        }
    }

    /// An event is in a receiver's hands.
    pub(crate) fn received(&self, id: u64, key: u64) {
        let now = self.now();
        let Some(place) = self.place(id).filter(|place| *place < self.received.len()) else {
            self.of_others.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.times[place].fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        self.received[place].store(now, Ordering::Release);
        self.in_hand.fetch_add(1, Ordering::AcqRel);
        let last = usize::try_from(key).ok().and_then(|key| self.last.get(key));
        if last.is_some_and(|last| last.fetch_max(id, Ordering::AcqRel) > id) {
            self.out_of_order.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were received, each once.
    pub(crate) fn in_hand(&self) -> u64 {
        self.in_hand.load(Ordering::Acquire)
    }

    /// Events that were received and are not of this loop.
    pub(crate) fn of_others(&self) -> u64 {
        self.of_others.load(Ordering::Acquire)
    }

    /// What became of all of them, and the nanoseconds from each one's acceptance to its receipt; one received before
    /// its publisher heard of it took none.
    pub(crate) fn close(&self) -> (Found, Histogram<u64>) {
        let mut found = Found { out_of_order: self.out_of_order.load(Ordering::Acquire), ..Found::default() };
        let mut tally = Tally::default();
        for ((accepted, received), times) in self.accepted.iter().zip(&self.received).zip(&self.times) {
            let (accepted, received) = (accepted.load(Ordering::Acquire), received.load(Ordering::Acquire));
            if accepted == 0 {
                continue;
            }
            found.accepted += 1;
            found.missing += u64::from(received == 0);
            found.repeated += u64::from(times.load(Ordering::Acquire) > 1);
            if received > 0 {
                tally.record(Duration::from_nanos(received.saturating_sub(accepted)));
            }
        }
        (found, tally.latency_ns)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn place(&self, id: u64) -> Option<usize> {
        usize::try_from(id.checked_sub(self.first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_repeated_or_out_of_order_is_counted() {
        let ledger = Ledger::new(100, 6);
        let first = ledger.draw(5).unwrap();
        assert_eq!((first, ledger.draw(5)), (100, None));
        ledger.accepted(first, 5);
        for (id, key) in [(100, 0), (102, 1), (101, 1), (103, 0), (103, 0), (7, 0)] {
            ledger.received(id, key);
        }
        let (found, latencies) = ledger.close();
        assert_eq!(found, Found { accepted: 5, missing: 1, repeated: 1, out_of_order: 1 });
        assert_eq!((latencies.len(), ledger.in_hand()), (4, 4));
    }
}
