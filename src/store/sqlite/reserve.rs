//! Bytes of the file system kept for the day on which it is full: a file that holds nothing and is given up then.
//!
//! A database on a full disk cannot even delete, since a deletion is appended to the write-ahead log before it frees
//! anything, and the log cannot be emptied into a file that cannot grow. What is given up here lets both through.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// The reserve: the most that the log holds ([`super::threads`] bounds a group) unless one value is larger.
pub(super) const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// The file `<database>.reserve`.
pub(super) struct Reserve {
    file: File,
    held: bool,
}

impl Reserve {
    /// Opens or makes the file; it holds what an earlier process left in it.
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let file = super::private().open(database.with_extension("reserve"))?;
        let found = file.metadata()?;
        if found.len() > RESERVE_BYTES {
            // A process was killed while it asked for the spare bytes.
            file.set_len(RESERVE_BYTES)?;
        }
        // A sparse file of this length would hold nothing.
        let held = found.blocks() * 512 >= RESERVE_BYTES;
        Ok(Self { file, held })
    }

    /// Whether the bytes are there.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Takes the bytes from the file system, where `spare` more are there; else none. A file system does not say what a
    /// quota leaves, and what was just given up proves nothing.
    pub(super) fn hold(&mut self, spare: u64) -> io::Result<()> {
        let taken = match fallocate(&self.file, FallocateFlags::empty(), 0, RESERVE_BYTES + spare) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_out(),
            other => other.map_err(io::Error::from),
        };
        match taken.and_then(|()| self.file.set_len(RESERVE_BYTES)) {
            Ok(()) => self.held = true,
            Err(error) => {
                self.release();
                return Err(error);
            }
        }
        Ok(())
    }

    /// For file systems that cannot allocate without writing.
    fn write_out(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        let piece = [0_u8; 64 * 1024];
        for _ in 0..RESERVE_BYTES / piece.len() as u64 {
            self.file.write_all(&piece)?;
        }
        self.file.sync_data()
    }

    /// Gives the bytes back.
    pub(super) fn release(&mut self) {
        self.held = false;
        if let Err(error) = self.file.set_len(0) {
            tracing::warn!(%error, "the reserve beside the embedded database could not be given up");
        }
    }
}
