//! An issuer's keys over TLS: from a server whose certificate proves who it is, and from no other.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use support::sidecar::{ACME, BINARY, Sidecar, embedded_config};
use support::wait_until;

/// A server of one document or one redirection. Its thread ends with the test's process.
struct Server {
    address: SocketAddr,
    /// Requests that were read: none where a handshake failed.
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(tls: Option<&rig::Certificate>, answer: String) -> Self {
        let config = tls.map(|certificate| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let chain = CertificateDer::pem_file_iter(&certificate.certificate).unwrap();
            let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
            let builder = ServerConfig::builder_with_provider(provider);
            let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
            Arc::new(builder.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap())
        });
        // Every address of this machine's loopback, of which the certificate names one.
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                // A peer that refuses the certificate ends the handshake.
                drop(match &config {
                    None => serve(stream, &answer, &counted),
                    Some(config) => {
                        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                        serve(StreamOwned::new(connection, stream), &answer, &counted)
                    }
                });
            }
        });
        Self { address, requests }
    }
}

fn serve(mut stream: impl Read + Write, answer: &str, requests: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    requests.fetch_add(1, SeqCst);
    stream.write_all(answer.as_bytes())?;
    stream.flush()
}

fn document(keys: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{keys}", keys.len())
}

struct Setting {
    directory: tempfile::TempDir,
    config: PathBuf,
    certificate: rig::Certificate,
    keys: String,
}

/// A configuration whose issuer's keys are still in a file, and a server's certificate.
fn setting() -> Setting {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "");
    let certificate = rig::Certificate::create(&directory.path().join("tls")).unwrap();
    let keys = std::fs::read_to_string(directory.path().join("identity/jwks.json")).unwrap();
    Setting { directory, config, certificate, keys }
}

impl Setting {
    /// Has the issuer's keys come from here.
    fn keys_from(&self, source: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let (before, after) = text.split_once("jwks: {").unwrap();
        let (_, after) = after.split_once('}').unwrap();
        std::fs::write(&self.config, format!("{before}jwks: {{{source}}}{after}")).unwrap();
    }
}

fn check(config: &Path) -> (Option<i32>, String) {
    let output = Command::new(BINARY).arg("check").arg("--config").arg(config).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn keys_come_over_tls_from_a_server_of_the_named_authority() {
    let setting = setting();
    let server = Server::start(Some(&setting.certificate), document(&setting.keys));
    setting.keys_from(&format!("url: 'https://{}/jwks', ca_file: tls/ca.crt", server.address));
    let (code, text) = check(&setting.config);
    assert!(code == Some(0) && text.contains("identity.dev: up, 1 key"), "{text}");
    let sidecar = Sidecar::serve_in(setting.directory, &setting.config);
    let bearer = sidecar.bearer(ACME);
    wait_until("the keys", Duration::from_secs(20), || {
        sidecar.client().send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"").status == 404
    });
    assert_eq!(server.requests.load(SeqCst), 2, "one of `check`, one of the sidecar");
}

#[test]
fn keys_of_a_server_that_is_not_proved_are_not_taken_and_it_is_said_why() {
    let setting = setting();
    let other = rig::Certificate::create(&setting.directory.path().join("other")).unwrap();
    let server = Server::start(Some(&setting.certificate), document(&setting.keys));
    let port = server.address.port();
    let unsigned = "its certificate is refused: no authority that is trusted here signed it";
    for (source, why) in [
        // No other authority than the named one, and the public ones where none is.
        (format!("url: 'https://127.0.0.1:{port}/jwks', ca_file: {}", other.authority.display()), unsigned),
        (format!("url: 'https://127.0.0.1:{port}/jwks'"), unsigned),
        (
            format!("url: 'https://127.0.0.2:{port}/jwks', ca_file: tls/ca.crt"),
            "its certificate is refused: it is for another host than the URL's",
        ),
    ] {
        setting.keys_from(&source);
        let (code, text) = check(&setting.config);
        assert!(code == Some(1) && text.contains(why) && text.contains("/jwks"), "{text}");
    }
    assert_eq!(server.requests.load(SeqCst), 0);
    // The last of them, in a process that serves.
    let sidecar = Sidecar::serve_in(setting.directory, &setting.config);
    let ready = || sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"");
    wait_until("the refusal", Duration::from_secs(20), || ready().text().contains("is for another host"));
    assert_eq!(ready().status, 503);
    let bearer = sidecar.bearer(ACME);
    let reply = sidecar.client().send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"");
    reply.problem(503, "backend_unavailable");
    assert_eq!(server.requests.load(SeqCst), 0, "no request was sent to whoever it is");
}

#[test]
fn a_redirection_to_plain_http_is_not_followed() {
    let setting = setting();
    let plain = Server::start(None, document(&setting.keys));
    assert!(TcpStream::connect(plain.address).is_ok(), "it is there to be asked");
    let location = format!("http://{}/jwks", plain.address);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n"
    );
    let server = Server::start(Some(&setting.certificate), redirect);
    setting.keys_from(&format!("url: 'https://{}/jwks', ca_file: tls/ca.crt", server.address));
    let (code, text) = check(&setting.config);
    assert!(code == Some(1) && text.contains("answered 302 Found where 200 is needed"), "{text}");
    assert!(text.contains("redirects are not followed"), "{text}");
    assert_eq!((server.requests.load(SeqCst), plain.requests.load(SeqCst)), (1, 0));
}
