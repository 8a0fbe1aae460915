//! Exact decimals: 38 digits, 9 of them after the point, and sums of them.
//!
//! A value is read from its text and never through a float, so that what is billed is what was sent.

use std::fmt;
use std::ops::AddAssign;

/// Digits after the point.
pub(super) const DECIMALS: usize = 9;
/// Digits before it.
const WHOLE_DIGITS: usize = 29;
pub(super) const ONE: i128 = 1_000_000_000;

/// A value, in units of 10⁻⁹.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(pub(super) i128);

/// Why a text is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not as RFC 8259 has numbers.
    #[error("a decimal number, such as 12.5 or \"-0.000000001\"")]
    NotANumber,
    /// More than can be kept exactly.
    #[error("at most 9 digits after the point")]
    Decimals,
    /// Larger than what is kept.
    #[error("at most 29 digits before the point")]
    Large,
}

impl Amount {
    /// The number that a text has, as RFC 8259 writes numbers. Zeros at the end of a fraction and exponents are fine, where what they
    /// mean fits.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (number, exponent) = match rest.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, Self::exponent(exponent)?),
            None => (rest, 0),
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((_, "")) => return Err(AmountError::NotANumber),
            Some(parts) => parts,
            None => (number, ""),
        };
        let digits = || whole.bytes().chain(fraction.bytes());
        let is_wrong = whole.is_empty() || (whole.len() > 1 && whole.starts_with('0'));
        if is_wrong || !digits().all(|digit| digit.is_ascii_digit()) {
            return Err(AmountError::NotANumber);
        }
        let all = whole.len() + fraction.len();
        let trailing = digits().rev().take_while(|digit| *digit == b'0').count();
        let leading = digits().take_while(|digit| *digit == b'0').count();
        if leading == all {
            return Ok(Self(0));
        }
        // What is left is an integer times ten to this power.
        let power = exponent - to_i64(fraction.len()) + to_i64(trailing);
        let significant = all - leading - trailing;
        if power < -to_i64(DECIMALS) {
            return Err(AmountError::Decimals);
        }
        if power.saturating_add(to_i64(significant)) > to_i64(WHOLE_DIGITS) {
            return Err(AmountError::Large);
        }
        let mut value: i128 = 0;
        for digit in digits().take(leading + significant) {
            value = value * 10 + i128::from(digit - b'0');
        }
        let zeros = usize::try_from(power + to_i64(DECIMALS)).map_err(|_| AmountError::Large)?;
        for _ in 0..zeros {
            value *= 10;
        }
        Ok(Self(if is_negative { -value } else { value }))
    }

    fn exponent(text: &str) -> Result<i64, AmountError> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(AmountError::NotANumber);
        }
        // Of a zero it does not matter, and of anything else one so long is refused by its sign.
        let size = digits.parse::<i64>().unwrap_or(1 << 40).min(1 << 40);
        Ok(if text.starts_with('-') { -size } else { size })
    }

    /// Whether it takes away.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// What takes it away; none has no such number.
    #[must_use]
    pub fn negated(self) -> Option<Self> {
        self.0.checked_neg().map(Self)
    }

    /// In units of 10⁻⁹, for what compares values.
    #[must_use]
    pub fn to_be_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

fn to_i64(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        Sum::from(*self).fmt(formatter)
    }
}

/// A sum of any number of values: the part before the point and the part after it are kept apart, so that no sum of values
/// that were accepted is too large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sum {
    whole: i128,
    /// Of the same sign as `whole`, or one of the two is zero.
    nanos: i64,
}

impl Sum {
    /// What a sum's text says, as [`fmt::Display`] writes it or PostgreSQL does.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
        let is_wrong =
            |digits: &str| digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit());
        if is_wrong(whole) || is_wrong(fraction) || fraction.len() > DECIMALS {
            return None;
        }
        let (whole, nanos): (i128, i64) = (whole.parse().ok()?, format!("{fraction:0<9}").parse().ok()?);
        Some(if is_negative { Self { whole: -whole, nanos: -nanos } } else { Self { whole, nanos } })
    }

    /// The part before the point, and that after it in units of 10⁻⁹, of the same sign.
    pub(super) fn parts(self) -> (i128, i64) {
        (self.whole, self.nanos)
    }
}

