//! Whose turn it is at an endpoint, and how many of its events are sent at once.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::Endpoint;
use crate::primitives::events::push::circuit::State;
use crate::primitives::events::push::metrics::Counted;
use crate::primitives::events::push::tenants::Room;

impl Endpoint {
    /// When something is to be done though nothing ends and nothing arrives.
    pub(super) fn wake_ms(&mut self, now_ms: u64) -> Option<u64> {
        let open_until_ms = self.open.as_ref().map(|(_, until_ms)| *until_ms);
        let next_ms = match self.circuit.state(now_ms) {
            State::Open { .. } if self.agenda.ready() > 0 => {
                Some(self.circuit.other_trial_ms()).filter(|at_ms| *at_ms > now_ms)
            }
            State::Open { .. } => None,
            State::Closed | State::HalfOpen if self.signer.is_none() && self.agenda.ready() > 0 => {
                Some(self.read_again_ms)
            }
            State::Closed | State::HalfOpen => self.agenda.next_ms(),
        };
        open_until_ms.into_iter().chain(next_ms).min()
    }

    /// Begins as many pulls as there is room for.
    pub(super) fn fill(&mut self, now_ms: u64) {
        while let Some((tenant, wanted)) = self.next(now_ms) {
            // Whoever was told of the circuit before it let this one through.
            self.inbox.rests.store(false, Ordering::Relaxed);
            self.tenants.take(tenant, wanted);
            self.pull(tenant, wanted);
        }
        let open_until_ms = match self.circuit.state(now_ms) {
            State::Open { until_ms } => Some(until_ms),
            // All that have something to send rest.
            _ if self.tenants.busy() == 0 && self.agenda.ready() == 0 => self.tenants.next_trial_ms(now_ms),
            State::Closed | State::HalfOpen => None,
        };
        self.inbox.rests.store(open_until_ms.is_some(), Ordering::Relaxed);
        let counted = self.open.take().map(|(counted, _)| counted);
        self.open = open_until_ms.map(|until_ms| {
            (counted.unwrap_or_else(|| Counted::new(&self.shared.metrics.circuits_open)), until_ms)
        });
    }

    /// The tenant that is pulled for next, and how many of its events may be sent.
    fn next(&mut self, now_ms: u64) -> Option<(Uuid, usize)> {
        if self.agenda.ready() == 0 || self.tenants.busy() >= self.subscription.concurrency {
            return None;
        }
        match self.circuit.state(now_ms) {
            State::Closed => self.first_with_room(now_ms, false),
            // One at a time, and of one whose events did not fail, where there is one: it tells of the endpoint.
            State::HalfOpen if self.tenants.busy() == 0 => {
                let found =
                    self.first_with_room(now_ms, true).or_else(|| self.first_with_room(now_ms, false));
                found.map(|(tenant, _)| (tenant, 1))
            }
            State::Open { .. } if self.tenants.busy() == 0 && now_ms >= self.circuit.other_trial_ms() => {
                let (tenant, _) = self.first_with_room(now_ms, true)?;
                self.circuit.half_open();
                Some((tenant, 1))
            }
            State::HalfOpen | State::Open { .. } => None,
        }
    }

    /// The first of the agenda that does not rest and may have another request, and how many; those before it take their turn
    /// again.
    fn first_with_room(&mut self, now_ms: u64, only_well: bool) -> Option<(Uuid, usize)> {
        for _ in 0..self.agenda.ready() {
            if !self.has_signer(now_ms) {
                return None;
            }
            let tenant = self.agenda.pop()?;
            if let Some(until_ms) = self.tenants.rests_until_ms(tenant, now_ms) {
                self.agenda.later(tenant, until_ms);
                continue;
            }
            let (concurrency, others) = (self.subscription.concurrency, self.agenda.ready());
            let is_steady = self.circuit.is_steady();
            let room = Room { concurrency, is_steady, others_wait: others > 0 };
            let room = self.tenants.room(tenant, now_ms, room);
            if room == 0 || only_well && self.tenants.is_failing(tenant) {
                self.agenda.now(tenant);
                continue;
            }
            let share = concurrency.saturating_sub(self.tenants.busy()).div_ceil(others + 1);
            return Some((tenant, room.min(share)));
        }
        None
    }
}
