//! The route table: one entry a route feeds dispatch, authorisation, metrics and OpenAPI alike.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Method;
use schemars::{Schema, SchemaGenerator};

use super::{Call, Problem, Reply};
use crate::policy::Action;

/// What a handler returns.
pub type HandlerFuture<'a> = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send + 'a>>;
/// A route's handler.
pub type Handler = Arc<dyn Handle>;

/// Answers the calls of a route. The call is boxed: what is moved and kept on the way is a pointer.
pub trait Handle: Send + Sync {
    /// The answer to one call.
    fn handle(&self, call: Box<Call>) -> HandlerFuture<'_>;
}

/// One route.
#[derive(Clone)]
pub struct Route {
    /// The method. A route for `GET` answers `HEAD` too, by its handler and without the body.
    pub method: Method,
    /// `/v1/cache/{namespace}/{key}`, or with a custom verb `/v1/cache/{namespace}:batchGet` (POST only).
    pub pattern: &'static str,
    /// What the caller must be allowed to do; checked before the body is read.
    pub action: Action,
    /// Whether a service may call it for all of its tenants at once, naming none.
    pub serves_fleets: bool,
    /// The operation's name, unique in its primitive: the metric label and OpenAPI's `operationId`.
    pub operation: &'static str,
    /// What OpenAPI says about it.
    pub docs: Docs,
    /// What it does.
    pub handler: Handler,
}

impl Route {
    /// Whether a caller may send an `Idempotency-Key`: where the route's own description says so.
    #[must_use]
    pub fn takes_idempotency_key(&self) -> bool {
        self.docs.headers.iter().any(|header| header.name.eq_ignore_ascii_case("Idempotency-Key"))
    }
}

/// What OpenAPI says about a route.
#[derive(Clone, Default)]
pub struct Docs {
    /// One sentence.
    pub summary: &'static str,
    /// Query parameters: name, meaning, schema.
    pub query: &'static [Parameter],
    /// Request headers: name, meaning, schema.
    pub headers: &'static [Parameter],
    /// The request body.
    pub request: Option<Content>,
    /// The replies that are not problems; one that comes in several forms has a row for each.
    pub replies: &'static [ReplyDocs],
    /// The problems it can answer beside those that every route can (400, 401, 403, 404, 405, 413, 421, 500, 503, 504).
    pub problems: &'static [u16],
}

/// A query parameter or a header.
#[derive(Clone, Copy)]
pub struct Parameter {
    /// As it is written.
    pub name: &'static str,
    /// What it means, with its unit.
    pub meaning: &'static str,
    /// `integer` or `string`.
    pub kind: &'static str,
}

/// A body.
#[derive(Clone, Copy)]
pub struct Content {
    /// Its media type.
    pub media_type: &'static str,
    /// Its schema, of a stream (`sse::MEDIA_TYPE`, `ndjson::MEDIA_TYPE`) that of one item; none for bytes.
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// A reply that is not a problem.
#[derive(Clone, Copy)]
pub struct ReplyDocs {
    /// The status code.
    pub status: u16,
    /// What it says.
    pub meaning: &'static str,
    /// The body.
    pub content: Option<Content>,
}

/// An async function from a state and a call to a reply.
pub trait Answers<'a, S>: Send + Sync {
    /// Its future.
    type Future: Future<Output = Result<Reply, Problem>> + Send + 'a;

    /// Calls it.
    fn answer(&self, state: &'a S, call: Box<Call>) -> Self::Future;
}

impl<'a, S: 'a, F, Fut> Answers<'a, S> for F
where
    F: Fn(&'a S, Box<Call>) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Reply, Problem>> + Send + 'a,
{
    type Future = Fut;

    fn answer(&self, state: &'a S, call: Box<Call>) -> Fut {
        self(state, call)
    }
}

/// A function with its state. Calls borrow the state: a count of references that every call changes would move
/// between the processors with each.
struct Bound<S, F> {
    state: Arc<S>,
    function: F,
}

impl<S, F> Handle for Bound<S, F>
where
    S: Send + Sync,
    F: for<'a> Answers<'a, S>,
{
    fn handle(&self, call: Box<Call>) -> HandlerFuture<'_> {
        Box::pin(self.function.answer(&self.state, call))
    }
}

/// Makes a [`Handler`] of an async function and the state it needs.
pub fn handler<S, F>(state: &Arc<S>, function: F) -> Handler
where
    S: Send + Sync + 'static,
    F: for<'a> Answers<'a, S> + 'static,
{
    Arc::new(Bound { state: Arc::clone(state), function })
}
