//! What an error reply asks for: another node, patience, or nothing.

use redis::{ServerError, ServerErrorKind};

use super::connect::Address;

/// A reply that says the command was not run here, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot belongs to that node.
    Moved(Address),
    /// The slot is on its way and this key has gone already; only this once.
    Ask(Address),
    /// Some of the keys have gone and some have not.
    TryAgain,
    /// The cluster does not serve.
    ClusterDown,
    /// The node reads its data after a start.
    Loading,
    /// A replica that has lost its primary.
    MasterDown,
    /// A replica: the topology is old.
    ReadOnly,
}

impl Redirect {
    /// As metrics name them, by [`Redirect::label`].
    pub(super) const LABELS: [&'static str; 7] =
        ["moved", "ask", "tryagain", "clusterdown", "loading", "masterdown", "readonly"];

    pub(super) fn label(&self) -> usize {
        match self {
            Self::Moved(_) => 0,
            Self::Ask(_) => 1,
            Self::TryAgain => 2,
            Self::ClusterDown => 3,
            Self::Loading => 4,
            Self::MasterDown => 5,
            Self::ReadOnly => 6,
        }
    }

    /// What `error`, which came from the node at `from`, asks for, if it asks for anything.
    pub(super) fn of(error: &ServerError, from: &Address) -> Option<Self> {
        match error.kind()? {
            ServerErrorKind::Moved => target(error, from).map(Self::Moved),
            ServerErrorKind::Ask => target(error, from).map(Self::Ask),
            ServerErrorKind::TryAgain => Some(Self::TryAgain),
            ServerErrorKind::ClusterDown => Some(Self::ClusterDown),
            ServerErrorKind::BusyLoading => Some(Self::Loading),
            ServerErrorKind::MasterDown => Some(Self::MasterDown),
            ServerErrorKind::ReadOnly => Some(Self::ReadOnly),
            _ => None,
        }
    }
}

/// `3999 127.0.0.1:6381`; the host may be missing.
fn target(error: &ServerError, from: &Address) -> Option<Address> {
    let place = error.details()?.split_ascii_whitespace().nth(1)?;
    let (host, port) = place.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(from.sibling(host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// An error reply for the log: its code and text, without what a client sent.
pub(super) fn text(error: &ServerError) -> String {
    const LONGEST: usize = 200;
    let details = error.details().unwrap_or_default();
    // Redis repeats the arguments of a command that it does not know.
    let details = details.split(", with args").next().unwrap_or_default();
    let details: String = details.chars().take(LONGEST).collect();
    format!("{} {details}", error.code()).trim_end().to_owned()
}

/// Commands that only read: they are sent again when their answer was lost.
const READS: [&str; 16] = [
    "GET", "MGET", "STRLEN", "GETRANGE", "EXISTS", "TTL", "PTTL", "TYPE", "HGET", "HMGET", "HGETALL", "HLEN",
    "HEXISTS", "SCAN", "TIME", "PING",
];

/// Whether Redis documents that the command changes nothing.
pub(super) fn only_reads(command: &redis::Cmd) -> bool {
    match command.args_iter().next() {
        Some(redis::Arg::Simple(name)) => READS.iter().any(|read| name.eq_ignore_ascii_case(read.as_bytes())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn error(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_reply_says_where_to_go_or_to_wait() {
        let from = Address::new("10.0.0.1", 6379);
        for (line, expected) in [
            ("MOVED 3999 127.0.0.1:6381", Some(Redirect::Moved(Address::new("127.0.0.1", 6381)))),
            ("MOVED 3999 :6381", Some(Redirect::Moved(Address::new("10.0.0.1", 6381)))),
            ("ASK 3999 ::1:6381", Some(Redirect::Ask(Address::new("::1", 6381)))),
            ("MOVED 3999 127.0.0.1:0", None),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Some(Redirect::TryAgain)),
            ("CLUSTERDOWN The cluster is down", Some(Redirect::ClusterDown)),
            ("CLUSTERDOWN Hash slot not served", Some(Redirect::ClusterDown)),
            ("LOADING Redis is loading the dataset in memory", Some(Redirect::Loading)),
            ("MASTERDOWN Link with MASTER is down", Some(Redirect::MasterDown)),
            ("READONLY You can't write against a read only replica.", Some(Redirect::ReadOnly)),
            ("OOM command not allowed when used memory > 'maxmemory'.", None),
            ("NOPERM this user has no permissions", None),
            ("ERR wrong", None),
        ] {
            assert_eq!(Redirect::of(&error(line), &from), expected, "{line}");
        }
    }

    #[test]
    fn the_text_of_an_error_holds_nothing_that_the_client_sent() {
        assert_eq!(
            text(&error("ERR unknown command 'X', with args beginning with: 'secret' ")),
            "ERR unknown command 'X'"
        );
        assert_eq!(text(&error("OOM command not allowed")), "OOM command not allowed");
    }

    #[test]
    fn only_commands_that_change_nothing_are_reads() {
        for (name, reads) in [
            ("GET", true),
            ("get", true),
            ("PTTL", true),
            ("SET", false),
            ("GETDEL", false),
            ("EVALSHA", false),
        ] {
            assert_eq!(only_reads(&redis::cmd(name)), reads, "{name}");
        }
    }
}
