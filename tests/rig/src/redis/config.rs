//! What a cluster is started with, and the configuration file that each node gets.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::certificate::Certificate;
use crate::process::Error;

/// What Outrigger's own user may do in Redis: its key families, data commands, scripts, publish and subscribe,
/// client-side caching, and reading the cluster's shape and configuration. No administration, no `KEYS`.
pub const OUTRIGGER_RULES: &str = "resetkeys ~tenant:* ~cache:* ~session:* ~lock:* ~outrigger:* resetchannels &* \
     -@all +@read +@write +@connection +@transaction +@scripting +@pubsub -@admin -@dangerous \
     +cluster|slots +cluster|shards +cluster|nodes +cluster|info +cluster|keyslot +cluster|myid \
     +info +role +time +command +config|get +acl|whoami";

/// The user that the rig administers a cluster with, once the default user is off.
pub(crate) const ADMINISTRATOR: &str = "rig";
pub(crate) const ADMINISTRATOR_PASSWORD: &str = "rig-administers";

/// Access by user and password; the default user is then off.
#[derive(Clone, Debug)]
pub struct Acl {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Its rights, as `ACL SETUSER` takes them.
    pub rules: String,
}

impl Acl {
    /// The user `outrigger` with [`OUTRIGGER_RULES`].
    pub fn outrigger(password: &str) -> Self {
        Self {
            user: "outrigger".to_owned(),
            password: password.to_owned(),
            rules: OUTRIGGER_RULES.to_owned(),
        }
    }
}

/// How to start a cluster; `Options::default()` is a plain one on free ports in a folder of its own.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where nodes keep data and logs, a folder per port. None: one under `.rig/own`, removed at the end unless
    /// the test failed. What an earlier cluster left in the nodes' folders is removed at the start.
    pub base_dir: Option<PathBuf>,
    /// The first of six ports (at most 22762: each node also listens 10000 above). None: free ones.
    pub first_port: Option<u16>,
    /// TLS on every port, the cluster bus too, and no plain port.
    pub tls: bool,
    /// A user with a password instead of the open default user.
    pub acl: Option<Acl>,
    /// Memory limit of each node in bytes; eviction policy as Redis names it.
    pub maxmemory: Option<(u64, String)>,
    /// How long a node may be silent before its peers call it failed.
    pub cluster_node_timeout_ms: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            base_dir: None,
            first_port: None,
            tls: false,
            acl: None,
            maxmemory: None,
            cluster_node_timeout_ms: 1000,
        }
    }
}

/// Everything but the port is the same in the six files.
pub(crate) fn node_config(
    options: &Options,
    certificate: Option<&Certificate>,
    port: u16,
    folder: &Path,
) -> Result<String, Error> {
    let mut text = format!(
        "bind 127.0.0.1\ndir {folder}\nlogfile {folder}/log\npidfile {folder}/pid\n\
         cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout {timeout}\n\
         cluster-allow-replica-migration no\nrepl-diskless-sync-delay 0\n\
         save \"\"\nappendonly yes\nappendfsync everysec\nenable-debug-command local\n",
        folder = folder.display(),
        timeout = options.cluster_node_timeout_ms,
    );
    match certificate {
        None => append(&mut text, format_args!("port {port}\n"))?,
        Some(certificate) => append(
            &mut text,
            format_args!(
                "port 0\ntls-port {port}\ntls-cluster yes\ntls-replication yes\ntls-auth-clients no\n\
                 tls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
                certificate.authority.display(),
                certificate.certificate.display(),
                certificate.key.display()
            ),
        )?,
    }
    if let Some(acl) = &options.acl {
        append(
            &mut text,
            format_args!(
                "user default off\nuser {ADMINISTRATOR} on >{ADMINISTRATOR_PASSWORD} ~* &* +@all\n\
                 user {} on \">{}\" {}\nmasteruser {ADMINISTRATOR}\nmasterauth {ADMINISTRATOR_PASSWORD}\n",
                acl.user, acl.password, acl.rules
            ),
        )?;
    }
    if let Some((bytes, policy)) = &options.maxmemory {
        append(&mut text, format_args!("maxmemory {bytes}\nmaxmemory-policy {policy}\n"))?;
    }
    Ok(text)
}

fn append(text: &mut String, lines: std::fmt::Arguments<'_>) -> Result<(), Error> {
    text.write_fmt(lines).map_err(|error| Error::new(error.to_string()))
}
