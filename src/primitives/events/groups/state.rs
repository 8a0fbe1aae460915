//! What a group has, and its form in the group's row.
//!
//! # The bytes of version 2
//!
//! A varint is LEB128: seven bits a byte, the lowest first, the top bit set on every byte but the last. A zigzag varint
//! is the varint of `(n << 1) ^ (n >> 63)`. `last` starts at 0.
//!
//! | part | form |
//! |---|---|
//! | version | 1 byte, 2 |
//! | mark | 4 bytes, big-endian |
//! | epoch of the group | varint |
//! | position of the group | zigzag varint |
//! | number of tenants | varint; 0 in a group of one tenant, whose events' tenant is not kept |
//! | each tenant | 16 bytes |
//! | number of deferred tenants | varint |
//! | each of them, whose turn is next first: | |
//! | tenant | varint: 0 none, else its place above, from 1 |
//! | position | varint: how far it is behind the group's |
//! | whose turn it is | 1 byte: 1 new events, 0 a deferred tenant; only where there is one |
//! | number of entries | varint |
//! | each entry, by position: | |
//! | tag | 1 byte: bits 0 and 1 the phase (0 free, 1 leased, 2 delayed, 3 dead), bit 2 "the key of the entry before", bit 3 "has failed", with phase 3 always, bit 4 "died of a nack", only with phase 3, bit 5 "of another tenant than the entry before"; the others are 0 |
//! | position | varint; of the first entry how far it is behind the group's, of the others behind the entry before |
//! | key's hash | 8 bytes, big-endian; not there with bit 2 |
//! | tenant | varint, as above; only with bit 5 (none is before the first entry) |
//! | failures | varint, 1 to 65,535; only with bit 3 |
//! | until | leased and delayed: zigzag varint, milliseconds, less the last entry's that has one (0 for the first) |
//! | epoch of the lease | leased: varint, the group's epoch less this one |
//! | number of the lease | leased: varint, which of those of its pull it is |
//!
//! Nothing follows the last entry. What waits behind one key takes 2 to 4 bytes an entry.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use uuid::Uuid;

use super::{DeadReason, KeyHash, MAX_DEFERRED};
use crate::error::ErrorKind;
use crate::primitives::events::Position;

/// The only version that is written.
const VERSION: u8 = 2;
const PHASE: u8 = 0b11;
const FREE: u8 = 0;
const LEASED: u8 = 1;
const DELAYED: u8 = 2;
const DEAD: u8 = 3;
const SAME_KEY: u8 = 0b100;
const HAS_FAILED: u8 = 0b1000;
const DIED_OF_NACK: u8 = 0b1_0000;
const OTHER_TENANT: u8 = 0b10_0000;
const TENANT_BYTES: usize = 16;
/// A tag and a position, each of one byte at least.
const MIN_ENTRY_BYTES: usize = 2;

/// A consumer group: how far it looked, and what it looked at that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// What its receipts have in common, so that another group's are stale.
    pub(super) mark: u32,
    /// The last lease's. It never goes back, so that no receipt is ever given twice.
    pub(super) epoch: u64,
    /// The last event that was looked at.
    pub(super) position: Position,
    /// By position, none after the group's own.
    pub(super) outstanding: Vec<Entry>,
    /// Tenants whose events were passed over, whose turn is next first.
    pub(super) deferred: Vec<Deferred>,
    /// Whether the next pull begins with new events, and not with those that were passed over.
    pub(super) new_first: bool,
}

/// A tenant that had its share when an event of its was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deferred {
    pub(super) tenant: Uuid,
    /// All that it has after this position and up to the group's own was passed over.
    pub(super) position: Position,
}

/// An event that was looked at and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: Position,
    pub(super) key: KeyHash,
    /// Whose it is; nil in a group of one tenant.
    pub(super) tenant: Uuid,
    /// How often its own lease expired or was nacked.
    pub(super) failures: u16,
    pub(super) phase: Phase,
}

/// What an outstanding event is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may be delivered, unless an earlier one of its key is leased or delayed: that follows from the others, and
    /// is not kept.
    Free,
    /// A consumer has it.
    Leased { until_ms: i64, epoch: u64, number: u64 },
    /// It was nacked.
    Delayed { until_ms: i64 },
    /// It had its last failure, and is not among the dead letters yet. Nothing waits for it.
    Dead { reason: DeadReason },
}

/// Bytes that are no group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by another release.
    #[error("the group's state is of version {0}; this release reads version {VERSION}")]
    Version(u8),
    /// It ends too early.
    #[error("the group's state is cut off")]
    Short,
    /// It goes on after its end.
    #[error("the group's state has bytes after its end")]
    Trailing,
    /// A part of it cannot be.
    #[error("the group's state has a wrong {0}")]
    Wrong(&'static str),
}

