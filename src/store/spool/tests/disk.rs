//! A disk for tests: it forgets at a power loss what was not synced, and fails when it is told to.
//!
//! Its files are real ones, so that reading needs nothing of it; beside them it keeps what would be there after a power loss.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::super::disk::{Disk, RealDisk};
use super::random::Random;
use super::*;

/// How many operations fail, and from which one on; the first is 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// None.
    Never,
    /// These, each with this error; a write is half done.
    Errors { first: u64, count: u64, errno: Errno },
    /// The power fails at this one; nothing works behind it.
    Off { at: u64 },
    /// One in so many fails, also after a power loss.
    Sometimes { one_in: u64 },
}

/// What is left of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    All,
    /// Some of it, in any order, torn and with holes.
    Some,
}

/// Clones are the same.
#[derive(Clone)]
pub(super) struct TestDisk(Arc<Mutex<State>>);

struct State {
    root: PathBuf,
    fault: Fault,
    /// Operations until now.
    count: u64,
    is_off: bool,
    random: Random,
    /// Of each file that was ever made; by number in `inodes`.
    files: Vec<Bytes>,
    inodes: HashMap<u64, usize>,
    names: Names,
    kept: Names,
    unsynced: Vec<Change>,
}

/// What each path below the root is: a folder, or a file.
type Names = BTreeMap<PathBuf, Option<usize>>;

#[derive(Default, Clone)]
struct Bytes {
    kept: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

/// A change of names, which is kept whole once one of its folders is synced.
#[derive(Clone)]
enum Change {
    Made(PathBuf, Option<usize>),
    /// Of this file, whatever has the name otherwise.
    Renamed(PathBuf, PathBuf, usize),
    Removed(PathBuf),
}

impl Change {
    fn is_in(&self, folder: &Path) -> bool {
        match self {
            Self::Made(path, _) | Self::Removed(path) => path.parent() == Some(folder),
            Self::Renamed(from, to, _) => from.parent() == Some(folder) || to.parent() == Some(folder),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Made(path, what) => drop(names.insert(path.clone(), *what)),
            Self::Removed(path) => drop(names.remove(path)),
            Self::Renamed(from, to, file) => {
                if names.get(from) == Some(&Some(*file)) {
                    names.remove(from);
                }
                names.insert(to.clone(), Some(*file));
            }
        }
    }
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.truncate(*length),
            Self::Bytes(at, written) => {
                let end = at + written.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*at..end].copy_from_slice(written);
            }
        }
    }

    /// A part of it, as a disk may have it that was cut off.
    fn torn(&self, random: &mut Random) -> Option<Self> {
        match (self, random.below(4)) {
            (_, 0) => None,
            (Self::Bytes(at, bytes), 1) => {
                let length = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                Some(Self::Bytes(*at, bytes[..length].to_vec()))
            }
            // Its length came, and a part of it did not.
            (Self::Bytes(at, bytes), 2) => {
                let mut bytes = bytes.clone();
                let from = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                let long = usize::try_from(random.below((bytes.len() - from) as u64 + 1)).unwrap();
                bytes[from..from + long].fill(0);
                Some(Self::Bytes(*at, bytes))
            }
            _ => Some(self.clone()),
        }
    }
}

impl Bytes {
    /// What is there after a power loss.
    fn left(&self, left: Left, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.kept.clone();
        for write in &self.unsynced {
            let write = match left {
                Left::Nothing => None,
                Left::All => Some(write.clone()),
                Left::Some => write.torn(random),
            };
            write.iter().for_each(|write| write.apply(&mut bytes));
        }
        bytes
    }
}

