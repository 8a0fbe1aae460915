//! How much of what many share one may have: alone a part of it, and less the more the others have.
//!
//! A fixed part of a half, or a quarter, lets two or four together have everything. Here one may have what it has in a fixed
//! relation to what is left, so that there is always something left for one more: the dynamic thresholds of Choudhury and Hahne
//! ("Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998).
//! Of `all`, with `one` for who is alone, `k` that take what they can end with `all * one / (all - one + k * one)` each: with a
//! quarter of 28, one has 7, two have 5.6, four have 4, and then 12 are left. That is where they give back and take again. Of those that
//! only take, one after the other, the first has a quarter, the second a quarter of what is left, and so on.

use super::NoRoom;

/// A thing of which many may have some, by any unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    all: u64,
    one: u64,
}

impl Part {
    /// Of so much, of which one that is alone may have so much.
    #[must_use]
    pub const fn new(all: u64, one: u64) -> Self {
        Self { all, one: if one < all { one } else { all } }
    }

    /// The same, with one in so many for who is alone.
    #[must_use]
    pub const fn one_in(all: u64, share: u8) -> Self {
        let share = if share == 0 { 1 } else { share };
        Self::new(all, all / share as u64)
    }

    /// What all have together at the most.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.all
    }

    /// What one may have that is alone.
    #[must_use]
    pub const fn alone(self) -> u64 {
        self.one
    }

    /// Whether one that has `own` of the `taken` that all have may have `more`. What fits in may always be had by who has nothing. Who
    /// would have more than it might alone, or has half of what is taken, is told of its own part; else it is what others have that leaves
    /// too little.
    pub const fn has_room(self, own: u64, taken: u64, more: u64) -> Result<(), NoRoom> {
        let fits = taken.saturating_add(more) <= self.all;
        if more == 0 || (fits && self.is_fair(own, taken, more)) {
            Ok(())
        } else if own > 0 && (own.saturating_add(more) > self.one || own >= taken.div_ceil(2)) {
            Err(NoRoom::OfTenant)
        } else {
            Err(NoRoom::OfAll)
        }
    }

    /// The same where somebody else looks whether it fits in.
    #[must_use]
    pub const fn is_fair(self, own: u64, taken: u64, more: u64) -> bool {
        let left = self.all.saturating_sub(taken.saturating_add(more)) as u128;
        let wanted = own.saturating_add(more) as u128;
        own == 0 || wanted * (self.all - self.one) as u128 <= left * self.one as u128
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each has once nobody may have one more, where they take in turns.
    fn fill(part: Part, many: usize) -> Vec<u64> {
        let mut held = vec![0; many];
        loop {
            let before = held.clone();
            for one in 0..many {
                held[one] += u64::from(part.has_room(held[one], held.iter().sum(), 1).is_ok());
            }
            if held == before {
                return held;
            }
        }
    }

    #[test]
    fn the_more_have_some_the_less_one_may_have() {
        let part = Part::one_in(28, 4);
        assert_eq!(fill(part, 1), [7]);
        assert_eq!(fill(part, 2), [5, 5]);
        assert_eq!(fill(part, 4), [4, 4, 4, 4]);
        let in_a_row = (0..4).fold(0, |taken, _| {
            taken + (0..).find(|own| part.has_room(*own, taken + own, 1).is_err()).unwrap()
        });
        assert_eq!(in_a_row, 7 + 5 + 4 + 3);
        assert_eq!(part.has_room(0, 16, 12), Ok(()), "what fits in is had by who has nothing");
        assert_eq!(part.has_room(1, 16, 12), Err(NoRoom::OfTenant));
        assert_eq!(part.has_room(1, 24, 3), Err(NoRoom::OfAll), "alone it might have it");
        assert_eq!(part.has_room(6, 7, 1), Err(NoRoom::OfTenant), "it is the one that fills it");
        assert_eq!(part.has_room(9, 28, 0), Ok(()));
        assert_eq!(part.has_room(0, 16, 13), Err(NoRoom::OfAll));
        // Eight connections, of which one tenant may have four.
        assert_eq!(fill(Part::new(8, 4), 1), [4]);
        assert_eq!(fill(Part::new(8, 4), 2), [3, 2]);
        assert_eq!(fill(Part::new(8, 4), 3), [2, 2, 2]);
        assert_eq!(fill(Part::new(8, 4), 9), [1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn who_may_have_all_of_it_is_bounded_by_it_alone() {
        assert_eq!(fill(Part::new(5, 9), 1), [5]);
        assert_eq!(fill(Part::one_in(5, 0), 2), [3, 2]);
        assert_eq!(Part::new(0, 0).has_room(0, 0, 1), Err(NoRoom::OfAll));
        assert!(Part::new(u64::MAX, u64::MAX / 4).has_room(u64::MAX, u64::MAX, u64::MAX).is_err());
        assert_eq!(Part::new(1, 0).has_room(0, 0, 1), Ok(()), "a part of nothing is one");
    }

    proptest! {
        #[test]
        fn beside_any_number_that_have_what_they_may_one_more_gets_its_part(
            all in 64_u64..1500, share in 2_u8..16, many in 1_usize..30,
        ) {
            let part = Part::one_in(all, share);
            let held = fill(part, many);
            let (least, most) = (held.iter().min().copied().unwrap(), held.iter().max().copied().unwrap());
            prop_assert!(most <= part.alone() && most - least <= 1, "{held:?}");
            let taken: u64 = held.iter().sum();
            let late = (0..).find(|own| part.has_room(*own, taken + own, 1).is_err()).unwrap();
            // Of what each of them has, as much as was left of all beside the first; less what rounding takes.
            prop_assert!((late + 2) * all >= most * (all - part.alone()), "{late} after {held:?}");
        }
    }
}
