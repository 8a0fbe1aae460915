//! The Redis Cluster that `make servers` leaves running.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ports::shared_first;
use crate::process::{Error, run, wait_until};
use crate::recorded::Recorded;
use crate::redis::config::Options;
use crate::redis::{NODES, RedisCluster};

const PORT_VARIABLE: &str = "RIG_REDIS_PORT";

pub(crate) fn start(folder: &Path) -> Result<Vec<Recorded>, Error> {
    let options = Options {
        base_dir: Some(folder.join("redis")),
        first_port: Some(shared_first(PORT_VARIABLE, 0)?),
        ..Options::default()
    };
    RedisCluster::start_outliving(options)
}

/// The line of `.rig/env`.
pub(crate) fn env_lines() -> Result<Vec<String>, Error> {
    let first = usize::from(shared_first(PORT_VARIABLE, 0)?);
    let nodes: Vec<String> = (first..first + NODES).map(|port| format!("127.0.0.1:{port}")).collect();
    Ok(vec![format!("REDIS_NODES={}", nodes.join(","))])
}

/// Whether all six say that the cluster is ok; a failover that is under way is waited for.
pub(crate) fn check() -> Result<(), Error> {
    let first = usize::from(shared_first(PORT_VARIABLE, 0)?);
    wait_until("the shared Redis Cluster", Duration::from_secs(5), String::new, || {
        (first..first + NODES).try_for_each(|port| {
            let mut command = Command::new("redis-cli");
            command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "CLUSTER", "INFO"]);
            let output = run(command, Duration::from_secs(2)).map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout);
            let is_ok = text.contains("cluster_state:ok");
            is_ok
                .then_some(())
                .ok_or_else(|| format!("port {port}: {}", text.lines().next().unwrap_or("no reply")))
        })
    })
}
