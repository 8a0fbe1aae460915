//! What waits for a database's threads: a line for each tenant, of which one job after the other is taken.
//!
//! A job whose caller left before its turn is passed over, unless it was promised: nobody's reads keep others waiting.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::SqliteError;
use super::threads::Job;
use crate::fairness::{Lines, NoRoom, Part};

/// Jobs that wait at the most; more are refused.
pub(super) const MAX_JOBS: usize = 4096;
/// Of these one tenant's.
pub(super) const OF_TENANT: Part = Part::one_in(MAX_JOBS as u64, 4);

/// Steps of a look for what comes at once, before a thread sleeps: the first spin, each twice as long, and the others give the
/// processor away. As a channel of the standard library does; without them a caller that asks again and again wakes a thread each time.
const STEPS: u32 = 10;
const STEPS_THAT_SPIN: u32 = 6;

/// The jobs that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// How often a job came.
    arrivals: AtomicUsize,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: Lines<Job>,
    is_closed: bool,
    /// Threads that take jobs.
    takers: usize,
}

/// What a thread does next.
pub(super) enum Next {
    /// This.
    Run(Job),
    /// It looks around: nothing came.
    Idle,
    /// Nothing comes any more.
    End,
}

impl Queue {
    /// Puts a job at the end of its tenant's line.
    pub(super) fn push(&self, job: Job) -> Result<(), SqliteError> {
        let mut waiting = self.waiting.lock();
        let owner = job.owner();
        if waiting.is_closed {
            return Err(SqliteError::Gone);
        }
        // What is nobody's goes where there is room.
        let own = owner.map_or(0, |tenant| waiting.lines.len_of(tenant) as u64);
        OF_TENANT.has_room(own, waiting.lines.len() as u64, 1).map_err(|error| match error {
            NoRoom::OfTenant => SqliteError::ShareTaken,
            NoRoom::OfAll => SqliteError::Overloaded,
        })?;
        // What is nobody's has a line too.
        waiting.lines.push(owner.unwrap_or_default(), job.adds().entry_bytes(), job);
        self.arrivals.fetch_add(1, Relaxed);
        drop(waiting);
        self.came.notify_one();
        Ok(())
    }

    /// Takes no more jobs; the threads end when there are none.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.came.notify_all();
    }
}

/// A thread's end of the queue. When the last is gone, also by a panic, what waits is told so.
pub(super) struct Taker(Arc<Queue>);

impl Taker {
    pub(super) fn of(queue: &Arc<Queue>) -> Self {
        queue.waiting.lock().takers += 1;
        Self(Arc::clone(queue))
    }

    /// The job whose turn it is; waits for one, for so long where that is given.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let mut is_patient = false;
        let mut waiting = self.0.waiting.lock();
        loop {
            if let Some(job) = waiting.lines.next_if(Job::is_left, |_, _| true) {
                return Next::Run(job);
            }
            if waiting.is_closed {
                return Next::End;
            }
            if !is_patient {
                let arrivals = self.0.arrivals.load(Relaxed);
                drop(waiting);
                self.look_for(arrivals);
                is_patient = true;
                waiting = self.0.waiting.lock();
                continue;
            }
            match patience {
                None => self.0.came.wait(&mut waiting),
                Some(patience) => {
                    if self.0.came.wait_for(&mut waiting, patience).timed_out() {
                        return Next::Idle;
                    }
                }
            }
        }
    }

    /// Looks for a while whether one came beside these.
    fn look_for(&self, arrivals: usize) {
        for step in 0..STEPS {
            if self.0.arrivals.load(Relaxed) != arrivals {
                return;
            }
            if step < STEPS_THAT_SPIN {
                (0..1 << step).for_each(|_| spin_loop());
            } else {
                thread::yield_now();
            }
        }
    }

    /// The job whose turn it is, where there is one and `takes` says so.
    pub(super) fn next_if(&self, mut takes: impl FnMut(&Job) -> bool) -> Option<Job> {
        self.0.waiting.lock().lines.next_if(Job::is_left, |_, job| takes(job))
    }

    /// How many wait, and what they add together, in bytes.
    pub(super) fn waiting(&self) -> (usize, u64) {
        let waiting = self.0.waiting.lock();
        (waiting.lines.len(), waiting.lines.bytes())
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        waiting.takers -= 1;
        if waiting.takers == 0 {
            waiting.is_closed = true;
            let left = std::mem::take(&mut waiting.lines);
            drop(waiting);
            drop(left);
        }
    }
}
