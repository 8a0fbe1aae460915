//! What every kind of server needs: start a process, wait until it is ready, say why not, end it.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fmt, fs, io, thread};

use rustix::process::Signal;

use crate::family::{Member, children_of, send};
use crate::user::User;

/// How long an ended process may take to be gone. Kafka, told to save its data, takes 7 s.
pub(crate) const END_DEADLINE: Duration = Duration::from_secs(20);

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

/// A program with its arguments, where its output goes, and how it lives and ends.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) log: PathBuf,
    /// None: whoever runs the tests.
    pub(crate) user: Option<User>,
    /// Ends it with what it acknowledged on disk.
    pub(crate) end: Signal,
    /// Ends it when nobody needs its data any more.
    pub(crate) discard: Signal,
    /// In a process group of its own, so that Ctrl-C in the terminal does not reach it.
    pub(crate) outlives_us: bool,
}

/// A child process of ours. Dropping it does not end it: the owner decides.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    end: Signal,
    discard: Signal,
    /// The children that were stopped with it, while it is stopped.
    paused: Option<Vec<Member>>,
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
        if let Some(user) = program.user {
            user.runs(&mut command);
        }
        if program.outlives_us {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|error| {
            failed(&format!("cannot start {} (run scripts/setup test)", program.path), error)
        })?;
        let (name, end, discard) = (program.name.clone(), program.end, program.discard);
        Ok(Self { child, name, end, discard, paused: None })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn discard(&self) -> Signal {
        self.discard
    }

    /// What must be killed where nobody can wait for it: the process itself, since its children notice; and its
    /// children where they are stopped and notice nothing.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        let stopped = self.paused.iter().flatten().map(|child| child.pid);
        std::iter::once(self.pid()).chain(stopped)
    }

    /// False once it has ended; collects its exit status.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// SIGSTOP, for its children too. It first: a stopped process makes no more of them.
    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        self.send(Signal::STOP)?;
        let children = children_of(self.pid());
        children.iter().try_for_each(|child| child.signal(Signal::STOP))?;
        self.paused = Some(children);
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        let children = self.paused.take().unwrap_or_default();
        children.into_iter().try_for_each(|child| child.signal(Signal::CONT))?;
        self.send(Signal::CONT)
    }

    /// Tells it to read its configuration again.
    pub(crate) fn reload(&mut self) -> Result<(), Error> {
        self.send(Signal::HUP)
    }

    /// SIGKILL, for its children too, and waits for its end.
    pub(crate) fn kill(mut self) -> Result<(), Error> {
        if self.is_running() {
            self.pause()?;
        }
        let children = self.paused.take().unwrap_or_default();
        children.into_iter().try_for_each(|child| child.signal(Signal::KILL))?;
        let ended = self.child.kill().and_then(|()| self.child.wait());
        ended.map(|_| ()).map_err(|error| Error::new(format!("{}: cannot kill it: {error}", self.name)))
    }

    /// Lets it save what it holds; SIGKILL when that takes too long.
    pub(crate) fn terminate(self) -> Result<(), Error> {
        self.terminate_within(END_DEADLINE)
    }

    pub(crate) fn terminate_within(self, deadline: Duration) -> Result<(), Error> {
        let signal = self.end;
        self.end_by(signal, deadline)
    }

    /// Ends it without its data.
    pub(crate) fn throw_away(self) -> Result<(), Error> {
        let signal = self.discard;
        self.end_by(signal, END_DEADLINE)
    }

    fn end_by(mut self, signal: Signal, deadline: Duration) -> Result<(), Error> {
        if signal == Signal::KILL || self.is_paused() || self.send(signal).is_err() {
            return self.kill();
        }
        let give_up = Instant::now() + deadline;
        while self.is_running() {
            if Instant::now() > give_up {
                return self.kill();
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }

    fn send(&self, signal: Signal) -> Result<(), Error> {
        send(self.pid(), signal).map_err(|error| Error::new(format!("{}: {error}", self.name)))
    }
}

/// Why something that is waited for is not there.
pub(crate) enum Missing {
    /// It may still come.
    Yet(String),
    /// It is of no use to wait.
    ForGood(String),
}

impl From<String> for Missing {
    fn from(complaint: String) -> Self {
        Self::Yet(complaint)
    }
}

/// Repeats `check` until it succeeds; after `deadline`, or when it can succeed no more, an error with its last
/// complaint and `log()`.
pub(crate) fn wait_until<T, E: Into<Missing>>(
    what: &str,
    deadline: Duration,
    log: impl Fn() -> String,
    mut check: impl FnMut() -> Result<T, E>,
) -> Result<T, Error> {
    let started = Instant::now();
    let failed = |complaint: &str| {
        let waited = started.elapsed().as_secs_f64();
        Error::new(format!("waited {waited:.1} s for {what}: {complaint}\n{}", log()))
    };
    loop {
        match check().map_err(Into::into) {
            Ok(value) => return Ok(value),
            Err(Missing::ForGood(complaint)) => return Err(failed(&complaint)),
            Err(Missing::Yet(complaint)) if started.elapsed() > deadline => return Err(failed(&complaint)),
            Err(Missing::Yet(_)) => pause(Duration::from_millis(20)),
        }
    }
}

/// Runs a program to its end, or kills it at the deadline (a stopped server never answers).
pub(crate) fn run(command: Command, deadline: Duration) -> Result<Output, Error> {
    run_on(Stdio::null(), command, deadline)
}

/// The same, with something to read.
pub(crate) fn run_on(input: Stdio, mut command: Command, deadline: Duration) -> Result<Output, Error> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(input)
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
            send(pid, Signal::KILL)?;
            Err(Error::new(format!("{shown} gave no answer in {deadline:?}")))
        }
    }
}

/// Removes a folder with all that is in it, where it is there.
pub(crate) fn remove_folder(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new(format!("{}: {error}", folder.display()))),
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
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sleeper(log: &Path) -> Program {
        Program {
            name: "sleeper".to_owned(),
            path: "sleep".to_owned(),
            arguments: vec!["60".to_owned()],
            log: log.to_owned(),
            user: None,
            end: Signal::TERM,
            discard: Signal::KILL,
            outlives_us: false,
        }
    }

    #[test]
    fn what_can_never_come_is_not_waited_for_and_the_log_is_told() {
        let started = Instant::now();
        let log = || "last line".to_owned();
        let waited: Result<(), Error> =
            wait_until("it", Duration::from_secs(60), log, || Err(Missing::ForGood("it ended".to_owned())));
        let message = waited.unwrap_err().to_string();
        assert!(message.contains("for it: it ended\nlast line"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(10));
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
