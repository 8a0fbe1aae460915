//! A certificate authority and a server certificate for loopback, made with the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Error, run};

const OPENSSL_CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = outrigger rig
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
authorityKeyIdentifier = keyid
";

/// Paths of PEM files: the authority that clients trust, and the server's certificate and key, good for
/// `localhost` and 127.0.0.1 during 30 days.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's private key (P-256).
    pub key: PathBuf,
}

impl Certificate {
    /// Makes all three in `folder`.
    pub fn create(folder: &Path) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(failed)?;
        fs::write(folder.join("openssl.cnf"), OPENSSL_CONFIG).map_err(failed)?;
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc";
        let validity = "-days 30";
        for line in [
            format!(
                "req -x509 -config openssl.cnf -extensions authority {key} -keyout ca.key -out ca.crt {validity}"
            ),
            format!(
                "req -new -config openssl.cnf -subj /CN=localhost {key} -keyout server.key -out server.csr"
            ),
            format!(
                "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile openssl.cnf \
                 -extensions server -out server.crt {validity}"
            ),
        ] {
            let mut command = Command::new("openssl");
            command.args(line.split_whitespace()).current_dir(folder);
            let output = run(command, Duration::from_secs(20))?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                return Err(Error::new(format!("openssl {line}: {text}")));
            }
        }
        Ok(Self::of(folder))
    }

    /// Those that are in `folder`.
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            authority: folder.join("ca.crt"),
            certificate: folder.join("server.crt"),
            key: folder.join("server.key"),
        }
    }
}
