//! `outrigger run`: the command beside the sidecar.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use support::sidecar::BINARY;
use support::wait_until;

#[test]
fn run_starts_the_command_with_the_addresses_and_passes_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    let socket = directory.path().join("o.sock");
    let script = r#"curl -sS -o /dev/null -w '%{http_code}' "$OUTRIGGER_URL/openapi.json"; test -S "$OUTRIGGER_SOCKET"; exit 7"#;
    let output = Command::new(BINARY)
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"])
        .arg(&config)
        .arg("--socket")
        .arg(&socket)
        .args(["--", "bash", "-ec", script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200");
}

#[test]
fn run_passes_signals_to_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    let ready = directory.path().join("command-ready");
    let script = format!(
        "trap 'exit 42' TERM; touch {}; while :; do read -t 0.05 <> <(:) || :; done",
        ready.display()
    );
    let mut child = Command::new(BINARY)
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"])
        .arg(&config)
        .args(["--", "bash", "-c", &script])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the command", Duration::from_secs(20), || ready.exists());
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
}

#[test]
fn the_command_does_not_see_the_secrets_of_the_sidecar() {
    let directory = tempfile::tempdir().unwrap();
    let redis = "redis: {main: {nodes: [\"127.0.0.1:1\"], password: \"${env:REDIS_PASSWORD}\"}}\n";
    let config = support::sidecar::embedded_config(directory.path(), redis);
    let output = Command::new(BINARY)
        .args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"])
        .arg(&config)
        .args(["--", "bash", "-c", r#"echo "${REDIS_PASSWORD-none} $KEPT""#])
        .envs([("REDIS_PASSWORD", "hidden"), ("KEPT", "kept")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "none kept\n", "{output:?}");
}

#[test]
fn control_c_reaches_the_command_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    let [ready, seen, script] = ["ready.json", "seen", "command"].map(|name| directory.path().join(name));
    let text = format!(
        // `wait` ends with each signal; a shell that forks in its loop can miss one on a loaded machine. What it waits
        // for reads a pipe that nobody writes to.
        "mkfifo {pipe}; exec 3<>{pipe}; cat <&3 & \
         trap 'echo interrupt >> {seen}' INT; trap 'echo end >> {seen}; kill $!; exit 0' TERM; \
         echo begin > {seen}; while :; do wait $!; done",
        pipe = directory.path().join("pipe").display(),
        seen = seen.display()
    );
    std::fs::write(&script, text).unwrap();
    let line = format!(
        "exec {BINARY} run --listen 127.0.0.1:0 --admin 127.0.0.1:0 --config {} --ready-file {} -- bash {}",
        config.display(),
        ready.display(),
        script.display()
    );
    // `script` gives it a terminal, and types what comes from its standard input.
    let mut terminal = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&seen).unwrap_or_default();
    wait_until("the command", Duration::from_secs(20), || lines() == "begin\n");
    let pid = std::fs::read(&ready).unwrap();
    let pid = serde_json::from_slice::<serde_json::Value>(&pid).unwrap()["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let mut keys = terminal.stdin.take().unwrap();
    for pressed in 1..=3 {
        keys.write_all(b"\x03").unwrap();
        wait_until("the key to be seen", Duration::from_secs(20), || {
            lines().matches("interrupt").count() >= pressed
        });
    }
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    wait_until("the end", Duration::from_secs(20), || lines().contains("end"));
    assert_eq!(lines(), "begin\ninterrupt\ninterrupt\ninterrupt\nend\n");
    assert_eq!(terminal.wait().unwrap().code(), Some(0));
}
