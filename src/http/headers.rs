//! What is checked about a request's head before anything else looks at it.

use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Uri, Version};
use std::time::Duration;

use super::Problem;
use crate::error::ErrorKind;
use crate::identity::TenantId;
use crate::policy::TenantChoice;

const OUTRIGGER_TENANT: HeaderName = HeaderName::from_static("outrigger-tenant");
const OUTRIGGER_TIMEOUT_MS: HeaderName = HeaderName::from_static("outrigger-timeout-ms");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The hosts that a request may be for: this machine's own names, and those the configuration adds.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<Box<str>>);

impl AllowedHosts {
    /// `localhost`, the loopback addresses, and `more`, without ports.
    #[must_use]
    pub fn new<'a>(more: impl IntoIterator<Item = &'a str>) -> Self {
        let own = ["127.0.0.1", "localhost", "[::1]"];
        Self(own.into_iter().chain(more).map(|host| Box::from(host.to_ascii_lowercase())).collect())
    }

    /// Whether `authority` (`host` or `host:port`) is one of them. The port is free: a forwarded port is
    /// the same host, and DNS rebinding, which this stops, shows in the name.
    fn contains(&self, authority: &str) -> bool {
        let digits = authority.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (name, port) = authority.split_at(authority.len() - digits);
        let host = if port.is_empty() { authority } else { name.strip_suffix(':').unwrap_or(authority) };
        self.0.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// The headers that every request is asked for, found in one pass: a look-up for each costs more than the checks.
#[derive(Default)]
pub struct Seen<'h> {
    host: Once<'h>,
    authorization: Once<'h>,
    origin: Once<'h>,
    tenant: Once<'h>,
    timeout: Once<'h>,
    idempotency_key: Once<'h>,
    content_length: Once<'h>,
}

/// The first value of a header that may come once.
#[derive(Default, Clone, Copy)]
struct Once<'h> {
    first: Option<&'h HeaderValue>,
    again: bool,
}

impl<'h> Once<'h> {
    /// The value; `Err` where it comes twice.
    fn value(self) -> Result<Option<&'h HeaderValue>, ()> {
        if self.again { Err(()) } else { Ok(self.first) }
    }
}

impl<'h> Seen<'h> {
    /// Looks at each header once.
    #[must_use]
    pub fn of(headers: &'h HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            let place = match name {
                name if *name == HOST => &mut seen.host,
                name if *name == AUTHORIZATION => &mut seen.authorization,
                name if *name == CONTENT_LENGTH => &mut seen.content_length,
                name if *name == ORIGIN => &mut seen.origin,
                name if *name == OUTRIGGER_TENANT => &mut seen.tenant,
                name if *name == OUTRIGGER_TIMEOUT_MS => &mut seen.timeout,
                name if *name == IDEMPOTENCY_KEY => &mut seen.idempotency_key,
                _ => continue,
            };
            if place.first.is_some() {
                place.again = true;
            } else {
                place.first = Some(value);
            }
        }
        seen
    }

    /// The `Authorization` header; [`check`] refuses two.
    #[must_use]
    pub fn authorization(&self) -> Option<&'h HeaderValue> {
        self.authorization.first
    }

    /// Whether the caller names the call's time.
    #[must_use]
    pub fn names_timeout(&self) -> bool {
        self.timeout.first.is_some()
    }

    /// Whether there is an `Idempotency-Key`.
    #[must_use]
    pub fn has_idempotency_key(&self) -> bool {
        self.idempotency_key.first.is_some()
    }

    /// The body's length as the request declares it.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.content_length.first.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok())
    }
}

/// Refuses what a local client never sends and an attack may: two Hosts, a foreign Host or Origin,
/// absolute form, two Authorization headers.
pub fn check(
    method: &Method,
    uri: &Uri,
    version: Version,
    seen: &Seen<'_>,
    hosts: &AllowedHosts,
) -> Result<(), Problem> {
    let absolute = version < Version::HTTP_2 && uri.scheme().is_some();
    if absolute || *method == Method::CONNECT {
        return Err(Problem::new(
            ErrorKind::Malformed,
            "send the path alone: this is no proxy for absolute URLs",
        ));
    }
    let authority = uri.authority().map(http::uri::Authority::as_str);
    let host =
        seen.host.value().map_err(|()| Problem::new(ErrorKind::Misdirected, "send one Host header"))?;
    let host = host.map(|value| value.to_str().unwrap_or(""));
    if let (Some(authority), Some(host)) = (authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(Problem::new(ErrorKind::Misdirected, "`:authority` and Host disagree"));
    }
    let Some(host) = host.or(authority) else {
        return Err(Problem::new(ErrorKind::Malformed, "send a Host header"));
    };
    if !hosts.contains(host) {
        return Err(Problem::new(
            ErrorKind::Misdirected,
            "call this sidecar as localhost or by its loopback address; `listeners.allowed_hosts` adds names",
        ));
    }
    if seen.authorization.again {
        return Err(Problem::new(ErrorKind::Malformed, "send one Authorization header"));
    }
    check_origin(seen, hosts)
}

