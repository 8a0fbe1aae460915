//! `outrigger serve` and `outrigger run`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CANNOT_START, FOUND_PROBLEMS, ListenArgs, USAGE, log, runtime};
use crate::app::{Addresses, App, Child, ReadyFile, Reason, Signals, StartError};
use crate::config::ProxyConfig;
use crate::primitives;

#[derive(Args)]
pub(super) struct ServeArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The probe listener's address: health and metrics only
    #[arg(long, value_name = "ADDR")]
    probe: Option<SocketAddr>,
    #[command(flatten)]
    listen: ListenArgs,
}

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What happens around serving.
#[derive(Default)]
pub(super) struct Surroundings {
    /// Written once ready.
    pub(super) ready_file: Option<PathBuf>,
    /// Started once ready.
    pub(super) command: Option<Vec<OsString>>,
}

pub(super) fn serve(arguments: ServeArgs) -> anyhow::Result<ExitCode> {
    start(arguments, None)
}

pub(super) fn run(arguments: RunArgs) -> anyhow::Result<ExitCode> {
    start(arguments.serve, Some(arguments.command))
}

fn start(arguments: ServeArgs, command: Option<Vec<OsString>>) -> anyhow::Result<ExitCode> {
    let mut config = match ProxyConfig::load(&arguments.config, &primitives::sections()) {
        Ok(config) => config,
        Err(report) => {
            eprint!("{report}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    if let Err(error) = arguments.listen.apply(&mut config) {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(USAGE));
    }
    if arguments.probe.is_some() {
        config.listeners.probe = arguments.probe;
    }
    log::start(&config.log)?;
    let surroundings = Surroundings { ready_file: arguments.listen.ready_file, command };
    runtime()?.block_on(serve_until_stopped(config, surroundings, |addresses| {
        tracing::info!(api = %addresses.api, admin = %addresses.admin, socket = ?addresses.socket, "serving");
    }))
}

/// Starts, tells `announce` where, and serves until told to stop.
pub(super) async fn serve_until_stopped(
    config: ProxyConfig,
    surroundings: Surroundings,
    announce: impl FnOnce(&Addresses),
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let secrets: Vec<String> = config.secret_variables().map(str::to_owned).collect();
    let app = match App::start(config).await {
        Ok(app) => app,
        Err(StartError::Report(report)) => {
            eprint!("{report}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(CANNOT_START));
        }
    };
    let ready_file = surroundings.ready_file.as_deref().map(|path| ReadyFile::write(path, &app.addresses));
    let ready_file = ready_file.transpose()?;
    announce(&app.addresses);
    let command = surroundings.command.as_deref();
    let child = command.map(|command| Child::start(command, &app.addresses, &secrets));
    let reason = app.until_stopped(&mut signals, child.transpose()?).await?;
    drop(ready_file);
    let cut = app.stop_or_cut(&mut signals).await;
    Ok(match reason {
        Reason::Asked | Reason::ChildEnded(0) if cut => ExitCode::from(FOUND_PROBLEMS),
        Reason::Asked => ExitCode::SUCCESS,
        Reason::ChildEnded(code) => ExitCode::from(code),
    })
}

impl ListenArgs {
    /// Puts the flags that were given in the place of what `config` says, unless they reach further than it may.
    pub(super) fn apply(&self, config: &mut ProxyConfig) -> Result<(), &'static str> {
        if let Some(address) = self.listen {
            config.listeners.api = address;
        }
        if let Some(address) = self.admin {
            config.listeners.admin = address;
        }
        if let Some(path) = &self.socket {
            config.listeners.socket = Some(path.clone());
        }
        config.listeners.check_reach()
    }
}
