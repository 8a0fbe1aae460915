//! Against a model, on a disk that fails and loses its power wherever it can.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::io::Errno;
use tempfile::TempDir;

use super::disk::{Fault, Left, TestDisk};
use super::random::{Random, seed, size};
use super::*;

const BOUNDS: Bounds = Bounds { max_bytes: 6000, segment_bytes: 900 };

/// What a caller was told of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Kept,
    Refused,
    /// That nobody knows, or nothing.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many callers at once.
    Append(u64),
    /// All that can be read now is counted, or put aside.
    Drain,
    /// The process ends, and another one begins.
    Restart,
    PowerLoss,
}

/// A process.
struct Life {
    spool: Spool,
    active: Active,
    read_to: Option<Place>,
    /// What it is done with.
    done: BTreeSet<u64>,
}

/// What was asked of a spool, and what must be there.
struct Model {
    _folders: Vec<TempDir>,
    root: PathBuf,
    disk: TestDisk,
    life: Option<Life>,
    random: Random,
    entries: Vec<Told>,
    /// Of what was told to be kept.
    sequences: BTreeMap<u64, u64>,
    counted: BTreeSet<u64>,
    aside: BTreeSet<u64>,
    /// Segments that were kept for their damage.
    damaged: BTreeSet<String>,
    /// Whether it all goes with the next power loss.
    left: Left,
}

/// In memory where that can be: no test here needs a real disk's time.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn payload(number: u64) -> Vec<u8> {
    let long = usize::try_from(number * 37 % 211).unwrap();
    format!("{number} {}", "x".repeat(long)).into_bytes()
}

fn number_of(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap();
    let number = text.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(payload, self::payload(number), "an entry that nobody appended");
    number
}

fn is_put_aside(number: u64) -> bool {
    number % 4 == 1
}

fn is_over(error: &AppendError) -> bool {
    matches!(error, AppendError::Unknown(_) | AppendError::Gone)
}

impl Model {
    fn new(seed: u64, left: Left) -> Self {
        let folder = folder();
        let root = folder.path().to_owned();
        Self {
            disk: TestDisk::new(&root, seed),
            root,
            _folders: vec![folder],
            life: None,
            random: Random::new(seed),
            entries: Vec::new(),
            sequences: BTreeMap::new(),
            counted: BTreeSet::new(),
            aside: BTreeSet::new(),
            damaged: BTreeSet::new(),
            left,
        }
    }

