//! What lies in the spool and is not done with, read ahead of what is counted: whose each entry is and where it lies, and not what it
//! says. So entries behind a tenant's many are seen, and get their turns.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use super::entry;
use super::settled::{First, Settled};
use super::waiting::{Id, Located, Waiting};
use crate::fairness::Lines;
use crate::store::spool::{self, Again, Place, Spool};

/// Entries that are known to wait at the most, 32 bytes of memory each. Those behind are read once there are fewer.
const MAX_AHEAD: usize = 2 * 1024 * 1024;

/// What waits.
pub(super) struct Ahead {
    spool: Arc<Spool>,
    again: Again,
    lines: Lines<Located>,
    /// What was taken and is not done with.
    hand: VecDeque<Waiting>,
    /// What is taken next, read while that is counted.
    prepared: VecDeque<Waiting>,
    /// One that was read and did not fit: it is the next.
    spare: Option<Waiting>,
    /// Of entries that are counted in parts, how many of their points are.
    parts: HashMap<Id, usize>,
    /// Whose turn does not come, and until when.
    resting: HashMap<Uuid, Instant>,
    segments: BTreeMap<u32, Seen>,
    /// Of the last segment that was read: its number, up to where, and whether that was all.
    last: (u32, Option<Place>, bool),
    settled: watch::Sender<Settled>,
}

/// A segment that was read.
struct Seen {
    to: Place,
    is_all: bool,
    /// Entries that are not done with.
    left: usize,
    /// Whether some are a later release's, which alone can count them.
    has_later: bool,
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) damaged_bytes: u64,
    /// Entries of a later release.
    pub(super) later: usize,
}

impl Ahead {
    pub(super) fn new(spool: Arc<Spool>) -> Self {
        Self {
            spool,
            again: Again::default(),
            lines: Lines::default(),
            hand: VecDeque::new(),
            prepared: VecDeque::new(),
            spare: None,
            parts: HashMap::new(),
            resting: HashMap::new(),
            segments: BTreeMap::new(),
            last: (0, None, true),
            settled: watch::Sender::new(Settled::default()),
        }
    }

    /// Tells what is done with.
    pub(super) fn settled(&self) -> watch::Receiver<Settled> {
        self.settled.subscribe()
    }

    /// What was taken and is not done with, in order.
    pub(super) fn hand(&mut self) -> &mut VecDeque<Waiting> {
        &mut self.hand
    }

    /// When the oldest entry that waits was accepted, in seconds since 1970.
    pub(super) fn oldest_s(&self) -> Option<u32> {
        self.settled.borrow().oldest_s()
    }

    /// Reads whose entries were appended since, and where they lie.
    pub(super) fn look(&mut self) -> io::Result<Found> {
        let (next, mut found) = (self.spool.next_sequence(), Found::default());
        while self.lines.len() < MAX_AHEAD {
            let (number, place) = match self.last {
                (number, Some(place), false) => (number, place),
                (number, behind, _) => match self.spool.next(behind) {
                    Some(begin) => (number + 1, begin),
                    None => {
                        self.spool.has_its_folder()?;
                        return Ok(self.seen_to(next, found));
                    }
                },
            };
            let Some(read) = self.spool.read(Some(place))? else {
                // It was done with and removed, or somebody took it away.
                if let Some(seen) = self.segments.get_mut(&number) {
                    seen.is_all = true;
                }
                self.last = (number, Some(place), true);
                continue;
            };
            self.see(number, &read, &mut found)?;
            self.last = (number, Some(read.to), read.is_all);
            if !read.is_all {
                // It is the last one, which is written to.
                return Ok(self.seen_to(next, found));
            }
        }
        Ok(found)
    }

    fn seen_to(&self, next: u64, found: Found) -> Found {
        self.settled.send_modify(|settled| settled.seen_to = next);
        found
    }

    fn see(&mut self, number: u32, read: &spool::Read, found: &mut Found) -> io::Result<()> {
        let now_ms = Timestamp::now().as_millisecond();
        let locate = |one: &spool::Entry| {
            let (tenant, accepted_ms, is_later) = match entry::head(&one.payload) {
                Ok(head) => (head.tenant, head.accepted_ms, head.is_later()),
                // Nobody's: it is put aside, and why is said, when its turn comes.
                Err(_) => (Uuid::nil(), now_ms, false),
            };
            let located = Located {
                sequence: one.sequence,
                segment: number,
                offset: u32::try_from(one.offset).map_err(io::Error::other)?,
                accepted_s: u32::try_from(accepted_ms / 1000).unwrap_or(u32::MAX),
            };
            Ok((tenant, one.payload.len() as u64, located, is_later))
        };
        // All of it or nothing: what fails is read again.
        let all = read.entries.iter().map(locate).collect::<io::Result<Vec<_>>>()?;
        let seen = self.segments.entry(number);
        let seen = seen.or_insert(Seen { to: read.to, is_all: false, left: 0, has_later: false });
        (seen.to, seen.is_all) = (read.to, read.is_all);
        found.damaged_bytes += read.damaged_bytes;
        let (lines, mut oldest_later) = (&mut self.lines, None);
        self.settled.send_modify(|settled| {
            for (tenant, bytes, located, is_later) in all {
                if is_later {
                    (seen.has_later, found.later) = (true, found.later + 1);
                    oldest_later = oldest_later.or(Some(located.accepted_s));
                    continue;
                }
                seen.left += 1;
                settled.first.entry(tenant).or_insert_with(|| First::of(&located));
                lines.push(tenant, bytes, located);
            }
            settled.oldest_later_s = settled.oldest_later_s.or(oldest_later);
        });
        Ok(())
    }

