//! Writes that a failover does not undo: they count as done once every replica that could take over has them.
//!
//! Redis answers before it replicates. WAIT blocks all that is behind it on its connection, so these writes go over
//! one of their own to each node, made when it is needed and closed when idle. What callers want at the same time goes
//! in one round: their scripts and ROLE, whose answer says up to where the replicas must read; then WAIT and ROLE, which
//! says how far they have. A write that is not confirmed by then is looked at again in the next round, with those that
//! came meanwhile. `docs/decisions/024-deletes-are-confirmed-by-replicas.md` says what can still be lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::{mpsc, oneshot};

use super::connect::{Dialed, MAX_IN_FLIGHT};
use super::core::Core;
use super::metrics::OpenConnection;
use super::node::{CallError, Node};

/// Writes of one round.
const MAX_BATCH: usize = 128;
/// One WAIT: how long a slow replica holds up the next round. An idle Redis looks at its clock every 100 ms only.
const WAIT_MS: u64 = 25;
/// Between two looks at a shape of the cluster that has no such primary yet.
const SHAPE_AGAIN: Duration = Duration::from_millis(5);
/// A node that does not answer for so long is given up, and the connection with it.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Without a write for so long the connection is closed.
const IDLE: Duration = Duration::from_secs(30);
/// The same while the process stops: requests may still be served.
const LINGER: Duration = Duration::from_millis(500);
/// A replica that the cluster names and that is not attached counts as one that lacks the write for so long: a
/// connection that broke is made again within about a second, and until then the replica may be elected as it is.
const MISSED_FOR: Duration = Duration::from_secs(3);
/// It is missed anew where nobody looked for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// A write's answer, and whether a failover can undo it.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// What the script returned.
    pub answer: Value,
    /// Whether every replica that could take over has the write; also where there is none.
    pub is_confirmed: bool,
}

/// A node's writes that wait to be confirmed.
#[derive(Default)]
pub(super) struct Confirming {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    missed: Mutex<Option<Missed>>,
}

/// Since when a replica is missed, and when that was last seen.
#[derive(Debug, Clone, Copy)]
struct Missed {
    since: Instant,
    seen: Instant,
}

struct Job {
    command: Cmd,
    asking: bool,
    ran: oneshot::Sender<Result<Value, CallError>>,
    confirmed: Confirmed,
}

/// Told by how many replicas a write is confirmed.
type Confirmed = oneshot::Sender<usize>;

/// A write that was run and is not confirmed yet.
struct Pending {
    /// Where the replication stream was after it.
    offset: i64,
    confirmed: Confirmed,
}

/// What a primary says of its replication.
#[derive(Debug, PartialEq, Eq)]
struct Role {
    offset: i64,
    /// Up to where each attached replica says that it has read.
    replicas: Vec<i64>,
}

impl Core {
    /// Runs a command that writes on this node, and waits until it is confirmed or its time is over. It has to
    /// write whatever it finds: WAIT is about the writes of its own connection, not about earlier ones of others.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        node: &Arc<Node>,
        command: &Cmd,
        asking: bool,
        deadline: tokio::time::Instant,
    ) -> Result<Written, CallError> {
        let (ran, answer) = oneshot::channel();
        let (confirmed, replicas) = oneshot::channel();
        self.enqueue(node, Job { command: command.clone(), asking, ran, confirmed })?;
        let answer = match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.unwrap_or(Err(CallError::Lost))?,
            Err(_) => return Err(CallError::Overrun),
        };
        if matches!(answer, Value::ServerError(_)) {
            return Ok(Written { answer, is_confirmed: false });
        }
        let replicas = tokio::time::timeout_at(deadline, replicas).await.ok().and_then(Result::ok);
        self.shared.metrics.confirmation(replicas);
        Ok(Written { answer, is_confirmed: replicas.is_some() })
    }

    fn enqueue(self: &Arc<Self>, node: &Arc<Node>, job: Job) -> Result<(), CallError> {
        let mut queue = node.confirming.queue.lock();
        let job = match queue.as_ref() {
            None => job,
            Some(open) => match open.try_send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(CallError::Full),
                Err(mpsc::error::TrySendError::Closed(job)) => job,
            },
        };
        let (sender, jobs) = mpsc::channel(MAX_IN_FLIGHT);
        sender.try_send(job).map_err(|_| CallError::Full)?;
        *queue = Some(sender);
        self.shared.tasks.spawn("redis confirmations", serve(Arc::clone(self), Arc::clone(node), jobs));
        Ok(())
    }
}

