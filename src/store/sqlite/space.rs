//! Whether there is room for more: in the database by its bound, and on the disk.
//!
//! A write that adds much is refused before it is tried once the disk has less than [`MARGIN_BYTES`] left, so that this
//! database never fills it to the last page. Where another program does, the [`Reserve`] is given up, which lets the
//! write-ahead log be emptied and deletions through. What deletions and expiry free within the file, and the log's own
//! length, can be written again without a byte from the disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::watch;

use super::OpenError;
use super::reserve::{RESERVE_BYTES, Reserve};

/// What stays free on the disk, in bytes: the file does not grow into it.
const MARGIN_BYTES: u64 = 16 * 1024 * 1024;
/// What stays free where the log alone grows, in bytes: it ends with its next checkpoint.
const LOG_MARGIN_BYTES: u64 = 1024 * 1024;
/// The log keeps its file up to this length, in bytes: room that nobody else can take.
pub(super) const LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How far small writes may go over the bound, in bytes: deletions, and what limits were taken.
const OVER_BYTES: u64 = 16 * 1024 * 1024;
/// There is room while an entry of so many bytes fits.
const ENTRY_BYTES: u64 = 1024 * 1024;
/// Pages of the log that any entry takes beside its own bytes: the way down four trees, and what they split.
const PAGES_AN_ENTRY: u64 = 12;
/// How often it is looked at while nothing is written.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// What there is no room in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The file system, or what this process may use of it.
    Disk,
    /// The database: it has reached its bound.
    Database,
    /// What one tenant may have of the database, beside the others.
    Share,
}

/// What a job adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adds {
    /// Nothing to speak of: it must get through.
    Nothing,
    /// An entry of about so many bytes: refused where there is no room for it.
    Entry(u64),
    /// An entry of about so many bytes at the most that its tenant must get rid of: what the others keep does not stand against it while a
    /// quarter of the database is left.
    Moved(u64),
    /// State of about so many bytes at the most, which what is kept already needs to be worked with: it may go over the bound, by
    /// a part of what small writes may.
    State(u64),
    /// Nothing yet: a look whether there is room for all that was promised ([`super::Sqlite::promise`]), so many bytes of it this tenant's.
    Promise(u64),
    /// An entry of about so many bytes that was promised: it takes the room that was kept for it, and more as state does.
    Promised(u64),
}

impl Adds {
    /// An entry of so many bytes; nothing where it is 0.
    #[must_use]
    pub fn entry(bytes: u64) -> Self {
        if bytes == 0 { Self::Nothing } else { Self::Entry(bytes) }
    }

    /// The bytes of an entry.
    pub(super) fn entry_bytes(self) -> u64 {
        match self {
            Self::Entry(bytes) | Self::Moved(bytes) | Self::Promised(bytes) => bytes,
            Self::Nothing | Self::State(_) | Self::Promise(_) => 0,
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "the disk is full",
            Self::Database => "it has reached its bound",
            Self::Share => "this tenant's part of it is full",
        })
    }
}

/// Whether SQLite says that it could not write for want of room. Beyond a quota it says no more than that a write failed.
pub(super) fn is_no_room(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(code, _) => {
            code.code == ErrorCode::DiskFull
                || matches!(code.extended_code, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE)
        }
        _ => false,
    }
}

/// What was last seen, less what was promised since.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    page_bytes: u64,
    /// Free pages within the file.
    unused: u64,
    /// How far the file may grow.
    growth: u64,
    /// How far it may with state.
    state_growth: u64,
    /// The log's length, where all of it may be written over.
    log: u64,
    /// What the disk has.
    disk: u64,
}

/// What an entry takes.
#[derive(Debug, Clone, Copy)]
struct Need {
    file: u64,
    growth: u64,
    log_growth: u64,
    log: u64,
}

impl Seen {
    fn need(&self, bytes: u64) -> Need {
        // An entry's bytes, half-filled pages, and its keys once more in the indexes.
        let file = bytes + bytes / 8 + 2 * self.page_bytes;
        let log = file + PAGES_AN_ENTRY * self.page_bytes;
        Need { file, growth: file.saturating_sub(self.unused), log_growth: log.saturating_sub(self.log), log }
    }
}