impl StateError {
    /// Its kind.
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl State {
    /// What an entry takes in a row at the most but for positions that are far apart: each part of it at its longest.
    pub const MAX_ENTRY_BYTES: u64 = 1 + 9 + 8 + 3 + 7 + 9;

    /// A group that begins after `position`. `mark` is any number that other groups of the topic, and one of this name
    /// that was removed, hardly have: a random one.
    #[must_use]
    pub fn new(position: Position, mark: u32) -> Self {
        Self { mark, epoch: 0, position, outstanding: Vec::new(), deferred: Vec::new(), new_first: false }
    }

    /// The last event that was looked at.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// How many events were looked at and are not done.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The bytes for the group's row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.outstanding.len() * 20);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.mark.to_be_bytes());
        put(&mut bytes, self.epoch);
        put(&mut bytes, zigzag(self.position.number()));
        let tenants = self.encode_tenants(&mut bytes);
        put(&mut bytes, self.outstanding.len() as u64);
        let (mut before, mut last_until) = (None::<&Entry>, 0);
        for entry in &self.outstanding {
            let (phase, until, lease) = match entry.phase {
                Phase::Free => (FREE, None, None),
                Phase::Leased { until_ms, epoch, number } => (LEASED, Some(until_ms), Some((epoch, number))),
                Phase::Delayed { until_ms } => (DELAYED, Some(until_ms), None),
                Phase::Dead { reason: DeadReason::Expired } => (DEAD, None, None),
                Phase::Dead { reason: DeadReason::Nacked } => (DEAD | DIED_OF_NACK, None, None),
            };
            let same_key = before.is_some_and(|before| before.key == entry.key);
            let same_bit = if same_key { SAME_KEY } else { 0 };
            let failed_bit = if entry.failures > 0 { HAS_FAILED } else { 0 };
            let is_of_other = before.map_or(Uuid::nil(), |before| before.tenant) != entry.tenant;
            let other_bit = if is_of_other { OTHER_TENANT } else { 0 };
            bytes.push(phase | same_bit | failed_bit | other_bit);
            let from = before.map_or(self.position, |before| before.position);
            put(&mut bytes, from.number().abs_diff(entry.position.number()));
            if !same_key {
                bytes.extend_from_slice(&entry.key.0.to_be_bytes());
            }
            if is_of_other {
                put(&mut bytes, tenants.get(&entry.tenant).copied().unwrap_or(0));
            }
            if entry.failures > 0 {
                put(&mut bytes, u64::from(entry.failures));
            }
            if let Some(until_ms) = until {
                put(&mut bytes, zigzag(until_ms.wrapping_sub(last_until)));
                last_until = until_ms;
            }
            if let Some((epoch, number)) = lease {
                put(&mut bytes, self.epoch - epoch);
                put(&mut bytes, number);
            }
            before = Some(entry);
        }
        bytes
    }

    /// The tenants, each once, and those that are deferred. Which number each has.
    fn encode_tenants(&self, bytes: &mut Vec<u8>) -> HashMap<Uuid, u64> {
        let (mut numbers, mut tenants) = (HashMap::from([(Uuid::nil(), 0)]), Vec::new());
        let deferred = self.deferred.iter().map(|deferred| deferred.tenant);
        for tenant in deferred.chain(self.outstanding.iter().map(|entry| entry.tenant)) {
            let next = numbers.len() as u64;
            numbers.entry(tenant).or_insert_with(|| {
                tenants.push(tenant);
                next
            });
        }
        put(bytes, tenants.len() as u64);
        tenants.iter().for_each(|tenant| bytes.extend_from_slice(tenant.as_bytes()));
        put(bytes, self.deferred.len() as u64);
        for deferred in &self.deferred {
            put(bytes, numbers.get(&deferred.tenant).copied().unwrap_or(0));
            put(bytes, self.position.number().abs_diff(deferred.position.number()));
        }
        if !self.deferred.is_empty() {
            bytes.push(u8::from(self.new_first));
        }
        numbers
    }