    fn directory(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Begins a process, unless its disk does not let it.
    fn start(&mut self) -> bool {
        assert!(self.life.is_none());
        let begun = Cell::new(None);
        let disk = Box::new(self.disk.clone());
        let opened = Spool::open_on(disk, &self.directory(), BOUNDS, |active| {
            begun.set(Some(active));
            Ok(Writer::default())
        });
        match opened {
            Ok(spool) => {
                let active = begun.into_inner().unwrap();
                self.life = Some(Life { spool, active, read_to: None, done: BTreeSet::new() });
                self.holds();
                true
            }
            Err(OpenError::Io(_)) => false,
            Err(OpenError::InUse) => panic!("the one before has it still"),
        }
    }

    /// What is there is what must be there.
    fn holds(&self) {
        let life = self.life.as_ref().unwrap();
        let mut seen = BTreeSet::new();
        let mut last = 0;
        life.spool
            .visit(|entry| {
                let number = number_of(&entry.payload);
                assert!(seen.insert(number), "{number} is there twice");
                assert!(entry.sequence > last, "{} after {last}", entry.sequence);
                last = entry.sequence;
                let told = self.entries[usize::try_from(number).unwrap()];
                assert_ne!(told, Told::Refused, "{number} was refused, and is there");
                let sequence = self.sequences.get(&number);
                assert!(sequence.is_none_or(|sequence| *sequence == entry.sequence), "{number}");
            })
            .unwrap();
        let aside = self.files_aside();
        for (number, told) in (0..).zip(&self.entries) {
            let is_there = seen.contains(&number) || self.counted.contains(&number);
            let is_kept = is_there || aside.contains(&number);
            assert!(is_kept || *told != Told::Kept, "{number} was kept, and is not there");
            assert!(is_kept || !self.aside.contains(&number), "{number} was put aside, and is not there");
        }
        for name in &self.damaged {
            let kept = self.directory().join(format!("refused/damaged.{name}"));
            assert!(kept.exists(), "{name} is not kept");
        }
        let kept: u64 = life.spool.aside().unwrap().iter().map(|one| one.bytes).sum();
        assert!(life.spool.bytes() >= kept);
    }

    /// What is put aside, each whole.
    fn files_aside(&self) -> BTreeSet<u64> {
        let life = self.life.as_ref().unwrap();
        let all = life.spool.aside().unwrap();
        let names = all.into_iter().map(|one| one.name).filter(|name| !name.starts_with("damaged."));
        let number = |name: String| {
            let number = number_of(&fs::read(self.directory().join("refused").join(&name)).unwrap());
            assert_eq!(name, number.to_string());
            number
        };
        names.map(number).collect()
    }

    fn append(&mut self, count: u64) {
        let life = self.life.as_mut().unwrap();
        let first = self.entries.len() as u64;
        let (mut orders, mut answers) = (Vec::new(), Vec::new());
        for number in first..first + count {
            let (answer, answered) = oneshot::channel();
            orders.push(Order::Append { payload: payload(number), answer });
            answers.push(answered);
        }
        life.active.work(orders.into_iter());
        for (number, mut answered) in (first..).zip(answers) {
            let answer = answered.try_recv().unwrap();
            self.entries.push(match answer {
                Ok(sequence) => {
                    assert!(self.sequences.values().all(|used| *used != sequence), "{sequence} again");
                    self.sequences.insert(number, sequence);
                    Told::Kept
                }
                // Nobody hears it.
                Err(_) if self.disk.is_off() => Told::Unknown,
                Err(error) if is_over(&error) => Told::Unknown,
                Err(_) => Told::Refused,
            });
        }
    }

    /// As who counts them does it, until nothing more comes, or something fails.
    fn drain(&mut self, is_last: bool) {
        let life = self.life.as_mut().unwrap();
        loop {
            let Some(read) = life.spool.read(life.read_to).unwrap() else { return };
            for entry in &read.entries {
                let number = number_of(&entry.payload);
                let told = self.entries[usize::try_from(number).unwrap()];
                assert_ne!(told, Told::Refused, "{number} was refused, and is read");
                if is_put_aside(number) {
                    if life.spool.put_aside(&number.to_string(), &entry.payload).is_err() {
                        return;
                    }
                    self.aside.insert(number);
                }
            }
            if !read.entries.is_empty() {
                for entry in &read.entries {
                    let number = number_of(&entry.payload);
                    assert!(life.done.insert(number), "{number} is read twice");
                    if !is_put_aside(number) {
                        self.counted.insert(number);
                    }
                }
                life.read_to = Some(read.to);
                continue;
            }
            let (answer, mut answered) = oneshot::channel();
            if read.is_all || is_last {
                life.active.work([Order::Remove { read_to: read.to, answer }].into_iter());
            } else {
                return;
            }
            life.read_to = Some(read.to);
            if !matches!(answered.try_recv().unwrap(), Ok(true)) {
                return;
            }
            let names = life.spool.aside().unwrap().into_iter().map(|one| one.name);
            self.damaged.extend(names.filter_map(|name| Some(name.strip_prefix("damaged.")?.to_owned())));
        }
    }

    /// Whatever failed before, nothing is stuck once the disk works.
    fn is_done_with(&mut self) {
        self.must_run();
        self.drain(true);
        let life = self.life.as_ref().unwrap();
        assert!(life.spool.read(life.read_to).unwrap().is_none(), "something is left");
        for file in segments(&self.directory()) {
            // Of a disk that did not take its removal either.
            assert_eq!(fs::metadata(&file).unwrap().len(), 0, "{} is left", file.display());
        }
    }

    fn power_loss(&mut self) {
        self.life = None;
        let folder = folder();
        self.root = folder.path().to_owned();
        self.disk = self.disk.after_power_loss(self.left, &self.root);
        self._folders.push(folder);
    }

    /// A process that runs, whatever it takes.
    fn must_run(&mut self) {
        while self.life.is_none() {
            if self.disk.is_off() {
                self.power_loss();
            }
            self.start();
        }
    }

    fn step(&mut self, step: Step) {
        self.must_run();
        match step {
            Step::Append(count) => self.append(count),
            Step::Drain => {
                let is_last = self.random.below(2) == 0;
                self.drain(is_last);
            }
            Step::Restart => self.life = None,
            Step::PowerLoss => self.power_loss(),
        }
        if self.disk.is_off() {
            self.power_loss();
        }
    }

    /// Takes the steps, and looks at what is there at the end; how many operations that were.
    fn run(mut self, steps: &[Step], fault: Fault) -> u64 {
        self.disk.fails(fault);
        for step in steps {
            self.step(*step);
        }
        let count = self.disk.count();
        self.disk.fails(Fault::Never);
        self.is_done_with();
        self.power_loss();
        self.is_done_with();
        self.life = None;
        self.must_run();
        count
    }
}

fn steps(random: &mut Random, count: u64) -> Vec<Step> {
    let step = |_| match random.below(10) {
        0..5 => Step::Append(1 + random.below(5)),
        5..8 => Step::Drain,
        8 => Step::Restart,
        _ => Step::PowerLoss,
    };
    (0..count).map(step).collect()
}

/// Says which one it was, where a test fails.
struct Named<'n>(&'n str, u64, Fault, Left);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(what, number, fault, left) = self;
            println!("{what} {number} with {fault:?}, of what was not synced {left:?} left");
        }
    }
}

