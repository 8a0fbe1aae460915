//! A place for PostgreSQL's data. The repository may lie below a folder that only root may enter, and the server runs
//! as another user: so the data is elsewhere, and `.rig/` has a link to it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::process::getuid;

use crate::process::{Error, remove_folder};
use crate::shared::workspace_root;
use crate::user::User;

/// A folder of its own, empty at first, and the link to it below `.rig/`.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    link: PathBuf,
}

impl Folder {
    /// What an earlier server left in it is removed. `name` is unique on this machine, `link` below `.rig/`.
    pub(crate) fn create(name: &str, link: &Path, user: Option<User>) -> Result<Self, Error> {
        let path = Self::place(name, user)?;
        let link = workspace_root()?.join(".rig").join(link);
        let folder = Self { path, link };
        folder.remove()?;
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.path.display()));
        fs::create_dir(&folder.path).map_err(failed)?;
        let parent = folder.link.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).and_then(|()| symlink(&folder.path, &folder.link)).map_err(failed)?;
        Ok(folder)
    }

    /// Where a folder of this name is.
    pub(crate) fn place(name: &str, user: Option<User>) -> Result<PathBuf, Error> {
        let candidates =
            [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from("/var/lib/postgresql")];
        let is_open = |candidate: &&PathBuf| user.is_none() || candidate.ancestors().all(everyone_may_enter);
        let base = candidates.iter().find(is_open);
        let base = base.ok_or_else(|| Error::new("no temporary folder that every user may enter"))?;
        let own = base.join(format!("outrigger-rig-{}", getuid().as_raw()));
        private(&own, user)?;
        Ok(own.join(name))
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", self.path.display()));
        remove_folder(&self.path)?;
        if self.link.is_symlink() {
            fs::remove_file(&self.link).map_err(failed)?;
        }
        Ok(())
    }
}

fn everyone_may_enter(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o001 != 0)
}

/// The temporary folder is everybody's: one that somebody else put there under our name is not used.
fn private(folder: &Path, user: Option<User>) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::new(format!("{}: {error}", folder.display()));
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => user.map_or(Ok(()), |user| user.takes_only(folder)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(folder).map_err(failed)?;
            let owner = user.map_or(getuid().as_raw(), User::uid);
            // Between another process's two steps it is still this user's.
            if metadata.is_dir() && (metadata.uid() == owner || metadata.uid() == getuid().as_raw()) {
                return user.map_or(Ok(()), |user| user.takes_only(folder));
            }
            Err(Error::new(format!("{} belongs to somebody else: remove it", folder.display())))
        }
        Err(error) => Err(failed(error)),
    }
}
