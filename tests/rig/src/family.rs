//! A process as `/proc` shows it, and the children that it made: a PostgreSQL server is a family.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Error;

/// A process, told by its start time from another one that was given the same id since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    /// Clock ticks since boot.
    pub(crate) started_ticks: u64,
}

struct Stat {
    state: char,
    parent: u32,
    threads: u32,
    started_ticks: u64,
}

impl Member {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, started_ticks: stat.started_ticks })
    }

    /// A zombie (its parent has not collected it yet) counts as ended, though signalling it would succeed; but not
    /// while other threads of it end, which still hold its ports.
    pub(crate) fn is_running(self) -> bool {
        let has_ended = |stat: &Stat| matches!(stat.state, 'Z' | 'X') && stat.threads <= 1;
        stat(self.pid).is_some_and(|stat| stat.started_ticks == self.started_ticks && !has_ended(&stat))
    }

    /// Sends it where the process still runs.
    pub(crate) fn signal(self, signal: Signal) -> Result<(), Error> {
        match self.is_running().then(|| send(self.pid, signal)) {
            Some(Err(error)) if self.is_running() => Err(error),
            _ => Ok(()),
        }
    }
}

/// What this process started and has not collected.
pub(crate) fn children_of(pid: u32) -> Vec<Member> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let child = |candidate| {
        let stat = stat(candidate)?;
        (stat.parent == pid).then_some(Member { pid: candidate, started_ticks: stat.started_ticks })
    };
    pids.filter_map(child).collect()
}

pub(crate) fn send(pid: u32, signal: Signal) -> Result<(), Error> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::new(format!("{pid} is no process id")))
        .and_then(|pid| kill_process(pid, signal).map_err(|error| Error::new(format!("{signal:?}: {error}"))))
}

/// Fields 3 (state), 4 (parent), 20 (threads) and 22 (start time) of proc(5).
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let threads = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, threads, started_ticks: fields.nth(1)?.parse().ok()? })
}
