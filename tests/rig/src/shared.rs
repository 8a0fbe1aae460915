//! The servers that the tests share: `make servers` starts them all and leaves them running; a test that asks for a
//! kind which is not up starts that kind, and leaves it running too.
//!
//! They are children of a process that is gone, so nothing collects them: what is theirs is written down in
//! `.rig/servers` (name, process id, start time, signal), and `down` ends exactly what is written there. Their
//! addresses are in `.rig/env`, as shell lines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::fleet::at_once;
use crate::process::Error;
use crate::recorded::Recorded;
use crate::{kafka_shared, postgres_shared, redis_shared};

const FOLDER: &str = ".rig";
const ENV: &str = "env";
const SERVERS: &str = "servers";

/// One kind of shared servers.
pub(crate) struct Kind {
    /// What its servers' names begin with.
    pub(crate) name: &'static str,
    /// Starts them, with data in `.rig/` and without what was there; they outlive this process.
    pub(crate) start: fn(&Path) -> Result<Vec<Recorded>, Error>,
    /// Its lines of `.rig/env`.
    pub(crate) env_lines: fn() -> Result<Vec<String>, Error>,
    /// Whether they are well.
    pub(crate) check: fn() -> Result<(), Error>,
}

const KINDS: [&Kind; 3] = [&redis_shared::KIND, &postgres_shared::KIND, &kafka_shared::KIND];

/// Starts the shared servers of these kinds (none named: all) at once, or finds that they are up and well. Where they
/// are started, their earlier data goes. Returns what to tell the user.
pub fn up(names: &[&str]) -> Result<String, Error> {
    let folder = folder()?;
    let told = Mutex::new(Vec::new());
    at_once(kinds(names)?, |kind| {
        let line = up_kind(kind, &folder)?;
        told.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        Ok(())
    })?;
    let told = told.into_inner().unwrap_or_else(PoisonError::into_inner).join("\n");
    let env = fs::read_to_string(folder.join(ENV)).unwrap_or_default();
    Ok(format!("{told}\nuntil `make servers-down` (logs under {FOLDER}/):\n{env}"))
}

