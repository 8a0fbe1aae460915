//! A schema fuzzer (schemathesis) drives the description in `/openapi.json`: no 5xx, nothing undocumented.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::random::{seed, size};
use support::sidecar::{ACME, Sidecar};

/// What a reply must keep. Left out: checks about links between calls and about authentication, which have tests
/// of their own, and `positive_data_acceptance`: a description cannot say that a limit or a namespace has to exist.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance";

fn schemathesis() -> PathBuf {
    if let Some(path) = std::env::var_os("SCHEMATHESIS") {
        return PathBuf::from(path);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    cache.unwrap().join("outrigger/tools/schemathesis/bin/schemathesis")
}

/// Once with any names, which are mostly unknown, and once with a namespace that there is.
fn fuzz(sidecar: &Sidecar) {
    for pinned in ["", "[parameters]\n\"path.namespace\" = \"profiles\"\n"] {
        std::fs::write(sidecar.directory.path().join("schemathesis.toml"), pinned).unwrap();
        run(sidecar);
    }
}

fn run(sidecar: &Sidecar) {
    let program = schemathesis();
    assert!(program.exists(), "{} is not there: run scripts/setup test", program.display());
    let output = Command::new(program)
        .arg("run")
        .arg(format!("http://{}/openapi.json", sidecar.api))
        .args(["--url", &format!("http://{}", sidecar.api)])
        .args(["--header", &format!("Authorization: {}", sidecar.bearer(ACME))])
        .args([
            "--checks",
            CHECKS,
            "--phases",
            "examples,coverage,fuzzing",
            "--continue-on-failure",
            "--no-color",
        ])
        .args(["--suppress-health-check", "all", "--warnings", "off", "--request-timeout", "20"])
        .args(["--max-examples", &size(25, 1500).to_string(), "--seed", &seed().to_string()])
        .current_dir(sidecar.directory.path())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let cases = printed.lines().find(|line| line.contains("generated")).unwrap_or_default();
    let generated = cases.split_whitespace().next().and_then(|count| count.parse::<u32>().ok());
    assert!(generated.is_some_and(|count| count > 200), "too little was tested: {printed}");
    println!("{cases}");
}

#[test]
fn the_api_is_as_described_embedded() {
    fuzz(&Sidecar::dev());
}

#[test]
fn the_api_is_as_described_on_redis() {
    fuzz(&Sidecar::on_redis(&rig::shared_redis_nodes()));
}
