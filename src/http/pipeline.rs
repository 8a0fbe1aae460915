//! The way of a request, in the order it happens.
//!
//! head checks -> path -> deadline -> identity -> route -> idempotency key -> caller (`act_for`) -> verb
//! -> declared length -> its tenant's calls -> handler under the deadline -> reply or problem -> seen once.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use tokio::time::Sleep;

use super::budget::{self, Counted, Load, Share};
use super::headers::{self, AllowedHosts, Seen};
use super::observe::{Ended, Observer};
use super::path::ParsedPath;
use super::table::{Found, RouteTable};
use super::trace::Trace;
use super::{Call, ConnectionState, Deadline, HandlerFuture, Problem, Query, Reply, ReplyBody, path};
use crate::error::ErrorKind;
use crate::identity::{Gate, Principal, TenantId};
use crate::policy::{Caller, Denied, PolicySource};
use crate::tasks::panic_text;

/// The bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// The call's time where the caller names none.
    pub timeout: Duration,
    /// The longest time a caller may ask for.
    pub max_timeout: Duration,
    /// The largest body of any route, by its declared length.
    pub body_bytes: u64,
}

/// Everything a request passes.
pub struct Pipeline {
    /// The hosts it may be for.
    pub hosts: AllowedHosts,
    /// Its bounds.
    pub limits: RequestLimits,
    /// What is on its way: calls, their bodies, large replies that are not yet read.
    pub load: Arc<Load>,
    /// Who verifies its token.
    pub gate: Arc<Gate>,
    /// The policies in force.
    pub policies: PolicySource,
    /// The routes.
    pub routes: RouteTable,
    /// Who sees it.
    pub observer: Observer,
    /// What `/openapi.json` answers, to anyone.
    pub openapi: Bytes,
}

/// What a request comes to before anything had to wait.
enum Begun<'p> {
    Reply(Reply),
    Work(Work<'p>),
}

/// An answer in the making, within the call's time.
struct Work<'p> {
    reply: HandlerFuture<'p>,
    deadline: Deadline,
    timeout_ms: u32,
    connection: &'p ConnectionState,
    tenant: Option<TenantId>,
    waiting: Option<Waiting>,
}

/// What a call has that is not answered at once: most are, and need no timer and no place among their tenant's.
struct Waiting {
    over: Pin<Box<Sleep>>,
    _counted: Option<Counted>,
}

/// What is known of a request once it ends, however it ends.
#[derive(Default)]
struct Told {
    route: Option<usize>,
    tenant: Option<TenantId>,
}

/// The pipeline as one connection holds it: its own count of references, so that calls on different processors do
/// not change the same one.
pub type PipelineHandle = Arc<Arc<Pipeline>>;

impl Pipeline {
    /// Answers one request. Every error has become a problem document when this returns.
    ///
    /// What is kept while a call waits is small, and is one allocation that the allocator's fast path serves: an
    /// `async fn` would keep its arguments twice, and what is not needed any more.
    #[allow(clippy::manual_async_fn, reason = "an async fn keeps its arguments twice")]
    pub fn serve(
        pipeline: PipelineHandle,
        request: Request<Incoming>,
        connection: Arc<ConnectionState>,
    ) -> impl Future<Output = Response<ReplyBody>> + Send {
        async move {
            let began = Instant::now();
            let trace = Trace::from_headers(request.headers());
            let method = request.method().clone();
            let mut told = Told::default();
            connection.body_is_unread(!request.body().is_end_stream());
            let begin = || pipeline.begin(request, &connection, began, None, &mut told);
            let reply = match caught_now(begin) {
                Ok(Begun::Reply(reply)) => Ok(reply),
                Ok(Begun::Work(work)) => caught(work).await,
                Err(problem) => Err(problem),
            };
            let reply = reply.unwrap_or_else(|problem| problem.into_reply(trace.id()));
            let reply = pipeline.counted(reply, &connection, &method, told.tenant);
            let reply = reply.unwrap_or_else(|problem| problem.into_reply(trace.id()));
            let (status, took) = (reply.status(), began.elapsed());
            pipeline.observer.ended(&Ended {
                route: told.route,
                method: &method,
                status,
                took,
                trace: &trace,
            });
            reply.into_response()
        }
    }