impl From<Amount> for Sum {
    fn from(Amount(value): Amount) -> Self {
        // The remainder is below 10⁹.
        Self { whole: value / ONE, nanos: i64::try_from(value % ONE).unwrap_or(0) }
    }
}

impl AddAssign<Amount> for Sum {
    fn add_assign(&mut self, value: Amount) {
        *self += Self::from(value);
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        let nanos = i128::from(self.nanos + other.nanos);
        let (mut whole, mut nanos) = (self.whole + other.whole + nanos / ONE, nanos % ONE);
        if whole > 0 && nanos < 0 {
            (whole, nanos) = (whole - 1, nanos + ONE);
        } else if whole < 0 && nanos > 0 {
            (whole, nanos) = (whole + 1, nanos - ONE);
        }
        *self = Self { whole, nanos: i64::try_from(nanos).unwrap_or(0) };
    }
}

/// Without zeros at the end of a fraction.
impl fmt::Display for Sum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole < 0 || self.nanos < 0 {
            formatter.write_str("-")?;
        }
        write!(formatter, "{}", self.whole.unsigned_abs())?;
        if self.nanos == 0 {
            return Ok(());
        }
        let fraction = format!("{:09}", self.nanos.unsigned_abs());
        write!(formatter, ".{}", fraction.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_read_to_the_last_digit_or_refused_with_what_would_be_right() {
        let most = "99999999999999999999999999999.999999999";
        for (text, shown) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.000", "0"),
            ("12", "12"),
            ("12.500", "12.5"),
            ("-0.000000001", "-0.000000001"),
            ("1e3", "1000"),
            ("1.5E+2", "150"),
            ("1200e-2", "12"),
            ("0e999999999999999999999", "0"),
            ("0.1000000000000", "0.1"),
            (most, most),
            ("9.9999999999999999999999999999999999999e28", most),
        ] {
            assert_eq!(Amount::parse(text).map(|amount| amount.to_string()).as_deref(), Ok(shown), "{text}");
        }
        for text in ["", "-", "+1", "01", ".5", "1.", "1e", "1e+", "1.2.3", " 1", "0x1", "NaN", "1_000", "١"]
        {
            assert_eq!(Amount::parse(text), Err(AmountError::NotANumber), "{text}");
        }
        for text in ["0.0000000001", "1e-10", "1.0000000001", "1e-99999999999999999999"] {
            assert_eq!(Amount::parse(text), Err(AmountError::Decimals), "{text}");
        }
        for text in ["100000000000000000000000000000", "1e29", "1e99999999999999999999"] {
            assert_eq!(Amount::parse(text), Err(AmountError::Large), "{text}");
        }
    }

    fn amounts() -> impl Strategy<Value = Amount> {
        let most = 10_i128.pow(38) - 1;
        prop_oneof![-most..=most, -3 * ONE..3 * ONE, Just(most), Just(-most)].prop_map(Amount)
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(amount in amounts()) {
            prop_assert_eq!(Amount::parse(&amount.to_string()), Ok(amount));
            prop_assert_eq!(Sum::parse(&amount.to_string()), Some(Sum::from(amount)));
        }

        #[test]
        fn a_sum_is_the_same_in_any_order(mut values in prop::collection::vec(amounts(), 0..40), seed: u64) {
            let sum = |values: &[Amount]| {
                let mut sum = Sum::default();
                values.iter().for_each(|value| sum += *value);
                sum
            };
            let before = sum(&values);
            fastrand::Rng::with_seed(seed).shuffle(&mut values);
            prop_assert_eq!(sum(&values), before);
            let halves = values.split_at(values.len() / 2);
            let mut parts = sum(halves.0);
            parts += sum(halves.1);
            prop_assert_eq!(parts, before);
        }
    }
}