/// The room of one database.
pub(super) struct Space {
    directory: PathBuf,
    log: PathBuf,
    max_bytes: u64,
    reserve: Reserve,
    /// What others were promised, in bytes: it is not there for what comes.
    promised: Arc<AtomicU64>,
    seen: Seen,
    looked: Option<Instant>,
    /// The log was emptied, and nothing was written since.
    emptied: bool,
    /// A write failed, and the reserve could not be taken since: what the file system says of itself does not count.
    failing: bool,
    full: watch::Sender<Option<Full>>,
}

impl Space {
    pub(super) fn new(path: &Path, max_bytes: u64, reserve: Reserve) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            directory: path.parent().unwrap_or(Path::new(".")).to_owned(),
            log: log.into(),
            max_bytes,
            reserve,
            promised: Arc::default(),
            seen: Seen::default(),
            looked: None,
            emptied: false,
            failing: false,
            full: watch::Sender::new(None),
        }
    }

    /// What there is no room in, as it changes.
    pub(super) fn full(&self) -> watch::Receiver<Option<Full>> {
        self.full.subscribe()
    }

    /// What is promised, for who promises.
    pub(super) fn promises(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.promised)
    }

    /// What is promised, in bytes.
    pub(super) fn promised(&self) -> u64 {
        self.promised.load(Relaxed)
    }

    /// Bounds the file for what asks for no room, too.
    pub(super) fn bound(&self, connection: &Connection) -> Result<(), OpenError> {
        let pages =
            self.max_bytes.saturating_add(OVER_BYTES) / number(connection, "PRAGMA page_size")?.max(1);
        number(connection, &format!("PRAGMA max_page_count = {pages}"))?;
        Ok(())
    }

    /// Looks whether there is room for entries of `wanted` bytes together, and makes what room can be made. Outside of
    /// a transaction, since it may empty the log.
    pub(super) fn prepare(&mut self, connection: &Connection, wanted: u64) -> rusqlite::Result<()> {
        self.look(connection)?;
        let short = wanted > 0 && self.lacks(self.need_beside_promised(wanted)).is_some();
        if short || self.seen.disk < LOG_MARGIN_BYTES || self.failing {
            self.relieve(connection)?;
        }
        Ok(())
    }

    /// Looks once in a while, so that what says how this process is knows without a write.
    pub(super) fn tick(&mut self, connection: &Connection) {
        if self.looked.is_some_and(|looked| looked.elapsed() < PERIOD) {
            return;
        }
        self.looked = Some(Instant::now());
        self.hold_reserve();
        match self.prepare(connection, ENTRY_BYTES) {
            Ok(()) => self.say(self.lacks(self.need_beside_promised(ENTRY_BYTES))),
            Err(error) => tracing::warn!(%error, "the room of the embedded database is not known"),
        }
    }

    /// Promises room for what is added.
    pub(super) fn take(&mut self, adds: Adds) -> Result<(), Full> {
        let (need, lacks) = match adds {
            Adds::Nothing => return Ok(()),
            Adds::Promise(_) => return self.lacks(self.need_beside_promised(0)).map_or(Ok(()), Err),
            Adds::Entry(bytes) | Adds::Moved(bytes) => {
                (self.seen.need(bytes), self.lacks(self.need_beside_promised(bytes)))
            }
            Adds::State(bytes) | Adds::Promised(bytes) => {
                let need = self.seen.need(bytes);
                (need, self.lacks_for_state(need))
            }
        };
        if let Some(full) = lacks {
            return Err(full);
        }
        let seen = &mut self.seen;
        seen.unused = seen.unused.saturating_sub(need.file);
        seen.growth = seen.growth.saturating_sub(need.growth);
        seen.state_growth = seen.state_growth.saturating_sub(need.growth);
        seen.log = seen.log.saturating_sub(need.log);
        seen.disk = seen.disk.saturating_sub(need.growth + need.log_growth);
        Ok(())
    }

    /// Says on the board that something was refused, unless it is one tenant's matter.
    pub(super) fn refused(&self, full: Full) {
        if full != Full::Share {
            self.say(Some(full));
        }
    }

    /// Notes that a group was written, or may have been.
    pub(super) fn ended(&mut self) {
        self.emptied = false;
    }

    /// Notes that a write failed for want of room: nothing grows until the reserve could be taken again.
    pub(super) fn failed(&mut self) {
        self.failing = true;
        self.reserve.release();
        self.say(Some(Full::Disk));
    }

    fn say(&self, full: Option<Full>) {
        self.full.send_if_modified(|said| {
            let changed = *said != full;
            *said = full;
            changed
        });
    }

    /// What an entry takes, and all that is promised. That is written bit by bit: its log is one of its bound.
    fn need_beside_promised(&self, bytes: u64) -> Need {
        let (all, own) = (self.seen.need(bytes + self.promised.load(Relaxed)), self.seen.need(bytes));
        let log = all.log.min(own.log + LOG_BYTES);
        Need { log, log_growth: log.saturating_sub(self.seen.log), ..all }
    }

    fn lacks(&self, need: Need) -> Option<Full> {
        let disk = self.seen.disk;
        if need.growth > self.seen.growth {
            Some(Full::Database)
        } else if need.growth > 0 {
            let short = disk < MARGIN_BYTES + need.growth + need.log_growth;
            (short || self.failing).then_some(Full::Disk)
        } else {
            (need.log_growth > 0 && disk < LOG_MARGIN_BYTES + need.log_growth).then_some(Full::Disk)
        }
    }

    /// Half of what small writes may take beyond the bound, and of what stays free on the disk, is left to those that must get
    /// through.
    fn lacks_for_state(&self, need: Need) -> Option<Full> {
        if need.growth > self.seen.state_growth {
            return Some(Full::Database);
        }
        let is_short = self.seen.disk < MARGIN_BYTES / 2 + need.growth + need.log_growth;
        (need.growth > 0 && is_short).then_some(Full::Disk)
    }

    fn look(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let page_bytes = match self.seen.page_bytes {
            0 => number(connection, "PRAGMA page_size")?,
            known => known,
        };
        let pages = number(connection, "PRAGMA page_count")?;
        let unused = number(connection, "PRAGMA freelist_count")?;
        self.seen = Seen {
            page_bytes,
            unused: unused * page_bytes,
            growth: self.max_bytes.saturating_sub(pages * page_bytes),
            state_growth: self.max_bytes.saturating_add(OVER_BYTES / 2).saturating_sub(pages * page_bytes),
            log: 0,
            disk: self.disk(),
        };
        Ok(())
    }

    fn hold_reserve(&mut self) {
        if self.reserve.is_held() || self.disk() < RESERVE_BYTES + MARGIN_BYTES {
            return;
        }
        match self.reserve.hold(MARGIN_BYTES) {
            Ok(()) => self.failing = false,
            Err(error) => tracing::debug!(%error, "the reserve cannot be taken"),
        }
    }

    /// What the file system has left for this process. One that does not say is taken to have enough: a write that
    /// fails says more.
    fn disk(&self) -> u64 {
        match rustix::fs::statvfs(&self.directory) {
            Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
            Err(error) => {
                tracing::debug!(%error, "the file system does not say what is free");
                u64::MAX / 2
            }
        }
    }

    /// Empties the log, with the reserve's bytes where it must.
    fn relieve(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if !self.emptied {
            self.emptied = empty_log(connection);
            if !self.emptied && self.reserve.is_held() {
                self.reserve.release();
                self.emptied = empty_log(connection);
            }
        }
        let length = std::fs::metadata(&self.log).map_or(0, |found| found.len()).min(LOG_BYTES);
        let log = if self.emptied { length } else { 0 };
        let full = self.failing || self.disk() < LOG_MARGIN_BYTES;
        if log < LOG_MARGIN_BYTES && full && self.reserve.is_held() {
            self.reserve.release();
        }
        self.look(connection)?;
        self.seen.log = log;
        Ok(())
    }
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(pragma)?;
    statement.query_row([], |row| Ok(row.get::<_, i64>(0)?.unsigned_abs()))
}

/// Whether the whole log is in the file now, and is written over from its beginning.
fn empty_log(connection: &Connection) -> bool {
    let ended = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    });
    match ended {
        Ok((busy, frames, done)) => busy == 0 && frames == done,
        Err(error) => {
            tracing::debug!(%error, "the log of the embedded database cannot be emptied");
            false
        }
    }
}
