//! `outrigger migrate`, and `check` and `serve` on a database that was or was not migrated.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rig::{TimescaleServer, shared_postgres};
use serde_json::Value;
use support::configuration::GOOD;
use support::postgres::{configuration, timescale_configuration};
use support::sidecar::{BINARY, Sidecar};
use support::wait_until;

fn outrigger(command: &str, config: &Path, more: &[&str]) -> Output {
    Command::new(BINARY).args([command, "--config"]).arg(config).args(more).output().unwrap()
}

#[test]
fn a_database_is_migrated_once_and_the_sidecar_that_waited_for_it_becomes_ready() {
    let database = shared_postgres().database().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let text = configuration(directory.path(), database.name());
    let config = directory.path().join("proxy.yaml");
    std::fs::write(&config, text).unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("access.yaml"), "kind: access\n").unwrap();
    let mint = ["token", "mint", "--subject", "s", "--tenant", support::sidecar::ACME, "--data"];
    let minted = Command::new(BINARY).args(mint).arg(directory.path()).output().unwrap();
    assert!(minted.status.success(), "{minted:?}");

    let sidecar = Sidecar::serve_in(directory, &config);
    let ready = || sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"");
    wait_until("the board says what to do", Duration::from_secs(10), || {
        let reply = ready();
        reply.status == 503 && String::from_utf8_lossy(&reply.body).contains("run `outrigger migrate")
    });
    let checked = outrigger("check", &config, &["--json"]);
    let problems: Vec<Value> = serde_json::from_slice(&checked.stdout).unwrap();
    assert!(problems[0]["message"].as_str().unwrap().contains("outrigger migrate"), "{problems:?}");
    assert_eq!(problems[0]["pointer"], "/postgres");

    let planned = outrigger("migrate", &config, &["--dry-run"]);
    assert!(String::from_utf8_lossy(&planned.stdout).contains("would apply 1 store"), "{planned:?}");
    let migrated = outrigger("migrate", &config, &["--json"]);
    let result: Value = serde_json::from_slice(&migrated.stdout).unwrap();
    assert!(migrated.status.success() && result["from"] == 0, "{migrated:?}");
    let again = outrigger("migrate", &config, &[]);
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("up to date"), "{again:?}");

    wait_until("ready", Duration::from_secs(10), || ready().status == 200);
    let checked = outrigger("check", &config, &[]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("postgres: up, PostgreSQL 15"), "{checked:?}");
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
}

#[test]
fn migrate_says_what_keeps_it_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("proxy.yaml");
    let text = configuration(directory.path(), "no_such_database");
    for (text, words) in [
        (GOOD.to_owned(), "nothing to migrate"),
        (text.clone(), "database \"no_such_database\" does not exist"),
        (text.replace("  owner:", "  # owner:"), "`postgres.owner` is missing"),
        (text.replace("  database:", "  databse:"), "did you mean `database`?"),
    ] {
        std::fs::write(&config, text).unwrap();
        let refused = outrigger("migrate", &config, &[]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn migrate_says_that_timescaledb_keeps_raw_usage() {
    let (server, directory) = (TimescaleServer::start().unwrap(), tempfile::tempdir().unwrap());
    let config = directory.path().join("proxy.yaml");
    std::fs::write(&config, timescale_configuration(directory.path(), &server)).unwrap();
    for words in ["applied 3 usage", "up to date"] {
        let migrated = outrigger("migrate", &config, &[]);
        let said = String::from_utf8_lossy(&migrated.stdout).into_owned();
        assert!(said.contains(words) && said.contains("keeps raw usage"), "{migrated:?}");
    }
    let migrated = outrigger("migrate", &config, &["--json"]);
    let result: Value = serde_json::from_slice(&migrated.stdout).unwrap();
    assert_eq!(result["timescale"]["used"], true, "{result}");
    let checked = outrigger("check", &config, &[]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("postgres: up, PostgreSQL 17"), "{checked:?}");
}
