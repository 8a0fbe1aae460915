//! Every request is seen once: one histogram, and a log line where asked.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{Histogram, HistogramVec, IntGauge};

use super::table::RouteTable;
use super::trace::Trace;
use crate::telemetry::{MetricError, Registry};

/// Upper bounds of the request histogram, in seconds.
const BOUNDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How a request ended, as the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Refused,
    Limited,
    Unavailable,
    TimedOut,
    Failed,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Ok, Self::Refused, Self::Limited, Self::Unavailable, Self::TimedOut, Self::Failed];

    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            429 => Self::Limited,
            503 => Self::Unavailable,
            504 => Self::TimedOut,
            400..=499 => Self::Refused,
            500..=599 => Self::Failed,
            _ => Self::Ok,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Limited => "limited",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
        }
    }
}

/// The HTTP metrics. Each route's children are made at start, so that a request looks nothing up by label.
pub struct Observer {
    routes: Vec<[Histogram; 6]>,
    labels: Vec<(&'static str, &'static str)>,
    unrouted: [Histogram; 6],
    /// Open connections.
    pub connections: IntGauge,
    log_requests: bool,
}

/// What an ended request is reported with.
pub struct Ended<'a> {
    /// The route's place in the table; none where the request did not get that far.
    pub route: Option<usize>,
    /// The method.
    pub method: &'a Method,
    /// The reply's status.
    pub status: StatusCode,
    /// How long it took.
    pub took: Duration,
    /// Its trace.
    pub trace: &'a Trace,
}

impl Observer {
    /// Registers the metrics of every route of `table`.
    pub fn new(registry: &Registry, table: &RouteTable, log_requests: bool) -> Result<Self, MetricError> {
        let durations = registry.histograms(
            "outrigger_request_duration_seconds",
            "How long requests took, by what they asked for and how they ended.",
            &["primitive", "operation", "outcome"],
            BOUNDS,
        )?;
        let connections = registry.gauge("outrigger_http_connections_open", "Open API connections.")?;
        let labels: Vec<_> = table.routes().map(|route| (route.action.primitive, route.operation)).collect();
        let routes =
            labels.iter().map(|(primitive, operation)| children(&durations, primitive, operation)).collect();
        let unrouted = children(&durations, "none", "none");
        Ok(Self { routes, labels, unrouted, connections, log_requests })
    }

    /// Reports one ended request.
    pub fn ended(&self, ended: &Ended<'_>) {
        let outcome = Outcome::of(ended.status);
        let row = ended.route.and_then(|index| self.routes.get(index)).unwrap_or(&self.unrouted);
        if let Some(histogram) = row.get(outcome as usize) {
            histogram.observe(ended.took.as_secs_f64());
        }
        if self.log_requests {
            let (primitive, operation) =
                ended.route.and_then(|index| self.labels.get(index)).copied().unwrap_or(("none", "none"));
            tracing::info!(
                target: "outrigger::request",
                primitive,
                operation,
                outcome = outcome.label(),
                method = ended.method.as_str(),
                status = ended.status.as_u16(),
                duration_us = u64::try_from(ended.took.as_micros()).unwrap_or(u64::MAX),
                trace_id = ended.trace.id(),
                "request"
            );
        }
    }
}

fn children(durations: &HistogramVec, primitive: &str, operation: &str) -> [Histogram; 6] {
    Outcome::ALL.map(|outcome| durations.with_label_values(&[primitive, operation, outcome.label()]))
}
