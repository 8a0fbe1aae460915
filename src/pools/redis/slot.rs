//! Keys to slots: CRC16 of the hash tag, modulo 16384 (Redis Cluster specification, "Key distribution model").

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;

/// A slot of the cluster: what is sent to one slot runs on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

/// CRC16/XMODEM of each byte (polynomial 0x1021).
const TABLE: [u16; 256] = table();

#[allow(clippy::cast_possible_truncation, reason = "an index below 256; `try_from` is not const")]
const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

impl Slot {
    /// The slot of a key, by its hash tag where it has one.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        let step = |crc: u16, byte: &u8| (crc << 8) ^ TABLE[usize::from((crc >> 8) ^ u16::from(*byte))];
        Self(hash_tag(key).iter().fold(0, step) % 16_384)
    }

    /// The slot of this number, where there is one.
    #[must_use]
    pub fn at(number: u16) -> Option<Self> {
        (usize::from(number) < SLOTS).then_some(Self(number))
    }

    /// Its place in a table of all slots.
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What is between the first `{` and the next `}`, if anything is; otherwise the whole key.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').map(|close| &rest[..close])
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        for (key, slot) in [
            ("123456789", 12_739),
            ("", 0),
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("{user1000}.followers", 3_443),
        ] {
            assert_eq!(Slot::of(key.as_bytes()), Slot(slot), "{key}");
        }
    }

    #[test]
    fn a_hash_tag_is_the_first_pair_of_braces_that_holds_something() {
        for (key, tag) in [
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("{tenant}:key", "tenant"),
            ("open{", "open{"),
            ("}close{a}", "a"),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
    }
}
