//! How late this machine is: what a call is judged against that has to end in time.

#![allow(unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

/// A timer that is seen this much after it was due is late.
const LATE: Duration = Duration::from_millis(5);

/// What a timer alone takes on this machine now: as many tasks as there are callers, each on a time-out that nothing
/// else ends, in a runtime of its own. So what the pool does to its own runtime does not count.
pub struct Timers {
    over: Arc<AtomicBool>,
    late: Arc<parking_lot::Mutex<Vec<(Instant, Instant)>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Timers {
    pub fn start(tasks: usize, timeout: Duration) -> Self {
        let (over, late) = (Arc::new(AtomicBool::new(false)), Arc::new(parking_lot::Mutex::new(Vec::new())));
        let (stop, seen) = (Arc::clone(&over), Arc::clone(&late));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
            let timers = async {
                let mut running = JoinSet::new();
                for _ in 0..tasks {
                    let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
                    running.spawn(async move {
                        while !stop.load(Relaxed) {
                            let began = Instant::now();
                            tokio::time::timeout(timeout, std::future::pending::<()>()).await.unwrap_err();
                            if began.elapsed() > timeout + LATE {
                                seen.lock().push((began + timeout, Instant::now()));
                            }
                        }
                    });
                }
                running.join_all().await;
            };
            runtime.unwrap().block_on(timers);
        });
        Self { over, late, thread }
    }

    pub fn end(self) -> Lateness {
        self.over.store(true, Relaxed);
        self.thread.join().unwrap();
        Lateness(std::mem::take(&mut *self.late.lock()))
    }
}

/// When each timer that was late was due, and when it was seen.
pub struct Lateness(Vec<(Instant, Instant)>);

impl Lateness {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The most by which a timer was late that was due or seen in this time.
    pub fn during(&self, from: Instant, to: Instant) -> Duration {
        let late = self.0.iter().filter(|(due, seen)| *due < to && from < *seen);
        late.map(|(due, seen)| *seen - *due).max().unwrap_or_default()
    }
}
