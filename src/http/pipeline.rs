//! The way of a request, in the order it happens.
//!
//! head checks -> path -> deadline -> identity -> route -> idempotency key -> caller (`act_for`) -> verb
//! -> declared length -> counted among its tenant's -> handler under the deadline -> reply or problem -> seen once.

use std::future::Future;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::budget::{self, Counted, Load};
use super::headers::{self, AllowedHosts, Seen};
use super::observe::{Ended, Observer};
use super::path::ParsedPath;
use super::table::{Found, RouteTable};
use super::trace::Trace;
use super::{Call, ConnectionState, Deadline, HandlerFuture, Problem, Query, Reply, ReplyBody, path};
use crate::error::ErrorKind;
use crate::identity::Gate;
use crate::policy::{Caller, Denied, PolicySource, TenantChoice};

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

impl Pipeline {
    /// Answers one request. Every error has become a problem document when this returns.
    pub async fn serve(
        &self,
        request: Request<Incoming>,
        connection: &ConnectionState,
    ) -> Response<ReplyBody> {
        let began = Instant::now();
        let trace = Trace::from_headers(request.headers());
        let method = request.method().clone();
        let mut route = None;
        let reply = match caught(self.answer(request, connection, began, &mut route)).await {
            Ok(reply) => reply,
            Err(problem) => self
                .counted(problem.into_reply(trace.id()), None)
                .unwrap_or_else(|problem| problem.into_reply(trace.id())),
        };
        let (status, took) = (reply.status(), began.elapsed());
        self.observer.ended(&Ended { route, method: &method, status, took, trace: &trace });
        reply.into_response()
    }

    /// A large reply takes its part of what its tenant and all may, until it is written: its reader may be slow.
    fn counted(&self, mut reply: Reply, call: Option<&Counted>) -> Result<Reply, Problem> {
        if let Some((length, body)) = reply.large_body() {
            let mut share = self.load.share(budget::Bytes::Replies, call);
            share.take(length)?;
            body.keep(share);
        }
        Ok(reply)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: &ConnectionState,
        began: Instant,
        seen_route: &mut Option<usize>,
    ) -> Result<Reply, Problem> {
        let (head, body) = request.into_parts();
        let seen = Seen::of(&head.headers);
        headers::check(&head.method, &head.uri, head.version, &seen, &self.hosts)?;
        let parsed = path::parse(head.uri.path(), head.method == Method::POST)?;
        if let Some(reply) = self.public(&head.method, head.uri.path())? {
            return self.counted(reply, None);
        }
        let timeout = headers::timeout(&seen, self.limits.timeout, self.limits.max_timeout)?;
        let deadline = Deadline::at(began + timeout);
        let principal =
            self.gate.principal(seen.authorization(), &connection.recent, deadline.instant()).await?;
        let Found { index, route, params } = self.route(&head.method, &parsed, head.uri.path())?;
        *seen_route = Some(index);
        headers::refuse_idempotency_key(&seen)?;
        let policies = self.policies.current();
        let choice = headers::tenant_choice(&seen).map_err(|problem| {
            // Only whom policy lets name a tenant is told how.
            if policies.access().may_act(&principal) { problem } else { Denied::ActFor.into() }
        })?;
        let tenant = match choice {
            TenantChoice::FromToken => principal.tenant(),
            TenantChoice::ActFor(tenant) => Some(tenant),
        };
        let caller = Caller::new(principal, choice, policies)?;
        caller.check_verb(route.action)?;
        self.check_declared_length(&seen)?;
        let query = Query::parse(head.uri.query())?;
        let counted = tenant.map(|tenant| self.load.call(tenant, &connection.last_tenant)).transpose()?;
        let share = self.load.share(budget::Bytes::Bodies, counted.as_ref());
        let (method, headers) = (head.method, head.headers);
        let call = Call { caller, method, params, query, headers, deadline, body, share };
        self.counted(in_time((route.handler)(call), deadline, timeout).await?, counted.as_ref())
    }

    /// The route of a request. Only a POST has a custom verb; another method on one is told so.
    fn route(&self, method: &Method, path: &ParsedPath<'_>, raw: &str) -> Result<Found<'_>, Problem> {
        let problem = match self.routes.find(method, path) {
            Err(problem) if problem.kind() == ErrorKind::NotFound && *method != Method::POST => problem,
            found => return found,
        };
        let with_verb = path::parse(raw, true)?;
        if with_verb.verb.is_some() { self.routes.find(method, &with_verb) } else { Err(problem) }
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

async fn in_time(mut reply: HandlerFuture, deadline: Deadline, timeout: Duration) -> Result<Reply, Problem> {
    // Most calls are answered at once, and need no timer.
    if let Poll::Ready(reply) = poll_fn(|context| Poll::Ready(reply.as_mut().poll(context))).await {
        return reply;
    }
    tokio::time::timeout_at(deadline.instant().into(), reply).await.unwrap_or_else(|_| {
        Err(Problem::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "the call did not end within {} ms; `Outrigger-Timeout-Ms` sets its time",
                timeout.as_millis()
            ),
        ))
    })
}

/// A handler that panics is a defect of one request: its caller is told so, and the others of its connection go on.
async fn caught(answer: impl Future<Output = Result<Reply, Problem>>) -> Result<Reply, Problem> {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a defect: a handler panicked");
        Err(Problem::new(ErrorKind::Internal, "a defect of Outrigger: its log says more"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_of_its_own_request() {
        let problem = caught(async { panic!("as a test of it") }).await.unwrap_err();
        assert_eq!(problem.kind(), ErrorKind::Internal);
        assert!(!problem.detail().contains("as a test"), "{}", problem.detail());
    }
}
