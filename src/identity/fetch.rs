//! Reading a key set's document: from a file, or over HTTP with bounds on time and size.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::keys::MAX_DOCUMENT_BYTES;
use crate::config::{KeySource, is_key_url};
use crate::error::cause_of;
use crate::tls;

/// Where OpenSSL, curl and Go look for more certification authorities too.
const CA_FILE_VARIABLE: &str = "SSL_CERT_FILE";

/// A place that a key set's document is read from.
pub(super) enum Source {
    File(PathBuf),
    Url { uri: Uri, client: Box<HttpsClient> },
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Why a source cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error("`{0}` must be an absolute https URL without user information, or http on loopback")]
    Url(String),
    #[error("the certificates that {0} names cannot be read: {1}")]
    Authorities(String, String),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a document could not be read this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("it cannot be read: {0}")]
    File(#[from] std::io::Error),
    #[error("no answer: {0}")]
    Connection(String),
    #[error("its certificate is refused: {0}")]
    Certificate(String),
    #[error("it answered {0} where 200 is needed (redirects are not followed)")]
    Status(StatusCode),
    #[error("its answer broke off or has more than {MAX_DOCUMENT_BYTES} bytes")]
    Body,
    #[error("it did not answer in full within {} ms", .0.as_millis())]
    Timeout(Duration),
}

impl Source {
    pub(super) fn new(source: &KeySource) -> Result<Self, SourceError> {
        match source {
            KeySource::File { file, .. } => Ok(Self::File(file.clone())),
            KeySource::Url { url, ca_file } => {
                let uri = url.parse().ok().filter(|_| is_key_url(url));
                let uri = uri.ok_or_else(|| SourceError::Url(url.clone()))?;
                Ok(Self::Url { uri, client: Box::new(client(ca_file.as_deref())?) })
            }
        }
    }

    /// As messages name it: a query may hold a key, so it is left out.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Url { uri, .. } => format!(
                "{}://{}{}",
                uri.scheme_str().unwrap_or(""),
                uri.authority().map_or("", http::uri::Authority::as_str),
                uri.path()
            ),
        }
    }

    /// The document, bounded in time and size.
    pub(super) async fn read(&self, timeout: Duration) -> Result<Vec<u8>, FetchError> {
        let reading = async {
            match self {
                Self::File(path) => {
                    let path = path.clone();
                    let reading = tokio::task::spawn_blocking(move || read_file(&path));
                    Ok(reading.await.map_err(std::io::Error::other)??)
                }
                Self::Url { uri, client } => get(client, uri.clone()).await,
            }
        };
        tokio::time::timeout(timeout, reading).await.unwrap_or(Err(FetchError::Timeout(timeout)))
    }
}

/// A file's document, at most one byte longer than a key set may be.
pub(super) fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut document = Vec::new();
    std::fs::File::open(path)?.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut document)?;
    Ok(document)
}

async fn get(client: &HttpsClient, uri: Uri) -> Result<Vec<u8>, FetchError> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri;
    let accept = http::HeaderValue::from_static("application/jwk-set+json, application/json");
    request.headers_mut().insert(ACCEPT, accept);
    let response = client.request(request).await.map_err(|error| match refused_certificate(&error) {
        Some(why) => FetchError::Certificate(why),
        None => FetchError::Connection(causes(&error)),
    })?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    match Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) => {
            tracing::debug!(too_long = error.is::<LengthLimitError>(), "a key set's body was not taken");
            Err(FetchError::Body)
        }
    }
}

/// An error and what caused it, since hyper's own text is only `client error (Connect)`.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Why TLS refused the server's certificate, where it did, and what to do.
fn refused_certificate(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |cause| cause_of(*cause));
    let refused = causes.find_map(|cause| match cause.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(why)) => Some(why.clone()),
        _ => None,
    })?;
    use rustls::CertificateError as Why;
    let hint = match &refused {
        Why::UnknownIssuer | Why::BadSignature => {
            "no authority that is trusted here signed it: name its own in `jwks.ca_file`"
        }
        Why::NotValidForName | Why::NotValidForNameContext { .. } => "it is for another host than the URL's",
        Why::Expired | Why::ExpiredContext { .. } | Why::NotValidYet | Why::NotValidYetContext { .. } => {
            "it is not valid now: renew it, or set the clock"
        }
        _ => "it does not prove who the server is",
    };
    Some(format!("{hint} ({refused})"))
}

fn client(ca_file: Option<&Path>) -> Result<HttpsClient, SourceError> {
    let tls = tls::client(authorities(ca_file)?, rustls::DEFAULT_VERSIONS)?;
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    // A connection kept for the minutes between two readings is one that has died by then.
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

/// The one in the file; or the public ones, with what the variable names.
fn authorities(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, SourceError> {
    if let Some(path) = ca_file {
        let name = || format!("`jwks.ca_file` ({})", path.display());
        return tls::authorities(path).map_err(|reason| SourceError::Authorities(name(), reason));
    }
    let mut roots = tls::public_authorities();
    if let Some(path) = std::env::var_os(CA_FILE_VARIABLE) {
        let unreadable = |reason| SourceError::Authorities(CA_FILE_VARIABLE.to_owned(), reason);
        tls::add_authorities(&mut roots, Path::new(&path)).map_err(unreadable)?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for (url, allowed) in [
            ("https://issuer.example/jwks", true),
            ("http://localhost:8080/jwks", true),
            ("http://127.0.0.1/jwks", true),
            ("http://[::1]:80/jwks", true),
            ("http://issuer.example/jwks", false),
            ("http://127.0.0.1.issuer.example/jwks", false),
            ("http://localhost.issuer.example/jwks", false),
            ("https://user:pass@issuer.example/jwks", false),
            ("ftp://localhost/jwks", false),
            ("/jwks", false),
            ("", false),
        ] {
            let source = Source::new(&KeySource::url(url));
            assert_eq!(source.is_ok(), allowed, "{url}");
        }
    }
}
