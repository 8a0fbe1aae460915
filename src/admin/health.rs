//! Whether this process is ready, and what stands in the way.

use std::fmt::Write as _;

use http::StatusCode;

use crate::http::Reply;
use crate::telemetry::{HealthBoard, rfc3339};

/// What readiness is made of.
pub(super) struct Readiness {
    pub(super) listening: bool,
    pub(super) keys: Result<(), String>,
    pub(super) draining: bool,
    pub(super) required_backends: bool,
}

impl Readiness {
    fn is_ready(&self) -> bool {
        self.listening && self.keys.is_ok() && !self.draining && self.required_backends
    }

    /// `/startupz`: 200 once everything that starts has started, and for good: draining does not take it back.
    pub(super) fn startup_reply(&self) -> Reply {
        if self.listening && self.keys.is_ok() {
            text(StatusCode::OK, "ok\n".to_owned())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned())
        }
    }

    /// `/readyz`: one word, or with `?verbose` a line for each part: name, state, since, what to do.
    pub(super) fn reply(&self, board: &HealthBoard, verbose: bool) -> Reply {
        let (status, word) = if self.is_ready() {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        };
        if !verbose {
            return text(status, format!("{word}\n"));
        }
        let mut lines = String::new();
        let mut line = |name: &str, state: &str, rest: &str| {
            if writeln!(lines, "{name:<24} {state:<10} {rest}").is_err() {
                unreachable!("writing to a string does not fail");
            }
        };
        line("listeners", if self.listening { "up" } else { "starting" }, "");
        line("policies", "up", "");
        match &self.keys {
            Ok(()) => line("keys", "up", ""),
            Err(advice) => line("keys", "down", advice),
        }
        if self.draining {
            line("process", "draining", "");
        }
        for report in board.reports() {
            let since = rfc3339(report.since);
            let need = if report.required { "required" } else { "optional" };
            line(&report.name, report.state.as_str(), &format!("since {since}, {need}  {}", report.advice));
        }
        text(status, format!("{lines}{word}\n"))
    }
}

fn text(status: StatusCode, body: String) -> Reply {
    Reply::new(status).with_body("text/plain; charset=utf-8", body)
}
