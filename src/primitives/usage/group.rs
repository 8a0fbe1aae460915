//! Calls that share a transaction: which of their points are counted, and what each caller is told.
//!
//! The calls are taken as if each came alone, one after the other: one that is refused leaves with all of its points, and the next one
//! sees only what those before it left.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Point, PointKey};

/// What a call's caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its points are counted, or were.
    Counted {
        /// Those that were not known before.
        accepted: usize,
        /// Those that were.
        duplicates: usize,
    },
    /// Nothing of it is counted.
    Refused(Refusal),
    /// Nothing of it is counted: days and months of the store are those of this zone, and its policy has another one.
    OtherZone(String),
}

/// Why nothing of a call is counted: points of it, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Those with a key of another one.
    pub conflicts: Vec<usize>,
    /// Those that correct one that was not counted.
    pub nothing_to_correct: Vec<usize>,
    /// Those that are too old to be new, and were not counted.
    pub too_late: Vec<usize>,
}

/// A call's points.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'p> {
    /// All of them.
    pub points: &'p [Point],
    /// The numbers of those that are too old to be new, sorted: they may only be what was counted.
    pub late: &'p [usize],
}

/// What becomes of a group.
#[derive(Debug)]
pub struct Settled<'p> {
    /// Each call's, in their order.
    pub verdicts: Vec<Verdict>,
    /// The points to count, each with its call's number, ordered by key.
    pub points: Vec<(usize, &'p Point)>,
}

/// Keys that are counted already, each with its point's fingerprint.
pub type Known = HashMap<PointKey, i64>;

/// Takes the calls one after the other, after those that are known; among which are all that they correct and that are counted.
#[must_use]
pub fn settle<'p>(calls: &[Offered<'p>], known: &Known) -> Settled<'p> {
    let all = calls.iter().map(|call| call.points.len()).sum();
    let mut taken: HashMap<PointKey, i64> = HashMap::with_capacity(all);
    let mut points: Vec<(usize, &'p Point)> = Vec::with_capacity(all);
    let mut verdicts = Vec::with_capacity(calls.len());
    for (call, Offered { points: own, late }) in calls.iter().enumerate() {
        let before = points.len();
        let mut refusal = Refusal::default();
        for (number, point) in own.iter().enumerate() {
            let held = match known.get(&point.key) {
                Some(held) => *held,
                None => match taken.entry(point.key) {
                    Entry::Occupied(held) => *held.get(),
                    Entry::Vacant(_) if late.binary_search(&number).is_ok() => {
                        refusal.too_late.push(number);
                        continue;
                    }
                    Entry::Vacant(free) => {
                        free.insert(point.fingerprint);
                        points.push((call, point));
                        continue;
                    }
                },
            };
            if held != point.fingerprint {
                refusal.conflicts.push(number);
            }
        }
        for (number, point) in own.iter().enumerate() {
            let is_another = |key: &PointKey| *key != point.key;
            let is_counted = |key: &PointKey| known.contains_key(key) || taken.contains_key(key);
            if point.corrects.as_ref().is_some_and(|key| !(is_another(key) && is_counted(key))) {
                refusal.nothing_to_correct.push(number);
            }
        }
        if refusal == Refusal::default() {
            let accepted = points.len() - before;
            verdicts.push(Verdict::Counted { accepted, duplicates: own.len() - accepted });
        } else {
            for (_, point) in points.drain(before..) {
                taken.remove(&point.key);
            }
            verdicts.push(Verdict::Refused(refusal));
        }
    }
    points.sort_unstable_by_key(|(_, point)| point.key);
    Settled { verdicts, points }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::primitives::usage::{Amount, Day};

    fn point_key(key: u8) -> PointKey {
        let day = Day::of("2026-01-31T09:30:00Z".parse().unwrap());
        PointKey::new(Uuid::from_u128(1), "calls", day, &key.to_string())
    }

    fn point(key: u8, value: u8, corrects: Option<u8>) -> Point {
        Point {
            metric: 0,
            key: point_key(key),
            corrects: corrects.map(point_key),
            fingerprint: i64::from(value),
            value: Amount::parse(&value.to_string()).unwrap(),
            time: jiff::Timestamp::UNIX_EPOCH,
            tags: Vec::new(),
            metadata: None,
        }
    }

    /// The same by a store that takes one call after the other.
    #[derive(Default, Clone)]
    struct Model(HashMap<PointKey, i64>);

    impl Model {
        fn take(&mut self, call: &[Point], late: &[usize]) -> Verdict {
            let (mut after, mut accepted) = (self.0.clone(), 0);
            let mut refusal = Refusal::default();
            for (number, point) in call.iter().enumerate() {
                if late.contains(&number) && !after.contains_key(&point.key) {
                    refusal.too_late.push(number);
                    continue;
                }
                match after.insert(point.key, point.fingerprint) {
                    None => accepted += 1,
                    Some(held) => {
                        after.insert(point.key, held);
                        if held != point.fingerprint {
                            refusal.conflicts.push(number);
                        }
                    }
                }
            }
            let corrections =
                call.iter().enumerate().filter_map(|(number, point)| Some((number, point.corrects?)));
            refusal.nothing_to_correct = corrections
                .filter(|(number, key)| call[*number].key == *key || !after.contains_key(key))
                .map(|(number, _)| number)
                .collect();
            if refusal != Refusal::default() {
                return Verdict::Refused(refusal);
            }
            self.0 = after;
            Verdict::Counted { accepted, duplicates: call.len() - accepted }
        }
    }

    proptest! {
        /// Few keys and few values, so that calls repeat and contradict themselves, each other, and what is known.
        #[test]
        fn a_group_is_what_its_calls_are_one_after_the_other(
            calls in prop::collection::vec(prop::collection::vec((0_u8..12, 0_u8..3, 0_u8..30, 0_u8..8), 0..6), 0..12),
            before in prop::collection::vec((0_u8..12, 0_u8..3), 0..4),
        ) {
            let mut model = Model::default();
            for (key, value) in before {
                model.take(&[point(key, value, None)], &[]);
            }
            let known = model.0.clone();
            let calls: Vec<(Vec<Point>, Vec<usize>)> = calls
                .into_iter()
                .map(|call| {
                    let late = (0..).zip(&call).filter(|(_, of)| of.3 == 0).map(|(number, _)| number).collect();
                    let of = |(key, value, other, _)| point(key, value, Some(other).filter(|other| *other < 12));
                    (call.into_iter().map(of).collect(), late)
                })
                .collect();
            let offered: Vec<Offered<'_>> = calls.iter().map(|(points, late)| Offered { points, late }).collect();
            let settled = settle(&offered, &known);
            let expected: Vec<Verdict> = calls.iter().map(|(call, late)| model.take(call, late)).collect();
            prop_assert_eq!(&settled.verdicts, &expected);
            let mut after = known;
            for (call, point) in &settled.points {
                let stays = matches!(settled.verdicts[*call], Verdict::Counted { .. });
                prop_assert!(stays, "of a call with a conflict");
                prop_assert_eq!(after.insert(point.key, point.fingerprint), None, "counted twice");
            }
            prop_assert_eq!(after, model.0);
            prop_assert!(settled.points.is_sorted_by_key(|(_, point)| point.key));
        }
    }
}
