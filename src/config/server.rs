//! Addresses of servers, as they are written.

use std::net::IpAddr;

/// Reads `host:port`, an IPv6 host in brackets or bare.
#[must_use]
pub fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = unbracketed(host);
    (!host.is_empty()).then_some((host, port))
}

/// Whether a host is this machine, reached without a network.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || unbracketed(host).parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Whether keys may come from this URL: over TLS or from this machine, and without a user in it.
#[must_use]
pub fn is_key_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else { return false };
    let is_private = match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_loopback(host),
        _ => false,
    };
    is_private && !authority.as_str().contains('@')
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_host_and_port_and_some_are_on_loopback() {
        for (text, expected, loopback) in [
            ("127.0.0.1:5432", Some(("127.0.0.1", 5432)), true),
            ("[::1]:5432", Some(("::1", 5432)), true),
            ("::1:5432", Some(("::1", 5432)), true),
            ("localhost:1", Some(("localhost", 1)), true),
            ("redis-0.redis:6379", Some(("redis-0.redis", 6379)), false),
            ("127.0.0.1.example:5432", Some(("127.0.0.1.example", 5432)), false),
            ("localhost.example:1", Some(("localhost.example", 1)), false),
            ("db", None, false),
            (":5432", None, false),
            ("db:0", None, false),
            ("db:x", None, false),
        ] {
            assert_eq!(host_and_port(text), expected, "{text}");
            assert_eq!(host_and_port(text).is_some_and(|(host, _)| is_loopback(host)), loopback, "{text}");
        }
        assert!(is_loopback("[::1]") && !is_loopback("[::2]"));
    }
}
