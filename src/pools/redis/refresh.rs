//! Learning the cluster's shape: one task asks, at once when something hints at a change, and otherwise now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::Value;

use super::connect::{Address, Dialed, Dialer, NodeError};
use super::core::Core;
use super::node::{Link, NodeState};
use super::topology::{Table, View};
use crate::pools::backoff::jittered;

/// Between two questions at least: a storm of MOVED replies asks once.
const AT_LEAST: Duration = Duration::from_millis(50);
/// With nothing to hint at a change.
const AT_MOST: Duration = Duration::from_millis(2500);
/// While some primary is down.
const WHILE_DOWN: Duration = Duration::from_millis(200);
/// While no node answers: nobody knows more, and a fleet must not hammer what comes up.
const WHILE_UNKNOWN: Duration = Duration::from_millis(800);
/// For the two answers of one node.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// A node that no slot belongs to is kept this long after a redirection led to it.
const KEEP_REDIRECTED: Duration = Duration::from_secs(30);

/// Asks until the pool is closed.
pub(super) async fn keep(core: Arc<Core>) {
    let stopping = core.shared.tasks.stopping().clone();
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let done = tokio::select! {
            () = core.closed.cancelled() => return,
            () = stopping.cancelled() => return,
            done = refresh(&core) => done,
        };
        if let Err(error) = &done {
            tracing::debug!(instance = core.name, %error, "the cluster's shape is not known");
        }
        failures = if done.is_err() { failures + 1 } else { 0 };
        let pause = match failures {
            0 if core.is_whole() => AT_MOST,
            0..3 => WHILE_DOWN,
            _ => WHILE_UNKNOWN,
        };
        core.refreshed(began, done.err());
        tokio::select! {
            () = core.closed.cancelled() => return,
            () = stopping.cancelled() => return,
            () = core.shared.refresh.notified() => tokio::time::sleep(AT_LEAST.saturating_sub(began.elapsed())).await,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

/// Asks nodes until one has a view that is not older than ours, and takes the newest there is.
async fn refresh(core: &Core) -> Result<(), NodeError> {
    let known = core.table.load().view.epoch;
    let (mut newest, mut error): (Option<View>, _) = (None, None);
    for (address, link) in connected(core) {
        consider(ask(&address, &link).await, &mut newest, &mut error);
        if newest.as_ref().is_some_and(|view| view.epoch >= known && view.serves) {
            break;
        }
    }
    if newest.is_none() {
        let addresses = unconnected(core);
        let mut asked: FuturesUnordered<_> =
            addresses.iter().map(|address| dial_and_ask(&core.shared.dialer, address)).collect();
        while newest.is_none() {
            match asked.next().await {
                Some(answer) => consider(answer, &mut newest, &mut error),
                None => break,
            }
        }
    }
    match (newest, error) {
        (Some(view), _) => {
            core.adopt(view);
            Ok(())
        }
        (None, Some(error)) => Err(error),
        (None, None) => Ok(()),
    }
}

fn consider(answer: Result<View, NodeError>, newest: &mut Option<View>, error: &mut Option<NodeError>) {
    match answer {
        Ok(view) => {
            let rank = |view: &View| (view.epoch, view.serves);
            if newest.as_ref().is_none_or(|other| rank(other) < rank(&view)) {
                *newest = Some(view);
            }
        }
        // A wrong password explains more than another node that is down as well.
        Err(new) if error.is_none() || matches!(new, NodeError::Password(..)) => *error = Some(new),
        Err(_) => {}
    }
}

/// The primaries with a connection, in an order that differs each time.
fn connected(core: &Core) -> Vec<(Address, Arc<Link>)> {
    let table = core.table.load();
    let mut links: Vec<_> = table
        .primaries
        .iter()
        .filter_map(|node| node.pick().map(|link| (node.address.clone(), link)))
        .collect();
    fastrand::shuffle(&mut links);
    links
}

/// Every other address that has ever been a node's.
fn unconnected(core: &Core) -> Vec<Address> {
    let table = core.table.load();
    let mut addresses: Vec<_> = core.seeds.clone();
    addresses.extend(table.view.replicas.iter().map(|replica| replica.address.clone()));
    addresses.extend(table.primaries.iter().map(|node| node.address.clone()));
    addresses.sort();
    addresses.dedup();
    addresses
}

fn questions() -> redis::Pipeline {
    let mut pipeline = redis::Pipeline::new();
    pipeline.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
    pipeline
}

async fn ask(address: &Address, link: &Link) -> Result<View, NodeError> {
    let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
    let answers = link.pipeline(&questions(), 0, deadline).await;
    let silent = || NodeError::Silent(address.clone(), ANSWER_WITHIN);
    view(address, &answers.map_err(|_| silent())?)
}

pub(super) async fn dial_and_ask(dialer: &Dialer, address: &Address) -> Result<View, NodeError> {
    let Dialed { mut connection, driver } = dialer.dial(address, None).await?;
    let questions = questions();
    let answered = tokio::select! {
        answers = connection.send_packed_commands(&questions, 0, questions.len()) => answers.ok(),
        () = driver => None,
        () = tokio::time::sleep(ANSWER_WITHIN) => None,
    };
    let silent = || NodeError::Silent(address.clone(), ANSWER_WITHIN);
    view(address, &answered.ok_or_else(silent)?)
}

fn view(address: &Address, answers: &[Value]) -> Result<View, NodeError> {
    for answer in answers {
        if let Value::ServerError(error) = answer {
            let text = super::reply::text(error);
            return Err(match error.code() {
                "NOAUTH" | "WRONGPASS" => NodeError::Password(address.clone(), text),
                "ERR" if text.contains("cluster support disabled") => {
                    NodeError::NoCluster(address.clone(), text)
                }
                _ => NodeError::Refused(address.clone(), text),
            });
        }
    }
    let parsed = match answers {
        [info, slots] => View::parse(info, slots, address),
        _ => None,
    };
    parsed.ok_or_else(|| NodeError::Refused(address.clone(), "CLUSTER SLOTS makes no sense".to_owned()))
}

impl Core {
    /// Whether every slot has an owner that answers.
    fn is_whole(&self) -> bool {
        let table = self.table.load();
        table.known
            && table.view.serves
            && table.unowned() == 0
            && table.primaries.iter().all(|node| matches!(*node.state(), NodeState::Up))
    }

    /// Takes a view: makes the nodes that are new, drops those that have gone.
    fn adopt(&self, view: View) {
        let current = self.table.load();
        if !current.known || current.view != view {
            if current.view.ranges != view.ranges {
                tracing::info!(
                    instance = self.name,
                    epoch = view.epoch,
                    primaries = view.primaries().len(),
                    "the cluster's slots are owned anew"
                );
            }
            self.shared.metrics.unreplicated.set(i64::try_from(view.unreplicated()).unwrap_or(i64::MAX));
            self.table.store(Arc::new(Table::of(view, |address| self.node(address))));
            self.generation.send_modify(|generation| *generation += 1);
        }
        let table = self.table.load();
        self.nodes.lock().retain(|address, node| {
            let wanted = table.primaries.iter().any(|primary| primary.address == *address)
                || node.redirected_at.lock().elapsed() < KEEP_REDIRECTED;
            if !wanted {
                node.retired.cancel();
            }
            wanted
        });
    }
}
