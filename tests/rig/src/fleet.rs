//! Servers that belong together: each has a place, and can be killed, stopped and started again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use crate::process::{Error, Process, Program};
use crate::recorded::Recorded;

/// What the rig did with a server's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Runs.
    Running,
    /// Stopped by SIGSTOP: accepts connections and never answers.
    Stopped,
    /// Not there.
    Down,
}

/// Servers by index. Dropping it ends them; so does the end of this process, however it comes, unless they are to
/// outlive it.
#[derive(Debug)]
pub(crate) struct Fleet(Mutex<Running>);

#[derive(Debug)]
struct Running {
    processes: Vec<Option<Process>>,
    /// None: the servers are to outlive this process.
    watchdog: Option<Watchdog>,
}

impl Fleet {
    /// Places for so many servers, all of them down.
    pub(crate) fn new(places: usize, outlives_us: bool) -> Result<Self, Error> {
        let watchdog = if outlives_us { None } else { Some(Watchdog::start()?) };
        Ok(Self(Mutex::new(Running { processes: (0..places).map(|_| None).collect(), watchdog })))
    }

    pub(crate) fn start(&self, index: usize, mut program: Program) -> Result<(), Error> {
        let mut running = self.lock();
        program.outlives_us = running.watchdog.is_none();
        let place = running.processes.get_mut(index);
        let place = place.ok_or_else(|| Error::new(format!("there is no node {index}")))?;
        *place = Some(Process::start(&program)?);
        running.watch_again()
    }

    /// The process id, while there is a process.
    pub(crate) fn pid(&self, index: usize) -> Option<u32> {
        self.lock().process(index).map(|process| process.pid())
    }

    pub(crate) fn state(&self, index: usize) -> NodeState {
        match self.lock().process(index) {
            None => NodeState::Down,
            Some(process) if process.is_paused() => NodeState::Stopped,
            Some(_) => NodeState::Running,
        }
    }

    /// The indexes of those that run and are not stopped.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.indexes(NodeState::Running)
    }

    pub(crate) fn down(&self) -> Vec<usize> {
        self.indexes(NodeState::Down)
    }

    /// One that nobody ended, and that is gone all the same.
    pub(crate) fn ended_by_itself(&self) -> Option<usize> {
        let mut running = self.lock();
        let mut places = running.processes.iter_mut();
        places.position(|place| place.as_mut().is_some_and(|process| !process.is_running()))
    }

    fn indexes(&self, wanted: NodeState) -> Vec<usize> {
        let places = self.lock().processes.len();
        (0..places).filter(|index| self.state(*index) == wanted).collect()
    }

    pub(crate) fn kill(&self, index: usize) -> Result<(), Error> {
        self.take(index)?.kill()?;
        self.lock().watch_again()
    }

    /// Ends it with its data saved.
    pub(crate) fn terminate(&self, index: usize) -> Result<(), Error> {
        self.take(index)?.terminate()?;
        self.lock().watch_again()
    }

    pub(crate) fn stop(&self, index: usize) -> Result<(), Error> {
        self.change(index, Process::pause)
    }

    pub(crate) fn cont(&self, index: usize) -> Result<(), Error> {
        self.change(index, Process::resume)
    }

    /// Tells it to read its configuration again.
    pub(crate) fn reload(&self, index: usize) -> Result<(), Error> {
        self.change(index, |process| process.reload())
    }

    /// Ends all of them at once, with their data saved.
    pub(crate) fn terminate_all(&self) -> Result<(), Error> {
        self.end_all(Process::terminate)
    }

    /// Ends all of them at once, and does without their data.
    pub(crate) fn throw_away(&self) -> Result<(), Error> {
        self.end_all(Process::throw_away)
    }

    /// Ends all of them and removes their folder, as far as that goes: for a destructor. A failed test's logs stay.
    pub(crate) fn discard(&self, folder: &Path, remove: impl FnOnce() -> Result<(), Error>) {
        if let Err(error) = self.throw_away() {
            eprintln!("rig: {error}");
        }
        if thread::panicking() {
            eprintln!("rig: the servers' logs are kept in {}", folder.display());
        } else if let Err(error) = remove() {
            eprintln!("rig: {error}");
        }
    }

    /// Lets them outlive this process; says how to recognise them.
    pub(crate) fn release(&self) -> Result<Vec<Recorded>, Error> {
        let mut running = self.lock();
        let recorded: Result<Vec<_>, _> = running.processes.iter().flatten().map(Recorded::of).collect();
        if recorded.is_ok() {
            running.processes.iter_mut().for_each(|process| *process = None);
        }
        recorded
    }

    fn end_all(&self, end: fn(Process) -> Result<(), Error>) -> Result<(), Error> {
        let taken: Vec<Process> = self.lock().processes.iter_mut().filter_map(Option::take).collect();
        at_once(taken, end)?;
        self.lock().watch_again()
    }

    fn take(&self, index: usize) -> Result<Process, Error> {
        let taken = self.lock().processes.get_mut(index).and_then(Option::take);
        taken.ok_or_else(|| not_running(index))
    }

    fn change(&self, index: usize, act: impl Fn(&mut Process) -> Result<(), Error>) -> Result<(), Error> {
        let mut running = self.lock();
        act(running.process(index).ok_or_else(|| not_running(index))?)?;
        running.watch_again()
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.throw_away() {
            eprintln!("rig: {error}");
        }
    }
}

