//! Ports: a run of up to six, each with a second port 10000 above, all below the ephemeral range.

use std::fs::{self, File};
use std::net::TcpListener;

use rustix::process::getuid;

use crate::process::Error;

/// A Redis node listens for its peers this far above its own port (Redis Cluster specification); a Kafka broker here
/// has its controller there.
pub(crate) const BUS_OFFSET: u16 = 10_000;
/// The bus ports must stay below 32768, where Linux begins to hand out ports to clients.
const LIMIT: u16 = 32_768 - BUS_OFFSET;
const OWN_FIRST: u16 = 18_000;
/// Free ports are given out in runs of this size, so that two of different lengths never overlap.
const RUN: u16 = 6;
/// The first port of the shared Redis Cluster; the other shared servers follow it.
const SHARED_VARIABLE: &str = "RIG_REDIS_PORT";
const SHARED_FIRST: u16 = 17_001;

/// The first port of a kind of shared server: what the variable says, else so many above the first of all.
pub(crate) fn shared_first(variable: &str, offset: u16) -> Result<u16, Error> {
    let read = |variable: &str| match std::env::var(variable) {
        Ok(text) => text.parse().map(Some).map_err(|_| Error::new(format!("{variable}={text}: not a port"))),
        Err(_) => Ok(None),
    };
    match read(variable)? {
        Some(port) => Ok(port),
        None => Ok(read(SHARED_VARIABLE)?.unwrap_or(SHARED_FIRST).saturating_add(offset)),
    }
}

/// A run of ports, kept from other test processes of this machine as long as it lives.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// Held, never read: the lock goes with the file.
    _lock: File,
}

impl Ports {
    /// These ports; an error names the first one that something else has.
    pub(crate) fn fixed(first: u16, count: u16) -> Result<Self, Error> {
        if first < 1024 || first > LIMIT - count {
            return Err(Error::new(format!("first port {first}: must be 1024 to {}", LIMIT - count)));
        }
        let lock =
            lock(first)?.ok_or_else(|| Error::new(format!("ports from {first} are being used by a test")))?;
        match taken(first, count) {
            None => Ok(Self { first, count, _lock: lock }),
            Some(port) => Err(Error::new(format!(
                "port {port} is taken by another process (see `ss -ltnp 'sport = :{port}'`): end it, or choose \
                 other ports with {SHARED_VARIABLE}=<first port below {}>",
                LIMIT - count
            ))),
        }
    }

    /// Some run of free ports, six at most.
    pub(crate) fn free(count: u16) -> Result<Self, Error> {
        let runs = (LIMIT - OWN_FIRST) / RUN;
        let begin = u16::try_from(std::process::id() % u32::from(runs)).unwrap_or(0);
        for run in (0..runs).map(|step| (begin + step) % runs) {
            let first = OWN_FIRST + run * RUN;
            if let Some(lock) = lock(first)?
                && taken(first, count).is_none()
            {
                return Ok(Self { first, count, _lock: lock });
            }
        }
        Err(Error::new(format!("no {count} free ports in a row between {OWN_FIRST} and {LIMIT}")))
    }

    /// The port of the node with this index; 0, which no server listens on, beyond the run.
    pub(crate) fn port(&self, index: usize) -> u16 {
        self.iter().nth(index).unwrap_or(0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> + use<> {
        self.first..self.first + self.count
    }
}

/// A lock of this user on a run of ports: two tests that look at the same moment must not both find
/// it free.
fn lock(first: u16) -> Result<Option<File>, Error> {
    // A user may not write another one's files: between users only `taken` helps.
    let folder = std::env::temp_dir().join(format!("outrigger-rig-ports-{}", getuid().as_raw()));
    let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    let file = File::create(folder.join(first.to_string())).map_err(failed)?;
    Ok(file.try_lock().is_ok().then_some(file))
}

fn taken(first: u16, count: u16) -> Option<u16> {
    let is_taken = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_err();
    (first..first + count).flat_map(|port| [port, port + BUS_OFFSET]).find(is_taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_at_once_never_overlap_and_a_taken_port_is_named() {
        let first = Ports::free(6).unwrap();
        let second = Ports::free(3).unwrap();
        assert!(first.iter().all(|port| second.iter().all(|other| port != other)));
        let port = second.first + 2;
        let (base, count) = (second.first, second.count);
        drop(second);
        let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let message = Ports::fixed(base, count).unwrap_err().to_string();
        assert!(message.contains(&format!("port {port} is taken")), "{message}");
    }
}
