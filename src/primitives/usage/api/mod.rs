//! HTTP: the routes, and what they share.

mod conflicts;
mod docs;
mod read;
mod record;

use std::sync::Arc;

use http::Method;

use super::spool::Spooler;
use super::{Counter, READ, RECORD};
use crate::error::ErrorKind;
use crate::http::{Problem, Route, handler};
use crate::names::Name;
use crate::primitives::store_answer::StoreAnswer;
use crate::primitives::write_rates::Rates;
use crate::store::Store;

/// What the handlers need.
pub(super) struct Api {
    pub(super) store: Store,
    pub(super) counter: Counter,
    /// Where there is a data directory.
    pub(super) spooler: Option<Spooler>,
    pub(super) rates: Rates,
    pub(super) metrics: Arc<super::metrics::UsageMetrics>,
    /// Whether this process counts by what is in force.
    pub(super) standing: super::standing::Standing,
}

/// The routes of usage.
pub(super) fn routes(api: Api) -> Vec<Route> {
    let api = Arc::new(api);
    let route = |method, pattern, action, operation, docs, handler| Route {
        method,
        pattern,
        action,
        serves_fleets: false,
        operation,
        docs,
        handler,
    };
    let of_metric = "/v1/usage/{metric}";
    let conflicts_of = "/v1/usage/{metric}/conflicts";
    vec![
        route(Method::POST, "/v1/usage", RECORD, "record", docs::RECORD, handler(&api, record::record)),
        route(Method::GET, "/v1/usage", READ, "list", docs::LIST, handler(&api, read::list)),
        route(Method::GET, of_metric, READ, "read", docs::READ, handler(&api, read::read)),
        route(
            Method::GET,
            conflicts_of,
            READ,
            "conflicts",
            docs::CONFLICTS,
            handler(&api, conflicts::conflicts),
        ),
    ]
}

fn no_such_metric(name: &Name) -> Problem {
    Problem::new(ErrorKind::NotFound, format!("no policy of `kind: usage` names the metric `{name}`"))
}

/// Nothing is counted, and no days are read, of another time zone than the store's. Another sidecar may have the right one, and this one may get it.
fn other_zone(own: &str, in_force: &str) -> Problem {
    let detail = format!(
        "this sidecar's usage policy has `time_zone: {own}`, and the days and months of the usage in its store are those of `{in_force}`: \
         nothing was counted or read; it goes on once the policy says `time_zone: {in_force}`"
    );
    Problem::new(ErrorKind::BackendUnavailable, detail)
}

const ANSWER: StoreAnswer = StoreAnswer {
    store: "the store of usage",
    done: "counted",
    again: "each key counts once",
    room: "there is room again as records end",
};
