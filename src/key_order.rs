//! Keys of clients in their own order: an index of millions of keys without one costs five times as much to add to
//! (docs/decisions/070).

use uuid::Uuid;

use crate::digest::{first, of_parts};

/// Digits at a key's end that count as a number.
const LEAST_DIGITS: usize = 4;

/// Where a text lies among others, so that those which a client makes one after the other lie beside each other: the first half of
/// a UUID, since version 7 begins with the time; the number at its end, behind two bytes that its head gives; else its first eight
/// bytes. Every sidecar of a fleet must make the same of it: a change of this function is a change of the schema.
#[must_use]
pub fn place(text: &str) -> u64 {
    let bytes = text.as_bytes();
    if matches!(bytes.len(), 32 | 36)
        && let Ok(uuid) = Uuid::try_parse(text)
    {
        return u64::from_be_bytes(first(uuid.as_bytes()));
    }
    let digits = bytes.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, number) = bytes.split_at(bytes.len() - digits);
    if digits < LEAST_DIGITS {
        return u64::from_be_bytes(first(bytes));
    }
    let number = number
        .iter()
        .fold(0_u64, |number, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    let [high, low] = first(of_parts([head]).as_ref());
    (u64::from(high) << 56) | (u64::from(low) << 48) | (number & ((1 << 48) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_made_one_after_the_other_lie_beside_each_other() {
        let places = |texts: &[&str]| texts.iter().map(|text| place(text)).collect::<Vec<_>>();
        for texts in [
            ["019c1a2b-0000-7000-8000-000000000001", "019c1a2b-0001-7abc-8000-000000000000"].as_slice(),
            &["order-0001", "order-0002", "order-0010", "order-1000"],
            &["2026-01-31T09:00", "2026-01-31T10:00"],
            &["aaaa", "aaab", "b"],
            &["", "a"],
        ] {
            assert!(places(texts).is_sorted(), "{texts:?}");
        }
        assert_ne!(place("a-1000") >> 48, place("b-1000") >> 48, "two clients' numbers");
        assert_eq!(place("a-99999999999999999999999999999999999") >> 48, place("a-1000") >> 48);
    }
}