/// Confirms the writes of one node until none came for a while, or the connection is lost.
async fn serve(core: Arc<Core>, node: Arc<Node>, mut jobs: mpsc::Receiver<Job>) {
    tokio::select! {
        () = node.retired.cancelled() => {}
        () = serve_connected(&core, &node, &mut jobs) => {}
    }
    // These were not sent: their callers try again, on a connection to come.
    jobs.close();
    while let Some(job) = jobs.recv().await {
        tell(job.ran, Err(CallError::Closed));
    }
}

/// Answers a caller, who may have left: then nobody needs the answer.
fn tell<T>(caller: oneshot::Sender<T>, answer: T) {
    if caller.send(answer).is_err() {
        tracing::trace!("the caller of a confirmed write has left");
    }
}

async fn serve_connected(core: &Core, node: &Node, jobs: &mut mpsc::Receiver<Job>) {
    let Dialed { connection, driver } = match core.shared.dialer.dial(&node.address, None).await {
        Ok(dialed) => dialed,
        Err(error) => {
            tracing::debug!(instance = core.name, %error, "a connection for confirmed writes cannot be made");
            return;
        }
    };
    let _open = OpenConnection::count(&core.shared.metrics);
    let session = Session { core, node, connection, pending: Vec::new() };
    tokio::select! {
        () = driver => {}
        () = session.run(jobs) => {}
    }
}

/// The rounds on one connection.
struct Session<'a> {
    core: &'a Core,
    node: &'a Node,
    connection: MultiplexedConnection,
    pending: Vec<Pending>,
}

impl Session<'_> {
    async fn run(mut self, jobs: &mut mpsc::Receiver<Job>) {
        let stopping = self.core.shared.tasks.stopping();
        loop {
            let mut batch = Vec::new();
            if self.pending.is_empty() {
                let is_stopping = stopping.is_cancelled();
                tokio::select! {
                    job = jobs.recv() => match job {
                        Some(job) => batch.push(job),
                        None => return,
                    },
                    () = stopping.cancelled(), if !is_stopping => continue,
                    () = tokio::time::sleep(if is_stopping { LINGER } else { IDLE }) => return,
                }
            }
            // A write whose caller has left already is not begun, and not waited for. It takes no place of another either:
            // behind a slow replica most may be such.
            batch.retain(|job| !job.ran.is_closed());
            while batch.len() < MAX_BATCH
                && let Ok(job) = jobs.try_recv()
            {
                if !job.ran.is_closed() {
                    batch.push(job);
                }
            }
            self.pending.retain(|write| !write.confirmed.is_closed());
            if self.round(batch).await.is_none() {
                return;
            }
        }
    }

    /// Runs these writes and looks which of all are confirmed; `None` where the connection is of no more use.
    async fn round(&mut self, batch: Vec<Job>) -> Option<()> {
        let role = self.run_scripts(batch).await?;
        if self.pending.is_empty() {
            return Some(());
        }
        let needed = role.as_ref().and_then(|role| self.needed(role));
        if needed == Some(0) {
            self.judge(role.map(|role| (role, 0)));
            return Some(());
        }
        let mut wait = Pipeline::with_capacity(2);
        wait.cmd("WAIT").arg(needed.unwrap_or(1)).arg(WAIT_MS).cmd("ROLE");
        let mut answers = self.ask(&wait).await?.into_iter();
        let waited = match answers.next() {
            Some(Value::Int(waited)) => usize::try_from(waited).ok(),
            // Refused, or broken off because the node is a replica now.
            _ => None,
        };
        let role = answers.next().as_ref().and_then(Role::of);
        self.judge(role.zip(waited));
        if needed.is_none() {
            self.core.shared.refresh.notify_one();
            tokio::time::sleep(SHAPE_AGAIN).await;
        }
        Some(())
    }

    /// Runs these writes; says what the node said of its replication after them.
    async fn run_scripts(&mut self, batch: Vec<Job>) -> Option<Option<Role>> {
        let mut scripts = Pipeline::with_capacity(batch.len() * 2 + 1);
        for job in &batch {
            if job.asking {
                scripts.cmd("ASKING");
            }
            scripts.add_command(job.command.clone());
        }
        scripts.cmd("ROLE");
        let mut answers = self.ask(&scripts).await?;
        let role = answers.pop().as_ref().and_then(Role::of);
        let mut answers = answers.into_iter();
        for job in batch {
            let answer = if job.asking { answers.nth(1) } else { answers.next() }?;
            // An error reply is judged by the caller: nothing was written.
            if let (Some(role), false) = (&role, matches!(answer, Value::ServerError(_))) {
                self.pending.push(Pending { offset: role.offset, confirmed: job.confirmed });
            }
            tell(job.ran, Ok(answer));
        }
        Some(role)
    }

    /// Sends these commands; `None` where not each of them has an answer.
    async fn ask(&mut self, commands: &Pipeline) -> Option<Vec<Value>> {
        let within = ANSWER_WITHIN + Duration::from_millis(WAIT_MS);
        let answers = self.connection.send_packed_commands(commands, 0, commands.len());
        let answers = match tokio::time::timeout(within, answers).await {
            Ok(Ok(answers)) if answers.len() == commands.len() => answers,
            Ok(Ok(answers)) => {
                let (sent, came) = (commands.len(), answers.len());
                tracing::warn!(
                    instance = self.core.name,
                    sent,
                    came,
                    "redis answered other than it was asked"
                );
                return None;
            }
            Ok(Err(error)) => {
                tracing::debug!(instance = self.core.name, %error, "confirmed writes were cut off");
                return None;
            }
            Err(_) => {
                tracing::debug!(instance = self.core.name, "confirmed writes were not answered");
                return None;
            }
        };
        // What an operator can mend: the rights to ROLE and WAIT.
        for answer in answers.iter().rev().take(2) {
            if let Value::ServerError(error) = answer {
                self.core.trouble.note(error, &self.node.address);
            }
        }
        Some(answers)
    }

    /// Tells the callers of what is confirmed, and keeps the rest. So many replicas have everything that was written on
    /// this connection until now.
    fn judge(&mut self, heard: Option<(Role, usize)>) {
        let Some((role, waited)) = heard else {
            // A node that is no primary any more, or may not say, confirms nothing later either.
            self.pending.clear();
            return;
        };
        let Some(needed) = self.needed(&role) else { return };
        for write in std::mem::take(&mut self.pending) {
            let have = || role.replicas.iter().filter(|read| **read >= write.offset).count();
            if waited >= needed || have() >= needed {
                tell(write.confirmed, needed);
            } else {
                self.pending.push(write);
            }
        }
    }

    /// How many replicas must have a write; `None` where that is not known because the cluster's shape, as this process
    /// last saw it, has no such primary.
    fn needed(&self, role: &Role) -> Option<usize> {
        let (named, attached) = (self.named()?, role.replicas.len());
        let mut missed = self.node.confirming.missed.lock();
        if named <= attached {
            *missed = None;
            return Some(attached);
        }
        let is_missed = Missed::again(&mut missed, Instant::now());
        Some(if is_missed { named } else { attached })
    }

    /// How many replicas the cluster names for this primary.
    fn named(&self) -> Option<usize> {
        self.core.table.load().view.replicas_of(&self.node.address)
    }
}