/// A browser page of another origin must not reach a sidecar, whatever token it got hold of.
fn check_origin(seen: &Seen<'_>, hosts: &AllowedHosts) -> Result<(), Problem> {
    let foreign =
        || Problem::new(ErrorKind::Forbidden, "requests from web pages of another origin are not served");
    let Some(origin) = seen.origin.value().map_err(|()| foreign())? else { return Ok(()) };
    let authority =
        origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, authority)| authority);
    if authority.is_some_and(|authority| hosts.contains(authority)) { Ok(()) } else { Err(foreign()) }
}

/// Refuses every page but the listener's own: no token guards what it answers, and a page of another port of this
/// machine is another program.
pub fn check_same_origin<B>(request: &Request<B>) -> Result<(), Problem> {
    let Some(origin) = request.headers().get(&ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, authority)| authority);
    let host = request.headers().get(&HOST).and_then(|value| value.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    match (origin, host) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(Problem::new(
            ErrorKind::Forbidden,
            "requests from web pages of another origin are not served",
        )),
    }
}

/// The tenant that `Outrigger-Tenant` names, in its canonical form.
pub fn tenant_choice(seen: &Seen<'_>) -> Result<TenantChoice, Problem> {
    let twice = |()| Problem::new(ErrorKind::Malformed, "send one Outrigger-Tenant header");
    let Some(value) = seen.tenant.value().map_err(twice)? else {
        return Ok(TenantChoice::FromToken);
    };
    value.to_str().ok().and_then(TenantId::parse).map(TenantChoice::ActFor).ok_or_else(|| {
        Problem::new(ErrorKind::Malformed, "`Outrigger-Tenant` is a UUID in lower case with hyphens")
    })
}

/// The call's time: `Outrigger-Timeout-Ms`, at most `most`, or `default`.
pub fn timeout(seen: &Seen<'_>, default: Duration, most: Duration) -> Result<Duration, Problem> {
    let wrong = || {
        let most = most.as_millis();
        Problem::new(ErrorKind::Malformed, format!("`Outrigger-Timeout-Ms` is an integer from 1 to {most}"))
    };
    let Some(value) = seen.timeout.value().map_err(|()| wrong())? else {
        return Ok(default);
    };
    let ms: u64 = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let asked = Duration::from_millis(ms);
    if ms == 0 || asked > most { Err(wrong()) } else { Ok(asked) }
}

/// 400: a route that takes no `Idempotency-Key` was sent one.
#[must_use]
pub fn no_idempotency_key() -> Problem {
    Problem::new(ErrorKind::IdempotencyNotSupported, "this route takes no Idempotency-Key: leave it out")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn a_head_that_no_local_client_sends_is_refused() {
        let hosts = AllowedHosts::new(["sidecar.internal"]);
        let ok: Result<(), ErrorKind> = Ok(());
        for (uri, headers, expected) in [
            ("/", &[("host", "127.0.0.1:7780")][..], ok),
            ("/", &[("host", "LOCALHOST")], ok),
            ("/", &[("host", "[::1]:1")], ok),
            ("/", &[("host", "sidecar.internal:80")], ok),
            ("/", &[("host", "localhost"), ("origin", "http://localhost:3000")], ok),
            ("/", &[], Err(ErrorKind::Malformed)),
            ("/", &[("host", "evil.example")], Err(ErrorKind::Misdirected)),
            ("/", &[("host", "localhost.evil.example")], Err(ErrorKind::Misdirected)),
            ("/", &[("host", "127.0.0.1:80@evil.example")], Err(ErrorKind::Misdirected)),
            ("/", &[("host", "")], Err(ErrorKind::Misdirected)),
            ("/", &[("host", "localhost"), ("host", "localhost")], Err(ErrorKind::Misdirected)),
            ("http://localhost/", &[("host", "localhost")], Err(ErrorKind::Malformed)),
            ("/", &[("host", "localhost"), ("origin", "http://evil.example")], Err(ErrorKind::Forbidden)),
            ("/", &[("host", "localhost"), ("origin", "null")], Err(ErrorKind::Forbidden)),
            (
                "/",
                &[("host", "localhost"), ("authorization", "a"), ("authorization", "b")],
                Err(ErrorKind::Malformed),
            ),
        ] {
            let request = request(uri, headers);
            let seen = Seen::of(request.headers());
            let found = check(request.method(), request.uri(), request.version(), &seen, &hosts);
            let found = found.map_err(|problem| problem.kind());
            assert_eq!(found, expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn a_timeout_is_bounded() {
        let most = Duration::from_secs(60);
        for (text, expected) in
            [("1", Some(1)), ("60000", Some(60_000)), ("0", None), ("60001", None), ("-1", None), ("x", None)]
        {
            let request = request("/", &[("outrigger-timeout-ms", text)]);
            let found = timeout(&Seen::of(request.headers()), most, most).ok().map(|d| d.as_millis());
            assert_eq!(found, expected, "{text}");
        }
    }
}
