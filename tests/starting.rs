//! Starting: what is opened, to whom, and what is refused.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use support::sidecar::{BINARY, Sidecar};

#[test]
fn the_socket_and_its_directory_are_closed_to_others() {
    let sidecar = Sidecar::dev();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sidecar.socket), 0o660);
    assert_eq!(mode(sidecar.socket.parent().unwrap()), 0o750);
}

#[test]
fn what_tenants_keep_is_closed_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let fresh = Sidecar::dev_in_subdirectory(directory, "data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o750);
    for name in ["cache.db", "cache.db-wal", "cache.db-shm", "cache.lock"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    let directory = fresh.kill();
    std::fs::set_permissions(data.join("cache.db"), std::fs::Permissions::from_mode(0o664)).unwrap();
    let again = Sidecar::dev_in_subdirectory(directory, "data");
    assert_eq!(mode(&data.join("cache.db")), 0o660);
    drop(again);
}

#[test]
fn a_flag_opens_nothing_that_the_configuration_may_not_open() {
    let directory = tempfile::tempdir().unwrap();
    let config = support::sidecar::embedded_config(directory.path(), "");
    for (flag, address) in [("--admin", "0.0.0.0:0"), ("--admin", "[::]:0"), ("--listen", "0.0.0.0:0")] {
        for command in [["serve", "--config"], ["dev", "--data"]] {
            let path = if command[0] == "serve" { config.clone() } else { directory.path().join("d") };
            let output = Command::new(BINARY).args(command).arg(path).args([flag, address]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command:?} {flag} {address}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(flag), "{output:?}");
        }
    }
}

#[test]
fn a_taken_port_is_exit_code_3_and_says_which() {
    let sidecar = Sidecar::dev();
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .args(["dev", "--admin", "127.0.0.1:0", "--listen", &sidecar.api.to_string(), "--data"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&sidecar.api.to_string()), "{text}");
}

#[test]
fn no_file_that_is_not_its_own_is_removed_or_written() {
    let directory = tempfile::tempdir().unwrap();
    let precious = directory.path().join("precious");
    std::fs::write(&precious, "kept").unwrap();
    for socket in ["precious", "link"] {
        let path = directory.path().join(socket);
        if socket == "link" {
            std::os::unix::fs::symlink(&precious, &path).unwrap();
        }
        let output = Command::new(BINARY)
            .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(directory.path().join("data"))
            .arg("--socket")
            .arg(&path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{socket}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no socket"), "{output:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept", "{socket}");
    }
    // The ready file's neighbour: a name that could be foreseen once.
    std::os::unix::fs::symlink(&precious, directory.path().join("ready.partial")).unwrap();
    let sidecar = Sidecar::dev_in(directory, &[]);
    assert_eq!(std::fs::read_to_string(sidecar.directory.path().join("precious")).unwrap(), "kept");
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_one_that_is_served_is_not() {
    let directory = Sidecar::dev().kill();
    assert!(directory.path().join("s/outrigger.sock").exists());
    let sidecar = Sidecar::dev_in(directory, &[]);
    let output = Command::new(BINARY)
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--socket"])
        .arg(&sidecar.socket)
        .arg("--data")
        .arg(sidecar.directory.path().join("other"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process"), "{output:?}");
    assert_eq!(sidecar.socket_client().send("GET", "/openapi.json", &[], b"").status, 200);
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let sidecar = Sidecar::dev();
    let output = Command::new(BINARY)
        .args(["dev", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--data"])
        .arg(sidecar.directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
