//! Segment files: `{first sequence}-{mark}.seg`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::frame::{self, HEAD_BYTES, Mark, Piece};
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
    /// Where it begins in its segment, in bytes.
    pub offset: u64,
    /// As it was appended.
    pub payload: Vec<u8>,
}

/// Reads entries again, one by one; the file of the last one stays open.
#[derive(Debug, Default)]
pub struct Again(Option<(Id, File)>);

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
    pub(super) fn create(directory: &Path, first_sequence: u64, mark: Mark) -> io::Result<(Self, File)> {
        let mark_text: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(format!("{first_sequence:020}-{mark_text}{SUFFIX}"));
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        // Its name is durable before anything in it is promised.
        File::open(directory)?.sync_all()?;
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
        let mut read = Read {
            entries: Vec::new(),
            damaged_bytes: 0,
            to: Place { segment: self.id(), offset: durable.max(offset) },
            is_all,
        };
        if length == 0 {
            return Ok(read);
        }
        let file = File::open(&self.0.path)?;
        let (bytes, has_bad_sectors) =
            read_what_can_be(offset, length, |into, at| file.read_exact_at(into, at))?;
        let (mut is_damaged, mut at) = (has_bad_sectors, offset);
        for piece in frame::read(&bytes, self.0.mark) {
            match piece {
                Piece::Entry { sequence, payload } => {
                    is_damaged |= read.damaged_bytes > 0;
                    read.entries.push(Entry { sequence, offset: at, payload: payload.to_vec() });
                    at += (HEAD_BYTES + payload.len()) as u64;
                }
                Piece::Damage(bytes) => {
                    read.damaged_bytes += bytes as u64;
                    at += bytes as u64;
                }
            }
        }
        self.0.is_damaged.fetch_or(is_damaged, Ordering::AcqRel);
        Ok(read)
    }

    /// The entry of this sequence and of so many bytes that was read at an offset, once more; nothing where its disk cannot read it now.
    pub(super) fn again(
        &self,
        again: &mut Again,
        offset: u64,
        (sequence, bytes): (u64, usize),
    ) -> io::Result<Option<Vec<u8>>> {
        let file = match &mut again.0 {
            Some((id, file)) if *id == self.id() => file,
            open => &mut open.insert((self.id(), File::open(&self.0.path)?)).1,
        };
        let mut frame = vec![0; HEAD_BYTES + bytes];
        if file.read_exact_at(&mut frame, offset).is_ok()
            && let Some(Piece::Entry { sequence: found, payload }) = frame::read(&frame, self.0.mark).next()
            && found == sequence
        {
            return Ok(Some(payload.to_vec()));
        }
        // All of it says whether this is a bad sector, or a disk that is away.
        let whole = self.read(0)?;
        Ok(whole.entries.into_iter().find(|entry| entry.sequence == sequence).map(|entry| entry.payload))
    }

    /// Its file goes, or aside where it is damaged; how many bytes that are.
    pub(super) fn delete(&self, directory: &Path) -> io::Result<u64> {
        if self.0.is_damaged.load(Ordering::Acquire) {
            return aside::keep_segment(directory, &self.0.path).map(|()| self.bytes());
        }
        fs::remove_file(&self.0.path).map(|()| 0)
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
