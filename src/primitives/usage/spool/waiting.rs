//! An entry whose turn has come, as what is to be counted.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::super::{Call, Day, KEYS_AHEAD_DAYS, KEYS_DAYS};
use super::entry::{self, Accepted};

const MIB: u64 = 1024 * 1024;

/// What calls may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Those of a transaction together at the most.
    pub(super) together: u64,
    /// One that costs more is counted in parts, each of them a turn of its tenant's.
    whole: u64,
    /// A part.
    part: u64,
}

impl Costs {
    pub(super) const POSTGRES: Self = Self { together: 8 * MIB, whole: 16 * MIB, part: 8 * MIB };
    /// On SQLite transactions are others' to wait for.
    pub(super) const EMBEDDED: Self = Self { together: MIB, whole: MIB, part: MIB };
}

/// Where an entry lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located {
    pub(super) sequence: u64,
    /// The segment's number among those that were read.
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// When it was accepted, in seconds since 1970.
    pub(super) accepted_s: u32,
}

/// The number of its segment, and its sequence: folders that were merged may have one twice.
pub(super) type Id = (u32, u64);

impl Located {
    pub(super) fn id(&self) -> Id {
        (self.segment, self.sequence)
    }
}

/// An entry that was taken.
pub(super) struct Waiting {
    pub(super) tenant: Uuid,
    pub(super) located: Located,
    /// The length of its payload.
    pub(super) bytes: u64,
    pub(super) payload: Vec<u8>,
    pub(super) what: What,
    /// How many of its points are counted.
    pub(super) at: usize,
    /// The store's clock was asked, and its keys are kept.
    pub(super) is_young: bool,
}

/// What an entry is.
pub(super) enum What {
    Call(Read),
    /// Why it cannot be counted.
    Wrong(String),
    /// Its disk cannot read it any more.
    Lost,
}

/// A call, shared with the transaction that counts it.
pub(super) struct Read {
    pub(super) accepted: Arc<Accepted>,
    pub(super) cost: u64,
    /// The first and the last day of its points.
    days: (Day, Day),
}

impl Waiting {
    pub(super) fn of(
        (tenant, bytes, located): (Uuid, u64, Located),
        payload: Option<Vec<u8>>,
        at: usize,
    ) -> Self {
        let (what, payload) = match payload {
            Some(payload) => (read(&payload), payload),
            None => (What::Lost, Vec::new()),
        };
        Self { tenant, located, bytes, payload, what, at, is_young: false }
    }

    pub(super) fn cost(&self) -> u64 {
        match &self.what {
            What::Call(read) => read.cost,
            What::Wrong(_) | What::Lost => 0,
        }
    }

    /// What it takes while it is held: a body may be mostly space.
    pub(super) fn weight(&self) -> u64 {
        self.cost().max(self.bytes)
    }

    /// The call that it is.
    pub(super) fn call(&self) -> Option<&Call> {
        match &self.what {
            What::Call(read) => Some(&read.accepted.call),
            What::Wrong(_) | What::Lost => None,
        }
    }

    /// How many points it has.
    pub(super) fn points(&self) -> usize {
        self.call().map_or(0, |call| call.points().len())
    }

    /// Those of its points that are counted next, so many at the most.
    pub(super) fn part(&self, most: usize, costs: Costs) -> Range<usize> {
        let (points, cost) = (self.points(), self.cost());
        let fair = match u64::try_from(points) {
            Ok(all) if cost > costs.whole => usize::try_from(all * costs.part / cost).unwrap_or(points),
            _ => points,
        };
        self.at..self.at.saturating_add(most.min(fair).max(1)).min(points)
    }

    /// Whether all of its points are counted next.
    pub(super) fn is_whole(&self, costs: Costs) -> bool {
        self.part(usize::MAX, costs) == (0..self.points())
    }

    /// Whether the keys of some of it may be gone, where this is today.
    pub(super) fn is_old(&self, today: Day) -> bool {
        matches!(&self.what, What::Call(read) if read.days.0.number() <= today.number() - KEYS_DAYS)
    }

    /// Whether the store has partitions for all of its days, where this is today.
    pub(super) fn is_kept(&self, today: Day) -> bool {
        let is_ahead = |read: &Read| read.days.1.number() > today.number() + KEYS_AHEAD_DAYS;
        !self.is_old(today) && !matches!(&self.what, What::Call(read) if is_ahead(read))
    }
}

fn read(payload: &[u8]) -> What {
    match entry::read(payload) {
        Ok(accepted) => {
            let (cost, days) = (accepted.call.cost(), accepted.call.days());
            match days.first().copied().zip(days.last().copied()) {
                Some(days) => What::Call(Read { accepted: Arc::new(accepted), cost, days }),
                None => What::Wrong("it has no records".to_owned()),
            }
        }
        Err(error) => What::Wrong(error.to_string()),
    }
}
