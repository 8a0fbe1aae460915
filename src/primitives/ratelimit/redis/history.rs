//! Which answers can rest on tokens that Redis has forgotten.
//!
//! Redis replicates after it has answered. A replica that becomes primary may lack the last tokens taken, and so
//! may a primary that starts again; either way it begins a new replication id, which the script returns. An
//! answer under an id that took another's place less long ago than the bucket takes to fill says `degraded`;
//! afterwards it is exact again, since whatever was lost would have been earned back by then.
//!
//! Since when an id is there, all processes together keep in Redis (`record.rs`). What this process saw by itself
//! holds until it has that answer: an id cannot be younger than its first sight.

use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::record::Known;

/// Ids that are remembered: one for each primary (of 500 at the most), and one more for each that was lost lately.
pub(super) const MOST: usize = 1024;

/// The replication ids seen, and since when they are there.
pub(super) struct Histories {
    seen: ArcSwap<Vec<Seen>>,
    /// Counts the times that the record was asked.
    asked: watch::Sender<u64>,
    /// Told when an id was seen that the record was not asked about.
    pub(super) unknown: Notify,
}

#[derive(Clone)]
struct Seen {
    id: Box<[u8]>,
    begin: Begin,
    /// Whether the record was asked about it, in vain or not.
    asked: bool,
}

#[derive(Clone, Copy)]
enum Begin {
    /// Not known; this process saw it first at this time.
    Before(Instant),
    /// When the record was begun: it took the place of none that had given tokens.
    Founding,
    /// It took the place of another, at this time or earlier.
    Replaced(Instant),
}

impl Histories {
    pub(super) fn new() -> Self {
        Self { seen: ArcSwap::default(), asked: watch::Sender::new(0), unknown: Notify::new() }
    }

    /// How long `id` has been there at `now`, as far as is known, and whether the record was asked about it.
    pub(super) fn age_us(&self, id: &[u8], now: Instant) -> (u64, bool) {
        let seen = self.seen.load();
        let Some(seen) = seen.iter().find(|seen| *seen.id == *id) else {
            self.see(id);
            return (0, false);
        };
        let since = match seen.begin {
            Begin::Before(since) | Begin::Replaced(since) => since,
            Begin::Founding => return (u64::MAX, true),
        };
        (microseconds(since, now), seen.asked)
    }

    /// Waits until the record was asked about `id`.
    pub(super) async fn asked_about(&self, id: &[u8]) {
        let mut asked = self.asked.subscribe();
        while !self.seen.load().iter().any(|seen| *seen.id == *id && seen.asked) {
            if asked.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes that `id` is there.
    pub(super) fn see(&self, id: &[u8]) {
        let now = Instant::now();
        self.seen.rcu(|seen| {
            let mut seen = Vec::clone(seen);
            if seen.iter().all(|seen| *seen.id != *id) {
                if seen.len() >= MOST {
                    seen.remove(0);
                }
                seen.push(Seen { id: Box::from(id), begin: Begin::Before(now), asked: false });
            }
            seen
        });
        self.unknown.notify_one();
    }

    /// What to tell the record: of these ids, and of those it was not asked about.
    pub(super) fn to_share(&self, ids: &[Box<[u8]>]) -> Vec<Known> {
        let now = Instant::now();
        let seen = self.seen.load();
        let wanted = seen.iter().filter(|seen| !seen.asked || ids.contains(&seen.id));
        let known = |seen: &Seen| {
            let age_us = match seen.begin {
                Begin::Replaced(since) => Some(microseconds(since, now)),
                Begin::Before(_) | Begin::Founding => None,
            };
            Known { id: seen.id.clone(), age_us }
        };
        wanted.map(known).collect()
    }

    /// Takes the record's answer about what it was told; `None` where it gave none.
    pub(super) fn shared(&self, told: &[Known], answer: Option<&[Known]>) {
        let now = Instant::now();
        self.seen.rcu(|seen| {
            let mut seen = Vec::clone(seen);
            for place in &mut seen {
                if let Some(known) = answer.into_iter().flatten().find(|known| known.id == place.id) {
                    place.learn(known.age_us, now);
                }
                place.asked |= told.iter().any(|known| known.id == place.id);
            }
            seen
        });
        self.asked.send_modify(|count| *count += 1);
    }
}

impl Seen {
    fn learn(&mut self, age_us: Option<u64>, now: Instant) {
        // Longer ago than this machine runs: as good as always.
        let since = age_us.map(|age| now.checked_sub(std::time::Duration::from_micros(age)));
        self.begin = match (self.begin, since) {
            // The record was lost and begun anew by a process that knew less; it is told when next asked.
            (Begin::Replaced(since), None) => Begin::Replaced(since),
            (_, None | Some(None)) => Begin::Founding,
            (Begin::Founding, Some(Some(since))) => Begin::Replaced(since),
            // Each time is one at which it was there: it took its place at the earlier one at the latest.
            (Begin::Before(own) | Begin::Replaced(own), Some(Some(since))) => Begin::Replaced(own.min(since)),
        };
    }
}

fn microseconds(since: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    fn known(id: &[u8], age_us: Option<u64>) -> Known {
        Known { id: Box::from(id), age_us }
    }

    fn learned(answers: &[(&[u8], Option<u64>)]) -> Histories {
        let histories = Histories::new();
        let answers: Vec<_> = answers.iter().map(|(id, age)| known(id, *age)).collect();
        for answer in &answers {
            histories.see(&answer.id);
        }
        histories.shared(&answers, Some(&answers));
        histories
    }

    #[test]
    fn an_id_is_as_old_as_its_first_sight_until_the_record_says_more() {
        let histories = Histories::new();
        assert_eq!(histories.age_us(b"a", Instant::now()), (0, false));
        let later = Instant::now() + Duration::from_secs(5);
        let (age, asked) = histories.age_us(b"a", later);
        assert!((5_000_000..6_000_000).contains(&age) && !asked);
        let told = histories.to_share(&[]);
        assert_eq!(told, [known(b"a", None)]);
        histories.shared(&told, None);
        assert!(histories.age_us(b"a", later).1, "the record was asked, in vain");
        assert!(histories.age_us(b"a", later).0 < 5_500_000);
        histories.shared(&told, Some(&[known(b"a", Some(1_000_000))]));
        assert!((5_500_000..6_500_000).contains(&histories.age_us(b"a", later).0));
    }

    #[test]
    fn ids_of_the_beginning_are_old_enough_for_everything() {
        let histories = learned(&[(b"a", None), (b"b", Some(0))]);
        assert_eq!(histories.age_us(b"a", Instant::now()), (u64::MAX, true));
        assert!(histories.age_us(b"b", Instant::now()).0 < HOUR_US);
        assert_eq!(histories.to_share(&[Box::from(&b"a"[..])]), [known(b"a", None)]);
    }

    #[test]
    fn a_record_that_was_begun_anew_makes_nothing_older() {
        let histories = learned(&[(b"a", Some(0))]);
        histories.shared(&[known(b"a", None)], Some(&[known(b"a", None)]));
        let (age, _) = histories.age_us(b"a", Instant::now());
        assert!(age < HOUR_US, "{age}");
        let told = histories.to_share(&[Box::from(&b"a"[..])]);
        assert!(told[0].age_us.is_some(), "the record is not told: {told:?}");
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_once_the_record_was_asked() {
        let histories = Histories::new();
        histories.see(b"a");
        let told = histories.to_share(&[]);
        let waits = histories.asked_about(b"a");
        let asks = async {
            tokio::task::yield_now().await;
            histories.shared(&told, None);
        };
        tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(waits, asks) }).await.unwrap();
    }
}
