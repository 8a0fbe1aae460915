//! What is answered while the backend does not answer, by each rule's `on_backend_failure`.

use super::memory::Memory;
use super::{Asks, OnBackendFailure, Outcome, Source, Standing};

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
        let of = |kind: OnBackendFailure| {
            asks.as_slice().iter().any(|ask| ask.rule().on_backend_failure == kind && ask.cost() > 0)
        };
        if of(OnBackendFailure::Closed) {
            return refuse(asks);
        }
        let source = if asks.as_slice().iter().any(|ask| ask.rule().on_backend_failure == OnBackendFailure::Local)
        {
            Source::Local
        } else if of(OnBackendFailure::Open) {
            Source::Open
        } else {
            Source::Closed
        };
        self.memory.take(asks, source, |ask| {
            let rule = ask.rule();
            (rule.on_backend_failure == OnBackendFailure::Local).then_some(&rule.local)
        })
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