impl Missed {
    /// Notes that a replica is missed now; whether it still counts.
    fn again(missed: &mut Option<Self>, now: Instant) -> bool {
        let recent = missed.filter(|missed| now.duration_since(missed.seen) < FORGOTTEN_AFTER);
        let since = recent.map_or(now, |missed| missed.since);
        *missed = Some(Self { since, seen: now });
        now.duration_since(since) < MISSED_FOR
    }
}

impl Role {
    /// From the answer of a primary to ROLE: `master`, its offset, and address, port, offset of each replica.
    fn of(answer: &Value) -> Option<Self> {
        let Value::Array(parts) = answer else { return None };
        let [Value::BulkString(role), Value::Int(offset), Value::Array(replicas)] = parts.as_slice() else {
            return None;
        };
        if role != b"master" {
            return None;
        }
        // A replica that cannot be read is one that has nothing.
        let read = |replica: &Value| match replica {
            Value::Array(parts) => parts.get(2).and_then(|text| redis::from_redis_value_ref(text).ok()),
            _ => None,
        };
        let replicas = replicas.iter().map(|replica| read(replica).unwrap_or(-1)).collect();
        Some(Self { offset: *offset, replicas })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_s_role_says_how_far_its_replicas_are() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let replica = |offset| Value::Array(vec![bulk("10.0.0.2"), bulk("6379"), bulk(offset)]);
        let role = |name, replicas| Value::Array(vec![bulk(name), Value::Int(90), Value::Array(replicas)]);
        let expected = Role { offset: 90, replicas: vec![90, 70, -1] };
        let answer = role("master", vec![replica("90"), replica("70"), replica("x")]);
        assert_eq!(Role::of(&answer), Some(expected));
        assert_eq!(Role::of(&role("slave", Vec::new())), None);
        assert_eq!(Role::of(&Value::Nil), None);
    }

    #[test]
    fn a_replica_is_missed_for_three_seconds_each_time() {
        let (mut missed, began) = (None, Instant::now());
        for (after_ms, counts) in
            [(0, true), (2900, true), (3000, false), (20_000, false), (49_999, false), (80_000, true)]
        {
            let now = began + Duration::from_millis(after_ms);
            assert_eq!(Missed::again(&mut missed, now), counts, "after {after_ms} ms");
        }
    }
}
