//! Segment files: `{first sequence}-{mark}.seg`.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::Disk;
use super::frame::{self, Mark, Piece};
use super::{Place, aside};

/// What is read at once around a bad sector.
const BLOCK_BYTES: usize = 4096;
/// Of a segment: its first sequence, and its mark.
pub(super) type Id = (u64, Mark);

const SUFFIX: &str = ".seg";

/// A segment. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Segment(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    first_sequence: u64,
    mark: Mark,
    /// What is on the disk of it for good.
    durable: AtomicU64,
    is_sealed: AtomicBool,
    /// Something in it could not be read, and it is not only its end.
    is_damaged: AtomicBool,
}

/// An entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// One more than that of the entry before.
    pub sequence: u64,
    /// As it was appended.
    pub payload: Vec<u8>,
}

/// What a segment had from some place on.
#[derive(Debug)]
pub struct Read {
    /// In order.
    pub entries: Vec<Entry>,
    /// Bytes that are no entry: a torn end, or damage.
    pub damaged_bytes: u64,
    /// Up to where this is.
    pub to: Place,
    /// Whether nothing comes behind it: the segment can be removed.
    pub is_all: bool,
}

impl Segment {
    /// Makes a new one, whose entries begin with this sequence.
    pub(super) fn create(
        disk: &dyn Disk,
        directory: &Path,
        first_sequence: u64,
        mark: Mark,
    ) -> io::Result<(Self, File)> {
        let mark_text: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(format!("{first_sequence:020}-{mark_text}{SUFFIX}"));
        let file = disk.create(&path)?;
        // Its name is durable before anything in it is promised.
        if let Err(error) = disk.sync_folder(directory) {
            if let Err(error) = disk.remove(&path) {
                tracing::warn!(%error, file = %path.display(), "an empty file of the spool could not be removed");
            }
            return Err(error);
        }
        let inner = Inner {
            path,
            first_sequence,
            mark,
            durable: AtomicU64::new(0),
            is_sealed: AtomicBool::new(false),
            is_damaged: AtomicBool::new(false),
        };
        Ok((Self(Arc::new(inner)), file))
    }

    pub(super) fn first_sequence(&self) -> u64 {
        self.0.first_sequence
    }

    /// What no other segment has.
    pub(super) fn id(&self) -> Id {
        (self.0.first_sequence, self.0.mark)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    pub(super) fn mark(&self) -> Mark {
        self.0.mark
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.durable.load(Ordering::Acquire)
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.0.durable.store(bytes, Ordering::Release);
    }

    /// Nothing is added to it any more.
    pub(super) fn seal(&self) {
        self.0.is_sealed.store(true, Ordering::Release);
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.0.is_sealed.load(Ordering::Acquire)
    }

    /// Its entries from an offset on, up to what is durable.
    pub(super) fn read(&self, offset: u64) -> io::Result<Read> {
        // Looked at first: what is sealed has its last length.
        let is_all = self.is_sealed();
        let durable = self.bytes();
        let length = usize::try_from(durable.saturating_sub(offset)).map_err(io::Error::other)?;
        let file = File::open(&self.0.path)?;
        let (bytes, has_bad_sectors) =
            read_what_can_be(offset, length, |into, at| file.read_exact_at(into, at))?;
        let mut read = Read {
            entries: Vec::new(),
            damaged_bytes: 0,
            to: Place { segment: self.id(), offset: durable.max(offset) },
            is_all,
        };
        let mut is_damaged = has_bad_sectors;
        for piece in frame::read(&bytes, self.0.mark) {
            match piece {
                Piece::Entry { sequence, payload } => {
                    is_damaged |= read.damaged_bytes > 0;
                    read.entries.push(Entry { sequence, payload: payload.to_vec() });
                }
                Piece::Damage(bytes) => read.damaged_bytes += bytes as u64,
            }
        }
        self.0.is_damaged.fetch_or(is_damaged, Ordering::AcqRel);
        Ok(read)
    }

    /// What there is of it behind an offset where its file was removed by somebody: damage.
    pub(super) fn gone(&self, offset: u64) -> Read {
        let is_all = self.is_sealed();
        let to = self.bytes().max(offset);
        if to > offset {
            let (file, bytes) = (self.0.path.display(), to - offset);
            tracing::error!(%file, bytes, "a file of the spool was removed: what it had is lost");
        }
        Read {
            entries: Vec::new(),
            damaged_bytes: to - offset,
            to: Place { segment: self.id(), offset: to },
            is_all,
        }
    }

    /// Its file goes, or aside where it is damaged; how many bytes that are. One that somebody removed is gone already.
    pub(super) fn delete(&self, disk: &dyn Disk, directory: &Path) -> io::Result<u64> {
        if self.0.is_damaged.load(Ordering::Acquire) {
            let is_kept = aside::keep_segment(disk, directory, &self.0.path)?;
            return Ok(if is_kept { self.bytes() } else { 0 });
        }
        match disk.remove(&self.0.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(0),
        }
    }
}

/// The bytes of a file, with zeros where its disk cannot read them, and whether there are such: those are damage, and what is around them
/// is not. A disk that reads nothing at all is an error.
pub(super) fn read_what_can_be(
    offset: u64,
    length: usize,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = vec![0; length];
    match read(&mut bytes, offset) {
        Err(error) if is_bad_sector(&error) => tracing::error!(%error, "the spool's disk has bad sectors"),
        read => return read.map(|()| (bytes, false)),
    }
    let (mut failed, mut is_any_read) = (None, false);
    for (block, at) in bytes.chunks_mut(BLOCK_BYTES).zip((offset..).step_by(BLOCK_BYTES)) {
        match read(block, at) {
            Err(error) if is_bad_sector(&error) => {
                block.fill(0);
                failed = Some(error);
            }
            read => {
                read?;
                is_any_read = true;
            }
        }
    }
    match failed {
        Some(error) if !is_any_read => Err(error),
        failed => Ok((bytes, failed.is_some())),
    }
}

fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// The segments of a folder from the oldest, all of them sealed: what was torn off is never written behind.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Some((first_sequence, mark)) = entry.file_name().to_str().and_then(name) else { continue };
        let inner = Inner {
            path: entry.path(),
            first_sequence,
            mark,
            durable: AtomicU64::new(entry.metadata()?.len()),
            is_sealed: AtomicBool::new(true),
            is_damaged: AtomicBool::new(false),
        };
        found.push(Segment(Arc::new(inner)));
    }
    found.sort_by_key(Segment::first_sequence);
    Ok(found)
}

/// What a file's name says, where it is one of a segment.
fn name(text: &str) -> Option<(u64, Mark)> {
    let (sequence, mark) = text.strip_suffix(SUFFIX)?.split_once('-')?;
    let mark = u64::from_str_radix(mark, 16).ok().filter(|_| mark.len() == 16)?;
    Some((sequence.parse().ok()?, mark.to_be_bytes()))
}
