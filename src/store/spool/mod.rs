//! A queue of entries on this machine's disk: what was appended survives the process and its machine, until it is removed.
//!
//! Many callers share a `fdatasync`, and each gets its answer after it. Entries lie in segment files in the order of their sequence; a
//! segment is removed as a whole, once all of it is done with, whatever is before it. After a restart entries that were done with may come again: whoever takes them
//! does so by a key. A torn end, and damage in the middle, cost the entries that they touch and no others.

mod aside;
mod disk;
mod frame;
mod place;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

pub use aside::Aside;
use disk::{Disk, RealDisk};
pub use frame::MAX_PAYLOAD_BYTES;
use place::{Folder, Lost};
use segment::Segment;
pub use segment::{Again, Entry, Read};
use writer::{Active, Order, Writer};

/// How much there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of all segments and of what is put aside, in bytes; more is refused.
    pub max_bytes: u64,
    /// Of a segment, which ends behind the entry that goes over it.
    pub segment_bytes: u64,
}

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another process uses this folder: give each outrigger a data directory of its own")]
    InUse,
    /// The disk, or its rights.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why an entry is not known to be kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The bound of all segments is reached: nothing was kept.
    #[error("the spool has as much as it may")]
    Full,
    /// The disk took nothing more: nothing was kept.
    #[error("the spool's disk refused it: {0}")]
    Disk(Arc<str>),
    /// The disk did not say whether it is kept.
    #[error("the spool's disk did not say whether it was written: {0}")]
    Unknown(Arc<str>),
    /// More than an entry may have.
    #[error("an entry has {MAX_PAYLOAD_BYTES} bytes at the most")]
    Large,
    /// A defect: the writer's thread ended.
    #[error("the spool's thread ended")]
    Gone,
}

/// A queue on disk.
pub struct Spool {
    shared: Arc<Shared>,
    writer: Writer,
    begins: u64,
}

/// What the writer and who reads both know.
pub(super) struct Shared {
    disk: Box<dyn Disk>,
    /// Held until the writer's thread is gone too: another process is refused until then.
    folder: Folder,
    bounds: Bounds,
    segments: Mutex<Segments>,
    /// Held while files are put aside, removed from there or looked at, so that what is counted is what is there.
    aside: Mutex<()>,
    appended: Notify,
}

#[derive(Default)]
pub(super) struct Segments {
    /// From the oldest; the last one is written to unless it is sealed.
    all: Vec<Segment>,
    bytes: u64,
    /// What is put aside.
    aside_bytes: u64,
    next_sequence: u64,
}

impl Segments {
    fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.aside_bytes)
    }
}

impl Shared {
    /// Looks at what is put aside: somebody may have removed some of it.
    fn count_aside(&self) -> io::Result<Vec<Aside>> {
        let _aside = self.aside.lock();
        self.list_aside()
    }

    fn list_aside(&self) -> io::Result<Vec<Aside>> {
        let all = aside::list(self.folder.path())?;
        self.segments.lock().aside_bytes = all.iter().map(|one| one.bytes).sum();
        Ok(all)
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.segments.lock().all_bytes().saturating_add(bytes) <= self.bounds.max_bytes
    }
}

impl Spool {
    /// Opens or makes the folder, which no other process may have.
    pub fn open(directory: &Path, bounds: Bounds) -> Result<Self, OpenError> {
        Self::open_on(Box::new(RealDisk), directory, bounds, Writer::start)
    }

    /// The same on any disk, with whoever writes.
    fn open_on(
        disk: Box<dyn Disk>,
        directory: &Path,
        bounds: Bounds,
        start: impl FnOnce(Active) -> io::Result<Writer>,
    ) -> Result<Self, OpenError> {
        disk::make_folder(&*disk, directory)?;
        disk::sync_name(&*disk, disk::above(directory))?;
        let lock_path = directory.join("lock");
        let folder = Folder::new(directory, lock_path.clone(), lock(&lock_path)?)?;
        let all = segment::list(directory)?;
        let bytes = all.iter().map(Segment::bytes).sum();
        let aside_bytes = aside::list(directory)?.iter().map(|one| one.bytes).sum();
        // Never one of a life before, also where that left nothing: microseconds since 1970 are more than there are entries.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let next_sequence = u64::try_from(now.as_micros()).unwrap_or(1).max(1);
        let mut segments = Segments { bytes, aside_bytes, all, next_sequence };
        if let Some(last) = segments.all.last() {
            let read = last.read(0)?;
            let ends = read.entries.last().map_or(0, |entry| entry.sequence + 1);
            // A segment's name is its own, also where nothing of it is left.
            let ends = ends.max(last.first_sequence() + 1);
            segments.next_sequence = ends.max(next_sequence);
        }
        let begins = segments.next_sequence;
        let segments = Mutex::new(segments);
        let shared = Arc::new(Shared {
            disk,
            folder,
            bounds,
            segments,
            aside: Mutex::default(),
            appended: Notify::new(),
        });
        let writer = start(Active::new(Arc::clone(&shared)))?;
        Ok(Self { shared, writer, begins })
    }

