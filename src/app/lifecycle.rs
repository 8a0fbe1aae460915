//! From ready to gone: signals, the child of `outrigger run`, and the order in which things stop.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{self, SignalKind};

use super::{Addresses, App};

/// Why a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// SIGTERM, SIGINT, or `POST /drain`.
    Asked,
    /// The child of `outrigger run` ended, with this exit code.
    ChildEnded(u8),
}

/// The command that `outrigger run` runs.
pub struct Child(tokio::process::Child);

impl Child {
    /// Starts `command` with the sidecar's addresses in its environment, and without the variables in `hidden`.
    pub fn start(command: &[OsString], addresses: &Addresses, hidden: &[String]) -> io::Result<Self> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "give a command after `--`"));
        };
        let mut child = Command::new(program);
        for name in hidden {
            child.env_remove(name);
        }
        child.args(arguments).env("OUTRIGGER_URL", addresses.url()).kill_on_drop(true);
        if let Some(socket) = &addresses.socket {
            child.env("OUTRIGGER_SOCKET", std::path::absolute(socket)?);
        }
        child.spawn().map(Self)
    }

    fn signal(&self, signal: Signal) {
        if matches!(signal, Signal::INT | Signal::QUIT) && in_front_of_terminal() {
            return;
        }
        let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else {
            return;
        };
        if let Err(error) = kill_process(pid, signal) {
            tracing::warn!(%error, "a signal could not be passed on");
        }
    }
}

/// Whether a terminal sends what its keys mean (SIGINT, SIGQUIT) to this process's group, so that the child has it
/// already. The child stays in the group: in one of its own it could not read from the terminal.
fn in_front_of_terminal() -> bool {
    let front =
        std::fs::File::open("/dev/tty").and_then(|terminal| Ok(rustix::termios::tcgetpgrp(terminal)?));
    front.is_ok_and(|group| group == getpgrp())
}

/// The exit code a shell would report: the code itself, or 128 and the signal.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// The signals that this process answers to, caught from the moment this is made.
///
/// Made before anything else starts: whoever reads the ready file may send SIGTERM at once, and a signal that
/// nothing catches yet ends the process without a drain.
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
    quit: unix::Signal,
    user_1: unix::Signal,
    user_2: unix::Signal,
    /// How often somebody asked this process to stop by a signal.
    stops: u32,
}

impl Signals {
    /// Catches them from now on; needs the runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
            hang_up: unix::signal(SignalKind::hangup())?,
            quit: unix::signal(SignalKind::quit())?,
            user_1: unix::signal(SignalKind::user_defined1())?,
            user_2: unix::signal(SignalKind::user_defined2())?,
            stops: 0,
        })
    }

    async fn next(&mut self) -> Event {
        let event = tokio::select! {
            _ = self.terminate.recv() => Event::Stop(Signal::TERM),
            _ = self.interrupt.recv() => Event::Stop(Signal::INT),
            _ = self.hang_up.recv() => Event::Reload,
            _ = self.quit.recv() => Event::Stop(Signal::QUIT),
            _ = self.user_1.recv() => Event::Pass(Signal::USR1),
            _ = self.user_2.recv() => Event::Pass(Signal::USR2),
        };
        if matches!(event, Event::Stop(_)) {
            self.stops = self.stops.saturating_add(1);
        }
        event
    }

    /// Ends with the second signal to stop. The first one only confirms a drain that `POST /drain` or the child's end
    /// began: a Kubernetes `preStop` hook that drains is followed by SIGTERM.
    async fn second_stop(&mut self) {
        while !matches!(self.next().await, Event::Stop(_)) || self.stops < 2 {}
    }
}

/// What to do about a signal.
enum Event {
    Stop(Signal),
    Reload,
    Pass(Signal),
    Drain,
    ChildEnded(u8),
}

impl App {
    /// Serves until a signal, `POST /drain` or the child's end. SIGHUP reloads policies. With a child,
    /// every signal is passed on to it that it has not had from the terminal, and SIGTERM ends this process only when the child has ended.
    pub async fn until_stopped(&self, signals: &mut Signals, mut child: Option<Child>) -> io::Result<Reason> {
        loop {
            let event = tokio::select! {
                event = signals.next() => event,
                () = self.admin.drain.cancelled(), if child.is_none() => Event::Drain,
                status = wait(&mut child) => Event::ChildEnded(exit_code(status?)),
            };
            match (event, &child) {
                (Event::Stop(signal) | Event::Pass(signal), Some(child)) => child.signal(signal),
                (Event::Stop(_) | Event::Drain, None) => return Ok(Reason::Asked),
                (Event::Drain, Some(_)) | (Event::Pass(_), None) => {}
                (Event::Reload, child) => {
                    self.reloader.reload();
                    if let Some(child) = child {
                        child.signal(Signal::HUP);
                    }
                }
                (Event::ChildEnded(code), _) => return Ok(Reason::ChildEnded(code)),
            }
        }
    }

    /// [`App::stop`], cut short by a second signal to stop: what is in flight is not waited for any more, and the
    /// database is closed all the same. `true` where that happened.
    pub async fn stop_or_cut(self, signals: &mut Signals) -> bool {
        self.stop_before(signals.second_stop()).await
    }

    /// Stops in order: no new connections, what is in flight to its end or to `limits.drain_timeout_ms`, background
    /// state saved, the database closed.
    pub async fn stop(self) {
        self.stop_before(std::future::pending()).await;
    }

    async fn stop_before(self, cut: impl Future<Output = ()>) -> bool {
        tracing::info!("draining");
        self.admin.drain.cancel();
        let all_ended = tokio::select! {
            biased;
            all_ended = self.tasks.stop(self.drain_bound) => Some(all_ended),
            () = cut => None,
        };
        let requests_cut = self.api.unfinished();
        match all_ended {
            Some(true) => {}
            Some(false) => {
                let drain_timeout_ms = u64::try_from(self.drain_bound.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    requests_cut,
                    drain_timeout_ms,
                    "the drain reached its bound: what was still running was cut"
                );
            }
            None => tracing::warn!(requests_cut, "a second signal: what was still running was cut"),
        }
        for database in self.databases {
            database.close().await;
        }
        tracing::info!("stopped");
        all_ended.is_none()
    }
}

async fn wait(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.0.wait().await,
        None => std::future::pending().await,
    }
}
