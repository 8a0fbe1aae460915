//! Whether a spool's files are where they were: they may be removed, or something mounted over them, while a process has them open.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How a folder is no longer the process's that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    /// Its path leads elsewhere, or nowhere.
    #[error(
        "the spool's folder is not the one that was opened: it was removed or moved, or something was mounted over it; undo that, or start again"
    )]
    Folder,
    /// Another process would not see that this one has it.
    #[error(
        "the file `lock` of the spool's folder was removed, so that another process may take the folder: start again"
    )]
    Lock,
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        Self::other(lost)
    }
}

/// What a path led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    number: u64,
}

impl Identity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|data| Self::from(&data))
    }

    /// Whether the path leads to it.
    pub(super) fn is_at(self, path: &Path) -> io::Result<bool> {
        match fs::metadata(path) {
            Ok(found) => Ok(Self::from(&found) == self),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl From<&Metadata> for Identity {
    fn from(data: &Metadata) -> Self {
        Self { device: data.dev(), number: data.ino() }
    }
}

/// A folder that this process has, for as long as this is held.
pub(super) struct Folder {
    path: PathBuf,
    identity: Identity,
    lock: PathBuf,
    lock_identity: Identity,
    _lock: File,
}

impl Folder {
    /// With its lock, which is taken.
    pub(super) fn new(path: &Path, lock_path: PathBuf, lock: File) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: Identity::from(&fs::metadata(path)?),
            lock: lock_path,
            lock_identity: Identity::of(&lock)?,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How it is no longer this process's, where that is so.
    pub(super) fn lost(&self) -> io::Result<Option<Lost>> {
        Ok(if !self.identity.is_at(&self.path)? {
            Some(Lost::Folder)
        } else if !self.lock_identity.is_at(&self.lock)? {
            Some(Lost::Lock)
        } else {
            None
        })
    }
}
