//! What waits: each tenant's in a line of its own, of which one after the other is taken.

use std::collections::{HashMap, HashSet, VecDeque};

use uuid::Uuid;

/// Lines of what waits, by tenant.
pub struct Lines<J> {
    lines: HashMap<Uuid, VecDeque<(u64, J)>>,
    /// Whose turn it is; each tenant with a line once, but those that rest.
    turns: VecDeque<Uuid>,
    resting: HashSet<Uuid>,
    jobs: usize,
    bytes: u64,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new(), resting: HashSet::new(), jobs: 0, bytes: 0 }
    }
}

impl<J> Lines<J> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.jobs
    }

    /// Whether nobody does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs == 0
    }

    /// How many tenants have one that waits and do not rest.
    #[must_use]
    pub fn tenants(&self) -> usize {
        self.turns.len()
    }

    /// How many of a tenant's do.
    #[must_use]
    pub fn len_of(&self, tenant: Uuid) -> usize {
        self.lines.get(&tenant).map_or(0, VecDeque::len)
    }

    /// What they bring together, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts what is of so many bytes at the end of its tenant's line.
    pub fn push(&mut self, tenant: Uuid, bytes: u64, job: J) {
        self.line(tenant, bytes).push_back((bytes, job));
    }

    /// Puts what was taken at the front of its tenant's line again. It has had its turn: the others come before.
    pub fn put_back(&mut self, tenant: Uuid, bytes: u64, job: J) {
        self.line(tenant, bytes).push_front((bytes, job));
    }

    /// Whose turn it is.
    #[must_use]
    pub fn turn(&self) -> Option<Uuid> {
        self.turns.front().copied()
    }

    /// Gives the turn to the first in turn of whom this is true; whether there is one. The others keep theirs.
    pub fn turn_to(&mut self, may_go: impl FnMut(&Uuid) -> bool) -> bool {
        let Some(tenant) = self.turns.iter().position(may_go).and_then(|at| self.turns.remove(at)) else {
            return false;
        };
        self.turns.push_front(tenant);
        true
    }

    /// Those of a tenant's line of which this is said go.
    pub fn remove_left(&mut self, tenant: Uuid, is_left: impl Fn(&J) -> bool) {
        let Some(line) = self.lines.get_mut(&tenant) else { return };
        let (jobs, bytes) = (&mut self.jobs, &mut self.bytes);
        line.retain(|(of_job, job)| {
            let stays = !is_left(job);
            if !stays {
                *jobs -= 1;
                *bytes = bytes.saturating_sub(*of_job);
            }
            stays
        });
        if line.is_empty() {
            self.lines.remove(&tenant);
            self.turns.retain(|one| *one != tenant);
        }
    }

    /// The first one of a tenant's line.
    #[must_use]
    pub fn first(&self, tenant: Uuid) -> Option<&J> {
        self.lines.get(&tenant)?.front().map(|(_, job)| job)
    }

    /// Until it is woken a tenant has no turn; what comes goes to the end of its line.
    pub fn rest(&mut self, tenant: Uuid) {
        self.resting.insert(tenant);
        self.turns.retain(|one| *one != tenant);
    }

    /// Gives a tenant turns again.
    pub fn wake(&mut self, tenant: Uuid) {
        if self.resting.remove(&tenant) && self.lines.contains_key(&tenant) {
            self.turns.push_back(tenant);
        }
    }

    /// A tenant's line, to which one of so many bytes comes.
    fn line(&mut self, tenant: Uuid, bytes: u64) -> &mut VecDeque<(u64, J)> {
        self.jobs += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let line = self.lines.entry(tenant).or_default();
        if line.is_empty() && !self.resting.contains(&tenant) {
            self.turns.push_back(tenant);
        }
        line
    }

    /// Takes the one whose turn it is, if `takes` says so to its bytes. What `is_left` is said of goes from its line on the way:
    /// it is no turn.
    pub fn next_if(
        &mut self,
        is_left: impl Fn(&J) -> bool,
        mut takes: impl FnMut(u64, &J) -> bool,
    ) -> Option<J> {
        while let Some(tenant) = self.turns.front().copied() {
            let line = self.lines.entry(tenant).or_default();
            while let Some((bytes, _)) = line.pop_front_if(|(_, job)| is_left(job)) {
                self.jobs -= 1;
                self.bytes = self.bytes.saturating_sub(bytes);
            }
            let taken = match line.front() {
                Some((bytes, job)) if !takes(*bytes, job) => return None,
                _ => line.pop_front(),
            };
            let goes_on = !line.is_empty();
            self.turns.pop_front();
            if goes_on {
                self.turns.push_back(tenant);
            } else {
                self.lines.remove(&tenant);
            }
            if let Some((bytes, job)) = taken {
                self.jobs -= 1;
                self.bytes = self.bytes.saturating_sub(bytes);
                return Some(job);
            }
        }
        None
    }

    /// Takes up to so many, of each line one in turn, until the next would be over the bound of bytes; the first goes whatever
    /// it has.
    pub fn take(&mut self, max: usize, max_bytes: u64) -> Vec<J> {
        let (mut taken, mut bytes) = (Vec::new(), 0_u64);
        loop {
            let (is_first, is_full) = (taken.is_empty(), taken.len() >= max);
            let next = self.next_if(
                |_| false,
                |of_next, _| {
                    let after = bytes.saturating_add(of_next);
                    let fits = is_first || (!is_full && after <= max_bytes);
                    if fits {
                        bytes = after;
                    }
                    fits
                },
            );
            match next {
                Some(job) => taken.push(job),
                None => return taken,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);
    const C: Uuid = Uuid::from_u128(3);

    #[test]
    fn tenants_take_turns_and_each_tenant_s_own_stay_in_order() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (A, "a4"), (C, "c1"), (B, "b2")] {
            lines.push(tenant, 10, name);
        }
        assert_eq!(lines.take(5, 1000), ["a1", "b1", "c1", "a2", "b2"]);
        lines.push(B, 10, "b3");
        assert_eq!(lines.take(5, 1000), ["a3", "b3", "a4"]);
        assert_eq!(lines.take(5, 1000), [""; 0]);
        assert!(lines.lines.is_empty() && lines.turns.is_empty() && lines.is_empty());
        assert_eq!(lines.bytes(), 0);
    }

    #[test]
    fn a_transaction_ends_at_its_bytes_and_who_did_not_fit_is_the_next() {
        let mut lines = Lines::default();
        for (tenant, bytes, name) in [(A, 500, "large"), (B, 60, "b1"), (C, 60, "c1"), (B, 10, "b2")] {
            lines.push(tenant, bytes, name);
        }
        assert_eq!(lines.take(9, 100), ["large"], "one's own always go");
        assert_eq!(lines.take(9, 100), ["b1"]);
        assert_eq!(lines.take(9, 100), ["c1", "b2"]);
    }

    #[test]
    fn who_left_is_passed_over_and_that_is_no_turn() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "left"), (A, "left"), (A, "a1"), (A, "a2"), (B, "b1"), (C, "left")] {
            lines.push(tenant, 10, name);
        }
        assert_eq!((lines.len(), lines.len_of(A), lines.bytes()), (6, 4, 60));
        let mut next = || lines.next_if(|name| *name == "left", |_, _| true);
        assert_eq!([next(), next(), next(), next()], [Some("a1"), Some("b1"), Some("a2"), None]);
        assert!(lines.lines.is_empty() && lines.turns.is_empty() && lines.is_empty() && lines.bytes() == 0);
    }

    #[test]
    fn what_is_put_back_comes_first_of_its_line_and_who_rests_has_no_turn() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "a1"), (A, "a2"), (B, "b1"), (B, "b2"), (B, "b3")] {
            lines.push(tenant, 10, name);
        }
        assert_eq!(lines.take(2, 100), ["a1", "b1"]);
        lines.put_back(A, 10, "a1");
        lines.rest(B);
        lines.push(B, 10, "b4");
        assert_eq!((lines.first(A), lines.first(B), lines.first(C)), (Some(&"a1"), Some(&"b2"), None));
        assert_eq!((lines.turn(), lines.tenants(), lines.len(), lines.bytes()), (Some(A), 1, 5, 50));
        assert_eq!(lines.take(9, 100), ["a1", "a2"]);
        lines.push(A, 10, "a3");
        lines.wake(B);
        lines.wake(C);
        assert_eq!(lines.take(9, 100), ["a3", "b2", "b3", "b4"]);
        // Who rests with an empty line rests as well.
        lines.rest(C);
        lines.push(C, 10, "c1");
        assert_eq!(lines.take(9, 100), [""; 0]);
        lines.wake(C);
        assert_eq!(lines.take(9, 100), ["c1"]);
        assert!(lines.lines.is_empty() && lines.turns.is_empty() && lines.resting.is_empty());
        assert_eq!((lines.len(), lines.bytes()), (0, 0));
    }

    #[test]
    fn the_turn_goes_to_who_may_go_and_the_others_keep_theirs() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "a1"), (B, "b1"), (C, "c1"), (C, "c2"), (B, "b2")] {
            lines.push(tenant, 10, name);
        }
        assert!(lines.turn_to(|tenant| *tenant == C));
        assert!(!lines.turn_to(|_| false));
        lines.remove_left(B, |name| *name == "b1");
        assert_eq!(lines.take(2, 100), ["c1", "a1"]);
        lines.remove_left(B, |_| true);
        lines.remove_left(A, |_| true);
        assert_eq!((lines.len(), lines.bytes(), lines.take(9, 100)), (1, 10, vec!["c2"]));
        assert!(lines.lines.is_empty() && lines.turns.is_empty());
    }

    #[test]
    fn who_is_not_taken_keeps_its_turn() {
        let mut lines = Lines::default();
        for (tenant, name) in [(A, "a1"), (B, "b1")] {
            lines.push(tenant, 10, name);
        }
        assert_eq!(lines.next_if(|_| false, |bytes, name| bytes < 10 && *name == "a1"), None);
        assert_eq!(lines.take(9, 100), ["a1", "b1"]);
    }
}