    /// Whether entries wait that could be prepared.
    pub(super) fn has_more(&self) -> bool {
        self.prepared.is_empty() && self.lines.tenants() > 0
    }

    /// Takes what was prepared.
    pub(super) fn take(&mut self) {
        self.hand.append(&mut self.prepared);
    }

    /// Reads entries of the tenants in turn, so many at the most and of so much cost and so many bytes; the first one whatever it is.
    pub(super) fn prepare(&mut self, most: usize, most_cost: u64) -> io::Result<()> {
        self.wake(Instant::now());
        let mut weight = self.prepared.iter().map(Waiting::weight).sum::<u64>();
        while self.prepared.len() < most {
            let (spool, again, spare) = (&self.spool, &mut self.again, &mut self.spare);
            let (segments, parts, is_first) = (&self.segments, &self.parts, self.prepared.is_empty());
            let (mut taken, mut failed) = (None, None);
            let Some(tenant) = self.lines.turn() else { return Ok(()) };
            let fits = |bytes: u64, located: &Located| {
                if !is_first && weight + bytes > most_cost {
                    return false;
                }
                let one = match spare.take_if(|spare| spare.located.id() == located.id()) {
                    Some(one) => one,
                    None => {
                        let place =
                            segments.get(&located.segment).map(|seen| seen.to.at(located.offset.into()));
                        let what = (located.sequence, usize::try_from(bytes).unwrap_or(usize::MAX));
                        let payload = place.map_or(Ok(None), |place| spool.again(again, place, what));
                        let at = parts.get(&located.id()).map_or(0, |at| *at);
                        match payload {
                            Ok(payload) => Waiting::of((tenant, bytes, *located), payload, at),
                            Err(error) => {
                                failed = Some(error);
                                return false;
                            }
                        }
                    }
                };
                if is_first || weight + one.weight() <= most_cost {
                    taken = Some(one);
                    return true;
                }
                *spare = Some(one);
                false
            };
            let next = self.lines.next_if(|_| false, fits);
            if let Some(error) = failed {
                return Err(error);
            }
            let (Some(_), Some(one)) = (next, taken) else { return Ok(()) };
            weight += one.weight();
            self.prepared.push_back(one);
        }
        Ok(())
    }

    /// So many of the first that were taken are done with.
    pub(super) fn done(&mut self, count: usize) -> Vec<Waiting> {
        let done: Vec<Waiting> = self.hand.drain(..count.min(self.hand.len())).collect();
        for one in &done {
            self.parts.remove(&one.located.id());
            if let Some(seen) = self.segments.get_mut(&one.located.segment) {
                seen.left = seen.left.saturating_sub(1);
            }
        }
        let tenants: BTreeSet<Uuid> = done.iter().map(|one| one.tenant).collect();
        let (hand, prepared, lines) = (&self.hand, &self.prepared, &self.lines);
        self.settled.send_modify(|settled| {
            for tenant in tenants {
                let taken = hand.iter().chain(prepared).find(|one| one.tenant == tenant);
                let taken = taken.map(|one| &one.located);
                match taken.or_else(|| lines.first(tenant)) {
                    Some(next) => settled.first.insert(tenant, First::of(next)),
                    None => settled.first.remove(&tenant),
                };
            }
        });
        done
    }

    /// So many points of the first one are counted; the rest of it waits for its tenant's next turn.
    pub(super) fn counted_to(&mut self, at: usize) {
        if let Some(first) = self.hand.front_mut() {
            first.at = at;
            self.parts.insert(first.located.id(), at);
            let tenant = first.tenant;
            self.put_back(tenant);
        }
    }

    /// What was taken of a tenant waits for its next turn.
    pub(super) fn put_back(&mut self, tenant: Uuid) {
        let mut back = Vec::new();
        for taken in [&mut self.hand, &mut self.prepared] {
            let (own, others): (VecDeque<_>, VecDeque<_>) =
                taken.drain(..).partition(|one| one.tenant == tenant);
            *taken = others;
            back.extend(own);
        }
        for one in back.into_iter().rev() {
            self.lines.put_back(tenant, one.bytes, one.located);
            self.spare = Some(one);
        }
    }

    /// A tenant's turn does not come before this.
    pub(super) fn rest(&mut self, tenant: Uuid, until: Instant) {
        self.put_back(tenant);
        self.spare = None;
        self.lines.rest(tenant);
        self.resting.insert(tenant, until);
    }

    fn wake(&mut self, now: Instant) {
        for (tenant, _) in self.resting.extract_if(|_, until| *until <= now) {
            self.lines.wake(tenant);
        }
    }

    /// How many tenants rest, and when the first of them has turns again.
    pub(super) fn resting(&self) -> (usize, Option<Instant>) {
        (self.resting.len(), self.resting.values().min().copied())
    }

    /// Segments that are done with, up to where they were read, and whether that is all of them; at the end also the one that is
    /// written to.
    pub(super) fn finished(&self, is_last: bool) -> Vec<(u32, Place, bool)> {
        let is_done = |seen: &Seen| seen.left == 0 && !seen.has_later && (seen.is_all || is_last);
        let finished = self.segments.iter().filter(|(_, seen)| is_done(seen));
        finished.map(|(number, seen)| (*number, seen.to, seen.is_all)).collect()
    }

    /// A segment was removed.
    pub(super) fn removed(&mut self, number: u32) {
        self.segments.remove(&number);
    }
}
