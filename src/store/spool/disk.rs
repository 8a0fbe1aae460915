//! What a spool does to its disk. All that must be there after a power loss goes through here, so that a test can have one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Operations that change files. What they did may be gone after a power loss until a `sync` returned.
pub(super) trait Disk: Send + Sync {
    /// Makes a folder that only its owner may enter; one that is there stays.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
    /// Returns once the names in a folder are on the disk.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// A new file, under a name that no other has, which only its owner may read.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes all of these bytes, or says that it did not; a part may be written then.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts a file off.
    fn cut(&self, file: &File, length: u64) -> io::Result<()>;
    /// Returns once a file's bytes and its length are on the disk. After an error nobody knows, and a second one would not say.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Another name, whoever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The machine's.
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made,
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Makes a folder that is there after a power loss too, with those above it that are missing.
pub(super) fn make_folder(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let above = above(folder);
    if !above.try_exists()? {
        make_folder(disk, above)?;
    }
    disk.make_folder(folder)?;
    // Also of one that is there: who made it may have ended before this.
    disk.sync_folder(above)
}

/// The same of a folder that another one made. One that is mounted has no name on the disk, and one in a folder that cannot be read is
/// somebody else's.
pub(super) fn sync_name(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let above = above(folder);
    if fs::metadata(folder)?.dev() != fs::metadata(above)?.dev() {
        return Ok(());
    }
    match disk.sync_folder(above) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// The folder that a path is in.
pub(super) fn above(folder: &Path) -> &Path {
    match folder.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device and a folder that cannot be synced say so: whoever does not ask does not hear it.
    #[test]
    fn the_machine_s_disk_is_told_to_sync() {
        let refused = Some(rustix::io::Errno::INVAL.raw_os_error());
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert_eq!(RealDisk.sync(&null).unwrap_err().raw_os_error(), refused);
        assert_eq!(RealDisk.sync_folder(Path::new("/proc")).unwrap_err().raw_os_error(), refused);
    }
}
