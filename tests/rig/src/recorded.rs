//! Servers that outlive the process that started them, as written down on disk.

use std::time::Duration;

use rustix::process::Signal;

use crate::family::{Member, children_of};
use crate::process::{END_DEADLINE, Error, Process, wait_until};

/// A line of `.rig/servers`: name, process id, start time, the signal that ends it for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    name: String,
    process: Member,
    discard: Signal,
}

impl Recorded {
    pub(crate) fn of(process: &Process) -> Result<Self, Error> {
        let (name, pid) = (process.name(), process.pid());
        match Member::of(pid) {
            Some(member) => Ok(Self { name: name.to_owned(), process: member, discard: process.discard() }),
            None => Err(Error::new(format!("{name}: process {pid} ended right after its start"))),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (name, pid, ticks) = (words.next()?, words.next()?, words.next()?);
        let process = Member { pid: pid.parse().ok()?, started_ticks: ticks.parse().ok()? };
        let discard = if words.next() == Some("QUIT") { Signal::QUIT } else { Signal::KILL };
        Some(Self { name: name.to_owned(), process, discard })
    }

    pub(crate) fn line(&self) -> String {
        let signal = if self.discard == Signal::QUIT { "QUIT" } else { "KILL" };
        format!("{} {} {} {signal}", self.name, self.process.pid, self.process.started_ticks)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Which servers it belongs to: `redis-17001` is one of `redis`.
    pub(crate) fn kind(&self) -> &str {
        self.name.split('-').next().unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Ends it, by SIGKILL where its own signal does not in time, and what it leaves behind.
    pub(crate) fn end(&self) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        let children = children_of(self.process.pid);
        self.process.signal(self.discard)?;
        if self.wait_for_end(END_DEADLINE).is_err() {
            self.process.signal(Signal::KILL)?;
            self.wait_for_end(END_DEADLINE)?;
        }
        children.into_iter().try_for_each(|child| child.signal(Signal::KILL))
    }

    fn wait_for_end(&self, deadline: Duration) -> Result<(), Error> {
        wait_until(&format!("the end of {}", self.line()), deadline, String::new, || {
            if self.is_running() { Err("still running".to_owned()) } else { Ok(()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::sleeper;

    #[test]
    fn a_recorded_process_is_told_from_a_zombie_and_from_a_reused_id() {
        let log = std::env::temp_dir().join(format!("rig-process-{}", std::process::id()));
        let mut process = Process::start(&sleeper(&log)).unwrap();
        let recorded = Recorded::of(&process).unwrap();
        assert!(recorded.is_running());
        assert_eq!(Recorded::parse(&recorded.line()), Some(recorded.clone()));
        let later = Member { started_ticks: recorded.process.started_ticks + 1, ..recorded.process };
        let reused = Recorded { process: later, ..recorded.clone() };
        assert!(!reused.is_running());
        reused.end().unwrap();
        assert!(process.is_running(), "a process that is not ours must not be killed");
        recorded.end().unwrap();
        assert!(!recorded.is_running(), "the uncollected child is a zombie, and counts as ended");
        assert!(!process.is_running());
        std::fs::remove_file(log).unwrap();
    }
}