    /// A large reply takes its part of what its tenant and all may, until it is written: its reader may be slow. What
    /// has no tenant is the same bytes for everyone, and whoever has no token could take every tenant's part with it.
    /// A streamed one takes its place among the open ones; HEAD has none of it.
    fn counted(
        &self,
        mut reply: Reply,
        connection: &Arc<ConnectionState>,
        method: &Method,
        tenant: Option<TenantId>,
    ) -> Result<Reply, Problem> {
        let Some(tenant) = tenant else { return Ok(reply) };
        if let Some((length, body)) = reply.large_body() {
            let mut share = Share::new(&self.load, connection, tenant, budget::Bytes::Replies);
            share.take(length)?;
            body.keep(share);
        } else if let Some(stream) = reply.stream_body()
            && *method != Method::HEAD
        {
            stream.open(self.load.open_stream(connection, tenant)?);
        }
        Ok(reply)
    }

    /// Everything up to the handler; `known` is whose request it is, once its token was verified.
    fn begin<'p>(
        &'p self,
        request: Request<Incoming>,
        connection: &'p Arc<ConnectionState>,
        began: Instant,
        known: Option<Arc<Principal>>,
        told: &'p mut Told,
    ) -> Result<Begun<'p>, Problem> {
        let (head, body) = request.into_parts();
        let seen = Seen::of(&head.headers);
        headers::check(&head.method, &head.uri, head.version, &seen, &self.hosts)?;
        let parsed = path::parse(head.uri.path(), head.method == Method::POST)?;
        if let Some(reply) = self.public(&head.method, head.uri.path())? {
            return Ok(Begun::Reply(reply));
        }
        let timeout = headers::timeout(&seen, self.limits.timeout, self.limits.max_timeout)?;
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let deadline = Deadline::at(began + timeout, seen.names_timeout());
        let known = match known {
            Some(principal) => Some(principal),
            None => self.gate.known(seen.authorization(), &connection.recent)?,
        };
        let Some(principal) = known else {
            drop(parsed);
            let request = Request::from_parts(head, body);
            let reply = Box::pin(self.verify_first(request, connection, began, deadline, told));
            return Ok(Begun::Work(Work {
                reply,
                deadline,
                timeout_ms,
                connection,
                tenant: None,
                waiting: None,
            }));
        };
        let Found { index, route, params } = self.route(&head.method, &parsed, head.uri.path())?;
        told.route = Some(index);
        if seen.has_idempotency_key() && !route.takes_idempotency_key() {
            return Err(headers::no_idempotency_key());
        }
        let policies = self.policies.current();
        let choice = headers::tenant_choice(&seen).map_err(|problem| {
            // Only whom policy lets name a tenant is told how.
            if policies.access().may_act(&principal) { problem } else { Denied::ActFor.into() }
        })?;
        let caller = Caller::new(principal, choice, policies)?;
        let tenant = caller.check_verb(route.action, route.serves_fleets)?;
        told.tenant = Some(tenant);
        self.check_declared_length(&seen)?;
        let query = Query::parse(head.uri.query())?;
        connection.load.admit(&self.load, tenant)?;
        let share = Share::new(&self.load, connection, tenant, budget::Bytes::Bodies);
        let (method, headers) = (head.method, head.headers);
        let call = Call { caller, method, params, query, headers, deadline, body, share };
        let reply = route.handler.handle(Box::new(call));
        Ok(Begun::Work(Work { reply, deadline, timeout_ms, connection, tenant: Some(tenant), waiting: None }))
    }

    /// The same for a token that is to be verified, which may wait for keys.
    async fn verify_first(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
        began: Instant,
        deadline: Deadline,
        told: &mut Told,
    ) -> Result<Reply, Problem> {
        let authorization = Seen::of(request.headers()).authorization();
        let principal = self.gate.principal(authorization, &connection.recent, deadline.instant()).await?;
        match self.begin(request, connection, began, Some(principal), told)? {
            Begun::Reply(reply) => Ok(reply),
            Begun::Work(work) => work.await,
        }
    }

    /// The route of a request. Only a POST has a custom verb; another method on one is told so.
    fn route(&self, method: &Method, path: &ParsedPath<'_>, raw: &str) -> Result<Found<'_>, Problem> {
        let problem = match self.routes.find(method, path) {
            Err(problem) if *method != Method::POST => problem,
            found => return found,
        };
        // A verb's path takes its verb's method, whatever there is without the verb.
        let with_verb = path::parse(raw, true)?;
        match self.routes.find(method, &with_verb) {
            Err(of_verb) if of_verb.kind() == ErrorKind::NotFound => Err(problem),
            found => found,
        }
    }

    /// What is answered without a token.
    fn public(&self, method: &Method, path: &str) -> Result<Option<Reply>, Problem> {
        if path != "/openapi.json" {
            return Ok(None);
        }
        match *method {
            Method::GET | Method::HEAD => {
                Ok(Some(Reply::new(http::StatusCode::OK).with_body("application/json", self.openapi.clone())))
            }
            _ => Err(Problem::method_not_allowed(&[Method::GET, Method::HEAD])),
        }
    }

    fn check_declared_length(&self, seen: &Seen<'_>) -> Result<(), Problem> {
        match seen.content_length() {
            Some(length) if self.limits.body_bytes < length => Err(Problem::new(
                ErrorKind::TooLarge,
                format!("a body may have {} bytes at most (`limits.body_bytes`)", self.limits.body_bytes),
            )),
            _ => Ok(()),
        }
    }
}