    /// Reads what [`Self::encode`] wrote. Any bytes are safe to give.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut rest = Bytes(bytes);
        let version = rest.byte()?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let mark = u32::from_be_bytes(rest.array()?);
        let epoch = rest.varint()?;
        let position = Position::new(unzigzag(rest.varint()?));
        let mut state = Self { epoch, ..Self::new(position, mark) };
        let mut tenants = vec![Uuid::nil()];
        for _ in 0..rest.count(TENANT_BYTES)? {
            tenants.push(Uuid::from_bytes(rest.array()?));
        }
        state.decode_deferred(&mut rest, &tenants)?;
        let count = rest.count(MIN_ENTRY_BYTES)?;
        state.outstanding.reserve(count);
        let mut last_until = 0;
        for _ in 0..count {
            let entry = state.decode_entry(&mut rest, &tenants, &mut last_until)?;
            state.outstanding.push(entry);
        }
        if rest.0.is_empty() { Ok(state) } else { Err(StateError::Trailing) }
    }

    fn decode_deferred(&mut self, rest: &mut Bytes<'_>, tenants: &[Uuid]) -> Result<(), StateError> {
        let count = rest.count(MIN_ENTRY_BYTES)?;
        if count > MAX_DEFERRED {
            return Err(StateError::Wrong("number of deferred tenants"));
        }
        for _ in 0..count {
            let tenant = rest.tenant(tenants)?;
            let position = self.position.number().checked_sub_unsigned(rest.varint()?);
            let position = position.map(Position::new).ok_or(StateError::Wrong("deferred position"))?;
            self.deferred.push(Deferred { tenant, position });
        }
        if count > 0 {
            self.new_first = match rest.byte()? {
                0 => false,
                1 => true,
                _ => return Err(StateError::Wrong("turn")),
            };
        }
        Ok(())
    }

    /// The entry after those that there are.
    fn decode_entry(
        &self,
        rest: &mut Bytes<'_>,
        tenants: &[Uuid],
        last_until: &mut i64,
    ) -> Result<Entry, StateError> {
        let before = self.outstanding.last();
        let tag = rest.byte()?;
        let is_dead = tag & PHASE == DEAD;
        let known = PHASE | SAME_KEY | HAS_FAILED | OTHER_TENANT | if is_dead { DIED_OF_NACK } else { 0 };
        if tag & !known != 0 || is_dead && tag & HAS_FAILED == 0 {
            return Err(StateError::Wrong("tag"));
        }
        let distance = rest.varint()?;
        let position = match before {
            None => self.position.number().checked_sub_unsigned(distance),
            Some(_) if distance == 0 => None,
            Some(before) => before.position.number().checked_add_unsigned(distance),
        };
        let position = position
            .filter(|number| *number <= self.position.number())
            .map(Position::new)
            .ok_or(StateError::Wrong("position"))?;
        let key = match before {
            Some(before) if tag & SAME_KEY != 0 => before.key,
            None if tag & SAME_KEY != 0 => return Err(StateError::Wrong("key")),
            _ => KeyHash(u64::from_be_bytes(rest.array()?)),
        };
        let tenant = match before {
            _ if tag & OTHER_TENANT != 0 => rest.tenant(tenants)?,
            Some(before) => before.tenant,
            None => Uuid::nil(),
        };
        let failures = if tag & HAS_FAILED == 0 {
            0
        } else {
            u16::try_from(rest.varint()?)
                .ok()
                .filter(|failures| *failures > 0)
                .ok_or(StateError::Wrong("number of failures"))?
        };
        let mut until_ms = || {
            *last_until = last_until.wrapping_add(unzigzag(rest.varint()?));
            Ok(*last_until)
        };
        let phase = match tag & PHASE {
            FREE => Phase::Free,
            LEASED => {
                let until_ms = until_ms()?;
                let epoch = self.epoch.checked_sub(rest.varint()?).ok_or(StateError::Wrong("epoch"))?;
                Phase::Leased { until_ms, epoch, number: rest.varint()? }
            }
            DELAYED => Phase::Delayed { until_ms: until_ms()? },
            _ if tag & DIED_OF_NACK == 0 => Phase::Dead { reason: DeadReason::Expired },
            _ => Phase::Dead { reason: DeadReason::Nacked },
        };
        Ok(Entry { position, key, tenant, failures, phase })
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        #[allow(clippy::cast_possible_truncation, reason = "the low seven bits are what is wanted")]
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    #[allow(clippy::cast_possible_truncation, reason = "it is below 128")]
    bytes.push(number as u8);
}

/// What is not read yet.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> Result<u8, StateError> {
        let (first, rest) = self.0.split_first().ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    /// How many things follow, of so many bytes each at the least.
    fn count(&mut self, min_bytes: usize) -> Result<usize, StateError> {
        let count = usize::try_from(self.varint()?).map_err(|_| StateError::Short)?;
        if count <= self.0.len() / min_bytes { Ok(count) } else { Err(StateError::Short) }
    }

    fn tenant(&mut self, tenants: &[Uuid]) -> Result<Uuid, StateError> {
        let wrong = StateError::Wrong("tenant");
        let number = usize::try_from(self.varint()?).map_err(|_| wrong)?;
        tenants.get(number).copied().ok_or(wrong)
    }

    fn varint(&mut self) -> Result<u64, StateError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(StateError::Wrong("number"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(StateError::Wrong("number"))
    }
}