impl Running {
    /// While it runs.
    fn process(&mut self, index: usize) -> Option<&mut Process> {
        let process = self.processes.get_mut(index)?.as_mut()?;
        process.is_running().then_some(process)
    }

    fn watch_again(&mut self) -> Result<(), Error> {
        let pids: Vec<u32> = self.processes.iter().flatten().flat_map(Process::pids).collect();
        self.watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.watch(pids.into_iter()))
    }
}

/// Does the same for several at once; the first error, when all have ended.
pub(crate) fn at_once<T: Send>(
    items: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || act(item))).collect();
        let panicked = || Err(Error::new("a thread panicked"));
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked()));
        ended.fold(Ok(()), Result::and)
    })
}

fn not_running(index: usize) -> Error {
    Error::new(format!("node {index} is not running"))
}

/// Ends processes when this one ends in whatever way, also by SIGKILL, where no destructor runs: a shell that
/// holds the other end of a pipe. The last line that it read is what it kills.
#[derive(Debug)]
struct Watchdog(Child);

impl Watchdog {
    fn start() -> Result<Self, Error> {
        let script = "pids=; while read -r line; do pids=$line; done; [ -z \"$pids\" ] || kill -9 $pids";
        Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
            .map_err(|error| Error::new(format!("cannot start a shell: {error}")))
    }

    /// From now on these, and no others.
    fn watch(&mut self, pids: impl Iterator<Item = u32>) -> Result<(), Error> {
        let line: Vec<String> = pids.map(|pid| pid.to_string()).collect();
        let Some(pipe) = self.0.stdin.as_mut() else { return Ok(()) };
        io::Write::write_all(pipe, format!("{}\n", line.join(" ")).as_bytes())
            .map_err(|error| Error::new(format!("the watchdog is gone: {error}")))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("rig: the watchdog cannot be waited for: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::tests::sleeper;
    use crate::process::wait_until;

    #[test]
    fn the_watchdog_ends_what_it_watches_last() {
        let log = std::env::temp_dir().join(format!("rig-watchdog-{}", std::process::id()));
        let mut first = Process::start(&sleeper(&log)).unwrap();
        let mut second = Process::start(&sleeper(&log)).unwrap();
        let mut watchdog = Watchdog::start().unwrap();
        watchdog.watch([first.pid(), second.pid()].into_iter()).unwrap();
        watchdog.watch([second.pid()].into_iter()).unwrap();
        drop(watchdog);
        wait_until("the end of the second", Duration::from_secs(10), String::new, || {
            if second.is_running() { Err(String::new()) } else { Ok(()) }
        })
        .unwrap();
        assert!(first.is_running());
        first.kill().unwrap();
        std::fs::remove_file(log).unwrap();
    }
}
