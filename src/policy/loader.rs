//! STUB
use std::path::PathBuf;
use std::sync::Arc;

use super::{Action, Kind, PolicySource};
use crate::config::Report;
use crate::tasks::Tasks;
use crate::telemetry::Registry;

/// Reads a policy directory.
pub struct PolicyLoader;

impl PolicyLoader {
    /// STUB
    #[must_use]
    pub fn new(_: PathBuf, _: Vec<&'static Kind>, _: Vec<Action>) -> Self {
        Self
    }
}

/// Keeps the policies current.
pub struct Reloader;

impl Reloader {
    /// STUB
    pub fn start(_: PolicyLoader, _: PolicySource, _: &Registry, _: &Tasks) -> Result<Arc<Self>, Report> {
        Ok(Arc::new(Self))
    }

    /// STUB
    pub fn reload(&self) {}
}
