//! The database: fresh, with Outrigger's schema and the tables of those who do the same directly.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::cli::OnPostgres;
use crate::contender::Launch;

/// How to reach it.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    config: Config,
    tls: rustls::ClientConfig,
}

impl Database {
    /// Drops, makes and migrates it, and makes tables for those who do the same directly.
    ///
    /// # Errors
    /// The server cannot be reached, or `outrigger migrate` failed.
    pub(crate) async fn fresh(on: &OnPostgres, tables: &str) -> Result<Self> {
        let tls = tls(&on.ca_file)?;
        let mut config: Config = on.admin_url.parse().context("--admin-url")?;
        config.dbname("postgres");
        let admin = Self { config: config.clone(), tls: tls.clone() }.connect().await?;
        let name = &on.database;
        for statement in [
            format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
            format!("CREATE DATABASE {name} OWNER outrigger_owner"),
        ] {
            admin.batch_execute(&statement).await.with_context(|| statement.clone())?;
        }
        config.dbname(name);
        let database = Self { config, tls };
        Launch::on_postgres(on, &on.outrigger_bin, Path::new("")).migrate()?;
        database.connect().await?.batch_execute(tables).await?;
        Ok(database)
    }

    /// A connection, moved by a task of its own.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) async fn connect(&self) -> Result<Client> {
        let (client, connection) = self
            .config
            .connect(MakeRustlsConnect::new(self.tls.clone()))
            .await
            .context("cannot connect to PostgreSQL")?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("loadtest: a connection to PostgreSQL ended: {error}");
            }
        });
        Ok(client)
    }

    /// What makes commits slow or quick, and how much memory there is.
    ///
    /// # Errors
    /// It cannot be reached.
    pub(crate) async fn settings(&self) -> Result<String> {
        let names = ["fsync", "synchronous_commit", "synchronous_standby_names", "shared_buffers"];
        let client = self.connect().await?;
        let mut found = Vec::new();
        for name in names {
            let row = client.query_one("SELECT current_setting($1)", &[&name]).await?;
            found.push(format!("{name} = {}", row.try_get::<_, String>(0)?));
        }
        Ok(found.join(", "))
    }

    /// Every process of the primary, where it runs on this machine: the postmaster's children.
    ///
    /// # Errors
    /// It cannot be reached.
    pub(crate) async fn postmaster(&self) -> Result<Option<u32>> {
        let row = self.connect().await?.query_one("SELECT pg_backend_pid()", &[]).await?;
        let backend: i32 = row.try_get(0)?;
        Ok(u32::try_from(backend).ok().and_then(crate::process::parent))
    }
}

fn tls(ca_file: &Path) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).context("--ca-file")? {
        roots.add(certificate.context("--ca-file")?)?;
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
