//! A policy directory: what is in it, read so that a reader never sees half of a change.

use std::path::{Path, PathBuf};

use super::check::{Checked, Vocabulary, check_documents};
use super::{Action, Kind, Policies};
use crate::config::{Report, read_text};

/// The most documents in a directory.
const MAX_FILES: usize = 256;
/// How often a directory that changes while it is read is read again.
const MAX_READS: usize = 5;

/// Reads a policy directory.
pub struct PolicyLoader {
    directory: PathBuf,
    vocabulary: Vocabulary,
}

/// What a directory held at one time: a text or a problem for each file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    files: Vec<(String, Result<String, Report>)>,
    problems: Report,
}

impl PolicyLoader {
    /// A loader of `directory` for these kinds of document, and for access rules about these actions.
    #[must_use]
    pub fn new(directory: PathBuf, kinds: Vec<&'static Kind>, actions: Vec<Action>) -> Self {
        Self { directory, vocabulary: Vocabulary { kinds, actions, ..Vocabulary::default() } }
    }

    /// Says whether there is a data directory, which some of what policies ask for needs.
    #[must_use]
    pub fn with_data_dir(mut self, is_there: bool) -> Self {
        self.vocabulary.data_dir = Some(is_there);
        self
    }

    /// Has access rules name these issuers only.
    #[must_use]
    pub fn with_issuers(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.vocabulary.issuers = Some(names.into_iter().collect());
        self
    }

    /// Leaves documents of these kinds alone: their primitives exist and are not configured.
    #[must_use]
    pub fn ignoring(mut self, kinds: impl IntoIterator<Item = &'static str>) -> Self {
        let read = &self.vocabulary.kinds;
        let others = kinds.into_iter().filter(|name| read.iter().all(|kind| kind.name != *name));
        self.vocabulary.ignored = others.collect();
        self
    }

    /// The policies in the directory now, or everything that is wrong with them. Without an `access` document
    /// everything is denied.
    pub fn load(&self, generation: u64) -> Result<Policies, Report> {
        self.load_snapshot(&self.read(), generation)
    }

    /// Like [`PolicyLoader::load`]; says too which kinds are there.
    pub fn check(&self, generation: u64) -> Result<Checked, Report> {
        self.check_snapshot(&self.read(), generation)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn load_snapshot(&self, snapshot: &Snapshot, generation: u64) -> Result<Policies, Report> {
        let checked = self.check_snapshot(snapshot, generation)?;
        if !checked.has_access() {
            let directory = self.directory.display();
            tracing::warn!(%directory, "no policy document of kind `access`: every call is denied");
        }
        Ok(checked.policies)
    }

    fn check_snapshot(&self, snapshot: &Snapshot, generation: u64) -> Result<Checked, Report> {
        let mut report = snapshot.problems.clone();
        let mut files = Vec::new();
        for (name, read) in &snapshot.files {
            match read {
                Ok(text) => files.push((name.clone(), text.clone())),
                Err(problem) => report.append(problem.clone()),
            }
        }
        match check_documents(&self.vocabulary, generation, &files) {
            Ok(checked) => report.into_result(checked),
            Err(problems) => {
                report.append(problems);
                Err(report)
            }
        }
    }

    /// What the directory holds now. A file that goes away while it is read, and Kubernetes' swap of a mounted
    /// ConfigMap (the link `..data` is replaced), let it be read again, so that one generation's files stay together.
    pub(super) fn read(&self) -> Snapshot {
        let link = || std::fs::read_link(self.directory.join("..data")).ok();
        let mut snapshot = Snapshot::default();
        for _ in 0..MAX_READS {
            let before = link();
            snapshot = read_once(&self.directory);
            if link() == before && snapshot.files.iter().all(|(_, read)| read.is_ok()) {
                break;
            }
        }
        snapshot
    }
}

fn read_once(directory: &Path) -> Snapshot {
    let problem = |message: String, expected: &str| Snapshot {
        files: Vec::new(),
        problems: Report::of_file(directory.display().to_string(), message, expected),
    };
    let names: std::io::Result<Vec<PathBuf>> = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut paths = match names {
        Ok(paths) => paths,
        Err(error) => return problem(format!("cannot be read: {error}"), "a directory of policy documents"),
    };
    paths.sort();
    let mut snapshot = Snapshot::default();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name.starts_with('#') || name.ends_with('~') {
            continue;
        }
        if name.ends_with(".yml") {
            let expected = "the ending `.yaml`";
            let report =
                Report::of_file(path.display().to_string(), "this file is not read as it is named", expected);
            snapshot.problems.append(report);
        }
        if !name.ends_with(".yaml") {
            continue;
        }
        if snapshot.files.len() == MAX_FILES {
            return problem("too many documents".to_owned(), "at most 256 files");
        }
        snapshot.files.push((path.display().to_string(), read_text(&path)));
    }
    snapshot
}
