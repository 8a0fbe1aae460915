//! A contender's process: started, waited for, stopped.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::generator::Endpoint;
use crate::interrupt;
use crate::scenarios::Transport;

const READY_LIMIT: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_micros(200);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const STOP_POLL: Duration = Duration::from_millis(5);
const LOG_TAIL_BYTES: usize = 4000;

/// What a process writes into its `--ready-file`; Outrigger and the contenders here write the same.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Ready {
    /// The process that serves.
    pub(crate) pid: u32,
    /// TCP address of the API.
    pub(crate) api: SocketAddr,
    /// Unix socket of the API.
    #[serde(default)]
    pub(crate) socket: Option<PathBuf>,
}

impl Ready {
    /// Writes the file in one step, so that nobody reads half of it.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(&fresh, path).with_context(|| path.display().to_string())
    }
}

/// A running server; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    name: String,
    /// Addresses and pid.
    pub(crate) ready: Ready,
    /// From just before exec until the ready file could be read.
    pub(crate) start_to_ready: Duration,
}

impl Server {
    /// Starts `command` with `--socket` and `--ready-file` in `folder` added, and waits until it is ready.
    ///
    /// # Errors
    /// It exited, or was not ready in time; the end of its output is in the message.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let log = folder.join(format!("{name}.log"));
        let ready_file = folder.join(format!("{name}.ready"));
        if ready_file.exists() {
            fs::remove_file(&ready_file)?;
        }
        let output = File::create(&log)?;
        command.arg("--socket").arg(folder.join(format!("{name}.sock")));
        command.arg("--ready-file").arg(&ready_file);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let begin = Instant::now();
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let placeholder = Ready { pid: child.id(), api: SocketAddr::from(([127, 0, 0, 1], 0)), socket: None };
        let mut server =
            Self { child, name: name.to_owned(), ready: placeholder, start_to_ready: Duration::ZERO };
        server.ready = server
            .wait_ready(begin, &ready_file)
            .map_err(|error| anyhow!("{name}: {error:#}; {:?} printed:\n{}", command, tail(&log)))?;
        server.start_to_ready = begin.elapsed();
        Ok(server)
    }

    fn wait_ready(&mut self, begin: Instant, ready_file: &Path) -> Result<Ready> {
        while begin.elapsed() < READY_LIMIT {
            if let Ok(text) = fs::read(ready_file)
                && let Ok(ready) = serde_json::from_slice(&text)
            {
                return Ok(ready);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("exited before it was ready ({status})");
            }
            interrupt::check()?;
            std::thread::sleep(READY_POLL);
        }
        bail!("not ready after {} s", READY_LIMIT.as_secs())
    }

    /// Where it listens for `transport`.
    ///
    /// # Errors
    /// It has no unix socket.
    pub(crate) fn endpoint(&self, transport: Transport) -> Result<Endpoint> {
        match transport {
            Transport::Tcp => Ok(Endpoint::Tcp(self.ready.api)),
            Transport::Unix => {
                let path = self.ready.socket.clone();
                path.map(Endpoint::Unix).with_context(|| format!("{} has no unix socket", self.name))
            }
        }
    }

    /// Asks it to end, waits, and kills it when it does not.
    ///
    /// # Errors
    /// It had to be killed, or ended with a failure.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("{} ended with {status}", self.name);
                }
                return Ok(());
            }
            std::thread::sleep(STOP_POLL);
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not end within {} s of SIGTERM and was killed", self.name, STOP_LIMIT.as_secs())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("loadtest: {error:#}");
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
}
