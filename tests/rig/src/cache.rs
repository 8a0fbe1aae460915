//! What costs seconds to make and is the same every time: made once, in the user's cache, and copied from there.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use crate::process::Error;

/// `outrigger` in the user's cache folder; `scripts/setup` puts what it downloads there.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    let from =
        |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| Error::new("neither XDG_CACHE_HOME nor HOME is set"))?;
    Ok(cache.join("outrigger"))
}

/// The path that `make` made, now or in an earlier run: it depends on nothing but `made_of`. Of several processes at
/// once one makes it, and the others wait.
pub(crate) fn once(
    name: &str,
    made_of: &[&str],
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let mut hasher = DefaultHasher::new();
    made_of.hash(&mut hasher);
    let folder = folder()?.join("rig");
    let path = |suffix: &str| folder.join(format!("{name}-{:016x}{suffix}", hasher.finish()));
    let (made, unfinished, lock) = (path(""), path(".new"), path(".lock"));
    if made.exists() {
        return Ok(made);
    }
    let failed = |error: std::io::Error| Error::new(format!("{}: {error}", made.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    let lock = File::create(lock).map_err(failed)?;
    lock.lock().map_err(failed)?;
    if made.exists() {
        return Ok(made);
    }
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed)?;
    }
    fs::create_dir(&unfinished).map_err(failed)?;
    make(&unfinished)?;
    fs::rename(&unfinished, &made).map_err(failed)?;
    Ok(made)
}
