//! `outrigger dev`: everything embedded, nothing to install.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::{ListenArgs, USAGE, demo, log, runtime, serve};
use crate::config::ProxyConfig;
use crate::identity::dev::DevIdentity;

/// The shipped policies, so that the binary alone is enough.
const SHIPPED_POLICIES: &[(&str, &str)] = &[
    ("access.yaml", include_str!("../../policies/access.yaml")),
    ("cache.yaml", include_str!("../../policies/cache.yaml")),
    ("events.yaml", include_str!("../../policies/events.yaml")),
    ("ratelimits.yaml", include_str!("../../policies/ratelimits.yaml")),
    ("usage.yaml", include_str!("../../policies/usage.yaml")),
];

#[derive(Args)]
pub(super) struct DevArgs {
    /// Where the signing key, the databases and the socket are kept
    #[arg(long, value_name = "DIR", default_value = ".outrigger")]
    data: PathBuf,
    /// The policies; without it, the shipped ones are copied into the data directory once, to be edited there
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
}

pub(super) fn run(arguments: DevArgs) -> anyhow::Result<ExitCode> {
    let data = &arguments.data;
    private_directory(data)?;
    let identity = DevIdentity::open_or_create(&data.join("identity"))?;
    let policies = match arguments.policies {
        Some(directory) => directory,
        None => write_shipped_policies(data)?,
    };
    let mut config = ProxyConfig::embedded(data, &policies);
    config.listeners.socket = Some(data.join("outrigger.sock"));
    if let Err(error) = arguments.listen.apply(&mut config) {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(USAGE));
    }
    log::start(&config.log)?;
    let surroundings = serve::Surroundings { ready_file: arguments.listen.ready_file, command: None };
    runtime()?.block_on(serve::serve_until_stopped(config, surroundings, |addresses| {
        match demo::text(&identity, addresses, &policies, data) {
            Ok(text) => println!("{text}"),
            Err(error) => tracing::error!(%error, "the demo tokens could not be made"),
        }
    }))
}

/// Makes the data directory as 0750: what tenants keep is not for every account of the machine.
fn private_directory(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Copies the shipped policies that are not there yet; a file that was edited stays.
fn write_shipped_policies(data: &Path) -> anyhow::Result<PathBuf> {
    let directory = data.join("policies");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in SHIPPED_POLICIES {
        let path = directory.join(name);
        if !path.exists() {
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(directory)
}