/// Ends exactly the servers of these kinds (none named: all) that were started so; data and logs stay.
pub fn down(names: &[&str]) -> Result<String, Error> {
    let folder = folder()?;
    let ended = Mutex::new(0);
    at_once(kinds(names)?, |kind| {
        let _lock = lock(&folder, kind.name)?;
        let count = end(kind, &folder)?;
        *ended.lock().unwrap_or_else(PoisonError::into_inner) += count;
        Ok(())
    })?;
    Ok(format!("ended {} servers", ended.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// What is up: a line per server with its process id, and whether it runs.
pub fn status() -> Result<String, Error> {
    let recorded = recorded(&folder()?);
    if recorded.is_empty() {
        return Ok("nothing is up".to_owned());
    }
    let line = |server: &Recorded| {
        let state = if server.is_running() { "running" } else { "gone" };
        format!("{} pid {} {state}", server.name(), server.pid())
    };
    Ok(recorded.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn kinds(names: &[&str]) -> Result<Vec<&'static Kind>, Error> {
    let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(Error::new(format!("{unknown}: there are {}", known.join(", "))));
    }
    Ok(KINDS.into_iter().filter(|kind| names.is_empty() || names.contains(&kind.name)).collect())
}

/// For a test: starts this kind unless its servers run. Whether they are well the test finds out by itself.
///
/// # Panics
/// When they cannot be started: a missing server fails a test, it skips none.
pub(crate) fn require(kind: &Kind) {
    let started = folder()
        .and_then(|folder| if runs(kind, &folder)? { Ok(()) } else { up_kind(kind, &folder).map(drop) });
    if let Err(error) = started {
        panic!("no {} for this test: {error}", kind.name);
    }
}

fn up_kind(kind: &Kind, folder: &Path) -> Result<String, Error> {
    let _lock = lock(folder, kind.name)?;
    let began = Instant::now();
    if !recorded_of(kind, folder).is_empty() {
        let complaint = if runs(kind, folder)? {
            (kind.check)().err()
        } else {
            Some(Error::new("not all run, or not as is wanted now"))
        };
        match complaint {
            None => return Ok(format!("{} is already up", kind.name)),
            Some(why) => eprintln!("rig: {} is not well ({why}): starting it again", kind.name),
        }
        end(kind, folder)?;
    }
    let servers = (kind.start)(folder)?;
    record(kind, folder, &servers, &(kind.env_lines)()?)?;
    Ok(format!("{} is up after {:.1} s", kind.name, began.elapsed().as_secs_f64()))
}

fn runs(kind: &Kind, folder: &Path) -> Result<bool, Error> {
    let recorded = recorded_of(kind, folder);
    let env = fs::read_to_string(folder.join(ENV)).unwrap_or_default();
    let is_in_env = |wanted: &String| env.lines().any(|line| line == wanted);
    Ok(!recorded.is_empty()
        && recorded.iter().all(Recorded::is_running)
        && (kind.env_lines)()?.iter().all(is_in_env))
}

fn end(kind: &Kind, folder: &Path) -> Result<usize, Error> {
    let servers = recorded_of(kind, folder);
    let running = servers.iter().filter(|server| server.is_running()).count();
    // The addresses go first: from here on they may be dead, and a test must not find them.
    record(kind, folder, &servers, &[])?;
    at_once(servers, |server| server.end())?;
    record(kind, folder, &[], &[])?;
    Ok(running)
}

/// Writes down this kind's servers and addresses instead of those that it had.
fn record(kind: &Kind, folder: &Path, servers: &[Recorded], env: &[String]) -> Result<(), Error> {
    let _lock = lock(folder, "all")?;
    let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let own: Vec<String> = (kind.env_lines)()?.iter().map(|line| name(line)).collect();
    let found = fs::read_to_string(folder.join(ENV)).unwrap_or_default();
    let others = found.lines().filter(|line| !own.contains(&name(line))).map(str::to_owned);
    write(&folder.join(ENV), others.chain(env.iter().cloned()))?;
    let found = recorded(folder);
    let others = found.iter().filter(|server| server.kind() != kind.name);
    write(&folder.join(SERVERS), others.chain(servers).map(Recorded::line))
}

fn recorded_of(kind: &Kind, folder: &Path) -> Vec<Recorded> {
    recorded(folder).into_iter().filter(|server| server.kind() == kind.name).collect()
}

fn recorded(folder: &Path) -> Vec<Recorded> {
    let text = fs::read_to_string(folder.join(SERVERS)).unwrap_or_default();
    text.lines().filter_map(Recorded::parse).collect()
}

/// Two at once take turns: for a kind while it starts or ends, for all while what is up is written down.
fn lock(folder: &Path, name: &str) -> Result<File, Error> {
    let path = folder.join(format!("lock-{name}"));
    let file = File::create(&path).map_err(|error| failed(&path, &error))?;
    file.lock().map_err(|error| failed(&path, &error))?;
    Ok(file)
}

/// What the environment says, else the line of `.rig/env`, searched upward from the crate under test.
pub(crate) fn address(name: &str) -> Option<String> {
    let from_file = || env_lines().into_iter().find(|(found, _)| found == name).map(|(_, value)| value);
    from_environment(name).or_else(from_file)
}

pub(crate) fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The lines of `.rig/env`, searched upward from the crate under test; empty where there is none.
pub fn env_lines() -> Vec<(String, String)> {
    let text = start_folder().and_then(|folder| {
        folder.ancestors().find_map(|folder| fs::read_to_string(folder.join(FOLDER).join(ENV)).ok())
    });
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.unwrap_or_default().lines().filter_map(pair).collect()
}

/// The repository's root: the nearest folder upward with a `Cargo.lock`.
pub fn workspace_root() -> Result<PathBuf, Error> {
    let start = start_folder().ok_or_else(|| Error::new("there is no current folder"))?;
    let root = start.ancestors().find(|folder| folder.join("Cargo.lock").exists()).map(Path::to_owned);
    root.ok_or_else(|| Error::new(format!("no Cargo.lock in {} or above it", start.display())))
}

fn folder() -> Result<PathBuf, Error> {
    let folder = workspace_root()?.join(FOLDER);
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    Ok(folder)
}

/// Cargo and nextest set the variable for what they run.
fn start_folder() -> Option<PathBuf> {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).or_else(|| std::env::current_dir().ok())
}

/// Readers find the old file or the new one; no lines, no file.
fn write(path: &Path, lines: impl Iterator<Item = String>) -> Result<(), Error> {
    let text: String = lines.map(|line| line + "\n").collect();
    let new = path.with_extension("new");
    let written = if text.is_empty() {
        fs::remove_file(path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
    } else {
        fs::write(&new, text).and_then(|()| fs::rename(&new, path))
    };
    written.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("{}: {error}", path.display()))
}
