//! The progress line: on stderr, rewritten in place on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How far the run is.
#[derive(Debug)]
pub(crate) struct Progress {
    wanted: bool,
    in_place: bool,
    planned: Duration,
    done: Duration,
    begin: Instant,
}

impl Progress {
    /// Shows a line where stderr is a terminal, or where `forced`.
    pub(crate) fn new(forced: bool, planned: Duration) -> Self {
        let in_place = std::io::stderr().is_terminal();
        Self { wanted: forced || in_place, in_place, planned, done: Duration::ZERO, begin: Instant::now() }
    }

    /// A contender's turn begins.
    pub(crate) fn turn(&self, label: &str, round: usize, rounds: usize, contender: &str) {
        self.note(&format!("{label}: round {round}/{rounds}, {contender}"));
    }

    /// Says what happens now.
    pub(crate) fn note(&self, text: &str) {
        if !self.wanted {
            return;
        }
        let share = self.done.as_secs_f64() / self.planned.as_secs_f64().max(0.001);
        let line =
            format!("[{:>3.0}% {:>3}s] {text}", 100.0 * share.min(1.0), self.begin.elapsed().as_secs());
        let shown = if self.in_place {
            write!(std::io::stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
        // A line that cannot be shown is no reason to stop measuring.
        drop(shown);
    }

    /// That much of the planned time is over.
    pub(crate) fn done(&mut self, time: Duration) {
        self.done += time;
    }

    /// Removes the line.
    pub(crate) fn clear(&self) {
        if self.wanted && self.in_place {
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        }
    }
}
