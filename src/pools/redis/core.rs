//! What the tasks of a pool share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connect::{Address, NodeError};
use super::node::{Node, Shared};
use super::topology::Table;
use super::tracking::Trackers;
use super::trouble::Trouble;

/// One pool's state.
pub(super) struct Core {
    pub(super) name: String,
    pub(super) seeds: Vec<Address>,
    pub(super) connections: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) table: ArcSwap<Table>,
    pub(super) nodes: Mutex<HashMap<Address, Arc<Node>>>,
    /// Counts the tables; whoever follows the topology waits for the next.
    pub(super) generation: watch::Sender<u64>,
    /// When the last question about the topology that has an answer was asked, and why the last had none.
    pub(super) last_refresh: watch::Sender<(Option<Instant>, Option<NodeError>)>,
    /// Refusals that an operator has to know of.
    pub(super) trouble: Trouble,
    pub(super) trackers: Trackers,
    /// Cancelled when the pool is dropped.
    pub(super) closed: CancellationToken,
}

impl Core {
    /// The node of an address, made where it is new.
    pub(super) fn node(&self, address: &Address) -> Arc<Node> {
        let mut nodes = self.nodes.lock();
        let make = || Node::start(address.clone(), self.connections, &self.shared, &self.closed);
        Arc::clone(nodes.entry(address.clone()).or_insert_with(make))
    }

    pub(super) fn refreshed(&self, began: Instant, error: Option<NodeError>) {
        self.last_refresh.send_modify(|(at, why)| {
            if error.is_none() {
                *at = Some(began);
            }
            *why = error;
        });
        self.shared.changed.notify_one();
    }
}
