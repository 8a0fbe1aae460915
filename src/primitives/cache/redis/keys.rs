//! The keys beside the entries: `outrigger:cache-…`, so that nothing else begins with `cache:`.

use compact_str::format_compact;
use smallvec::SmallVec;

use crate::pools::redis::Slot;
use crate::primitives::cache::key::Scope;

/// Followed by client tracking: entries, and the generations of scopes.
pub(super) const TRACKED: &[&str] = &[ENTRIES, GENERATIONS];
pub(super) const ENTRIES: &str = "cache:";
pub(super) const GENERATIONS: &str = "outrigger:cache-generation:";

/// After a token in a generation's hash: values without a companion may be from before it.
pub(super) const UNSWEPT: &[u8] = b"u";

type Buffer = SmallVec<[u8; 128]>;

/// `outrigger:cache-generation:<tenant>:<namespace>`.
pub(super) fn generation(scope: &Scope) -> Buffer {
    let mut key = Buffer::from_slice(GENERATIONS.as_bytes());
    scope.write_to(&mut key);
    key
}

/// `outrigger:cache-sweep:<tenant>:<namespace>`.
pub(super) fn sweep(scope: &Scope) -> Buffer {
    let mut key = Buffer::from_slice(b"outrigger:cache-sweep:");
    scope.write_to(&mut key);
    key
}

/// `outrigger:cache-sweep-end:<number>`: a key of this slot.
pub(super) fn sweep_end(slot: Slot) -> Buffer {
    let prefix = b"outrigger:cache-sweep-end:";
    let mut key = Buffer::from_slice(prefix);
    // One in 16384 is: a few milliseconds, once a sweep for each primary.
    for number in 0_u32.. {
        key.truncate(prefix.len());
        key.extend(format_compact!("{number}").bytes());
        if Slot::of(&key) == slot {
            break;
        }
    }
    key
}

/// `outrigger:cache-bytes:<tenant>`.
pub(super) fn tenant_bytes(tenant: &uuid::Uuid) -> String {
    format!("outrigger:cache-bytes:{}", tenant.hyphenated())
}

/// The keys of one entry, all of one slot: an entry's key has no braces, so that it can be a hash tag.
pub(super) struct Keys<'e> {
    pub(super) entry: &'e [u8],
    pub(super) lease: Vec<u8>,
    pub(super) companion: Vec<u8>,
    pub(super) slot: Slot,
}

impl<'e> Keys<'e> {
    pub(super) fn of(entry: &'e [u8]) -> Self {
        Self {
            entry,
            lease: beside(b"outrigger:cache-lease:{", entry),
            companion: companion(entry),
            slot: Slot::of(entry),
        }
    }

    /// As scripts expect them.
    pub(super) fn all(&self) -> [&[u8]; 3] {
        [self.entry, &self.lease, &self.companion]
    }
}

/// `outrigger:cache-meta:{<entry>}`.
pub(super) fn companion(entry: &[u8]) -> Vec<u8> {
    beside(b"outrigger:cache-meta:{", entry)
}

fn beside(prefix: &[u8], entry: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + entry.len() + 1);
    key.extend_from_slice(prefix);
    key.extend_from_slice(entry);
    key.push(b'}');
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_key_that_ends_a_sweep() {
        for number in [0, 1, 5461, 16_383] {
            let slot = Slot::at(number).unwrap();
            assert_eq!(Slot::of(&sweep_end(slot)), slot);
        }
    }

    #[test]
    fn what_is_beside_an_entry_is_in_its_slot() {
        for entry in ["cache:t:n:k:-", "cache:t:n:a%7Bb%7D:%2D", "cache:t:n:é:v1"] {
            let keys = Keys::of(entry.as_bytes());
            for key in keys.all() {
                assert_eq!(Slot::of(key), keys.slot, "{entry}");
            }
        }
    }
}
