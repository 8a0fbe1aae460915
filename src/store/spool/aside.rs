//! What could not be done with: a file for each, in a folder beside the segments, until somebody looks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::make_folder;

const FOLDER: &str = "refused";
const UNFINISHED: &str = "unfinished";

/// A file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// As it was named.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
}

/// Writes one that is there after a power loss too, whole or not at all, and whether it is new: the same name again is the same one.
pub(super) fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<(PathBuf, bool)> {
    let folder = directory.join(FOLDER);
    make_folder(&folder)?;
    let (path, unfinished) = (folder.join(name), folder.join(UNFINISHED));
    if path.exists() {
        return Ok((path, false));
    }
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    File::open(&folder)?.sync_all()?;
    Ok((path, true))
}

/// Keeps a segment that is damaged: a disk may read tomorrow what it cannot read today.
pub(super) fn keep_segment(directory: &Path, segment: &Path) -> io::Result<()> {
    let folder = directory.join(FOLDER);
    make_folder(&folder)?;
    let name = segment.file_name().ok_or_else(|| io::Error::other("a segment without a name"))?;
    fs::rename(segment, folder.join(format!("damaged.{}", name.to_string_lossy())))?;
    File::open(&folder)?.sync_all()
}

/// What one has.
pub(super) fn read(directory: &Path, name: &str) -> io::Result<Vec<u8>> {
    fs::read(directory.join(FOLDER).join(name))
}

/// Removes one for good; how long it was.
pub(super) fn remove(directory: &Path, name: &str) -> io::Result<u64> {
    let folder = directory.join(FOLDER);
    let path = folder.join(name);
    let bytes = fs::metadata(&path)?.len();
    fs::remove_file(path)?;
    File::open(folder)?.sync_all()?;
    Ok(bytes)
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
