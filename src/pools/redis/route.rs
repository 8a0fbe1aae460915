//! Running commands: the slot's primary, redirections, and what may be tried again.
//!
//! A command is tried again when it was certainly not run (a redirection, a connection that could not be made), or
//! when it only reads ([`reply::only_reads`]). A write whose answer was lost is not: it ends as
//! [`RedisFailure::Unknown`], because a second run could count twice.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::RedisFailure;
use super::confirm::Written;
use super::core::Core;
use super::node::{CallError, Link, Node, NodeState};
use super::reply::{self, Redirect};
use super::slot::Slot;

/// Tries after the first. With the waits between them they take 155 ms at most: a cluster that is down does not
/// gather callers.
const RETRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// How long a caller may wait to learn whether another node took over from one that went down a moment ago.
const TAKEOVER_WAIT: Duration = Duration::from_millis(100);

/// Where the next try goes.
#[derive(Clone)]
enum Hop {
    /// To whom the slot table names.
    Owner,
    Moved(Arc<Node>),
    Ask(Arc<Node>),
}

/// How often a call may still be tried, and until when.
struct Tries {
    left: u32,
    waits: u32,
    deadline: Instant,
}

impl Tries {
    fn until(deadline: Instant) -> Self {
        Self { left: RETRIES, waits: 0, deadline }
    }

    /// Waits as long as `redirect` asks for; false where there is no time or try left.
    async fn again(&mut self, redirect: Option<&Redirect>) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        // A redirection is followed at once, unless they go in circles.
        if matches!(redirect, Some(Redirect::Moved(_) | Redirect::Ask(_))) && self.left > RETRIES / 2 {
            return true;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.waits.min(4));
        self.waits += 1;
        let at = Instant::now() + wait;
        if at >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(at).await;
        true
    }
}

