//! What could not be done with: a file for each, in a folder beside the segments, until somebody looks.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::disk::{Disk, make_folder};

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
pub(super) fn write(
    disk: &dyn Disk,
    directory: &Path,
    name: &str,
    bytes: &[u8],
) -> io::Result<(PathBuf, bool)> {
    let folder = directory.join(FOLDER);
    make_folder(disk, &folder)?;
    let (path, unfinished) = (folder.join(name), folder.join(UNFINISHED));
    // Who wrote it may have ended before its name was on the disk: it is written once more.
    let is_new = !path.try_exists()?;
    remove_if_there(disk, &unfinished)?;
    let written = write_whole(disk, &unfinished, bytes).and_then(|()| disk.rename(&unfinished, &path));
    if let Err(error) = written {
        // On a disk that is full it takes what others need.
        if let Err(error) = remove_if_there(disk, &unfinished) {
            tracing::warn!(%error, "an unfinished file of the spool could not be removed");
        }
        return Err(error);
    }
    disk.sync_folder(&folder)?;
    Ok((path, is_new))
}

fn write_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create(path)?;
    disk.write(&file, bytes, 0)?;
    disk.sync(&file)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Keeps a segment that is damaged: a disk may read tomorrow what it cannot read today. Whether it was there.
pub(super) fn keep_segment(disk: &dyn Disk, directory: &Path, segment: &Path) -> io::Result<bool> {
    let folder = directory.join(FOLDER);
    make_folder(disk, &folder)?;
    let name = segment.file_name().ok_or_else(|| io::Error::other("a segment without a name"))?;
    let kept = folder.join(format!("damaged.{}", name.to_string_lossy()));
    match disk.rename(segment, &kept) {
        // Renamed before, where its folder could not be synced then.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if !kept.try_exists()? {
                return Ok(false);
            }
        }
        renamed => renamed?,
    }
    disk.sync_folder(&folder)?;
    Ok(true)
}

/// Those that are there.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Aside>> {
    let files = match fs::read_dir(directory.join(FOLDER)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut found = Vec::new();
    for file in files {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        if name == UNFINISHED {
            continue;
        }
        match file.metadata() {
            Ok(data) => found.push(Aside { name, bytes: data.len() }),
            // Somebody removed it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
