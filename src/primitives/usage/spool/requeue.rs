//! What was put aside, taken back into the spool: whoever uses the folder next counts it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::{ASIDE, SEGMENT_BYTES, entry};
use crate::store::spool::{AppendError, Aside, Bounds, OpenError, Spool};

/// Why nothing more is taken back.
#[derive(Debug, thiserror::Error)]
pub enum RequeueError {
    /// Nothing was ever accepted to disk there.
    #[error("there is no folder {}", .0.display())]
    NoFolder(PathBuf),
    /// Whose process it is could not read what this writes.
    #[error("{} is another user's: run this as the user that Outrigger runs as", .0.display())]
    Owner(PathBuf),
    /// Nothing of this name was put aside.
    #[error("nothing that was put aside is named `{0}`")]
    NoFile(String),
    /// A process uses it, or the disk refuses.
    #[error("{}: {source}", directory.display())]
    Open {
        /// The spool's folder.
        directory: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The disk, as a file was read or removed: it may be there twice, and counts once.
    #[error("{file}: {source}")]
    File {
        /// Its name.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The disk, as a call was written: its file is still there.
    #[error("{file}: {source}")]
    Append {
        /// Its name.
        file: String,
        /// What the disk said.
        source: AppendError,
    },
}

/// A file, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requeued {
    /// Its name.
    pub file: String,
    /// The call that it is, or why it was left.
    pub call: Result<RequeuedCall, String>,
}

/// A call that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequeuedCall {
    /// Whose it is.
    pub tenant: Uuid,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How many records it has.
    pub records: usize,
}

/// Takes calls that were put aside back into the spool of this folder, which no process may use, and tells of each: all of them, or those of
/// these names. A file is removed once its call is on the disk, so that after a kill it is there twice, and counts once. A dry run does
/// nothing but tell.
pub async fn requeue(
    directory: &Path,
    names: &[String],
    is_dry_run: bool,
    mut tell: impl FnMut(&Requeued),
) -> Result<(), RequeueError> {
    let of = |file: &str| {
        let file = file.to_owned();
        |source| RequeueError::File { file, source }
    };
    if !directory.is_dir() {
        return Err(RequeueError::NoFolder(directory.to_owned()));
    }
    if std::fs::metadata(directory).map_err(of("spool"))?.uid() != rustix::process::geteuid().as_raw() {
        return Err(RequeueError::Owner(directory.to_owned()));
    }
    // What is taken back was there before: it needs no bound.
    let bounds = Bounds { max_bytes: u64::MAX, segment_bytes: SEGMENT_BYTES };
    let spool = Spool::open(directory, bounds)
        .map_err(|source| RequeueError::Open { directory: directory.to_owned(), source })?;
    let mut files = spool.aside().map_err(of("refused"))?;
    // Of each tenant as they were accepted.
    files.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(name) = names.iter().find(|name| !files.iter().any(|file| file.name == **name)) {
        return Err(RequeueError::NoFile(name.clone()));
    }
    for Aside { name: file, .. } in files {
        if !names.is_empty() && !names.contains(&file) {
            continue;
        }
        let payload = spool.read_aside(&file).map_err(of(&file))?;
        let call = read(&file, &payload);
        if call.is_ok() && !is_dry_run {
            let appended = spool.append(payload).await;
            appended.map_err(|source| RequeueError::Append { file: file.clone(), source })?;
            spool.remove_aside(&file).map_err(of(&file))?;
        }
        tell(&Requeued { file, call });
    }
    Ok(())
}

/// The call of a file, or why there is none that this release can count.
fn read(file: &str, payload: &[u8]) -> Result<RequeuedCall, String> {
    if !file.ends_with(&format!(".{ASIDE}")) {
        return Err("it is no call".to_owned());
    }
    let read = entry::read(payload).map_err(|error| error.to_string())?;
    let accepted = Timestamp::from_millisecond(read.accepted_ms).map_err(|error| error.to_string())?;
    Ok(RequeuedCall { tenant: read.call.tenant(), accepted, records: read.call.points().len() })
}
