//! Every request is seen once: one histogram, and a log line where asked.
//!
//! A streamed reply is seen when it begins, with the time to its head: how long its reader stayed says nothing about
//! this process. How many are open, and how they ended, is counted in `open_streams.rs`.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::IntGauge;

use super::table::RouteTable;
use super::trace::Trace;
use crate::telemetry::{Histogram, MetricError, Registry};

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
    /// By route, the last row for requests without one, and by outcome.
    durations: Vec<Histogram>,
    labels: Vec<(&'static str, &'static str)>,
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
        let connections = registry.gauge("outrigger_http_connections_open", "Open API connections.")?;
        let mut labels: Vec<_> =
            table.routes().map(|route| (route.action.primitive, route.operation)).collect();
        labels.push(("none", "none"));
        let values: Vec<_> = labels
            .iter()
            .flat_map(|(primitive, operation)| {
                Outcome::ALL.map(|outcome| [*primitive, *operation, outcome.label()])
            })
            .collect();
        let durations = registry.call_durations(
            "outrigger_request_duration_seconds",
            "How long requests took, by what they asked for and how they ended.",
            ["primitive", "operation", "outcome"],
            &values,
            BOUNDS,
        )?;
        Ok(Self { durations, labels, connections, log_requests })
    }

    /// Reports one ended request.
    pub fn ended(&self, ended: &Ended<'_>) {
        let outcome = Outcome::of(ended.status);
        let row = ended.route.unwrap_or(self.labels.len() - 1);
        if let Some(histogram) = self.durations.get(row * Outcome::ALL.len() + outcome as usize) {
            histogram.observe(ended.took);
        }
        if self.log_requests {
            let (primitive, operation) = self.labels.get(row).copied().unwrap_or(("none", "none"));
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
