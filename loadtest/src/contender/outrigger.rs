//! Outrigger as a contender: its process and its tokens.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cli::RunArgs;
use crate::contender::server::Server;
use crate::events::OnPostgres;
use crate::scenarios::Backend;

/// How to start Outrigger, and who signs the tokens that it accepts.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    binary: &'a Path,
    /// `serve` with this; `dev` without.
    config: Option<&'a Path>,
    policies: Option<&'a Path>,
    /// The data of `dev`, or the folder of the key that signs.
    data: PathBuf,
    tenant: &'a str,
    tier: &'a str,
    /// For logs and the socket.
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
        let (config, data) = match backend {
            Backend::Embedded => (None, folder.join("data")),
            Backend::Redis => (Some(arguments.outrigger_config.as_path()), arguments.identity.clone()),
        };
        let policies = arguments.policies.as_deref();
        Ok(Self { binary, config, policies, data, tenant: &arguments.tenant, tier: &arguments.tier, folder })
    }

    /// For what is measured on PostgreSQL.
    pub(crate) fn on_postgres(on: &'a OnPostgres, binary: &'a Path, folder: &'a Path) -> Self {
        Self {
            binary,
            config: Some(&on.outrigger_config),
            policies: None,
            data: on.identity.clone(),
            tenant: &on.tenant,
            tier: "enterprise",
            folder,
        }
    }

    /// The same with another configuration.
    pub(crate) fn with_config(self, config: &'a Path) -> Self {
        Self { config: Some(config), ..self }
    }

    /// The other build that takes turns with the first.
    pub(crate) fn before(on: &'a OnPostgres, binary: &'a Path, folder: &'a Path) -> Self {
        let config = on.before_config.as_deref().unwrap_or(&on.outrigger_config);
        Self::on_postgres(on, binary, folder).with_config(config)
    }

    /// Makes what its configuration needs in the stores.
    ///
    /// # Errors
    /// `outrigger migrate` failed.
    pub(crate) fn migrate(&self) -> Result<()> {
        let config = self.config.context("nothing to migrate without a configuration")?;
        let migrated = Command::new(self.binary).args(["migrate", "--config"]).arg(config).output();
        let migrated = migrated.context("cannot run outrigger migrate")?;
        if !migrated.status.success() {
            bail!("outrigger migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        }
        Ok(())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub(crate) fn start(&self) -> Result<Server> {
        let mut command = Command::new(self.binary);
        match self.config {
            None => {
                command.arg("dev").arg("--data").arg(&self.data);
                if let Some(policies) = self.policies {
                    command.arg("--policies").arg(policies);
                }
            }
            Some(config) => {
                command.arg("serve").arg("--config").arg(config);
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
            .arg(&self.data)
            .args(["--tenant", self.tenant, "--subject", "loadtest"])
            .args(["--tier", self.tier, "--ttl", "2h"])
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
