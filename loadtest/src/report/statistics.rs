//! Medians and spreads.

use serde::Serialize;

/// Middle and ends of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Smallest.
    pub(crate) min: f64,
    /// A quarter is smaller.
    pub(crate) lower_quartile: f64,
    /// Median.
    pub(crate) median: f64,
    /// A quarter is larger.
    pub(crate) upper_quartile: f64,
    /// Largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Of `numbers`; all zero when there are none.
    pub(crate) fn of(numbers: &[f64]) -> Self {
        Self {
            min: quantile(numbers, 0.0),
            lower_quartile: quantile(numbers, 0.25),
            median: quantile(numbers, 0.5),
            upper_quartile: quantile(numbers, 0.75),
            max: quantile(numbers, 1.0),
        }
    }
}

/// The number below which that share of the others is, interpolated between neighbours; 0 of none.
fn quantile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(0.0);
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
}

/// The middle number, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    quantile(numbers, 0.5)
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
        let spread = Spread { min: 1.0, lower_quartile: 2.0, median: 3.0, upper_quartile: 4.0, max: 5.0 };
        assert_eq!(Spread::of(&[5.0, 1.0, 4.0, 2.0, 3.0]), spread);
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
