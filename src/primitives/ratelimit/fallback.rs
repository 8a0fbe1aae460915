//! What is answered while the backend does not answer, by each rule's `on_backend_failure`.

use super::memory::Memory;
use super::{Ask, Asks, OnBackendFailure, Outcome, Source, Standing};

/// When a refused caller may ask again: the backend is asked several times a second.
const RETRY_MS: u64 = 1000;

/// This process's own counting.
pub(super) struct Fallback {
    memory: Memory,
}

impl Fallback {
    /// At most about `max_keys` keys.
    pub(super) fn new(max_keys: usize) -> Self {
        Self { memory: Memory::new(max_keys, false) }
    }

    /// Decides alone. One `closed` ask refuses the call and nothing is taken; `open` asks pass; `local` ones are
    /// counted here, each against this process's share of its limit.
    pub(super) fn take(&self, asks: &Asks) -> Outcome {
        let is_refused =
            |ask: &Ask| ask.rule().on_backend_failure == OnBackendFailure::Closed && ask.cost() > 0;
        if asks.as_slice().iter().any(is_refused) {
            return refuse(asks);
        }
        // Where several kinds are mixed, the one that counts is named.
        let source = match asks.as_slice().iter().map(|ask| ask.rule().on_backend_failure).min() {
            Some(OnBackendFailure::Local) => Source::Local,
            Some(OnBackendFailure::Open) | None => Source::Open,
            Some(OnBackendFailure::Closed) => Source::Closed,
        };
        let mut outcome = self.memory.take(asks, source, |ask| {
            let rule = ask.rule();
            (rule.on_backend_failure == OnBackendFailure::Local).then_some(&rule.local)
        });
        for (ask, standing) in asks.as_slice().iter().zip(&mut outcome.standings) {
            if ask.rule().on_backend_failure == OnBackendFailure::Closed {
                *standing = Standing { remaining: 0, retry_after_ms: 0, reset_ms: RETRY_MS, over: false };
            }
        }
        outcome
    }

    /// Removes expired keys.
    pub(super) fn sweep(&self) {
        self.memory.sweep();
    }
}

fn refuse(asks: &Asks) -> Outcome {
    let standings = asks.as_slice().iter().map(|ask| {
        if ask.rule().on_backend_failure == OnBackendFailure::Closed && ask.cost() > 0 {
            Standing { remaining: 0, retry_after_ms: RETRY_MS, reset_ms: RETRY_MS, over: true }
        } else {
            Standing { remaining: ask.rule().quota.burst(), retry_after_ms: 0, reset_ms: 0, over: false }
        }
    });
    Outcome { allowed: false, source: Source::Closed, standings: standings.collect(), overflowed: 0 }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::conformance::{asks, rule_with};
    use super::*;

    #[test]
    fn each_rule_is_answered_as_it_says() {
        let (local, open, closed) =
            (rule_with("local", "local"), rule_with("open", "open"), rule_with("closed", "closed"));
        for (wanted, allowed, source) in [
            (vec![(&local, 1)], true, Source::Local),
            (vec![(&open, 1)], true, Source::Open),
            (vec![(&closed, 1)], false, Source::Closed),
            (vec![(&closed, 0)], true, Source::Closed),
            (vec![(&local, 1), (&open, 1)], true, Source::Local),
            (vec![(&local, 1), (&closed, 1)], false, Source::Closed),
        ] {
            let fallback = Fallback::new(100);
            let wanted: Vec<_> = wanted.into_iter().map(|(rule, cost)| (rule, "k", cost)).collect();
            let outcome = fallback.take(&asks(Uuid::new_v4(), 100, &wanted));
            assert_eq!((outcome.allowed, outcome.source), (allowed, source));
            assert_eq!(outcome.standings.iter().any(|standing| standing.over), !allowed);
        }
    }

    #[test]
    fn local_grants_the_share_and_no_more() {
        // A burst of 20, of which a process alone grants a quarter.
        let (rule, tenant) = (rule_with("local", "local"), Uuid::new_v4());
        let fallback = Fallback::new(100);
        let passed =
            (0..20).filter(|_| fallback.take(&asks(tenant, 100, &[(&rule, "k", 1)])).allowed).count();
        assert_eq!(passed, 5);
        let other = Uuid::new_v4();
        let most = fallback.take(&asks(other, 100, &[(&rule, "k", 20)]));
        assert!(most.allowed, "a cost above the share takes all of it");
        assert!(!fallback.take(&asks(other, 100, &[(&rule, "k", 1)])).allowed);
    }
}
