//! Outrigger as a contender: its process and its tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cli::RunArgs;
use crate::contender::server::Server;
use crate::scenarios::Backend;

/// How to start Outrigger for a backend.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    arguments: &'a RunArgs,
    binary: &'a Path,
    backend: Backend,
    /// Holds the data of `dev`.
    folder: &'a Path,
}

impl<'a> Launch<'a> {
    /// For one backend; data, logs and the socket go into `folder`.
    ///
    /// # Errors
    /// No `--outrigger-bin`, or no configuration where the backend needs one.
    pub(crate) fn new(arguments: &'a RunArgs, backend: Backend, folder: &'a Path) -> Result<Self> {
        let binary = arguments.outrigger_bin.as_deref().context("--outrigger-bin is not given")?;
        if backend == Backend::Redis && !arguments.outrigger_config.exists() {
            bail!(
                "{} does not exist: name Outrigger's configuration with --outrigger-config, or run with --embedded-only",
                arguments.outrigger_config.display()
            );
        }
        Ok(Self { arguments, binary, backend, folder })
    }

    fn data(&self) -> PathBuf {
        match self.backend {
            Backend::Embedded => self.folder.join("data"),
            Backend::Redis => self.arguments.identity.clone(),
        }
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub(crate) fn start(&self) -> Result<Server> {
        let mut command = Command::new(self.binary);
        match self.backend {
            Backend::Embedded => {
                command.arg("dev").arg("--data").arg(self.data());
                if let Some(policies) = &self.arguments.policies {
                    command.arg("--policies").arg(policies);
                }
            }
            Backend::Redis => {
                command.arg("serve").arg("--config").arg(&self.arguments.outrigger_config);
                command.args(["--probe", "127.0.0.1:0"]);
            }
        }
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        Server::start("outrigger", command, self.folder)
    }

    /// A token of the load test's tenant, valid for two hours.
    ///
    /// # Errors
    /// `outrigger token mint` failed.
    pub(crate) fn mint_token(&self) -> Result<String> {
        let output = Command::new(self.binary)
            .args(["token", "mint", "--data"])
            .arg(self.data())
            .args(["--tenant", &self.arguments.tenant, "--subject", "loadtest"])
            .args(["--tier", &self.arguments.tier, "--ttl", "2h"])
            .output()
            .context("cannot run outrigger token mint")?;
        if !output.status.success() {
            bail!("outrigger token mint: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)
            .context("outrigger token mint printed no text")?
            .trim()
            .to_owned())
    }
}
