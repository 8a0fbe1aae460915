//! Code that must not compile: no principal without a verified token, no permit without a principal.
//!
//! Each file of `tests/compile_fail/` is compiled against the library that was built for these tests, and must
//! fail with the one kind of error that its `//! error:` line names; `control.rs` names none and must compile.
//! (`trybuild` builds every dependency a second time for this: minutes and 900 MB on a fresh machine.)

#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The library beside this test, as cargo built it.
fn library(directory: &Path) -> PathBuf {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("liboutrigger-") && name.ends_with(".rlib")
    };
    let newest = entries.filter(is_library).max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("no liboutrigger-*.rlib in {}", directory.display()))
}

/// The codes of the errors that compiling `source` gives, and the compiler's own text of them.
fn errors(source: &Path, output: &Path) -> (Vec<String>, String) {
    let executable = std::env::current_exe().unwrap();
    let directory = executable.parent().unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=json", "-L"])
        .arg(format!("dependency={}", directory.display()))
        .arg("--extern")
        .arg(format!("outrigger={}", library(directory).display()))
        .arg("--out-dir")
        .arg(output)
        .arg(source)
        .output()
        .unwrap();
    let text = String::from_utf8(compiled.stderr).unwrap();
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let errors: Vec<Value> = messages.filter(|message| message["level"] == "error").collect();
    // The last error only counts the others, and has no code.
    let codes = errors.iter().filter_map(|message| message["code"]["code"].as_str().map(str::to_owned));
    let mut codes: Vec<String> = codes.collect();
    // One mistake may be reported at several places.
    codes.dedup();
    assert_eq!(compiled.status.success(), codes.is_empty(), "{}: {text}", source.display());
    let rendered = errors.iter().filter_map(|message| message["rendered"].as_str());
    (codes, rendered.collect())
}

#[test]
fn a_principal_or_permit_cannot_be_forged_or_changed() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let output = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for entry in std::fs::read_dir(sources).unwrap() {
        let source = entry.unwrap().path();
        let text = std::fs::read_to_string(&source).unwrap();
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("//! error: ")).collect();
        let is_control = source.file_name().unwrap() == "control.rs";
        assert_eq!(expected.len(), usize::from(!is_control), "{}", source.display());
        let (codes, rendered) = errors(&source, output.path());
        assert_eq!(codes, expected, "{}:\n{rendered}", source.display());
        refused += codes.len();
    }
    assert!(refused >= 15, "{refused} files were refused");
}
