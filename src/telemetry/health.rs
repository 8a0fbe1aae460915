//! The board on which each backend's connection says how it is.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

/// How a backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// No answer yet.
    Starting,
    /// It answers.
    Up,
    /// It answers in part: some of its nodes are down.
    Degraded,
    /// It does not answer.
    Down,
}

impl BackendState {
    /// As `/readyz?verbose` writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// One backend's line on the board.
#[derive(Debug, Clone)]
pub struct BackendReport {
    /// Its name in the configuration, such as `redis.cache`.
    pub name: String,
    /// Whether this process is not ready without it.
    pub required: bool,
    /// How it is.
    pub state: BackendState,
    /// Since when.
    pub since: SystemTime,
    /// What was seen, and what an operator should do; empty when all is well. Holds no credential.
    pub advice: String,
}

/// Every backend's report.
#[derive(Clone, Default)]
pub struct HealthBoard(Arc<Mutex<Vec<BackendReport>>>);

/// The handle with which a backend's connection writes its own line.
#[derive(Clone)]
pub struct BackendHealth {
    board: HealthBoard,
    index: usize,
}

impl HealthBoard {
    /// Adds a backend, `starting`.
    #[must_use]
    pub fn add(&self, name: impl Into<String>, required: bool) -> BackendHealth {
        let mut reports = self.0.lock();
        reports.push(BackendReport {
            name: name.into(),
            required,
            state: BackendState::Starting,
            since: SystemTime::now(),
            advice: String::new(),
        });
        BackendHealth { board: self.clone(), index: reports.len() - 1 }
    }

    /// Every line, in the order of addition.
    #[must_use]
    pub fn reports(&self) -> Vec<BackendReport> {
        self.0.lock().clone()
    }

    /// Whether every required backend is up or degraded.
    #[must_use]
    pub fn required_are_up(&self) -> bool {
        self.0.lock().iter().all(|report| {
            !report.required || matches!(report.state, BackendState::Up | BackendState::Degraded)
        })
    }
}

impl BackendHealth {
    /// Writes how the backend is; `since` moves only when the state changes.
    pub fn set(&self, state: BackendState, advice: impl Into<String>) {
        let advice = advice.into();
        let mut reports = self.board.0.lock();
        if let Some(report) = reports.get_mut(self.index) {
            if report.state != state {
                tracing::info!(
                    backend = report.name,
                    from = report.state.as_str(),
                    to = state.as_str(),
                    advice,
                    "backend state changed"
                );
                report.state = state;
                report.since = SystemTime::now();
            }
            report.advice = advice;
        }
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> BackendState {
        self.board.0.lock().get(self.index).map_or(BackendState::Down, |report| report.state)
    }
}