/// Each operation of a process fails once, and the power fails at each.
#[test]
fn what_was_answered_is_there_wherever_the_disk_fails_or_its_power_does() {
    let seed = seed();
    let schedules = size(6, 60);
    println!("seed {seed}, {schedules} schedules");
    let mut random = Random::new(seed);
    let mut runs = 0_u64;
    for number in 0..schedules {
        // A power loss begins another disk: without one an operation's number is the same in each run.
        let mut steps = steps(&mut random, 12);
        steps.retain(|step| !matches!(step, Step::PowerLoss));
        let own = random.next();
        let operations = Model::new(own, Left::Nothing).run(&steps, Fault::Never);
        for at in 0..operations {
            let errors = |errno, count| Fault::Errors { first: at, count, errno };
            for (fault, left) in [
                (errors(Errno::NOSPC, 1), Left::Nothing),
                (errors(Errno::NOSPC, 1), Left::Some),
                (errors(Errno::IO, 1), Left::All),
                (errors(Errno::IO, 2), Left::Some),
                (errors(Errno::NOSPC, 3), Left::All),
                (Fault::Off { at }, Left::Nothing),
                (Fault::Off { at }, Left::All),
                (Fault::Off { at }, Left::Some),
            ] {
                let _named = Named("schedule", number, fault, left);
                Model::new(own, left).run(&steps, fault);
                runs += 1;
            }
        }
    }
    println!("{runs} runs");
}

#[test]
fn what_was_answered_is_there_after_many_power_losses_on_a_disk_that_fails_now_and_then() {
    let seed = seed();
    let schedules = size(300, 10_000);
    println!("seed {seed}, {schedules} schedules");
    let mut random = Random::new(seed);
    for number in 0..schedules {
        let steps = steps(&mut random, 40);
        let left = [Left::Nothing, Left::All, Left::Some][usize::try_from(random.below(3)).unwrap()];
        let fault = [Fault::Never, Fault::Sometimes { one_in: 3 + random.below(20) }]
            [usize::try_from(random.below(2)).unwrap()];
        let _named = Named("schedule", number, fault, left);
        Model::new(random.next(), left).run(&steps, fault);
    }
}

#[test]
fn a_folder_and_those_above_it_are_there_after_a_power_loss() {
    let folder = folder();
    let disk = TestDisk::new(folder.path(), 1);
    // The one above it may be another one's work.
    disk.make_folder(&folder.path().join("data")).unwrap();
    for below in ["data/spool", "more/of/it/spool"] {
        let (directory, on) = (folder.path().join(below), Box::new(disk.clone()));
        drop(Spool::open_on(on, &directory, BOUNDS, |_| Ok(Writer::default())).unwrap());
        let after = self::folder();
        disk.after_power_loss(Left::Nothing, after.path());
        assert!(after.path().join(below).is_dir());
    }
}

/// On a disk whose folders cannot be synced each call would leave one.
#[test]
fn a_segment_whose_name_is_not_on_the_disk_leaves_no_file() {
    let mut model = Model::new(1, Left::Nothing);
    assert!(model.start());
    // It is made, and its folder is not synced.
    let first = model.disk.count() + 1;
    model.disk.fails(Fault::Errors { first, count: 1, errno: Errno::IO });
    model.append(1);
    assert_eq!(model.entries, [Told::Refused]);
    assert_eq!(segments(&model.directory()), [""; 0].map(PathBuf::from));
    model.append(1);
    assert_eq!(model.entries[1], Told::Kept);
}

#[test]
fn a_damaged_segment_whose_new_name_could_not_be_synced_is_done_with_the_next_time() {
    let mut model = Model::new(1, Left::Nothing);
    assert!(model.start());
    model.append(3);
    let file = segments(&model.directory()).remove(0);
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&[0; 8], 0).unwrap();
    let life = model.life.as_mut().unwrap();
    let read = life.spool.read(None).unwrap().unwrap();
    assert_eq!(read.entries.len(), 2);
    let mut remove = || {
        let (answer, mut answered) = oneshot::channel();
        life.active.work([Order::Remove { read_to: read.to, answer }].into_iter());
        answered.try_recv().unwrap()
    };
    // Its folder is made and synced, it is renamed, and the folder is not synced.
    let first = model.disk.count() + 3;
    model.disk.fails(Fault::Errors { first, count: 1, errno: Errno::IO });
    assert!(remove().is_err());
    assert!(remove().unwrap());
    assert!(life.spool.read(None).unwrap().is_none());
    assert_eq!(life.spool.aside().unwrap().len(), 1);
}
