//! Logs: to stderr, so that stdout stays the command's own.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging as the configuration says; `OUTRIGGER_LOG` overrides its level (`debug`, or by module).
pub(super) fn start(log: &Log) -> anyhow::Result<()> {
    let filter = match std::env::var("OUTRIGGER_LOG") {
        Ok(text) => EnvFilter::try_new(text)?,
        Err(_) => EnvFilter::try_new(log.level.as_str())?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging could not start: {error}"))
}
