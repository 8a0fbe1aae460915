//! The real binary, started with a data directory of its own and stopped when dropped.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Client;
use super::wait_until;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_outrigger");
/// Two tenants.
pub const ACME: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";
pub const GLOBEX: &str = "0190c7a8-3c5e-7f00-8000-0000000000b2";

/// A running sidecar.
pub struct Sidecar {
    pub directory: tempfile::TempDir,
    pub api: SocketAddr,
    pub admin: SocketAddr,
    pub socket: PathBuf,
    child: Option<Child>,
}

impl Sidecar {
    /// `outrigger dev` in a fresh data directory.
    pub fn dev() -> Self {
        Self::dev_in(tempfile::tempdir().unwrap(), &[])
    }

    /// `outrigger dev` in this data directory, with more arguments.
    pub fn dev_in(directory: tempfile::TempDir, more: &[&str]) -> Self {
        let data = directory.path().to_owned();
        let mut arguments = vec![OsStr::new("dev"), OsStr::new("--data"), data.as_os_str()];
        arguments.extend(more.iter().map(OsStr::new));
        Self::start(directory, &arguments, &[])
    }

    /// `outrigger dev` in a data directory inside this one, which it makes itself where it is not there.
    pub fn dev_in_subdirectory(directory: tempfile::TempDir, name: &str) -> Self {
        let data = directory.path().join(name);
        Self::start(directory, &[OsStr::new("dev"), OsStr::new("--data"), data.as_os_str()], &[])
    }

    /// `outrigger dev` with more environment variables.
    pub fn dev_with_environment(directory: tempfile::TempDir, environment: &[(&str, &str)]) -> Self {
        let data = directory.path().to_owned();
        Self::start(directory, &[OsStr::new("dev"), OsStr::new("--data"), data.as_os_str()], environment)
    }

    /// `outrigger serve` with this configuration; `identity/` in the directory mints its tokens.
    pub fn serve_in(directory: tempfile::TempDir, config: &Path) -> Self {
        Self::start(directory, &[OsStr::new("serve"), OsStr::new("--config"), config.as_os_str()], &[])
    }

    fn start(directory: tempfile::TempDir, arguments: &[&OsStr], environment: &[(&str, &str)]) -> Self {
        let ready = directory.path().join("ready.json");
        let socket = directory.path().join("s/outrigger.sock");
        // A killed process leaves its ready file behind.
        if ready.exists() {
            std::fs::remove_file(&ready).unwrap();
        }
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(BINARY)
            .args(arguments)
            .envs(environment.iter().copied())
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut sidecar = Self {
            directory,
            api: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            socket,
            child: Some(child),
        };
        wait_until("the ready file", Duration::from_secs(20), || {
            let ended = sidecar.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "outrigger ended with {ended:?}:\n{}", sidecar.log());
            ready.exists()
        });
        let content: Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
        assert_eq!(content["pid"], sidecar.pid());
        sidecar.api = content["api"].as_str().unwrap().parse().unwrap();
        sidecar.admin = content["admin"].as_str().unwrap().parse().unwrap();
        sidecar
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        Client::tcp(self.api)
    }

    pub fn socket_client(&self) -> Client {
        Client::unix(&self.socket)
    }

    pub fn admin_client(&self) -> Client {
        Client::tcp(self.admin)
    }

    /// A token of `tenant` as `outrigger token mint` prints it.
    pub fn token(&self, tenant: &str) -> String {
        self.token_with(&["--tenant", tenant, "--subject", "test"])
    }

    pub fn token_with(&self, arguments: &[&str]) -> String {
        let output = Command::new(BINARY)
            .args(["token", "mint", "--data"])
            .arg(self.directory.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// `Bearer …` of `tenant`.
    pub fn bearer(&self, tenant: &str) -> String {
        format!("Bearer {}", self.token(tenant))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the end of the process", bound, || {
            status = self.child.as_mut().unwrap().try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// SIGKILL, and the data directory back.
    pub fn kill(mut self) -> tempfile::TempDir {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if child.kill().is_ok() {
            child.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("--- outrigger's log ---\n{}", self.log());
        }
    }
}

/// Writes a configuration with embedded backends into `directory`, with `more` at its end, and returns its path.
pub fn embedded_config(directory: &Path, more: &str) -> PathBuf {
    write_config(directory, "ratelimit: {backend: embedded}\ncache: {backend: embedded}\n", more)
}

/// Writes a configuration with limits and cache on the Redis Cluster of these nodes; `more` goes into its instance.
pub fn redis_config(directory: &Path, nodes: &[String], more: &str) -> PathBuf {
    let nodes = nodes.join(", ");
    let sections = format!(
        "redis:\n  main: {{nodes: [{nodes}]{more}}}\nratelimit: {{backend: redis, redis: main}}\ncache: {{backend: redis, redis: main}}\n"
    );
    write_config(directory, &sections, "")
}

/// Writes a configuration with these sections into `directory`. Tokens come from `directory/identity`.
pub fn write_config(directory: &Path, sections: &str, more: &str) -> PathBuf {
    let minted = Command::new(BINARY)
        .args(["token", "mint", "--tenant", ACME, "--subject", "setup", "--data"])
        .arg(directory)
        .output()
        .unwrap();
    assert!(minted.status.success(), "{}", String::from_utf8_lossy(&minted.stderr));
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let text = format!(
        "listeners: {{api: 127.0.0.1:0, admin: 127.0.0.1:0}}\n\
         identity:\n  issuers:\n    - {{name: dev, issuer: outrigger-dev, audience: outrigger, jwks: {{file: identity/jwks.json}}}}\n\
         data_dir: data\n\
         policies: {}\n{sections}{more}",
        policies.display()
    );
    let path = directory.join("proxy.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Gives a configuration policies of its own: the shipped access, and this document under its file's name.
pub fn with_own_policy(config: &Path, name: &str, document: &str) {
    let text = std::fs::read_to_string(config).unwrap();
    let shipped = text.lines().find(|line| line.starts_with("policies: ")).unwrap();
    let (from, own) = (shipped.strip_prefix("policies: ").unwrap(), config.with_file_name("policies"));
    std::fs::create_dir(&own).unwrap();
    std::fs::copy(Path::new(from).join("access.yaml"), own.join("access.yaml")).unwrap();
    std::fs::write(own.join(name), document).unwrap();
    std::fs::write(config, text.replace(shipped, "policies: policies")).unwrap();
}

impl Sidecar {
    /// `outrigger serve` with limits and cache on the Redis Cluster of these nodes, once it is up.
    pub fn on_redis(nodes: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = redis_config(directory.path(), nodes, "");
        let sidecar = Self::serve_in(directory, &config);
        sidecar.wait_for_backend("redis.main", "up");
        sidecar
    }

    /// The value of a metric without labels; 0 where it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.admin_client().send("GET", "/metrics", &[], b"").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `/readyz?verbose` shows the backend in this state.
    pub fn wait_for_backend(&self, name: &str, state: &str) {
        wait_until(&format!("{name} to be {state}"), Duration::from_secs(20), || {
            let text = self.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(name) && words.next() == Some(state)
            })
        });
    }
}
