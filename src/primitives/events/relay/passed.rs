//! What a shard's log was looked through without finding anything.

use crate::primitives::events::Position;

/// The part of the log, after one position and up to another, that has no event of the shard and will have none. It is
/// true of the store whatever became of the events before and after it, and so it holds for any cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Passed {
    after: Position,
    to: Position,
}

impl Passed {
    pub(super) const NOTHING: Self = Self { after: Position::START, to: Position::START };

    /// The position to look from, for what comes after this one.
    pub(super) fn go_on(self, after: Position) -> Position {
        if self.after <= after { after.max(self.to) } else { after }
    }

    /// Nothing was found after `from`, which [`go_on`](Self::go_on) said, and up to `to`.
    pub(super) fn pass(&mut self, from: Position, to: Position) {
        if from != self.to {
            self.after = from;
        }
        self.to = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_passed_is_not_looked_through_again_and_what_is_before_it_is() {
        let at = Position::new;
        let mut passed = Passed::NOTHING;
        passed.pass(passed.go_on(at(10)), at(100));
        passed.pass(passed.go_on(at(10)), at(200));
        for (after, from) in [(10, 200), (50, 200), (200, 200), (250, 250), (9, 9), (0, 0)] {
            assert_eq!(passed.go_on(at(after)), at(from), "{after}");
        }
        // Something was found after it, and delivered.
        passed.pass(passed.go_on(at(250)), at(300));
        for (after, from) in [(250, 300), (249, 249), (10, 10)] {
            assert_eq!(passed.go_on(at(after)), at(from), "{after}");
        }
    }
}