impl Future for Work<'_> {
    type Output = Result<Reply, Problem>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(mut reply) = this.reply.as_mut().poll(context) {
            if let Some(stream) = reply.as_mut().ok().and_then(Reply::stream_body) {
                stream.ends_with(this.deadline);
            }
            return Poll::Ready(reply);
        }
        let waiting = this.waiting.get_or_insert_with(|| Waiting {
            over: Box::pin(tokio::time::sleep_until(this.deadline.instant().into())),
            _counted: this.tenant.and_then(|tenant| this.connection.load.count(tenant)),
        });
        ready!(waiting.over.as_mut().poll(context));
        Poll::Ready(Err(Problem::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "the call did not end within {} ms; `Outrigger-Timeout-Ms` sets its time",
                this.timeout_ms
            ),
        )))
    }
}

/// A handler that panics is a defect of one request: its caller is told so, and the others of its connection go on.
fn caught(
    answer: impl Future<Output = Result<Reply, Problem>>,
) -> impl Future<Output = Result<Reply, Problem>> {
    AssertUnwindSafe(answer).catch_unwind().map(|caught| caught.unwrap_or_else(|panic| Err(defect(&*panic))))
}

/// The same for what does not wait.
pub(super) fn caught_now<T>(answer: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    std::panic::catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|panic| Err(defect(&*panic)))
}

fn defect(panic: &(dyn Any + Send)) -> Problem {
    tracing::error!(panic = panic_text(panic), "a defect: a handler panicked");
    Problem::new(ErrorKind::Internal, "a defect of Outrigger: its log says more")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, F, R>(_: F) -> usize
    where
        F: Fn(A, B, C) -> R,
    {
        size_of::<R>()
    }

    #[test]
    fn a_call_is_kept_in_what_the_allocator_serves_fast() {
        let bytes = future_bytes(Pipeline::serve);
        assert!(bytes <= 1024, "{bytes}");
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_of_its_own_request() {
        let waiting = caught(async { panic!("as a test of it") }).await.unwrap_err();
        let at_once = caught_now::<()>(|| panic!("as a test of it")).unwrap_err();
        for problem in [waiting, at_once] {
            assert_eq!(problem.kind(), ErrorKind::Internal);
            assert!(!problem.detail().contains("as a test"), "{}", problem.detail());
        }
    }
}
