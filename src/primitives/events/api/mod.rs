//! HTTP: the routes, and what they share.

mod docs;
mod groups;
mod publish;
mod read;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;

use super::arrivals::Arrivals;
use super::broker_limits::BrokerLimits;
use super::dead_letters::Undertaker;
use super::metrics::EventsMetrics;
use super::publish::Publisher;
use super::turns::{MAX_WAITING, Turns};
use super::{Audience, CONSUME, CursorKey, EventsPolicy, GroupError, PUBLISH, READ, Topic};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Route, handler};
use crate::names::Name;
use crate::policy::Action;
use crate::primitives::store_answer::StoreAnswer;
use crate::primitives::write_rates::Rates;
use crate::store::{Store, StoreError};

const TOPIC: &str = "/v1/events/{topic}";
/// What is left of a call's time for its reply when a wait ends.
const REPLY_MARGIN: Duration = Duration::from_millis(50);

/// What the handlers need.
pub(super) struct Api {
    pub(super) store: Store,
    pub(super) publisher: Arc<Publisher>,
    pub(super) rates: Rates,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) turns: Arc<Turns>,
    pub(super) undertaker: Arc<Undertaker>,
    pub(super) broker_limits: Arc<BrokerLimits>,
    pub(super) metrics: Arc<EventsMetrics>,
    pub(super) heartbeat: Duration,
}

/// The routes of events.
pub(super) fn routes(api: Api) -> Vec<Route> {
    let api = Arc::new(api);
    let route = |method, pattern, action, operation, docs, handler| Route {
        method,
        pattern,
        action,
        serves_fleets: action != PUBLISH,
        operation,
        docs,
        handler,
    };
    let post = Method::POST;
    vec![
        route(post.clone(), TOPIC, PUBLISH, "publish", docs::PUBLISH, handler(&api, publish::publish)),
        route(Method::GET, TOPIC, READ, "read", docs::READ, handler(&api, read::read)),
        route(
            post.clone(),
            "/v1/events/{topic}:pull",
            CONSUME,
            "pull",
            docs::PULL,
            handler(&api, groups::pull),
        ),
        route(post.clone(), "/v1/events/{topic}:ack", CONSUME, "ack", docs::ACK, handler(&api, groups::ack)),
        route(
            post.clone(),
            "/v1/events/{topic}:nack",
            CONSUME,
            "nack",
            docs::NACK,
            handler(&api, groups::nack),
        ),
        route(
            post.clone(),
            "/v1/events/{topic}:extend",
            CONSUME,
            "extend",
            docs::EXTEND,
            handler(&api, groups::extend),
        ),
        route(post, "/v1/events/{topic}:seek", CONSUME, "seek", docs::SEEK, handler(&api, groups::seek)),
    ]
}

/// Who reads, and the topic: permitted, and named by policy. A service that names no tenant reads for all of its own. Dead letters are read like any topic.
fn readable_topic(call: &Call, action: Action) -> Result<(Audience, Arc<Topic>), Problem> {
    let name = call.name_param("topic")?;
    let audience = match call.caller.fleet_permit(action, &name)? {
        Some(permit) => Audience::Fleet(permit),
        None => Audience::Tenant(call.caller.permit(action, &name)?),
    };
    let policy = call.caller.policies().get::<EventsPolicy>();
    let found = policy.and_then(|policy| policy.topic(&name).or_else(|| policy.topic_of_dead_letters(&name)));
    let topic = found.map(Arc::clone).ok_or_else(|| no_such_topic(&name))?;
    Ok((audience, topic))
}

fn no_such_topic(name: &Name) -> Problem {
    let detail = format!("no policy of `kind: events` names the topic `{name}`");
    Problem::new(ErrorKind::NotFound, detail)
}

impl Api {
    /// The key of cursors, which every sidecar of the store has.
    async fn cursor_key(&self) -> Result<CursorKey, Problem> {
        let bytes = self.store.cursor_key().await.map_err(|error| store_problem(&error))?;
        bytes.first_chunk().map(CursorKey::new).ok_or_else(|| {
            tracing::error!("the store's cursor key is too short");
            Problem::new(ErrorKind::Internal, "cursors cannot be read")
        })
    }
}

/// Until when a caller that asked with `wait_ms` waits: never to the end of the call's time.
fn wait_until(call: &Call, wait_ms: u64) -> Instant {
    let budget = call.deadline.budget(Duration::from_millis(wait_ms));
    Instant::now() + budget.min(call.deadline.budget(Duration::MAX).saturating_sub(REPLY_MARGIN))
}

const ANSWER: StoreAnswer = StoreAnswer {
    store: "the event store",
    done: "kept",
    again: "an event with an id of yours counts once",
    room: "there is room again as events end (`events.retention_days`)",
};

/// What a caller hears of a store that failed; what it said is in the log.
fn store_problem(error: &StoreError) -> Problem {
    ANSWER.of(error)
}

impl From<GroupError> for Problem {
    fn from(error: GroupError) -> Self {
        group_problem(&error)
    }
}

fn group_problem(error: &GroupError) -> Problem {
    match error {
        GroupError::Store(error) => store_problem(error),
        GroupError::Together(error) => group_problem(error),
        GroupError::TooMany(most) => {
            let detail = format!(
                "this tenant has {most} groups of the topic (`groups.max_per_tenant`): use one of them; those that nobody \
                     uses go when the events that they looked at do"
            );
            Problem::new(error.kind(), detail)
        }
        GroupError::LongLine => {
            let detail = format!(
                "{MAX_WAITING} calls wait for this group in this process: nothing was done; come back, and name many receipts \
                     in a call"
            );
            Problem::new(error.kind(), detail)
        }
        GroupError::ShareTaken => Problem::new(
            error.kind(),
            "too many calls of this tenant wait for its groups, or too many receipts: nothing was done; come back",
        ),
        GroupError::Overloaded => {
            Problem::new(error.kind(), "too many calls wait for consumer groups: nothing was done; come back")
        }
        GroupError::LongKey(_) => Problem::new(error.kind(), error.to_string()),
        GroupError::Gone => {
            tracing::error!(%error, "a call of a consumer group got no answer");
            Problem::new(
                error.kind(),
                "the call's transaction gave no answer: pull again, or send the receipts again",
            )
        }
        GroupError::State(_) | GroupError::Order(_) | GroupError::Policy(_) => {
            tracing::error!(%error, "a consumer group cannot be worked with");
            Problem::new(error.kind(), "the group's state cannot be read; the log of this process says why")
        }
    }
}
