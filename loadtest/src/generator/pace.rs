//! When a generator thread may start another call.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
use super::{Load, Plan};

/// The measured part of a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) begin: Instant,
    pub(super) from: Instant,
    pub(super) until: Instant,
}

impl Window {
    pub(super) fn after(begin: Instant, warm_up: Duration, measured: Duration) -> Self {
        Self { begin, from: begin + warm_up, until: begin + warm_up + measured }
    }

    pub(super) fn holds(&self, moment: Instant) -> bool {
        self.from <= moment && moment < self.until
    }
}

/// What says that another call may start.
#[derive(Debug)]
pub(super) enum Pace {
    /// At once.
    Always,
    /// At its time.
    Timetable(Arrivals),
    /// At once, but only so many.
    Left(u64),
}

impl Pace {
    /// The pace of thread `index`: its share of the plan's load.
    pub(super) fn new(plan: &Plan, index: usize, window: Window) -> Self {
        match plan.load {
            Load::Saturate => Self::Always,
            Load::Once(total) => {
                let threads = plan.threads as u64;
                Self::Left(total / threads + u64::from((index as u64) < total % threads))
            }
            Load::Rate(per_second) => {
                // Without this the kernel may add 50 us to each timed wait; where it is refused, it does.
                let _slack = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
                let own = per_second / plan.threads as f64;
                let offset = Duration::from_secs_f64(index as f64 / per_second);
                Self::Timetable(Arrivals::new(window.begin + offset, own, window.until - window.begin))
            }
        }
    }

    /// Takes a call if one may start at `now`, and says from when its latency counts.
    pub(super) fn claim(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::Always => Some(now),
            Self::Timetable(arrivals) => arrivals.take_due(now),
            Self::Left(0) => None,
            Self::Left(left) => {
                *left -= 1;
                Some(now)
            }
        }
    }
}
