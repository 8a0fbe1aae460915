//! The Redis Cluster that the tests share.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ports::shared_first;
use crate::process::{Error, run, wait_until};
use crate::recorded::Recorded;
use crate::redis::config::Options;
use crate::redis::{NODES, RedisCluster};
use crate::shared::{Kind, address, from_environment, require};

const PORT_VARIABLE: &str = "RIG_REDIS_PORT";
const NODES_VARIABLE: &str = "REDIS_NODES";

pub(crate) const KIND: Kind = Kind { name: "redis", start, env_lines, check };

/// The addresses of the shared Redis Cluster: `REDIS_NODES` from the environment, else the rig's own, which is started
/// where it is not up.
///
/// # Panics
/// When there is none, or none of them accepts a connection: a missing server fails a test, it skips none.
pub fn shared_redis_nodes() -> Vec<String> {
    if from_environment(NODES_VARIABLE).is_none() {
        require(&KIND);
    }
    let value = address(NODES_VARIABLE).unwrap_or_default();
    let nodes: Vec<String> = value.split(',').map(|node| node.trim().to_owned()).collect();
    let accepts = nodes.iter().any(|node| TcpStream::connect(node.as_str()).is_ok());
    assert!(accepts, "nothing listens on any of {NODES_VARIABLE}={value}: run `make servers`");
    nodes
}

fn start(folder: &Path) -> Result<Vec<Recorded>, Error> {
    let options = Options {
        base_dir: Some(folder.join("redis")),
        first_port: Some(shared_first(PORT_VARIABLE, 0)?),
        ..Options::default()
    };
    RedisCluster::start_outliving(options)
}

fn env_lines() -> Result<Vec<String>, Error> {
    let first = usize::from(shared_first(PORT_VARIABLE, 0)?);
    let nodes: Vec<String> = (first..first + NODES).map(|port| format!("127.0.0.1:{port}")).collect();
    Ok(vec![format!("{NODES_VARIABLE}={}", nodes.join(","))])
}

/// Whether all six say that the cluster is ok; a failover that is under way is waited for.
fn check() -> Result<(), Error> {
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