impl TestDisk {
    /// Of a folder that is there, and empty.
    pub(super) fn new(root: &Path, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            root: root.to_owned(),
            fault: Fault::Never,
            count: 0,
            is_off: false,
            random: Random::new(seed),
            files: Vec::new(),
            inodes: HashMap::new(),
            names: Names::new(),
            kept: Names::new(),
            unsynced: Vec::new(),
        })))
    }

    pub(super) fn fails(&self, fault: Fault) {
        self.0.lock().fault = fault;
    }

    /// Operations until now.
    pub(super) fn count(&self) -> u64 {
        self.0.lock().count
    }

    pub(super) fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    /// The power is gone and comes back: the disk as it is then, in another folder.
    pub(super) fn after_power_loss(&self, left: Left, root: &Path) -> Self {
        let mut state = self.0.lock();
        let State { fault, random, kept, unsynced, files, .. } = &mut *state;
        let mut names = kept.clone();
        for change in unsynced.iter() {
            if left == Left::All || left == Left::Some && random.below(2) == 0 {
                change.apply(&mut names);
            }
        }
        let after = Self::new(root, random.next());
        {
            let mut new = after.0.lock();
            if let Fault::Sometimes { .. } = fault {
                new.fault = *fault;
            }
            for (path, what) in &names {
                // Without its folder nobody finds it.
                let real = root.join(path);
                let is_found = path.parent().into_iter().flat_map(Path::ancestors).all(|above| {
                    above.as_os_str().is_empty() || names.get(above).is_some_and(Option::is_none)
                });
                if !is_found {
                    continue;
                }
                match what {
                    None => fs::create_dir(&real).unwrap(),
                    Some(number) => {
                        let bytes = files[*number].left(left, random);
                        fs::write(&real, &bytes).unwrap();
                        let inode = fs::metadata(&real).unwrap().ino();
                        new.add(inode, bytes);
                    }
                }
                let what = what.map(|_| new.files.len() - 1);
                new.names.insert(path.clone(), what);
            }
            new.kept = new.names.clone();
        }
        after
    }
}

impl State {
    fn add(&mut self, inode: u64, kept: Vec<u8>) {
        self.inodes.insert(inode, self.files.len());
        self.files.push(Bytes { kept, unsynced: Vec::new() });
    }

    /// Counts an operation in; an error where it fails.
    fn begin(&mut self) -> io::Result<()> {
        let number = self.count;
        self.count += 1;
        let errno = match self.fault {
            _ if self.is_off => Some(Errno::IO),
            Fault::Errors { first, count, errno } => {
                (first..first + count).contains(&number).then_some(errno)
            }
            Fault::Off { at } if number >= at => {
                self.is_off = true;
                Some(Errno::IO)
            }
            Fault::Sometimes { one_in } => (self.random.below(one_in) == 0).then_some(Errno::NOSPC),
            Fault::Never | Fault::Off { .. } => None,
        };
        errno.map_or(Ok(()), |errno| Err(errno.into()))
    }

    fn below(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap().to_owned()
    }

    fn file(&mut self, file: &File) -> &mut Bytes {
        let inode = file.metadata().unwrap().ino();
        &mut self.files[self.inodes[&inode]]
    }

    fn changed(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }
}

impl Disk for TestDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        let name = state.below(path);
        RealDisk.make_folder(path)?;
        if !state.names.contains_key(&name) {
            state.changed(Change::Made(name, None));
        }
        Ok(())
    }

    /// A folder that could not be synced may be later: its file system has a journal.
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        let Ok(folder) = path.strip_prefix(&state.root) else { return Ok(()) };
        let folder = folder.to_owned();
        let (synced, unsynced): (Vec<_>, Vec<_>) =
            state.unsynced.drain(..).partition(|change| change.is_in(&folder));
        synced.iter().for_each(|change| change.apply(&mut state.kept));
        state.unsynced = unsynced;
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut state = self.0.lock();
        state.begin()?;
        let file = RealDisk.create(path)?;
        state.add(file.metadata()?.ino(), Vec::new());
        let (name, number) = (state.below(path), state.files.len() - 1);
        state.changed(Change::Made(name, Some(number)));
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let was_off = state.is_off;
        let begun = state.begin();
        if was_off {
            return begun;
        }
        let bytes = if begun.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        RealDisk.write(file, bytes, at)?;
        let write = Write::Bytes(usize::try_from(at).unwrap(), bytes.to_vec());
        state.file(file).unsynced.push(write);
        begun
    }

    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        RealDisk.cut(file, length)?;
        state.file(file).unsynced.push(Write::Length(usize::try_from(length).unwrap()));
        Ok(())
    }

    /// A file that could not be synced is as it was left, and what was not written of it is not written by the next one either.
    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.0.lock();
        let begun = state.begin();
        if state.is_off {
            return begun;
        }
        let mut random = Random::new(state.random.next());
        let left = if begun.is_ok() { Left::All } else { Left::Some };
        let bytes = state.file(file);
        bytes.kept = bytes.left(left, &mut random);
        bytes.unsynced.clear();
        begun
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        RealDisk.rename(from, to)?;
        let (from, to) = (state.below(from), state.below(to));
        let file = state.names[&from].unwrap();
        state.changed(Change::Renamed(from, to, file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin()?;
        RealDisk.remove(path)?;
        let name = state.below(path);
        state.changed(Change::Removed(name));
        Ok(())
    }
}
