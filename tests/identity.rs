//! Development tokens, and what the process does where an issuer's keys cannot be had.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use outrigger::app::App;
use outrigger::config::{KeySource, ProxyConfig};
use outrigger::identity::TenantId;
use outrigger::identity::dev::DevIdentity;
use serde_json::Value;
use support::client::Client;
use support::sidecar::{ACME, BINARY};
use support::wait_until;

fn token(arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("token").args(arguments).output().unwrap()
}

fn mint(data: &Path, more: &[&str]) -> String {
    let data = data.to_str().unwrap();
    let output = token(&[&["mint", "--subject", "me", "--data", data], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "only the token is printed: {text}");
    text.trim().to_owned()
}

/// `token inspect --json`: the exit code and the document.
fn inspect(data: &Path, token_text: &str) -> (Option<i32>, Value) {
    let output = token(&["inspect", "--json", "--data", data.to_str().unwrap(), token_text]);
    let document = serde_json::from_slice(&output.stdout);
    (output.status.code(), document.unwrap_or_else(|_| panic!("{output:?}")))
}

#[test]
fn a_minted_token_says_what_was_asked_and_inspect_shows_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let plain = mint(data, &["--tenant", ACME]);
    let (code, document) = inspect(data, &plain);
    assert_eq!(code, Some(0), "{document}");
    let principal = &document["principal"];
    assert_eq!(principal["tenant"], ACME);
    assert_eq!(principal["subject"], "me");
    assert_eq!(principal["issuer"], "dev");
    assert_eq!(principal["scopes"], serde_json::json!(["tenant:admin"]));
    assert_eq!(principal["tier"], "free");

    let rich = ["--tenant", ACME, "--scope", "a b", "--scope", "c", "--role", "r", "--tier", "pro"];
    let principal = inspect(data, &mint(data, &rich)).1["principal"].clone();
    assert_eq!(principal["scopes"], serde_json::json!(["a", "b", "c"]));
    assert_eq!(principal["roles"], serde_json::json!(["r"]));
    assert_eq!(principal["tier"], "pro");

    for service in [&["--service"][..], &[]] {
        assert_eq!(inspect(data, &mint(data, service)).1["principal"]["tenant"], Value::Null);
    }
    // The identity directory itself is as good as the one that holds it.
    let (code, _) = inspect(&data.join("identity"), &mint(&data.join("identity"), &["--ttl", "90s"]));
    assert_eq!(code, Some(0));
}

#[test]
fn inspect_lists_every_check_and_exits_1_where_one_fails() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let good = mint(data, &["--tenant", ACME]);
    let tampered = format!("{}AAAA", &good[..good.len() - 4]);
    let (code, document) = inspect(data, &tampered);
    assert_eq!((code, &document["accepted"]), (Some(1), &Value::Bool(false)));
    let checks = document["checks"].as_array().unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|check| check["passed"] == false).collect();
    assert_eq!(failed.len(), 1, "{document}");
    assert_eq!(failed[0]["name"], "signature");
    for name in ["form", "type", "issuer", "key", "expiry", "audience", "tenant", "tier"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}: {document}");
    }

    // From standard input, with the scheme, as text.
    let mut child = Command::new(BINARY)
        .args(["token", "inspect", "--data", data.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("Bearer {good}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("accepted: issuer dev, subject me"), "{text}");
    assert!(!text.contains("FAILED"), "{text}");
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    for arguments in [
        &["mint", "--data", data][..],
        &["mint", "--subject", "s"],
        &["mint", "--data", data, "--subject", "s", "--tenant", "acme"],
        &["mint", "--data", data, "--subject", "s", "--tenant", ACME, "--service"],
        &["mint", "--data", data, "--subject", "s", "--ttl", "soon"],
        &["inspect", "x"],
        &["inspect", "x", "--data", data, "--config", "proxy.yaml"],
    ] {
        let output = token(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

#[test]
fn processes_that_make_the_key_at_once_end_with_one() {
    let directory = tempfile::tempdir().unwrap();
    let identity = directory.path().join("identity");
    let children: Vec<_> = (0..8)
        .map(|_| {
            Command::new(BINARY)
                .args(["token", "mint", "--tenant", ACME, "--subject", "me", "--data"])
                .arg(directory.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let token = String::from_utf8(output.stdout).unwrap();
        assert_eq!(inspect(directory.path(), token.trim()).0, Some(0), "{token}");
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&identity), 0o700);
    assert_eq!(mode(&identity.join("signing-key.pem")), 0o600);
    let mut names: Vec<_> =
        std::fs::read_dir(&identity).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["jwks.json", "signing-key.pem"], "a temporary file was left");

    // A key that others can read is no secret.
    let key = identity.join("signing-key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = token(&["mint", "--subject", "s", "--data", directory.path().to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"), "{output:?}");
}

#[test]
fn an_identity_that_others_can_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let identity = directory.path().join("identity");
    DevIdentity::open_or_create(&identity).unwrap();
    for place in [identity.clone(), identity.join("jwks.json")] {
        let before = std::fs::metadata(&place).unwrap().permissions();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = DevIdentity::open_or_create(&identity).err().unwrap();
        assert!(error.to_string().contains("can be written by others"), "{error}");
        std::fs::set_permissions(&place, before).unwrap();
    }
    assert!(DevIdentity::open_or_create(&identity).is_ok());
}

/// Answers every request with this key set, on a thread that ends with the process.
fn serve_keys(address: SocketAddr, document: String) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    document.len()
                );
                stream.write_all((head + &document).as_bytes()).unwrap();
            }
        }
    });
}

#[test]
fn without_keys_it_starts_says_so_answers_503_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let identity = DevIdentity::open_or_create(&directory.path().join("identity")).unwrap();
    let keys = std::fs::read_to_string(directory.path().join("identity/jwks.json")).unwrap();
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = free.local_addr().unwrap();
    drop(free);
    let mut config = ProxyConfig::embedded(directory.path(), &policies);
    config.listeners.api.set_port(0);
    config.listeners.admin.set_port(0);
    config.identity.issuers[0].jwks = KeySource::url(format!("http://{issuer}/jwks?key=hidden"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let app = runtime.block_on(App::start(config)).unwrap();

    let token = identity.mint_admin(TenantId::parse(ACME).unwrap(), "me", Duration::from_secs(60)).unwrap();
    let bearer = format!("Bearer {token}");
    let ask = || {
        let mut client = Client::tcp(app.addresses.api);
        client.send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"")
    };
    let reply = ask();
    let document = reply.problem(503, "backend_unavailable");
    assert_eq!(document["retryable"], true);
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    let ready = || Client::tcp(app.addresses.admin).send("GET", "/readyz?verbose", &[], b"");
    wait_until("the failed reading", Duration::from_secs(20), || ready().text().contains("no answer"));
    let text = ready().text();
    assert_eq!(ready().status, 503, "{text}");
    assert!(text.contains("issuer `dev` has no keys") && text.contains(&issuer.to_string()), "{text}");

    let view = Client::tcp(app.addresses.admin).send("GET", "/config", &[], b"").text();
    assert!(view.contains("/jwks?[redacted]") && !view.contains("hidden"), "{view}");

    serve_keys(issuer, keys);
    wait_until("the keys", Duration::from_secs(20), || ask().status != 503);
    ask().problem(404, "not_found");
    assert_eq!(ready().status, 200, "{}", ready().text());
    runtime.block_on(app.stop());
}
