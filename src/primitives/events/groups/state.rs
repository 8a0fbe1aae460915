//! What a group has, and its form in the group's row.
//!
//! # The bytes of version 1
//!
//! A varint is LEB128: seven bits a byte, the lowest first, the top bit set on every byte but the last. A zigzag varint
//! is the varint of `(n << 1) ^ (n >> 63)`. `last` starts at 0.
//!
//! | part | form |
//! |---|---|
//! | version | 1 byte, 1 |
//! | mark | 4 bytes, big-endian |
//! | epoch of the group | varint |
//! | position of the group | zigzag varint |
//! | number of entries | varint |
//! | each entry, by position: | |
//! | tag | 1 byte: bits 0 and 1 the phase (0 free, 1 leased, 2 delayed, 3 dead), bit 2 "the key of the entry before", bit 3 "has failed", with phase 3 always, bit 4 "died of a nack", only with phase 3; the others are 0 |
//! | position | varint; of the first entry how far it is behind the group's, of the others behind the entry before |
//! | key's hash | 8 bytes, big-endian; not there with bit 2 |
//! | failures | varint, 1 to 65,535; only with bit 3 |
//! | until | leased and delayed: zigzag varint, milliseconds, less the last entry's that has one (0 for the first) |
//! | epoch of the lease | leased: varint, the group's epoch less this one |
//!
//! Nothing follows the last entry. What waits behind one key takes 2 to 4 bytes an entry.

use super::{DeadReason, KeyHash};
use crate::error::ErrorKind;
use crate::primitives::events::Position;

/// The only version that is written.
const VERSION: u8 = 1;
const PHASE: u8 = 0b11;
const FREE: u8 = 0;
const LEASED: u8 = 1;
const DELAYED: u8 = 2;
const DEAD: u8 = 3;
const SAME_KEY: u8 = 0b100;
const HAS_FAILED: u8 = 0b1000;
const DIED_OF_NACK: u8 = 0b1_0000;
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
}

/// An event that was looked at and is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: Position,
    pub(super) key: KeyHash,
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
    Leased { until_ms: i64, epoch: u64 },
    /// It was nacked.
    Delayed { until_ms: i64 },
    /// It had its last failure, and is not among the dead letters yet. Nothing waits for it.
    Dead { reason: DeadReason },
}