impl Core {
    /// One command, on the primary of `slot`. A refusal comes back as [`Value::ServerError`].
    pub(super) async fn command(
        self: &Arc<Self>,
        slot: Slot,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Value, RedisFailure> {
        Ok(self.routed(slot, command, false, deadline).await?.answer)
    }

    /// The same with a command that writes, confirmed by the replicas.
    pub(super) async fn confirmed(
        self: &Arc<Self>,
        slot: Slot,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Written, RedisFailure> {
        self.routed(slot, command, true, deadline).await
    }

    async fn routed(
        self: &Arc<Self>,
        slot: Slot,
        command: &Cmd,
        confirm: bool,
        deadline: Instant,
    ) -> Result<Written, RedisFailure> {
        let mut hop = Hop::Owner;
        let mut tries = Tries::until(deadline);
        loop {
            let (node, link) = self.connection(slot, &hop, deadline).await?;
            let asking = matches!(hop, Hop::Ask(_));
            let sent = if confirm {
                // The link only shows that the node answers.
                self.confirm(&node, command, asking, deadline).await
            } else {
                let answer = link.command(command, asking, deadline).await;
                answer.map(|answer| Written { answer, is_confirmed: false })
            };
            match sent {
                Ok(Written { answer: Value::ServerError(error), .. }) => {
                    match Redirect::of(&error, &node.address) {
                        None => {
                            self.note_refusal(&error, &node, &link);
                            return Ok(Written { answer: Value::ServerError(error), is_confirmed: false });
                        }
                        Some(redirect) => {
                            hop = self.follow(&redirect);
                            if !tries.again(Some(&redirect)).await {
                                return Err(RedisFailure::Unavailable(reply::text(&error)));
                            }
                        }
                    }
                }
                Ok(written) => return Ok(written),
                Err(error) => {
                    self.recover(error, &node, || reply::only_reads(command), &mut tries).await?;
                    hop = Hop::Owner;
                }
            }
        }
    }

    /// One command on every primary.
    pub(super) async fn on_primaries(
        &self,
        command: &Cmd,
        deadline: Instant,
    ) -> Vec<Result<Value, RedisFailure>> {
        if let Err(failure) = self.shape_known(deadline).await {
            return vec![Err(failure)];
        }
        let one = |node: Arc<Node>| async move {
            let (node, link) = self.connection(Slot::of(b""), &Hop::Moved(node), deadline).await?;
            match link.command(command, false, deadline).await {
                Ok(value) => Ok(value),
                Err(error) => {
                    let mut tries = Tries { left: 0, waits: 0, deadline };
                    self.recover(error, &node, || false, &mut tries).await.map(|()| Value::Nil)
                }
            }
        };
        let primaries = self.table.load().primaries.clone();
        futures_util::future::join_all(primaries.into_iter().map(one)).await
    }

    /// Commands of one slot, in one go; what is redirected goes again, by itself.
    pub(super) async fn pipeline(
        &self,
        slot: Slot,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>, RedisFailure> {
        let mut answers: Vec<Value> = Vec::new();
        let mut round = Round { hop: Hop::Owner, redirect: None, places: (0..pipeline.len()).collect() };
        let mut tries = Tries::until(deadline);
        loop {
            let first = answers.is_empty();
            let done = self.round(slot, pipeline, &round, first, deadline, &mut tries).await;
            let (node, mut new) = match done {
                Ok(done) => done,
                // Some of the others were run.
                Err(RedisFailure::Unavailable(text)) if !first => return Err(RedisFailure::Unknown(text)),
                Err(failure) => return Err(failure),
            };
            if first {
                answers = new;
            } else {
                for (place, value) in round.places.iter().zip(new.drain(..)) {
                    answers[*place] = value;
                }
            }
            match self.next_round(&answers, &node) {
                None => return Ok(answers),
                Some(next) => round = next,
            }
            if !tries.again(round.redirect.as_ref()).await {
                return Ok(answers);
            }
        }
    }

    /// Sends the commands of a round and returns an answer each.
    async fn round(
        &self,
        slot: Slot,
        pipeline: &Pipeline,
        round: &Round,
        whole: bool,
        deadline: Instant,
        tries: &mut Tries,
    ) -> Result<(Arc<Node>, Vec<Value>), RedisFailure> {
        let mut hop = round.hop.clone();
        loop {
            let (node, link) = self.connection(slot, &hop, deadline).await?;
            let asking = matches!(hop, Hop::Ask(_));
            let sent = if whole {
                link.pipeline(pipeline, 0, deadline).await
            } else {
                let part = round.commands(pipeline, asking);
                let answers = link.pipeline(&part, 0, deadline).await;
                answers.map(|all| if asking { all.into_iter().skip(1).step_by(2).collect() } else { all })
            };
            match sent {
                Ok(answers) => return Ok((node, answers)),
                Err(error) => {
                    let reads = || pipeline.cmd_iter().all(reply::only_reads);
                    self.recover(error, &node, reads, tries).await?;
                    hop = Hop::Owner;
                }
            }
        }
    }

    /// The commands that have to go again, those of one destination at a time.
    fn next_round(&self, answers: &[Value], node: &Node) -> Option<Round> {
        let mut next: Option<Round> = None;
        for (place, answer) in answers.iter().enumerate() {
            let Value::ServerError(error) = answer else { continue };
            let Some(redirect) = Redirect::of(error, &node.address) else {
                self.trouble.note(error, &node.address);
                continue;
            };
            match &mut next {
                Some(round) if round.redirect.as_ref() == Some(&redirect) => round.places.push(place),
                Some(_) => {}
                None => {
                    let hop = self.follow(&redirect);
                    next = Some(Round { hop, redirect: Some(redirect), places: vec![place] });
                }
            }
        }
        next
    }

    /// Where a redirection leads; asks for the topology where ours is old.
    fn follow(&self, redirect: &Redirect) -> Hop {
        self.shared.metrics.redirect(redirect);
        match redirect {
            Redirect::Moved(address) => {
                self.shared.refresh.notify_one();
                Hop::Moved(self.redirected(address))
            }
            Redirect::Ask(address) => Hop::Ask(self.redirected(address)),
            Redirect::ClusterDown | Redirect::MasterDown | Redirect::ReadOnly => {
                self.shared.refresh.notify_one();
                Hop::Owner
            }
            Redirect::TryAgain | Redirect::Loading => Hop::Owner,
        }
    }

    fn redirected(&self, address: &super::connect::Address) -> Arc<Node> {
        let node = self.node(address);
        *node.redirected_at.lock() = std::time::Instant::now();
        node
    }

    /// `Ok` where the command may be sent again.
    async fn recover(
        &self,
        error: CallError,
        node: &Node,
        only_reads: impl Fn() -> bool,
        tries: &mut Tries,
    ) -> Result<(), RedisFailure> {
        let address = &node.address;
        match error {
            CallError::Full => {
                Err(RedisFailure::Unavailable(format!("too many commands wait for {address}")))
            }
            CallError::Malformed => Err(RedisFailure::Refused("the command is empty".to_owned())),
            CallError::Overrun => {
                Err(RedisFailure::Unknown(format!("{address} did not answer within the call's budget")))
            }
            CallError::Closed if tries.again(None).await => Ok(()),
            CallError::Closed => {
                Err(RedisFailure::Unavailable(format!("the connection to {address} was lost")))
            }
            CallError::Lost if only_reads() && tries.again(None).await => Ok(()),
            CallError::Lost => Err(RedisFailure::Unknown(format!("the connection to {address} was lost"))),
        }
    }

    fn note_refusal(&self, error: &redis::ServerError, node: &Node, link: &Link) {
        self.trouble.note(error, &node.address);
        if matches!(error.code(), "NOAUTH" | "WRONGPASS") {
            link.close();
        }
    }

    /// A connection for the next try. Waits for one that is being made; a node that is down fails at once.
    async fn connection(
        &self,
        slot: Slot,
        hop: &Hop,
        deadline: Instant,
    ) -> Result<(Arc<Node>, Arc<Link>), RedisFailure> {
        let node = match hop {
            Hop::Moved(node) | Hop::Ask(node) => Some(Arc::clone(node)),
            Hop::Owner => self.table.load().owner(slot).map(Arc::clone),
        };
        if let Some(node) = node
            && let Some(link) = node.pick()
        {
            return Ok((node, link));
        }
        self.connection_slowly(slot, hop, deadline).await
    }

    async fn connection_slowly(
        &self,
        slot: Slot,
        hop: &Hop,
        deadline: Instant,
    ) -> Result<(Arc<Node>, Arc<Link>), RedisFailure> {
        let mut waited = false;
        while Instant::now() < deadline {
            let node = match hop {
                Hop::Moved(node) | Hop::Ask(node) => Arc::clone(node),
                Hop::Owner => self.owner(slot, deadline).await?,
            };
            if let Some(link) = node.pick() {
                return Ok((node, link));
            }
            let Some((since, error)) = settled(&node, deadline).await? else {
                // Its keeper is about to say so.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let replaced = || {
                matches!(hop, Hop::Owner)
                    && self.table.load().owner(slot).is_some_and(|owner| !Arc::ptr_eq(owner, &node))
            };
            if !replaced() && !waited && matches!(hop, Hop::Owner) {
                waited = true;
                self.refreshed_after(since, deadline).await;
            }
            if !replaced() {
                return Err(RedisFailure::Unavailable(error.to_string()));
            }
        }
        Err(RedisFailure::Unavailable("no connection to the slot's node within the call's budget".to_owned()))
    }

    /// The primary of `slot`.
    async fn owner(&self, slot: Slot, deadline: Instant) -> Result<Arc<Node>, RedisFailure> {
        self.shape_known(deadline).await?;
        let owner = self.table.load().owner(slot).map(Arc::clone);
        owner.ok_or_else(|| RedisFailure::Unavailable("no node owns the slot".to_owned()))
    }

    /// Waits for the first answer about the topology, unless asking has failed.
    async fn shape_known(&self, deadline: Instant) -> Result<(), RedisFailure> {
        let mut refreshes = self.last_refresh.subscribe();
        while !self.table.load().known {
            if let Some(error) = &refreshes.borrow_and_update().1 {
                return Err(RedisFailure::Unavailable(error.to_string()));
            }
            if !matches!(tokio::time::timeout_at(deadline, refreshes.changed()).await, Ok(Ok(()))) {
                return Err(RedisFailure::Unavailable("the cluster's shape is not known yet".to_owned()));
            }
        }
        Ok(())
    }

    /// Waits, not long, until the topology has been asked for after `since`.
    async fn refreshed_after(&self, since: std::time::Instant, deadline: Instant) {
        let mut refreshes = self.last_refresh.subscribe();
        let is_later = |at: &Option<std::time::Instant>| at.is_some_and(|at| at > since);
        if is_later(&refreshes.borrow().0) {
            return;
        }
        self.shared.refresh.notify_one();
        let bound = deadline.min(Instant::now() + TAKEOVER_WAIT);
        // In vain or not: the caller looks at the table.
        tokio::time::timeout_at(bound, refreshes.wait_for(|(at, _)| is_later(at))).await.ok();
    }
}

/// Waits while the node is connecting. `None`: it is up; otherwise why it is down, and since when.
async fn settled(
    node: &Node,
    deadline: Instant,
) -> Result<Option<(std::time::Instant, super::connect::NodeError)>, RedisFailure> {
    let mut states = node.subscribe();
    let settled = states.wait_for(|state| !matches!(state, NodeState::Connecting));
    match tokio::time::timeout_at(deadline, settled).await {
        Ok(Ok(state)) => Ok(match &*state {
            NodeState::Down { since, error } => Some((*since, error.clone())),
            NodeState::Up | NodeState::Connecting => None,
        }),
        _ => Err(RedisFailure::Unavailable(format!("still connecting to {}", node.address))),
    }
}

/// The commands of a pipeline that go to one destination.
struct Round {
    hop: Hop,
    redirect: Option<Redirect>,
    places: Vec<usize>,
}

impl Round {
    fn commands(&self, pipeline: &Pipeline, asking: bool) -> Pipeline {
        let mut part = Pipeline::with_capacity(self.places.len() * 2);
        for (place, command) in pipeline.cmd_iter().enumerate() {
            if self.places.binary_search(&place).is_ok() {
                if asking {
                    part.cmd("ASKING");
                }
                part.add_command(command.clone());
            }
        }
        part
    }
}
