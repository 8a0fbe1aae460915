//! What can be measured: one row a scenario.

use clap::ValueEnum;
use serde::Serialize;

use crate::generator::{KEY_MARK, RequestSpec};

/// TCP loopback or unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// 127.0.0.1
    Tcp,
    /// The server's unix socket
    Unix,
}

impl Transport {
    /// As in a label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }
}

/// How Outrigger is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `outrigger dev`
    Embedded,
    /// `outrigger serve --config …`
    Redis,
}

/// What a scenario does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Load, contenders in turn.
    Calls(Call),
    /// Memory of a server that has just become ready.
    IdleMemory,
    /// Time from exec to ready file.
    StartToReady,
    /// Memory of many idle connections.
    IdleConnections,
}

/// A call under load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Call {
    /// Backend of Outrigger.
    pub(crate) backend: Backend,
    /// What is called.
    pub(crate) operation: Operation,
    /// The yardstick of `goal`: a contender's name.
    pub(crate) compared_with: &'static str,
    /// At least so much of the yardstick's requests/s is wanted (DESIGN section 7).
    pub(crate) goal: f64,
}

/// Which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// GET of a cached value.
    CacheGet,
    /// A check with cost 0.
    LimitLook,
    /// A check with cost 1.
    LimitTake,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scenario {
    /// Name for `--scenario`.
    pub(crate) name: &'static str,
    /// One sentence for `--help`.
    pub(crate) about: &'static str,
    /// What it does.
    pub(crate) kind: Kind,
}

const fn calls(backend: Backend, operation: Operation, compared_with: &'static str) -> Kind {
    Kind::Calls(Call { backend, operation, compared_with, goal: 0.85 })
}

/// Every scenario.
pub(crate) const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "cache-hit-l1",
        about: "GET of one cached value, embedded backend; beside a bare hyper echo of the same body size",
        kind: calls(Backend::Embedded, Operation::CacheGet, "echo"),
    },
    Scenario {
        name: "ratelimit-look",
        about: "POST /v1/ratelimit/check with cost 0, embedded backend; beside the echo",
        kind: calls(Backend::Embedded, Operation::LimitLook, "echo"),
    },
    Scenario {
        name: "ratelimit-take",
        about: "the same with cost 1: tokens are taken, so the limit must be large (--limit, --tier, --limit-keys)",
        kind: calls(Backend::Embedded, Operation::LimitTake, "echo"),
    },
    Scenario {
        name: "cache-hit-redis",
        about: "GET of --keyspace values in turn through Redis; beside bare hyper with one multiplexed GET",
        kind: calls(Backend::Redis, Operation::CacheGet, "redis-get"),
    },
    Scenario {
        name: "ratelimit-redis",
        about: "a check with cost 0 decided in Redis; beside the same; in no profile",
        kind: calls(Backend::Redis, Operation::LimitLook, "redis-get"),
    },
    Scenario {
        name: "idle-memory",
        about: "RSS and PSS two seconds after the start, no calls made",
        kind: Kind::IdleMemory,
    },
    Scenario {
        name: "start-to-ready",
        about: "median time from exec to the ready file over --spawns starts (the first, on an empty folder, apart)",
        kind: Kind::StartToReady,
    },
    Scenario {
        name: "idle-connections",
        about: "RSS that --idle-connections keep-alive connections add, each idle after one call",
        kind: Kind::IdleConnections,
    },
];

/// The scenario of that name.
pub(crate) fn find(name: &str) -> Option<Scenario> {
    SCENARIOS.into_iter().find(|scenario| scenario.name == name)
}

/// Names that the calls use.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Cache namespace of this backend.
    pub(crate) namespace: String,
    /// Rate limit.
    pub(crate) limit: String,
    /// Keys that the cache calls walk through.
    pub(crate) cache_keys: u64,
    /// Keys that the rate-limit calls walk through.
    pub(crate) limit_keys: u64,
}

impl Operation {
    /// The request, without a token.
    pub(crate) fn request(self, names: &Names) -> RequestSpec {
        let check = |cost: u8| {
            let key = if names.limit_keys > 1 { format!("/load/{KEY_MARK}") } else { "/load".to_owned() };
            let limit = &names.limit;
            let body = format!(r#"{{"checks":[{{"limit":"{limit}","key":"{key}","cost":{cost}}}]}}"#);
            RequestSpec {
                method: "POST".to_owned(),
                path: "/v1/ratelimit/check".to_owned(),
                headers: vec![("Content-Type".to_owned(), "application/json".to_owned())],
                body: body.into_bytes(),
                keys: names.limit_keys,
            }
        };
        match self {
            Self::CacheGet => RequestSpec {
                method: "GET".to_owned(),
                path: format!("/v1/cache/{}/load{KEY_MARK}", names.namespace),
                keys: names.cache_keys,
                ..RequestSpec::default()
            },
            Self::LimitLook => check(0),
            Self::LimitTake => check(1),
        }
    }
}

/// The PUT that stores what [`Operation::CacheGet`] reads.
pub(crate) fn seed_request(names: &Names, value_bytes: usize) -> RequestSpec {
    RequestSpec {
        method: "PUT".to_owned(),
        path: format!("/v1/cache/{}/load{KEY_MARK}?ttl_ms=3600000", names.namespace),
        headers: vec![("Content-Type".to_owned(), "application/octet-stream".to_owned())],
        body: seed_value(value_bytes),
        keys: names.cache_keys,
    }
}

/// A value of that size: printable, so that a reply can be shown.
pub(crate) fn seed_value(value_bytes: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(value_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for scenario in SCENARIOS {
            assert_eq!(find(scenario.name), Some(scenario));
        }
        assert_eq!(find("nothing"), None);
    }

    #[test]
    fn a_check_is_the_documented_json() {
        let names = Names { namespace: "profiles".into(), limit: "api".into(), cache_keys: 1, limit_keys: 1 };
        let request = Operation::LimitLook.request(&names);
        assert_eq!(request.body, br#"{"checks":[{"limit":"api","key":"/load","cost":0}]}"#);
        assert!(serde_json::from_slice::<serde_json::Value>(&request.body).is_ok());
    }
}
