//! The load generator: an epoll loop over plain sockets, lean because it shares the machine with what it measures.

mod arrivals;
mod endpoint;
mod pace;
mod probe;
mod request;
mod tally;
mod wire;
mod worker;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::interrupt;

pub(crate) use arrivals::Arrivals;
pub(crate) use endpoint::{Endpoint, Socket};
use pace::Window;
pub(crate) use probe::{call, probe};
pub(crate) use request::{KEY_MARK, RequestSpec};
pub(crate) use tally::Tally;
pub(crate) use wire::parse_reply;
use worker::Worker;

/// How calls are spaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// Closed loop: every connection has one call outstanding, always.
    Saturate,
    /// Open loop: calls a second at a constant rate; latency counts from the intended start.
    Rate(f64),
    /// So many calls, as fast as they go; for filling a store.
    Once(u64),
}

/// One slice of load on one contender.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where to.
    pub(crate) endpoint: Endpoint,
    /// What to send.
    pub(crate) request: RequestSpec,
    /// The only status that is right.
    pub(crate) expected_status: u16,
    /// Connections, shared out over the threads.
    pub(crate) connections: usize,
    /// Generator threads.
    pub(crate) threads: usize,
    /// Spacing of the calls.
    pub(crate) load: Load,
    /// Load before the measured part.
    pub(crate) warm_up: Duration,
    /// The measured part.
    pub(crate) measured: Duration,
}

/// A side of the measured window, for whoever samples counters there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// The warm-up is over.
    Start,
    /// The measured part is over.
    End,
}

/// Runs one slice. `at_edge` is called from this thread at both sides of the measured window (not for [`Load::Once`]).
///
/// # Errors
/// No connection, an unexpected status (with the reply's text), or too many broken connections.
pub(crate) fn run(plan: &Plan, at_edge: &mut dyn FnMut(Edge) -> Result<()>) -> Result<Tally> {
    let mut workers = Vec::with_capacity(plan.threads);
    for index in 0..plan.threads {
        let connections = share(plan.connections, plan.threads, index);
        if connections > 0 {
            workers
                .push(Worker::connect(plan, index, connections).with_context(|| plan.endpoint.to_string())?);
        }
    }
    let barrier = Barrier::new(workers.len() + 1);
    let barrier = &barrier;
    std::thread::scope(|scope| {
        let handles: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                scope.spawn(move || {
                    barrier.wait();
                    worker.run(Window::after(Instant::now(), plan.warm_up, plan.measured))
                })
            })
            .collect();
        barrier.wait();
        let sampled = match plan.load {
            Load::Once(_) => Ok(()),
            Load::Saturate | Load::Rate(_) => sample_edges(plan, at_edge),
        };
        let mut total = Tally::default();
        for handle in handles {
            total.add(handle.join().map_err(|_| anyhow!("a generator thread panicked"))??)?;
        }
        sampled.map(|()| total)
    })
}

fn sample_edges(plan: &Plan, at_edge: &mut dyn FnMut(Edge) -> Result<()>) -> Result<()> {
    interrupt::sleep(plan.warm_up)?;
    at_edge(Edge::Start)?;
    interrupt::sleep(plan.measured)?;
    at_edge(Edge::End)
}

/// The part of `total` that share `index` of `parts` takes.
fn share(total: usize, parts: usize, index: usize) -> usize {
    total / parts + usize::from(index < total % parts)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up() {
        for parts in 1..5 {
            let shares: Vec<usize> = (0..parts).map(|index| share(11, parts, index)).collect();
            assert_eq!(shares.iter().sum::<usize>(), 11);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }
}
