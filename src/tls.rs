//! TLS to others: whom to trust, and which provider does the work.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// The public certificate authorities.
#[must_use]
pub fn public_authorities() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// Adds the certificates of a PEM file. The error is text for the operator.
pub fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.len() == before { Err("it holds no certificate".to_owned()) } else { Ok(()) }
}

/// The authorities in the file alone. The error is text for the operator.
pub fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    add_authorities(&mut roots, path)?;
    Ok(roots)
}

/// A client that trusts `roots`, verifies the server's name, and speaks one of `versions`. Its provider is named:
/// where two are compiled in, rustls takes none by itself and panics.
pub fn client(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
