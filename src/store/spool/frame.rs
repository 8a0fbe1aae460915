//! Entries of a segment as bytes: each can be told from damage, and found again behind it.
//!
//! `mark (8) | length (4) | sequence (8) | CRC32C (4) | payload`, numbers little-endian; the sum is over all that is before and behind
//! it. The mark is random, one for each segment and in its name: what a caller puts into a payload is never taken for an entry.

use memchr::memmem;

/// The longest payload, in bytes. A length above it is damage.
pub const MAX_PAYLOAD_BYTES: usize = 32 * 1024 * 1024;
pub(super) const HEAD_BYTES: usize = 24;

/// What begins each entry of a segment.
pub(super) type Mark = [u8; 8];

/// A part of a segment, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'b> {
    /// An entry.
    Entry {
        /// One more than that of the entry before.
        sequence: u64,
        /// As it was appended.
        payload: &'b [u8],
    },
    /// So many bytes that are no entry.
    Damage(usize),
}

/// Adds an entry.
pub(super) fn write(out: &mut Vec<u8>, mark: Mark, sequence: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sequence = sequence.to_le_bytes();
    let sum = sum(length, sequence, payload);
    out.extend_from_slice(&mark);
    out.extend_from_slice(&length);
    out.extend_from_slice(&sequence);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(payload);
}

fn sum(length: [u8; 4], sequence: [u8; 8], payload: &[u8]) -> u32 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&length), &sequence);
    crc32c::crc32c_append(head, payload)
}

/// The pieces of a segment with this mark.
pub(super) fn read(mut bytes: &[u8], mark: Mark) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let (_, later) = bytes.split_first()?;
        if let Some(found) = first(bytes, mark) {
            bytes = found.behind;
            return Some(Piece::Entry { sequence: found.sequence, payload: found.payload });
        }
        let marks = memmem::find_iter(later, &mark).filter_map(|at| bytes.split_at_checked(at + 1));
        let next = marks.into_iter().find(|(_, behind)| first(behind, mark).is_some());
        let (damage, behind) = next.map_or((bytes, [].as_slice()), |found| found);
        bytes = behind;
        Some(Piece::Damage(damage.len()))
    })
}

/// An entry, and what comes after it.
struct First<'b> {
    sequence: u64,
    payload: &'b [u8],
    behind: &'b [u8],
}

/// The entry that these bytes begin with.
fn first(bytes: &[u8], mark: Mark) -> Option<First<'_>> {
    let (found, bytes) = bytes.split_first_chunk()?;
    let (length, bytes) = bytes.split_first_chunk()?;
    let (sequence, bytes) = bytes.split_first_chunk()?;
    let (kept, bytes) = bytes.split_first_chunk()?;
    let bytes_long = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if *found != mark || bytes_long > MAX_PAYLOAD_BYTES {
        return None;
    }
    let (payload, behind) = bytes.split_at_checked(bytes_long)?;
    let is_whole = sum(*length, *sequence, payload) == u32::from_le_bytes(*kept);
    is_whole.then(|| First { sequence: u64::from_le_bytes(*sequence), payload, behind })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: Mark = *b"\x01mark\x00\xffx";

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (sequence, payload) in (7..).zip(payloads) {
            write(&mut bytes, MARK, sequence, payload);
        }
        bytes
    }

    fn sequences(bytes: &[u8]) -> (Vec<u64>, usize) {
        let (mut sequences, mut damage) = (Vec::new(), 0);
        for piece in read(bytes, MARK) {
            match piece {
                Piece::Entry { sequence, .. } => sequences.push(sequence),
                Piece::Damage(bytes) => damage += bytes,
            }
        }
        (sequences, damage)
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        let payloads: [&[u8]; 3] = [b"one", b"", &[0; 1000]];
        let bytes = segment(&payloads);
        let expected = (7..).zip(payloads).map(|(sequence, payload)| Piece::Entry { sequence, payload });
        assert_eq!(read(&bytes, MARK).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(read(&[], MARK).count(), 0);
    }

    #[test]
    fn wherever_the_end_is_torn_off_what_is_whole_before_it_is_read() {
        let bytes = segment(&[b"one", b"two", b"three"]);
        let ends = [HEAD_BYTES + 3, 2 * (HEAD_BYTES + 3), bytes.len()];
        for length in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= length).count();
            let (sequences, damage) = sequences(&bytes[..length]);
            assert_eq!(sequences, (7..7 + whole as u64).collect::<Vec<_>>(), "{length}");
            assert_eq!(damage, length - whole.checked_sub(1).map_or(0, |last| ends[last]), "{length}");
        }
    }

    #[test]
    fn an_entry_that_a_payload_pretends_to_have_is_none() {
        let mut forged = Vec::new();
        write(&mut forged, *b"otherone", 8, b"of another tenant");
        let mut bytes = segment(&[&forged, b"next"]);
        assert_eq!(sequences(&bytes), (vec![7, 8], 0));
        // The outer one is damaged at its head.
        bytes[9] ^= 1;
        assert_eq!(sequences(&bytes), (vec![8], HEAD_BYTES + forged.len()));
        // A length that no entry has.
        let mut bytes = segment(&[b"one", b"two"]);
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(sequences(&bytes), (vec![8], HEAD_BYTES + 3));
    }

    proptest! {
        /// Whatever a disk makes of some bytes in the middle, the entries before and behind are read, and nothing that was never written.
        #[test]
        fn damage_takes_the_entries_that_it_touches_and_no_others(
            lengths in prop::collection::vec(0_usize..200, 1..20), from in 0_usize..4000, long in 1_usize..600, with in any::<u8>(),
        ) {
            let payloads: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'p'; *length]).collect();
            let whole = segment(&payloads.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let from = from % whole.len();
            let to = (from + long).min(whole.len());
            let mut bytes = whole.clone();
            bytes[from..to].fill(with);
            let (mut expected, mut at) = (Vec::new(), 0);
            for (sequence, payload) in (7_u64..).zip(&payloads) {
                let end = at + HEAD_BYTES + payload.len();
                if bytes[at..end] == whole[at..end] {
                    expected.push(sequence);
                }
                at = end;
            }
            prop_assert_eq!(sequences(&bytes).0, expected);
        }
    }
}
