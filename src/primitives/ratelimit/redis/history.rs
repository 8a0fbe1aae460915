//! Which answers can rest on tokens that Redis has forgotten.
//!
//! Redis replicates after it has answered. A replica that becomes primary may lack the last tokens taken, and so
//! may a primary that starts again; either way it begins a new replication id, which the script returns. An
//! answer under an id that this process first saw later than the bucket takes to fill is exact again: whatever
//! was lost would have been earned back by now. Until then it says `degraded`.

use std::time::Instant;

use arc_swap::ArcSwap;

/// Ids that are remembered; a cluster has one for each primary, and one more for each that was lost lately.
const MOST: usize = 256;

/// The replication ids seen, and since when each that is not trusted.
pub(super) struct Histories {
    seen: ArcSwap<Vec<Seen>>,
}

#[derive(Clone)]
struct Seen {
    id: Box<[u8]>,
    /// None for those that the cluster had when this process first saw it.
    since: Option<Instant>,
}

impl Histories {
    pub(super) fn new() -> Self {
        Self { seen: ArcSwap::from_pointee(Vec::new()) }
    }

    /// How long ago `id` was first seen, at `now`; `None` for one that was there from the beginning. Before
    /// [`Histories::trust`] nothing is known to be new.
    pub(super) fn age_us(&self, id: &[u8], now: Instant) -> Option<u64> {
        let seen = self.seen.load();
        if seen.is_empty() {
            return None;
        }
        let since = match seen.iter().find(|seen| *seen.id == *id) {
            Some(seen) => seen.since?,
            None => {
                self.add(id, Some(Instant::now()));
                return Some(0);
            }
        };
        Some(u64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(u64::MAX))
    }

    /// Whether the cluster's own ids were seen.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.load().is_empty()
    }

    /// Trusts these, all of the cluster's.
    pub(super) fn trust(&self, ids: &[Box<[u8]>]) {
        for id in ids {
            self.add(id, None);
        }
    }

    fn add(&self, id: &[u8], since: Option<Instant>) {
        self.seen.rcu(|seen| {
            let mut seen = Vec::clone(seen);
            if seen.iter().all(|seen| *seen.id != *id) {
                if seen.len() >= MOST {
                    seen.remove(0);
                }
                seen.push(Seen { id: Box::from(id), since });
            }
            seen
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_id_that_comes_later_is_new_and_grows_old() {
        let histories = Histories::new();
        assert_eq!(histories.age_us(b"a", Instant::now()), None);
        histories.trust(&[Box::from(&b"a"[..]), Box::from(&b"b"[..])]);
        assert_eq!(histories.age_us(b"a", Instant::now()), None);
        assert_eq!(histories.age_us(b"c", Instant::now()), Some(0));
        let later = Instant::now() + Duration::from_secs(5);
        assert!(histories.age_us(b"c", later).is_some_and(|age| (5_000_000..6_000_000).contains(&age)));
        assert_eq!(histories.age_us(b"b", later), None);
    }
}
