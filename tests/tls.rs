//! TLS on the API's listener: 1.3 alone, HTTP/1.1 and h2 by ALPN, and a bound on slow handshakes.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use support::sidecar::{ACME, Sidecar, embedded_config};

struct TlsSidecar {
    sidecar: Sidecar,
    certificate: rig::Certificate,
}

fn start() -> TlsSidecar {
    let directory = tempfile::tempdir().unwrap();
    let certificate = rig::Certificate::create(&directory.path().join("tls")).unwrap();
    let config = embedded_config(directory.path(), "limits: {header_read_timeout_ms: 300}\n");
    let text = std::fs::read_to_string(&config).unwrap();
    let listeners = "listeners: {api: 127.0.0.1:0, admin: 127.0.0.1:0, \
                     tls: {certificate: tls/server.crt, key: tls/server.key}}";
    let text = text.replacen("listeners: {api: 127.0.0.1:0, admin: 127.0.0.1:0}", listeners, 1);
    std::fs::write(&config, text).unwrap();
    TlsSidecar { sidecar: Sidecar::serve_in(directory, &config), certificate }
}

impl TlsSidecar {
    fn curl(&self, arguments: &[&str]) -> Output {
        Command::new("curl")
            .args(["-sS", "--max-time", "10", "--cacert"])
            .arg(&self.certificate.authority)
            .args(["-H", &format!("Authorization: {}", self.sidecar.bearer(ACME))])
            .args(["-w", "|%{http_code}|%{http_version}"])
            .args(arguments)
            .arg(format!("https://{}/v1/cache/scoring/k", self.sidecar.api))
            .output()
            .unwrap()
    }
}

#[test]
fn calls_over_tls_1_3_are_served_as_http_1_and_2() {
    let server = start();
    for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let output = server.curl(&[protocol]);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.ends_with(&format!("|404|{version}")), "{printed} {output:?}");
        assert!(printed.contains(r#""code":"not_found""#), "{printed}");
    }
}

#[test]
fn tls_1_2_and_plain_http_are_not_served() {
    let server = start();
    let old = server.curl(&["--tls-max", "1.2"]);
    assert!(!old.status.success(), "TLS 1.2 was taken: {old:?}");
    let mut plain = server.sidecar.client();
    plain.write_raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let reply = plain.read_reply(false);
    assert!(reply.is_err(), "plain HTTP was answered: {reply:?}");
}

#[test]
fn a_handshake_that_does_not_come_is_ended() {
    let server = start();
    let began = Instant::now();
    let mut silent = server.sidecar.client();
    assert!(silent.is_closed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
