//! What could not be done with: a file for each, in a folder beside the segments, until somebody looks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::make_folder;

const FOLDER: &str = "refused";

/// A file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// As it was named.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
}

/// Writes one that is there after a power loss too; the same name again is the same one.
pub(super) fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let folder = directory.join(FOLDER);
    make_folder(&folder)?;
    let path = folder.join(name);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(&folder)?.sync_all()?;
    Ok(path)
}

/// Those that are there.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Aside>> {
    let files = match fs::read_dir(directory.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let aside = |file: io::Result<fs::DirEntry>| {
        let file = file?;
        Ok(Aside { name: file.file_name().to_string_lossy().into_owned(), bytes: file.metadata()?.len() })
    };
    files.map(aside).collect()
}
