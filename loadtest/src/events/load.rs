//! Closed and open loops of publishers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::contender::Caller;
use super::ledger::Ledger;
use crate::generator::{Arrivals, Tally};
use crate::interrupt;
use crate::process;

/// One who calls, one call after the other.
pub(crate) trait Calls: Send + 'static {
    /// What a call has: events, or records.
    fn items(&self) -> u64;

    /// Calls with the items from `first` on; returns once they are durable.
    fn call(&mut self, first: u64) -> impl Future<Output = Result<()>> + Send;
}

/// The processes whose time is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processes {
    /// Outrigger; none where the contender has no server of its own.
    pub(crate) server: Option<u32>,
    /// The primary's postmaster.
    pub(crate) postmaster: Option<u32>,
}

/// Processor time, up to now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) server: Duration,
    pub(crate) store: Duration,
    pub(crate) generator: Duration,
    pub(crate) machine: Duration,
}

impl Used {
    /// Looks at `/proc`.
    ///
    /// # Errors
    /// A process is gone.
    pub(crate) fn now(processes: Processes) -> Result<Self> {
        Ok(Self {
            server: processes.server.map_or(Ok(Duration::ZERO), process::cpu_time)?,
            store: processes.postmaster.map_or(Ok(Duration::ZERO), process::family_cpu_time)?,
            generator: process::cpu_time(std::process::id())?,
            machine: process::machine_busy_time()?,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            server: self.server.saturating_sub(earlier.server),
            store: self.store.saturating_sub(earlier.store),
            generator: self.generator.saturating_sub(earlier.generator),
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }
}

/// A turn.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Calls answered inside the window, and how long they took.
    pub(crate) tally: Tally,
    /// Events of a call.
    pub(crate) events: u64,
    /// Processor time inside the window.
    pub(crate) used: Used,
}

impl Turn {
    /// Events accepted a second.
    pub(crate) fn events_per_s(&self) -> f64 {
        self.tally.requests_per_s() * self.events as f64
    }
}

/// Every caller has one call under way, always.
///
/// # Errors
/// A call failed.
pub(crate) async fn saturate<C: Calls>(
    callers: Vec<C>,
    ids: &Arc<AtomicU64>,
    warm_up: Duration,
    measured: Duration,
    processes: Processes,
) -> Result<Turn> {
    let events = callers.first().context("no callers")?.items();
    let from = Instant::now() + warm_up;
    let until = from + measured;
    let mut running = JoinSet::new();
    for mut caller in callers {
        let ids = Arc::clone(ids);
        running.spawn(async move {
            let mut tally = Tally { measured, ..Tally::default() };
            loop {
                let began = Instant::now();
                if began >= until {
                    return Ok::<_, anyhow::Error>(tally);
                }
                caller.call(ids.fetch_add(events, Ordering::Relaxed)).await?;
                let ended = Instant::now();
                if ended >= from && ended < until {
                    tally.record(ended - began);
                    tally.completed += 1;
                }
            }
        });
    }
    tokio::time::sleep_until(from.into()).await;
    let before = Used::now(processes)?;
    tokio::time::sleep_until(until.into()).await;
    let used = Used::now(processes)?.since(before);
    let mut tally = Tally::default();
    while let Some(done) = running.join_next().await {
        tally.add(done??)?;
    }
    interrupt::check()?;
    Ok(Turn { tally, events, used })
}

/// Calls at their times, `events_per_s` in all; latency counts from when a call was meant to start. Every event's
/// acceptance goes into the ledger.
///
/// # Errors
/// A call failed.
pub(crate) async fn at_rate(
    callers: Vec<Caller>,
    ledger: &Arc<Ledger>,
    events_per_s: f64,
    during: Duration,
    processes: Processes,
) -> Result<Turn> {
    let events = callers.first().context("no callers")?.events();
    let calls_per_s = events_per_s / events as f64;
    let begin = Instant::now();
    let before = Used::now(processes)?;
    let mut running = JoinSet::new();
    let count = callers.len();
    for (number, mut caller) in callers.into_iter().enumerate() {
        let ledger = Arc::clone(ledger);
        let offset = Duration::from_secs_f64(number as f64 / calls_per_s);
        running.spawn(async move {
            let mut arrivals = Arrivals::new(begin + offset, calls_per_s / count as f64, during);
            let mut tally = Tally { measured: during, ..Tally::default() };
            while let Some(start) = arrivals.next_start() {
                tokio::time::sleep_until(start.into()).await;
                let meant = arrivals.take_due(Instant::now()).unwrap_or(start);
                let Some(first) = ledger.draw(events) else { break };
                caller.publish(first).await?;
                ledger.accepted(first, events);
                tally.record(meant.elapsed());
                tally.completed += 1;
            }
            Ok::<_, anyhow::Error>(tally)
        });
    }
    let mut tally = Tally::default();
    while let Some(done) = running.join_next().await {
        tally.add(done??)?;
    }
    tally.measured = begin.elapsed();
    interrupt::check()?;
    Ok(Turn { tally, events, used: Used::now(processes)?.since(before) })
}
