//! What a pair of servers is started with, and the settings that each gets.

use std::fmt::Write as _;

use crate::certificate::Certificate;
use crate::postgres::template::REPLICATION;

/// How to start a pair of servers; `PostgresOptions::default()` is one on free ports.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// The first of three ports (the two servers', then one for PgBouncer). None: free ones.
    pub first_port: Option<u16>,
    /// `fsync` and `full_page_writes`. Off by default: a killed server loses nothing by it, since what it wrote is the
    /// kernel's; only a machine that stops would. On to measure: a commit took 10 ms instead of 0.6 ms.
    pub fsync: bool,
    /// More settings for `postgresql.conf`, for both servers; they win over the rig's.
    pub settings: Vec<(String, String)>,
}

/// `server0` and `server1`: what a standby calls itself.
pub(crate) fn node_name(index: usize) -> String {
    format!("server{index}")
}

pub(crate) struct NodeSettings<'a> {
    pub(crate) options: &'a PostgresOptions,
    pub(crate) certificate: &'a Certificate,
    pub(crate) index: usize,
    pub(crate) port: u16,
    /// The port of the server that it follows.
    pub(crate) follows: Option<u16>,
    /// A commit waits for a standby. Not on a primary that has none: it would wait for ever.
    pub(crate) synchronous: bool,
}

impl NodeSettings<'_> {
    pub(crate) fn text(&self) -> String {
        let Certificate { certificate, key, .. } = self.certificate;
        let names = if self.synchronous { "FIRST 1 (server0, server1)" } else { "" };
        let switch = if self.options.fsync { "on" } else { "off" };
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\ncluster_name = '{name}'\n\
             max_connections = 100\nshared_buffers = 64MB\ndynamic_shared_memory_type = mmap\n\
             ssl = on\nssl_min_protocol_version = 'TLSv1.3'\nssl_cert_file = '{certificate}'\n\
             ssl_key_file = '{key}'\npassword_encryption = scram-sha-256\n\
             wal_level = logical\nhot_standby = on\nwal_log_hints = on\nmax_wal_senders = 10\n\
             max_replication_slots = 10\nwal_keep_size = 512MB\nwal_retrieve_retry_interval = 100ms\n\
             max_prepared_transactions = 20\nsynchronous_commit = on\nsynchronous_standby_names = '{names}'\n\
             fsync = {switch}\nfull_page_writes = {switch}\njit = off\ntimezone = UTC\nlog_timezone = UTC\n\
             log_line_prefix = '%m [%p] %q%u@%d '\nlogging_collector = off\n",
            port = self.port,
            name = node_name(self.index),
            certificate = certificate.display(),
            key = key.display(),
        );
        if let Some(port) = self.follows {
            let (user, password) = REPLICATION;
            let authority = self.certificate.authority.display();
            let lines = format!(
                "primary_conninfo = 'host=127.0.0.1 port={port} user={user} password={password} \
                 sslmode=verify-full sslrootcert={authority} channel_binding=require gssencmode=disable'\n"
            );
            text.push_str(&lines);
        }
        for (name, value) in &self.options.settings {
            // Writing to a String cannot fail.
            writeln!(text, "{name} = '{}'", value.replace('\'', "''")).ok();
        }
        text
    }
}
