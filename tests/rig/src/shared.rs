//! The servers that `make servers` leaves running, and how the tests find them.
//!
//! They are children of a process that is gone, so nothing collects them: what is theirs is written down in
//! `.rig/servers` (name, process id, start time), and `down` ends exactly what is written there. Their addresses
//! are in `.rig/env`, as shell lines.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use crate::process::Error;
use crate::recorded::Recorded;
use crate::redis_shared;

const FOLDER: &str = ".rig";
const ENV: &str = "env";
const SERVERS: &str = "servers";

/// Starts every shared server, or finds that they are up and well. Their earlier data goes. Returns what to tell
/// the user.
pub fn up() -> Result<String, Error> {
    let folder = workspace_root()?.join(FOLDER);
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    let _lock = lock(&folder)?;
    let wanted = redis_shared::env_lines()?;
    let recorded = recorded(&folder);
    if !recorded.is_empty() {
        let found = fs::read_to_string(folder.join(ENV)).unwrap_or_default();
        let is_running = recorded.iter().all(Recorded::is_running) && found.lines().eq(&wanted);
        let complaint = if is_running { redis_shared::check().err() } else { None };
        if is_running && complaint.is_none() {
            return Ok(format!("already up:\n{}", wanted.join("\n")));
        }
        let why = complaint.map_or_else(|| "not all of them run".to_owned(), |error| error.to_string());
        eprintln!("rig: the servers that were up are not well ({}): starting them again", why.trim());
        end_all(&folder)?;
    }
    let servers = redis_shared::start(&folder)?;
    let lines: String = servers.iter().map(|server| server.line() + "\n").collect();
    write(&folder.join(SERVERS), &lines)?;
    write(&folder.join(ENV), &(wanted.join("\n") + "\n"))?;
    Ok(format!("up, until `make servers-down` (logs under {FOLDER}/):\n{}", wanted.join("\n")))
}

/// Ends exactly the servers that [`up`] started; data and logs stay.
pub fn down() -> Result<String, Error> {
    let folder = workspace_root()?.join(FOLDER);
    if !folder.exists() {
        return Ok("nothing was up".to_owned());
    }
    let _lock = lock(&folder)?;
    let count = end_all(&folder)?;
    Ok(format!("ended {count} servers"))
}

/// What is up: a line per server with its process id, and whether it runs.
pub fn status() -> Result<String, Error> {
    let recorded = recorded(&workspace_root()?.join(FOLDER));
    if recorded.is_empty() {
        return Ok("nothing is up".to_owned());
    }
    let line = |server: &Recorded| {
        let state = if server.is_running() { "running" } else { "gone" };
        format!("{} pid {} {state}", server.name(), server.pid())
    };
    Ok(recorded.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn end_all(folder: &Path) -> Result<usize, Error> {
    // The addresses go first: from here on they may be dead, and a test must not find them.
    remove(&folder.join(ENV))?;
    let recorded = recorded(folder);
    let running = recorded.iter().filter(|server| server.is_running()).count();
    recorded.iter().try_for_each(Recorded::end)?;
    remove(&folder.join(SERVERS))?;
    Ok(running)
}

fn recorded(folder: &Path) -> Vec<Recorded> {
    let text = fs::read_to_string(folder.join(SERVERS)).unwrap_or_default();
    text.lines().filter_map(Recorded::parse).collect()
}

/// Two of `make servers` at once take turns.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|error| failed(&path, &error))?;
    file.lock().map_err(|error| failed(&path, &error))?;
    Ok(file)
}

/// The lines of `.rig/env`, searched upward from the crate under test; empty where there is none.
pub fn env_lines() -> Vec<(String, String)> {
    let text = start_folder().and_then(|folder| {
        folder.ancestors().find_map(|folder| fs::read_to_string(folder.join(FOLDER).join(ENV)).ok())
    });
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.unwrap_or_default().lines().filter_map(pair).collect()
}

/// The addresses of the shared Redis Cluster: `REDIS_NODES` from the environment, else from `.rig/env`.
///
/// # Panics
/// When there is none, or none of them accepts a connection: a missing server fails a test, it skips none.
pub fn shared_redis_nodes() -> Vec<String> {
    let name = "REDIS_NODES";
    let from_file = || env_lines().into_iter().find(|(found, _)| found == name).map(|(_, value)| value);
    let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()).or_else(from_file) else {
        panic!("no Redis Cluster for this test: run `make servers` first (or set {name}=127.0.0.1:17001,…)");
    };
    let nodes: Vec<String> = value.split(',').map(|node| node.trim().to_owned()).collect();
    let accepts = nodes.iter().any(|node| TcpStream::connect(node.as_str()).is_ok());
    assert!(accepts, "nothing listens on any of {name}={value}: run `make servers`");
    nodes
}

/// The repository's root: the nearest folder upward with a `Cargo.lock`.
pub fn workspace_root() -> Result<PathBuf, Error> {
    let start = start_folder().ok_or_else(|| Error::new("there is no current folder"))?;
    let root = start.ancestors().find(|folder| folder.join("Cargo.lock").exists()).map(Path::to_owned);
    root.ok_or_else(|| Error::new(format!("no Cargo.lock in {} or above it", start.display())))
}

/// Cargo and nextest set the variable for what they run.
fn start_folder() -> Option<PathBuf> {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).or_else(|| std::env::current_dir().ok())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|error| failed(path, &error))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("{}: {error}", path.display()))
}
