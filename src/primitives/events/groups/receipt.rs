//! Receipts: opaque to callers, 28 characters of base64url.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The form's version.
const VERSION: u8 = 2;
/// A version, a group's mark, a number and an epoch; 28 characters without a bit to spare.
const BYTES: usize = 21;

/// What proves a lease: which pull of the group made it, and its number among those of the pull.
///
/// As text it is base64url without padding of 21 bytes: the version (2), the group's mark (4 bytes), the number (8) and the
/// epoch of the pull (8), each big-endian. It is no secret: it is good only with a token that may use the group. The event's
/// position is not in it, by which a tenant could count what others publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub(super) mark: u32,
    pub(super) number: u64,
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
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, _) = rest.split_first_chunk::<8>()?;
        (*version == VERSION).then(|| Self {
            mark: u32::from_be_bytes(*mark),
            number: u64::from_be_bytes(*number),
            epoch: u64::from_be_bytes(*epoch),
        })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&self.mark.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.number.to_be_bytes());
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
        let receipt = Receipt { mark: 7, number: 300, epoch: 1_800_000_000_000 };
        assert_eq!(receipt.to_string(), "AgAAAAcAAAAAAAABLAAAAaMYXFAA");
        assert_eq!(Receipt::parse("AgAAAAcAAAAAAAABLAAAAaMYXFAA"), Some(receipt));
    }

    #[test]
    fn what_is_no_receipt_is_none() {
        let of_version_1 = "AQAAAAcAAAAAAAABLAAAAaMYXFAA";
        for text in ["", "Ag", "AgAAAAcAAAAAAAABLAAAAaMYXFA", "AgAAAAcAAAAAAAABLAAAAaMYXFA=", of_version_1] {
            assert_eq!(Receipt::parse(text), None, "{text}");
        }
        assert_eq!(Receipt::parse("AgAAAAcAAAAAAAABLAAAAaMYXFAAAAAA"), None);
        assert_eq!(Receipt::parse("AgAAAAcAAAAAAAABLAAAAaMYXF/A"), None);
    }

    proptest! {
        #[test]
        fn a_receipt_is_read_as_it_was_written(mark: u32, number: u64, epoch: u64) {
            let receipt = Receipt { mark, number, epoch };
            prop_assert_eq!(Receipt::parse(&receipt.to_string()), Some(receipt));
        }

        #[test]
        fn what_is_read_is_what_would_be_written(text in "Ag[A-Za-z0-9_/+=-]{24,27}|.{0,40}") {
            if let Some(receipt) = Receipt::parse(&text) {
                prop_assert_eq!(receipt.to_string(), text);
            }
        }
    }
}
