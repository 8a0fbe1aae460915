//! Medians and spreads.

use serde::Serialize;

/// Middle and ends of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Smallest.
    pub(crate) min: f64,
    /// Median.
    pub(crate) median: f64,
    /// Largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of `numbers`; all zero when there are none.
    pub(crate) fn of(numbers: &[f64]) -> Self {
        if numbers.is_empty() {
            return Self::default();
        }
        Self {
            min: numbers.iter().copied().fold(f64::INFINITY, f64::min),
            median: median(numbers),
            max: numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// The middle number, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (numbers, expected) in
            [(vec![], 0.0), (vec![3.0], 3.0), (vec![9.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 3.0], 2.5)]
        {
            assert_eq!(median(&numbers), expected);
        }
    }

    #[test]
    fn a_spread_has_both_ends() {
        assert_eq!(Spread::of(&[0.9, 0.7, 0.8]), Spread { min: 0.7, median: 0.8, max: 0.9 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
