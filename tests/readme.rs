//! The README's own lines and those that `outrigger dev` prints, run as they are written.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::sidecar::{BINARY, Sidecar};
use support::wait_until;

/// Runs `script` as a user's shell would, in `directory`; returns what it printed.
fn shell(script: &str, directory: &Path) -> String {
    let output = Command::new("bash").args(["-euc", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The shell block that follows `marker` in the README.
fn readme_block(marker: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let after = readme.split(marker).nth(1).unwrap_or_else(|| panic!("{marker:?} is not in the README"));
    after.split("```sh\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
}

#[test]
fn the_readme_s_lines_work_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::dev_in(directory, &[]);
    std::os::unix::fs::symlink(sidecar.directory.path(), work.path().join(".outrigger")).unwrap();
    std::fs::create_dir(work.path().join("bin")).unwrap();
    std::os::unix::fs::symlink(BINARY, work.path().join("bin/outrigger")).unwrap();
    let block = readme_block("every line of the next block is run by tests/readme.rs");
    // The README's port may be taken here, and the test's socket is elsewhere: the addresses differ, the lines do not.
    let block = block
        .replace("127.0.0.1:7780", &sidecar.api.to_string())
        .replace(".outrigger/outrigger.sock", &sidecar.socket.display().to_string());
    let lines: Vec<&str> = block.lines().filter(|line| !line.trim().is_empty()).collect();
    let script = lines.iter().map(|line| format!("{line}\necho\n")).collect::<String>();
    let printed = shell(&script, work.path());
    let replies: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(replies.len(), 9, "{printed}");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(replies[0])["allowed"], true);
    assert_eq!(json(replies[0])["results"][0]["remaining"], 19);
    assert_eq!(replies[1], r#"{"score":0.93}"#);
    assert_eq!(json(replies[2])["status"], 404);
    assert_eq!(replies[3], r#"{"score":0.93}"#);
    assert_eq!(json(replies[4])["accepted"], 1);
    assert_eq!(json(replies[5])["data"]["lead"], "lead-42");
    assert_eq!(json(replies[6])["deliveries"][0]["event"]["type"], "lead.scored");
    assert_eq!(json(replies[7])["accepted"], 1);
    assert_eq!(
        (&json(replies[8])["total"], &json(replies[8])["points"][0]["group"]),
        (&"2.75".into(), &"eu".into())
    );
}

#[test]
fn what_dev_prints_works_as_pasted() {
    let work = tempfile::tempdir().unwrap();
    let out = std::fs::File::create(work.path().join("out")).unwrap();
    let mut child = Command::new(BINARY)
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file", "ready.json"])
        .current_dir(work.path())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let printed = || std::fs::read_to_string(work.path().join("out")).unwrap();
    wait_until("what dev prints", Duration::from_secs(20), || printed().contains("--unix-socket"));
    let text = printed();
    let script: String = text
        .lines()
        .filter(|line| line.starts_with("curl ") || line.starts_with("ACME=") || line.starts_with("GLOBEX="))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(script.lines().count(), 12, "{text}");
    let replies = shell(&script, work.path());
    let usage: String =
        script.lines().filter(|line| line.contains("/v1/usage")).map(|line| format!("{line}\n")).collect();
    let token = script.lines().find(|line| line.starts_with("ACME=")).unwrap();
    let again = shell(&format!("{token}\n{usage}"), work.path());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(replies.contains(r#""allowed":true"#), "{replies}");
    assert!(replies.contains("HTTP/1.1 200 OK"), "{replies}");
    // The value twice; the event as it was read and as it was pulled.
    assert_eq!(replies.matches(r#"{"score":0.93}"#).count(), 4, "{replies}");
    assert!(replies.contains(r#""code":"not_found""#), "{replies}");
    assert!(replies.contains(r#"{"accepted":1,"duplicates":0}"#), "{replies}");
    assert!(
        again.contains(r#"{"accepted":0,"duplicates":1}"#) && again.contains(r#""total":"2.75""#),
        "{again}"
    );
}
