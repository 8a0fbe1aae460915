//! The admin listener (loopback) and the probe listener (health and metrics only).

mod health;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::error::ErrorKind;
use crate::http::headers::{self, AllowedHosts, Seen};
use crate::http::listener::Services;
use crate::http::trace::Trace;
use crate::http::{Problem, Query, Reply};
use crate::telemetry::{HealthBoard, Registry};

/// What `/config` shows: made anew at each request, since policies reload.
pub type ConfigView = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;
/// Whether the key sets can verify tokens, and what to do where not.
pub type KeysReady = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the admin and probe listeners answer from.
pub struct Admin {
    /// Each backend's state.
    pub board: HealthBoard,
    /// The metrics.
    pub metrics: Registry,
    /// Whether keys are there.
    pub keys: KeysReady,
    /// Whether every listener is bound.
    pub listening: AtomicBool,
    /// Cancelled when the process is to drain.
    pub drain: CancellationToken,
    /// The redacted configuration.
    pub config: ConfigView,
    /// The API's description.
    pub openapi: Bytes,
    /// The hosts that admin requests may be for: a page that rebinds DNS must not read or drain.
    pub hosts: AllowedHosts,
}

/// Which of the two listeners asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The operator, on loopback: everything.
    Operator,
    /// The kubelet and Prometheus, from anywhere: health and metrics.
    Probe,
}

impl Admin {
    /// The services of a listener for `audience`.
    #[must_use]
    pub fn services(self: &Arc<Self>, audience: Audience) -> Services {
        let admin = Arc::clone(self);
        Arc::new(move || {
            let admin = Arc::clone(&admin);
            Box::new(move |request, _| {
                let trace = Trace::from_headers(request.headers());
                let reply =
                    admin.answer(&request, audience).unwrap_or_else(|problem| problem.into_reply(trace.id()));
                Box::pin(std::future::ready(reply.into_response()))
            })
        })
    }

    fn answer(&self, request: &Request<Incoming>, audience: Audience) -> Result<Reply, Problem> {
        if audience == Audience::Operator {
            let seen = Seen::of(request.headers());
            headers::check(request.method(), request.uri(), request.version(), &seen, &self.hosts)?;
            headers::check_same_origin(request)?;
        }
        let query = Query::parse(request.uri().query())?;
        let path = request.uri().path();
        let takes = if path == "/drain" { Method::POST } else { Method::GET };
        let operator = audience == Audience::Operator;
        let known = matches!(path, "/livez" | "/readyz" | "/startupz" | "/metrics")
            || (operator && matches!(path, "/config" | "/openapi.json" | "/drain"));
        if !known {
            return Err(Problem::new(
                ErrorKind::NotFound,
                if operator {
                    "this listener has /livez, /readyz, /startupz, /metrics, /config, /openapi.json and POST /drain"
                } else {
                    "this listener has /livez, /readyz, /startupz and /metrics"
                },
            ));
        }
        if *request.method() != takes && !(takes == Method::GET && *request.method() == Method::HEAD) {
            let allowed = if takes == Method::GET { vec![Method::GET, Method::HEAD] } else { vec![takes] };
            return Err(Problem::method_not_allowed(&allowed));
        }
        match path {
            "/livez" => Ok(Reply::new(StatusCode::OK).with_body("text/plain; charset=utf-8", "ok\n")),
            "/startupz" => Ok(self.readiness().startup_reply()),
            // What stands in the way names addresses and errors, which are the operator's alone.
            "/readyz" => {
                let verbose = operator && query.text("verbose").is_some();
                Ok(self.readiness().reply(&self.board, verbose))
            }
            "/metrics" => self.metrics(request.headers()),
            "/config" => Reply::json(&(self.config)()),
            "/openapi.json" => {
                Ok(Reply::new(StatusCode::OK).with_body("application/json", self.openapi.clone()))
            }
            _ => {
                self.drain.cancel();
                Reply::new(StatusCode::ACCEPTED).with_json(&serde_json::json!({"draining": true}))
            }
        }
    }

    fn readiness(&self) -> health::Readiness {
        health::Readiness {
            listening: self.listening.load(Relaxed),
            keys: (self.keys)(),
            draining: self.drain.is_cancelled(),
            required_backends: self.board.required_are_up(),
        }
    }

    fn metrics(&self, headers: &HeaderMap) -> Result<Reply, Problem> {
        let open = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|accept| accept.contains("application/openmetrics-text"));
        let rendered = if open { self.metrics.render_openmetrics() } else { self.metrics.render() };
        let text = rendered.map_err(|error| {
            tracing::error!(%error, "the metrics could not be written");
            Problem::new(ErrorKind::Internal, "the metrics could not be written")
        })?;
        let content_type = HeaderValue::from_static(if open {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        });
        Ok(Reply::new(StatusCode::OK).with_typed_body(content_type, text))
    }
}
