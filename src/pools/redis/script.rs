//! Lua scripts.

use redis::{Cmd, ServerErrorKind, Value};

/// A Lua script: run by EVALSHA, and by EVAL where a node does not know it yet.
pub struct Script {
    /// Its source.
    pub source: &'static str,
    sha1: String,
}

impl Script {
    /// A script of this source.
    #[must_use]
    pub fn new(source: &'static str) -> Self {
        Self { source, sha1: redis::Script::new(source).get_hash().to_owned() }
    }

    pub(super) fn by_hash(&self, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.sha1, keys, arguments)
    }

    /// The node keeps the source, so that the next call by hash finds it.
    pub(super) fn by_source(&self, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
        call("EVAL", self.source, keys, arguments)
    }
}

fn call(name: &str, script: &str, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
    let bytes: usize = keys.iter().chain(arguments).map(|part| part.len()).sum();
    let mut command =
        Cmd::with_capacity(3 + keys.len() + arguments.len(), name.len() + script.len() + bytes + 8);
    command.arg(name).arg(script).arg(keys.len());
    for part in keys.iter().chain(arguments) {
        command.arg(*part);
    }
    command
}

/// Whether the node does not know the script.
pub(super) fn is_unknown(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
