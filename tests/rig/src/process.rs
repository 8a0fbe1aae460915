//! What every kind of server needs: start a process, wait until it is ready, say why not, end it.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fmt, fs, io, thread};

use rustix::process::{Pid, Signal, kill_process};

/// How long an ended process may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Why a server could not be started, reached or changed; the text names the log's last lines where there is a log.
#[derive(Clone)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// `expect` in a test prints Debug: the text with its line breaks is what one wants to see there.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// A program with its arguments, where its output goes, and whether it is to outlive this process.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) log: PathBuf,
    /// In a process group of its own, so that Ctrl-C in the terminal does not reach it.
    pub(crate) outlives_us: bool,
}

/// A child process of ours. Dropping it does not end it: the owner decides.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    paused: bool,
}

impl Process {
    pub(crate) fn start(program: &Program) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| Error::new(format!("{}: {what}: {error}", program.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&program.log)
            .map_err(|error| failed(&format!("cannot open {}", program.log.display()), error))?;
        let log_too = log.try_clone().map_err(|error| failed("cannot share its log", error))?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).stdin(Stdio::null()).stdout(log).stderr(log_too);
        if program.outlives_us {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|error| {
            failed(&format!("cannot start {} (run scripts/setup test)", program.path), error)
        })?;
        Ok(Self { child, name: program.name.clone(), paused: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// False once it has ended; collects its exit status.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        send(self.pid(), Signal::STOP, &self.name)?;
        self.paused = true;
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        send(self.pid(), Signal::CONT, &self.name)?;
        self.paused = false;
        Ok(())
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(mut self) -> Result<(), Error> {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        ended.map(|_| ()).map_err(|error| Error::new(format!("{}: cannot kill it: {error}", self.name)))
    }

    /// SIGTERM, so that it saves what it holds; SIGKILL when it takes too long.
    pub(crate) fn terminate(mut self) -> Result<(), Error> {
        if self.paused || send(self.pid(), Signal::TERM, &self.name).is_err() {
            return self.kill();
        }
        let give_up = Instant::now() + END_DEADLINE;
        while self.is_running() {
            if Instant::now() > give_up {
                return self.kill();
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn send(pid: u32, signal: Signal, name: &str) -> Result<(), Error> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::new(format!("{name}: {pid} is no process id")))
        .and_then(|pid| {
            kill_process(pid, signal).map_err(|error| Error::new(format!("{name}: {signal:?}: {error}")))
        })
}

/// A process that outlives the one that started it, as recorded on disk. The start time makes sure that a
/// process id that was given to something else since is never taken for ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    name: String,
    pid: u32,
    started_ticks: u64,
}

impl Recorded {
    pub(crate) fn of(name: &str, pid: u32) -> Result<Self, Error> {
        match process_stat(pid) {
            Some((_, started_ticks)) => Ok(Self { name: name.to_owned(), pid, started_ticks }),
            None => Err(Error::new(format!("{name}: process {pid} ended right after its start"))),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (name, pid, ticks) = (words.next()?, words.next()?, words.next()?);
        Some(Self { name: name.to_owned(), pid: pid.parse().ok()?, started_ticks: ticks.parse().ok()? })
    }

    pub(crate) fn line(&self) -> String {
        format!("{} {} {}", self.name, self.pid, self.started_ticks)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// A zombie (its parent has not collected it yet) counts as ended, though signalling it would succeed.
    pub(crate) fn is_running(&self) -> bool {
        process_stat(self.pid)
            .is_some_and(|(state, started)| started == self.started_ticks && !matches!(state, 'Z' | 'X'))
    }

    pub(crate) fn kill(&self) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        send(self.pid, Signal::KILL, &self.name)?;
        wait_until(&format!("the end of {}", self.line()), END_DEADLINE, String::new, || {
            if self.is_running() { Err("still running".to_owned()) } else { Ok(()) }
        })
    }
}

/// State letter and start time (clock ticks since boot) of a process: fields 3 and 22 of proc(5).
fn process_stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Ends processes when this one ends in whatever way, also by SIGKILL, where no destructor runs: a shell that
/// holds the other end of a pipe. The last line that it read is what it kills.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    pub(crate) fn start() -> Result<Self, Error> {
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
    pub(crate) fn watch(&mut self, pids: impl Iterator<Item = u32>) -> Result<(), Error> {
        let line: Vec<String> = pids.map(|pid| pid.to_string()).collect();
        let Some(pipe) = self.0.stdin.as_mut() else { return Ok(()) };
        io::Write::write_all(pipe, format!("{}\n", line.join(" ")).as_bytes())
            .map_err(|error| Error::new(format!("the watchdog is gone: {error}")))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

/// Repeats `check` until it succeeds; after `deadline`, an error with its last complaint and `log()`.
pub(crate) fn wait_until<T>(
    what: &str,
    deadline: Duration,
    log: impl Fn() -> String,
    mut check: impl FnMut() -> Result<T, String>,
) -> Result<T, Error> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(complaint) if started.elapsed() > deadline => {
                return Err(Error::new(format!("waited {deadline:?} for {what}: {complaint}\n{}", log())));
            }
            Err(_) => pause(Duration::from_millis(20)),
        }
    }
}

/// Runs a program to its end, or kills it at the deadline (a stopped server never answers).
pub(crate) fn run(mut command: Command, deadline: Duration) -> Result<Output, Error> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::new(format!("cannot start {shown} (run scripts/setup test): {error}")))?;
    let pid = child.id();
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(child.wait_with_output()).ok());
    match receiver.recv_timeout(deadline) {
        Ok(output) => output.map_err(|error| Error::new(format!("{shown}: {error}"))),
        Err(_) => {
            send(pid, Signal::KILL, &shown)?;
            Err(Error::new(format!("{shown} gave no answer in {deadline:?}")))
        }
    }
}

