//! A contender that the user names: `NAME=http://127.0.0.1:1234/path,Header: value`.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::generator::Endpoint;

/// A parsed `--url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UrlContender {
    /// As it is called in the report.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) endpoint: Endpoint,
    /// Path and query for a GET; `None` sends the scenario's own request.
    pub(crate) path: Option<String>,
    /// More headers.
    pub(crate) headers: Vec<(String, String)>,
}

/// What is wrong with a `--url`.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UrlError {
    /// No name.
    #[error("expected NAME=URL, as in dapr=http://127.0.0.1:3500/v1.0/state/store/key")]
    NoName,
    /// Neither kind of address.
    #[error("expected http://HOST:PORT[/path] or unix:/socket[:/path]")]
    Scheme,
    /// A host that has no address.
    #[error("cannot resolve {0}")]
    Host(String),
    /// A header without a colon.
    #[error("a header is NAME:VALUE, not {0:?}")]
    Header(String),
}

impl FromStr for UrlContender {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (name, rest) =
            text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(UrlError::NoName)?;
        let mut parts = rest.split(',');
        let (endpoint, path) = parse_address(parts.next().unwrap_or_default())?;
        let headers = parts
            .map(|part| {
                let (name, value) = part.split_once(':').ok_or_else(|| UrlError::Header(part.to_owned()))?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { name: name.to_owned(), endpoint, path, headers })
    }
}

fn parse_address(text: &str) -> Result<(Endpoint, Option<String>), UrlError> {
    if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = rest.split_once(':').map_or((rest, None), |(socket, path)| (socket, Some(path)));
        return Ok((Endpoint::Unix(PathBuf::from(socket)), path.map(str::to_owned)));
    }
    let rest = text.strip_prefix("http://").ok_or(UrlError::Scheme)?;
    let (host, path) = rest.find('/').map_or((rest, None), |at| (&rest[..at], Some(rest[at..].to_owned())));
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address: Option<SocketAddr> = with_port.to_socket_addrs().ok().and_then(|mut found| found.next());
    Ok((Endpoint::Tcp(address.ok_or_else(|| UrlError::Host(host.to_owned()))?), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_name_an_address_a_path_and_headers() {
        let parsed: UrlContender = "x=http://127.0.0.1:81/a?b=c,X-A: 1,dapr-api-token:t".parse().unwrap();
        assert_eq!(parsed.name, "x");
        assert_eq!(parsed.endpoint.to_string(), "127.0.0.1:81");
        assert_eq!(parsed.path.as_deref(), Some("/a?b=c"));
        assert_eq!(parsed.headers, [("X-A".into(), "1".into()), ("dapr-api-token".into(), "t".into())]);
    }

    #[test]
    fn a_unix_socket_may_have_a_path_behind_a_second_colon() {
        let parsed: UrlContender = "x=unix:/tmp/s.sock:/k".parse().unwrap();
        assert_eq!(
            (parsed.endpoint.to_string().as_str(), parsed.path.as_deref()),
            ("unix:/tmp/s.sock", Some("/k"))
        );
        let parsed: UrlContender = "x=http://127.0.0.1:81".parse().unwrap();
        assert_eq!(parsed.path, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, error) in [
            ("http://127.0.0.1:1/", UrlError::NoName),
            ("x=https://127.0.0.1/", UrlError::Scheme),
            ("x=http://127.0.0.1:1/,oops", UrlError::Header("oops".into())),
        ] {
            assert_eq!(text.parse::<UrlContender>(), Err(error), "{text}");
        }
    }
}
