//! HTTP: the routes, and what they share.

mod batch;
mod docs;
mod read;
mod write;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};

use super::key::{Address, Scope};
use super::lease::LeaseToken;
use super::metrics::CacheMetrics;
use super::policy::{CachePolicy, Namespace};
use super::{CacheBackend, CacheError, DELETE, INVALIDATE, READ, WRITE};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Route, handler};
use crate::names::{Key, Name};
use crate::policy::{Action, Permit};

const ENTRY: &str = "/v1/cache/{namespace}/{key}";
/// The token of a fill lease, both ways.
const OUTRIGGER_FILL_LEASE: HeaderName = HeaderName::from_static("outrigger-fill-lease");
/// Where a value came from.
const OUTRIGGER_CACHE: HeaderName = HeaderName::from_static("outrigger-cache");

/// What the handlers need.
struct Api {
    backend: Arc<dyn CacheBackend>,
    metrics: CacheMetrics,
    budget: Duration,
}

/// The cache's routes.
pub(super) fn routes(backend: Arc<dyn CacheBackend>, metrics: CacheMetrics, budget: Duration) -> Vec<Route> {
    let api = Arc::new(Api { backend, metrics, budget });
    let route = |method, pattern, action, operation, docs, handler| Route {
        method,
        pattern,
        action,
        serves_fleets: false,
        operation,
        docs,
        handler,
    };
    vec![
        route(Method::GET, ENTRY, READ, "get", docs::GET, handler(&api, read::get)),
        route(Method::PUT, ENTRY, WRITE, "put", docs::PUT, handler(&api, write::put)),
        route(Method::DELETE, ENTRY, DELETE, "delete", docs::DELETE, handler(&api, write::delete)),
        route(
            Method::POST,
            "/v1/cache/{namespace}:batchGet",
            READ,
            "batch_get",
            docs::BATCH_GET,
            handler(&api, batch::get),
        ),
        route(
            Method::POST,
            "/v1/cache/{namespace}:batchPut",
            WRITE,
            "batch_put",
            docs::BATCH_PUT,
            handler(&api, batch::put),
        ),
        route(
            Method::POST,
            "/v1/cache/{namespace}:invalidate",
            INVALIDATE,
            "invalidate",
            docs::INVALIDATE,
            handler(&api, write::invalidate),
        ),
    ]
}

impl Api {
    /// How long this call may wait for the store.
    fn budget(&self, call: &Call) -> Duration {
        call.deadline.budget(self.budget)
    }
}

/// The namespace of a call: permitted, and named by policy.
struct Place {
    scope: Scope,
    rules: Arc<Namespace>,
    /// What the tenant may keep, in bytes.
    max_tenant_bytes: u64,
}

impl Place {
    fn of(call: &Call, action: Action) -> Result<Self, Problem> {
        let name = call.name_param("namespace")?;
        let permit = call.caller.permit(action, &name)?;
        let policy = call.caller.policies().get::<CachePolicy>();
        let rules = policy.and_then(|policy| policy.namespace(permit.name()));
        let (Some(policy), Some(rules)) = (policy, rules) else { return Err(no_such_namespace(&permit)) };
        Ok(Self {
            scope: Scope::of(&permit),
            rules: Arc::clone(rules),
            max_tenant_bytes: policy.max_bytes(permit.tier()),
        })
    }

    fn address(&self, key: &Key, version: Option<Key>) -> Address {
        Address::new(self.scope.clone(), key, version)
    }
}

fn no_such_namespace(permit: &Permit) -> Problem {
    let name: &Name = permit.name();
    Problem::new(ErrorKind::NotFound, format!("no policy of `kind: cache` names the namespace `{name}`"))
}

/// `version`, from the query.
fn version(call: &Call) -> Result<Option<Key>, Problem> {
    let parsed = call.query.text("version").map(Key::parse).transpose();
    parsed.map_err(|error| {
        Problem::new(ErrorKind::Malformed, "a query parameter is wrong")
            .with_field("?version", error.to_string())
    })
}

/// `Outrigger-Fill-Lease`, from the request.
fn lease_token(call: &Call) -> Result<Option<LeaseToken>, Problem> {
    let mut values = call.headers.get_all(OUTRIGGER_FILL_LEASE).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(LeaseToken::parse).filter(|_| values.next().is_none());
    token.map(Some).ok_or_else(|| {
        Problem::new(
            ErrorKind::Malformed,
            "`Outrigger-Fill-Lease` is the token of the 404 that asked for the fill",
        )
    })
}

impl From<CacheError> for Problem {
    fn from(error: CacheError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}