/// The last lines of a log, headed by its path.
pub(crate) fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    format!("--- {} ---\n{}\n", path.display(), tail.join("\n"))
}

#[expect(clippy::disallowed_methods, reason = "the rig is synchronous: no executor to starve")]
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(log: &Path) -> Program {
        Program {
            name: "sleeper".to_owned(),
            path: "sleep".to_owned(),
            arguments: vec!["60".to_owned()],
            log: log.to_owned(),
            outlives_us: false,
        }
    }

    #[test]
    fn a_recorded_process_is_told_from_a_zombie_and_from_a_reused_id() {
        let log = std::env::temp_dir().join(format!("rig-process-{}", std::process::id()));
        let mut process = Process::start(&sleeper(&log)).unwrap();
        let recorded = Recorded::of("sleeper", process.pid()).unwrap();
        assert!(recorded.is_running());
        assert_eq!(Recorded::parse(&recorded.line()), Some(recorded.clone()));
        let reused = Recorded { started_ticks: recorded.started_ticks + 1, ..recorded.clone() };
        assert!(!reused.is_running());
        reused.kill().unwrap();
        assert!(process.is_running(), "a process that is not ours must not be killed");
        recorded.kill().unwrap();
        assert!(!recorded.is_running(), "the uncollected child is a zombie, and counts as ended");
        assert!(!process.is_running());
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn the_watchdog_ends_what_it_watches_last() {
        let log = std::env::temp_dir().join(format!("rig-watchdog-{}", std::process::id()));
        let mut first = Process::start(&sleeper(&log)).unwrap();
        let mut second = Process::start(&sleeper(&log)).unwrap();
        let mut watchdog = Watchdog::start().unwrap();
        watchdog.watch([first.pid(), second.pid()].into_iter()).unwrap();
        watchdog.watch([second.pid()].into_iter()).unwrap();
        drop(watchdog);
        wait_until("the end of the second", END_DEADLINE, String::new, || {
            if second.is_running() { Err(String::new()) } else { Ok(()) }
        })
        .unwrap();
        assert!(first.is_running());
        first.kill().unwrap();
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn a_program_that_never_ends_is_killed_at_the_deadline() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let started = Instant::now();
        assert!(run(command, Duration::from_millis(100)).is_err());
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
