//! Receipts: opaque to callers, 28 characters of base64url.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::primitives::events::Position;

/// The form's version.
const VERSION: u8 = 1;
/// A version, a group's mark, a position and an epoch; 28 characters without a bit to spare.
const BYTES: usize = 21;

/// What proves a lease: the event, and which lease of it.
///
/// As text it is base64url without padding of 21 bytes: the version (1), the group's mark (4 bytes), the event's
/// position (8) and the lease's epoch (8), each big-endian. It is no secret: it is good only with a token that may
/// use the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub(super) mark: u32,
    pub(super) position: Position,
    pub(super) epoch: u64,
}

impl Receipt {
    /// What [`fmt::Display`] wrote. Any other text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; BYTES];
        // The engine refuses a buffer that is too small for its estimate, so the length is looked at first.
        if text.len() != BYTES / 3 * 4 || URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()? != BYTES {
            return None;
        }
        let (version, rest) = bytes.split_first()?;
        let (mark, rest) = rest.split_first_chunk::<4>()?;
        let (position, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, _) = rest.split_first_chunk::<8>()?;
        (*version == VERSION).then(|| Self {
            mark: u32::from_be_bytes(*mark),
            position: Position::new(i64::from_be_bytes(*position)),
            epoch: u64::from_be_bytes(*epoch),
        })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.mark.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.position.number().to_be_bytes());
        bytes[13..].copy_from_slice(&self.epoch.to_be_bytes());
        out.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_receipt_is_28_characters() {
        let receipt = Receipt { mark: 7, position: Position::new(300), epoch: 1_800_000_000_000 };
        assert_eq!(receipt.to_string(), "AQAAAAcAAAAAAAABLAAAAaMYXFAA");
        assert_eq!(Receipt::parse("AQAAAAcAAAAAAAABLAAAAaMYXFAA"), Some(receipt));
    }

    #[test]
    fn what_is_no_receipt_is_none() {
        let of_version_2 = "AgAAAAcAAAAAAAABLAAAAaMYXFAA";
        for text in ["", "AQ", "AQAAAAcAAAAAAAABLAAAAaMYXFA", "AQAAAAcAAAAAAAABLAAAAaMYXFA=", of_version_2] {
            assert_eq!(Receipt::parse(text), None, "{text}");
        }
        assert_eq!(Receipt::parse("AQAAAAcAAAAAAAABLAAAAaMYXFAAAAAA"), None);
        assert_eq!(Receipt::parse("AQAAAAcAAAAAAAABLAAAAaMYXF/A"), None);
    }

    proptest! {
        #[test]
        fn a_receipt_is_read_as_it_was_written(mark: u32, position: i64, epoch: u64) {
            let receipt = Receipt { mark, position: Position::new(position), epoch };
            prop_assert_eq!(Receipt::parse(&receipt.to_string()), Some(receipt));
        }

        #[test]
        fn what_is_read_is_what_would_be_written(text in "AQ[A-Za-z0-9_/+=-]{24,27}|.{0,40}") {
            if let Some(receipt) = Receipt::parse(&text) {
                prop_assert_eq!(receipt.to_string(), text);
            }
        }
    }
}
