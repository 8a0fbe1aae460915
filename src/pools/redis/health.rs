//! How the instance is, on the health board.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::node::NodeState;
use crate::telemetry::{BackendHealth, BackendState};

/// Looked at this often where nothing tells of a change.
const EVERY: Duration = Duration::from_secs(1);

/// Writes the instance's line whenever something changes, until the pool is closed.
pub(super) async fn keep(core: Arc<Core>, health: BackendHealth) {
    loop {
        if let Some((state, advice)) = assess(&core) {
            health.set(state, advice);
        }
        tokio::select! {
            () = core.closed.cancelled() => return,
            () = core.shared.tasks.stopping().cancelled() => return,
            () = core.shared.changed.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// `None` as long as nothing is known yet.
fn assess(core: &Core) -> Option<(BackendState, String)> {
    let table = core.table.load();
    let refresh_error = core.last_refresh.borrow().1.clone();
    if !table.known {
        return refresh_error.map(|error| (BackendState::Down, error.advice(&core.name)));
    }
    let (mut up, mut down) = (0, Vec::new());
    for node in &table.primaries {
        match &*node.state() {
            NodeState::Up => up += 1,
            NodeState::Connecting => {}
            NodeState::Down { error, .. } => down.push(error.advice(&core.name)),
        }
    }
    if up == 0 {
        let first = down.into_iter().next().or_else(|| refresh_error.map(|error| error.advice(&core.name)));
        return first.map(|advice| (BackendState::Down, advice));
    }
    if !down.is_empty() {
        let advice =
            format!("{} of {} primaries down: {}", down.len(), table.primaries.len(), down.join("; "));
        return Some((BackendState::Degraded, advice));
    }
    if !table.view.serves {
        let advice = "CLUSTERDOWN: the cluster refuses commands: see `CLUSTER INFO` and `CLUSTER NODES` for a primary without a replica to take over";
        return Some((BackendState::Down, advice.to_owned()));
    }
    match (table.unowned(), core.trouble.advice()) {
        (0, None) => Some((BackendState::Up, String::new())),
        (0, Some(advice)) => Some((BackendState::Degraded, advice)),
        (unowned, _) => {
            let advice = format!("{unowned} slots have no owner: run `redis-cli --cluster fix`");
            Some((BackendState::Degraded, advice))
        }
    }
}
