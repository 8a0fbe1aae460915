//! The ready file: written whole once the process serves, so that a script can wait for it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Addresses;

/// A ready file on disk; gone when the process ends in order.
pub struct ReadyFile(PathBuf);

#[derive(Serialize)]
struct Content<'a> {
    pid: u32,
    api: String,
    admin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<String>,
    socket: Option<&'a Path>,
}

impl ReadyFile {
    /// Writes the file beside its place and renames it, so that no reader sees half of it.
    pub fn write(path: &Path, addresses: &Addresses) -> io::Result<Self> {
        let content = Content {
            pid: std::process::id(),
            api: addresses.api.to_string(),
            admin: addresses.admin.to_string(),
            probe: addresses.probe.map(|address| address.to_string()),
            socket: addresses.socket.as_deref(),
        };
        // A name nobody can foresee, and no file that is there: in a shared directory a link may wait for either.
        let temporary = path.with_extension(format!("{}.partial", uuid::Uuid::new_v4().simple()));
        let mut file = std::fs::File::create_new(&temporary)?;
        serde_json::to_writer(&mut file, &content)?;
        file.write_all(b"\n")?;
        drop(file);
        std::fs::rename(&temporary, path)?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, "the ready file was already gone");
        }
    }
}
