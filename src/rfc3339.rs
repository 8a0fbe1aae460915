//! Times as RFC 3339 has them.

use jiff::Timestamp;

/// The instant that `text` names, where it is an RFC 3339 time with its offset; a leap second is the second before it.
///
/// jiff reads more than RFC 3339 (no seconds, a space, a comma, a zone in brackets), so the form is checked here and the
/// calendar there.
#[must_use]
pub fn instant(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let (head, rest) = bytes.split_at_checked(19)?;
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let fits = head.iter().zip(shape).all(|(byte, form)| match form {
        b'd' => byte.is_ascii_digit(),
        form => byte.eq_ignore_ascii_case(form),
    });
    let digits = match rest {
        [b'.', fraction @ ..] => fraction.iter().take_while(|byte| byte.is_ascii_digit()).count(),
        _ => 0,
    };
    let offset = rest.get(if digits == 0 { 0 } else { digits + 1 }..)?;
    if !fits || !is_offset(offset) || head.get(11..13)? > b"23".as_slice() {
        return None;
    }
    // Beyond nanoseconds, jiff refuses; the instant is the same to the millisecond.
    let fraction = rest.get(..if digits == 0 { 0 } else { digits.min(9) + 1 })?;
    let offset = if offset.eq_ignore_ascii_case(b"z") { b"Z".as_slice() } else { offset };
    let text = [head, fraction, offset].concat();
    std::str::from_utf8(&text).ok()?.parse().ok()
}

fn is_offset(bytes: &[u8]) -> bool {
    match bytes {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => {
            [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit())
                && [*h1, *h2] <= *b"23"
                && [*m1, *m2] <= *b"59"
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_and_nothing_else() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01t00:00:01.5z", Some(1500)),
            ("1970-01-01T00:00:00.123456789123456Z", Some(123)),
            ("1970-01-01T02:00:00+02:00", Some(0)),
            ("1970-01-01T00:00:00-00:00", Some(0)),
            ("1970-01-01T23:59:00+23:59", Some(0)),
            ("2016-12-31T23:59:60Z", Some(1_483_228_799_000)),
            ("1970-01-01", None),
            ("1970-01-01T00:00:00", None),
            ("1970-01-01 00:00:00Z", None),
            ("1970-01-01T00:00Z", None),
            ("1970-01-01T24:00:00Z", None),
            ("1970-02-30T00:00:00Z", None),
            ("1970-01-01T00:00:00.Z", None),
            ("1970-01-01T00:00:00,5Z", None),
            ("1970-01-01T00:00:00+0200", None),
            ("1970-01-01T00:00:00+24:00", None),
            ("1970-01-01T00:00:00Z[UTC]", None),
            ("+01970-01-01T00:00:00Z", None),
            ("1970-01-01T00:00:00é", None),
            ("", None),
        ] {
            assert_eq!(instant(text).map(Timestamp::as_millisecond), ms, "{text}");
        }
    }
}