    /// Appends an entry and returns its sequence once it is on the disk. A caller that stops waiting does not undo it.
    pub async fn append(&self, payload: Vec<u8>) -> Result<u64, AppendError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(AppendError::Large);
        }
        let (answer, answered) = oneshot::channel();
        self.writer.send(Order::Append { payload, answer }).await?;
        answered.await.map_err(|_| AppendError::Gone)?
    }

    /// The entries of a segment from this place on, of the oldest one without a place, and what there was beside; nothing where it is
    /// not there. What was appended is there once it was answered. Of a segment whose file somebody removed all is damage. An error where
    /// the folder is not the one that was opened.
    pub fn read(&self, from: Option<Place>) -> io::Result<Option<Read>> {
        let Some(from) = from.or_else(|| self.next(None)) else { return Ok(None) };
        let Some(segment) = self.segment(from) else { return Ok(None) };
        let read = self.unless_removed(segment.read(from.offset))?;
        Ok(Some(read.unwrap_or_else(|| segment.gone(from.offset))))
    }

    /// An error where the folder is not the one that was opened, or not this process's any more.
    pub fn has_its_folder(&self) -> io::Result<()> {
        self.shared.folder.lost()?.map_or(Ok(()), |lost| Err(lost.into()))
    }

    /// Where the segment begins that comes behind that of a place; without one the oldest.
    #[must_use]
    pub fn next(&self, behind: Option<Place>) -> Option<Place> {
        let segments = self.shared.segments.lock();
        let ids = segments.all.iter().map(Segment::id);
        let later = ids.filter(|id| behind.is_none_or(|place| place.segment < *id));
        later.min().map(|segment| Place { segment, offset: 0 })
    }

    /// An entry that was read at this place, of this sequence and so many bytes, once more; nothing where its disk cannot read it now.
    pub fn again(
        &self,
        again: &mut Again,
        place: Place,
        (sequence, bytes): (u64, usize),
    ) -> io::Result<Option<Vec<u8>>> {
        let Some(segment) = self.segment(place) else { return Ok(None) };
        self.unless_removed(segment.again(again, place.offset, (sequence, bytes))).map(Option::flatten)
    }

    /// What was read of a file; nothing where somebody removed it. Where the folder is not the one that was opened it may come back.
    fn unless_removed<T>(&self, read: io::Result<T>) -> io::Result<Option<T>> {
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => match self.shared.folder.lost()? {
                Some(Lost::Folder) => Err(Lost::Folder.into()),
                Some(Lost::Lock) | None => Ok(None),
            },
            read => read.map(Some),
        }
    }

    fn segment(&self, place: Place) -> Option<Segment> {
        let segments = self.shared.segments.lock();
        segments.all.iter().find(|segment| segment.id() == place.segment).cloned()
    }

    /// Removes a segment, which must have been read to this place, where nothing can be added to it; whether it did.
    pub async fn remove(&self, read_to: Place) -> Result<bool, AppendError> {
        let (answer, answered) = oneshot::channel();
        self.writer.send(Order::Remove { read_to, answer }).await?;
        answered.await.map_err(|_| AppendError::Gone)?
    }

    /// Shows every entry that is there, in order.
    pub fn visit(&self, mut see: impl FnMut(&Entry)) -> io::Result<()> {
        let all = self.shared.segments.lock().all.clone();
        for segment in all {
            segment.read(0)?.entries.iter().for_each(&mut see);
        }
        Ok(())
    }

    /// The first sequence of this process: what comes before it was there when the folder was opened, and may have been done with.
    #[must_use]
    pub fn begins(&self) -> u64 {
        self.begins
    }

    /// The sequence of what is appended next: what was appended before has smaller ones.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.shared.segments.lock().next_sequence
    }

    /// Returns once something was appended since this was called last; for one reader.
    pub async fn appended(&self) {
        self.shared.appended.notified().await;
    }

    /// Keeps what could not be done with in a file of this name, until somebody removes it. It counts in the bound.
    pub fn put_aside(&self, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let shared = &self.shared;
        let _aside = shared.aside.lock();
        let (path, is_new) = aside::write(&*shared.disk, shared.folder.path(), name, bytes)?;
        if is_new {
            shared.segments.lock().aside_bytes += bytes.len() as u64;
        } else {
            shared.list_aside()?;
        }
        Ok(path)
    }

    /// Whether anything was put aside when it was looked at last.
    #[must_use]
    pub fn has_aside(&self) -> bool {
        self.shared.segments.lock().aside_bytes > 0
    }

    /// What is put aside, looked at anew.
    pub fn aside(&self) -> io::Result<Vec<Aside>> {
        self.shared.count_aside()
    }

    /// What a file that was put aside has.
    pub fn read_aside(&self, name: &str) -> io::Result<Vec<u8>> {
        aside::read(self.shared.folder.path(), name)
    }

    /// Removes a file that was put aside, also after a power loss.
    pub fn remove_aside(&self, name: &str) -> io::Result<()> {
        let shared = &self.shared;
        let _aside = shared.aside.lock();
        let bytes = aside::remove(&*shared.disk, shared.folder.path(), name)?;
        let mut segments = shared.segments.lock();
        segments.aside_bytes = segments.aside_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// What all segments and what is put aside have, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.segments.lock().all_bytes()
    }
}

/// Up to where a segment was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(super) segment: segment::Id,
    pub(super) offset: u64,
}

impl Place {
    /// Another one of the same segment.
    #[must_use]
    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
    }
}
