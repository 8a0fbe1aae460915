//! One blocking call, to see what a contender answers before any load.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::endpoint::{Endpoint, Socket};
use super::request::RequestSpec;
use super::wire::{Reply, parse_reply};

const LIMIT: Duration = Duration::from_secs(10);
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// The reply to one call on a connection of its own.
///
/// # Errors
/// No connection, or another status than `expected`; the reply's text is in the message.
pub(crate) fn probe(endpoint: &Endpoint, spec: &RequestSpec, expected: u16) -> Result<Reply> {
    let mut socket = endpoint.connect().with_context(|| format!("cannot connect to {endpoint}"))?;
    call(&mut socket, spec.prepare(&endpoint.host()).next(), expected)
        .with_context(|| format!("{} {} at {endpoint}", spec.method, spec.path))
}

/// Writes `request` and reads the whole reply.
///
/// # Errors
/// As [`probe`].
pub(crate) fn call(socket: &mut Socket, request: &[u8], expected: u16) -> Result<Reply> {
    socket.set_timeout(LIMIT)?;
    socket.write_all(request)?;
    let mut received = Vec::with_capacity(4096);
    let mut piece = [0; 4096];
    while received.len() < MAX_REPLY_BYTES {
        let read = socket.read(&mut piece)?;
        if read == 0 {
            bail!("the connection was closed after {:?}", String::from_utf8_lossy(&received));
        }
        received.extend_from_slice(&piece[..read]);
        let Some(reply) = parse_reply(&received)?.filter(|reply| reply.total_bytes() <= received.len())
        else {
            continue;
        };
        if reply.status != expected {
            bail!("expected status {expected}, got:\n{}", String::from_utf8_lossy(&received));
        }
        return Ok(reply);
    }
    bail!("the reply is longer than {MAX_REPLY_BYTES} bytes")
}