/// Bytes that are no group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a later release.
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
        Self { mark, epoch: 0, position, outstanding: Vec::new() }
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
        put(&mut bytes, self.outstanding.len() as u64);
        let (mut before, mut last_until) = (None::<&Entry>, 0);
        for entry in &self.outstanding {
            let (phase, until, epoch) = match entry.phase {
                Phase::Free => (FREE, None, None),
                Phase::Leased { until_ms, epoch } => (LEASED, Some(until_ms), Some(epoch)),
                Phase::Delayed { until_ms } => (DELAYED, Some(until_ms), None),
                Phase::Dead { reason: DeadReason::Expired } => (DEAD, None, None),
                Phase::Dead { reason: DeadReason::Nacked } => (DEAD | DIED_OF_NACK, None, None),
            };
            let same_key = before.is_some_and(|before| before.key == entry.key);
            let same_bit = if same_key { SAME_KEY } else { 0 };
            let failed_bit = if entry.failures > 0 { HAS_FAILED } else { 0 };
            bytes.push(phase | same_bit | failed_bit);
            let from = before.map_or(self.position, |before| before.position);
            put(&mut bytes, from.number().abs_diff(entry.position.number()));
            if !same_key {
                bytes.extend_from_slice(&entry.key.0.to_be_bytes());
            }
            if entry.failures > 0 {
                put(&mut bytes, u64::from(entry.failures));
            }
            if let Some(until_ms) = until {
                put(&mut bytes, zigzag(until_ms.wrapping_sub(last_until)));
                last_until = until_ms;
            }
            if let Some(epoch) = epoch {
                put(&mut bytes, self.epoch - epoch);
            }
            before = Some(entry);
        }
        bytes
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
        let count = usize::try_from(rest.varint()?)
            .ok()
            .filter(|count| *count <= rest.0.len() / MIN_ENTRY_BYTES)
            .ok_or(StateError::Short)?;
        let mut state = Self { mark, epoch, position, outstanding: Vec::with_capacity(count) };
        let mut last_until = 0;
        for _ in 0..count {
            let entry = state.decode_entry(&mut rest, &mut last_until)?;
            state.outstanding.push(entry);
        }
        if rest.0.is_empty() { Ok(state) } else { Err(StateError::Trailing) }
    }

    /// The entry after those that there are.
    fn decode_entry(&self, rest: &mut Bytes<'_>, last_until: &mut i64) -> Result<Entry, StateError> {
        let before = self.outstanding.last();
        let tag = rest.byte()?;
        let is_dead = tag & PHASE == DEAD;
        let known = PHASE | SAME_KEY | HAS_FAILED | if is_dead { DIED_OF_NACK } else { 0 };
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
                Phase::Leased { until_ms, epoch }
            }
            DELAYED => Phase::Delayed { until_ms: until_ms()? },
            _ if tag & DIED_OF_NACK == 0 => Phase::Dead { reason: DeadReason::Expired },
            _ => Phase::Dead { reason: DeadReason::Nacked },
        };
        Ok(Entry { position, key, failures, phase })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &[u8] = &[
        1, 0, 0, 0, 7, // version, mark
        9, // epoch
        0xd8, 0x04, // position 300
        4,    // entries
        0b1001, 0x64, 1, 2, 3, 4, 5, 6, 7, 8, 2, 0x80, 0x01, 0, // 200, 2 failures, until 64, epoch 9
        0b0101, 1, 0, 0, // 201, same key, until 64, epoch 9
        0b0100, 0x09, // 210, same key, free
        0b0010, 0x5a, 0, 0, 0, 0, 0, 0, 0, 5, 0x20, // 300, delayed until 80
    ];

    fn example() -> State {
        let key = KeyHash(0x0102_0304_0506_0708);
        let entry = |position, key, failures, phase| Entry {
            position: Position::new(position),
            key,
            failures,
            phase,
        };
        State {
            mark: 7,
            epoch: 9,
            position: Position::new(300),
            outstanding: vec![
                entry(200, key, 2, Phase::Leased { until_ms: 64, epoch: 9 }),
                entry(201, key, 0, Phase::Leased { until_ms: 64, epoch: 9 }),
                entry(210, key, 0, Phase::Free),
                entry(300, KeyHash(5), 0, Phase::Delayed { until_ms: 80 }),
            ],
        }
    }

    #[test]
    fn the_form_is_as_documented() {
        assert_eq!(example().encode(), EXAMPLE);
        assert_eq!(State::decode(EXAMPLE), Ok(example()));
    }

    #[test]
    fn what_is_no_state_is_told() {
        for length in 0..EXAMPLE.len() {
            assert_eq!(State::decode(&EXAMPLE[..length]), Err(StateError::Short), "{length} bytes");
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = EXAMPLE.to_vec();
            bytes[at] = byte;
            State::decode(&bytes).unwrap_err().to_string()
        };
        assert_eq!(changed(0, 2), "the group's state is of version 2; this release reads version 1");
        assert_eq!(changed(9, 0b1_1001), "the group's state has a wrong tag");
        assert_eq!(changed(9, 0b10_1001), "the group's state has a wrong tag");
        assert_eq!(changed(9, 0b0011), "the group's state has a wrong tag");
        assert_eq!(changed(9, 0b1101), "the group's state has a wrong key");
        assert_eq!(changed(10, 0), "the group's state has a wrong position");
        assert_eq!(changed(19, 0), "the group's state has a wrong number of failures");
        assert_eq!(changed(22, 10), "the group's state has a wrong epoch");
        assert_eq!(changed(24, 0), "the group's state has a wrong position");
        let trailing = [EXAMPLE, &[0]].concat();
        assert_eq!(State::decode(&trailing), Err(StateError::Trailing));
        let many = [&EXAMPLE[..8], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]].concat();
        assert_eq!(State::decode(&many), Err(StateError::Short));
        let over = [&EXAMPLE[..8], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]].concat();
        assert_eq!(State::decode(&over), Err(StateError::Wrong("number")));
    }

    fn entries() -> impl Strategy<Value = Vec<(i64, u64, u16, u8, i64, u64)>> {
        let position = prop_oneof![any::<i64>(), 0_i64..300];
        prop::collection::vec((position, 0_u64..3, any::<u16>(), 0_u8..5, any::<i64>(), any::<u64>()), 0..12)
    }

    proptest! {
        #[test]
        fn a_state_is_read_as_it_was_written(
            mark: u32, epoch: u64, ahead in prop_oneof![Just(0), 0_i64..i64::MAX], entries in entries(),
        ) {
            let mut outstanding: Vec<_> = entries
                .into_iter()
                .map(|(position, key, failures, phase, until_ms, leased)| Entry {
                    position: Position::new(position),
                    key: KeyHash(key),
                    failures: if phase > DELAYED { failures.max(1) } else { failures },
                    phase: match phase {
                        FREE => Phase::Free,
                        LEASED => Phase::Leased { until_ms, epoch: leased % epoch.max(1) },
                        DELAYED => Phase::Delayed { until_ms },
                        DEAD => Phase::Dead { reason: DeadReason::Expired },
                        _ => Phase::Dead { reason: DeadReason::Nacked },
                    },
                })
                .collect();
            outstanding.sort_by_key(|entry| entry.position);
            outstanding.dedup_by_key(|entry| entry.position);
            let last = outstanding.last().map_or(0, |entry| entry.position.number());
            let state = State { mark, epoch, position: Position::new(last.saturating_add(ahead)), outstanding };
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), known: bool) {
            let mut bytes = bytes;
            if known && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(state) = State::decode(&bytes) {
                prop_assert!(state.outstanding.is_sorted_by(|a, b| a.position < b.position));
                prop_assert_eq!(State::decode(&state.encode()), Ok(state));
            }
        }

        #[test]
        fn no_change_of_a_state_makes_it_panic(at in 0..EXAMPLE.len(), byte: u8, cut in 0..EXAMPLE.len()) {
            let mut bytes = EXAMPLE.to_vec();
            bytes[at] = byte;
            bytes.truncate(bytes.len() - cut);
            if let Ok(state) = State::decode(&bytes) {
                prop_assert_eq!(State::decode(&state.encode()), Ok(state));
            }
        }
    }
}
