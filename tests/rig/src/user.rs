//! Another user to run a server as: PostgreSQL and PgBouncer refuse root.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::getuid;

use crate::process::{Error, run};

const DEADLINE: Duration = Duration::from_secs(20);

/// A user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The user of this name where root runs the tests; None where somebody else does, who then runs the server too.
    pub(crate) fn instead_of_root(name: &str) -> Result<Option<Self>, Error> {
        if !getuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = users.lines().find_map(|line| parse(line, name));
        let missing = || Error::new(format!("there is no user {name} here (run scripts/setup test)"));
        found.map(Some).ok_or_else(missing)
    }

    /// The command runs as this user. Its home is `/`: libpq looks for files in root's, and stops when it may not.
    pub(crate) fn runs(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid).env("HOME", "/").current_dir("/");
    }

    pub(crate) fn uid(self) -> u32 {
        self.uid
    }

    /// Gives it a file or an empty folder.
    pub(crate) fn takes_only(self, path: &Path) -> Result<(), Error> {
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }

    /// Gives it a folder with all that is in it.
    pub(crate) fn takes(self, folder: &Path) -> Result<(), Error> {
        let mut command = Command::new("chown");
        command.args(["-R", &format!("{}:{}", self.uid, self.gid)]).arg(folder);
        succeed(command)
    }
}

/// Runs a short command that must succeed.
pub(crate) fn succeed(command: Command) -> Result<(), Error> {
    let shown = format!("{command:?}");
    let output = run(command, DEADLINE)?;
    let text = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| Error::new(format!("{shown}: {text}")))
}

/// `name:password:uid:gid:…` (passwd(5)).
fn parse(line: &str, name: &str) -> Option<User> {
    let mut fields = line.strip_prefix(name)?.strip_prefix(':')?.split(':').skip(1);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_passwd_gives_its_own_user_only() {
        let line = "postgres:x:101:104:administrator,,,:/var/lib/postgresql:/bin/bash";
        assert_eq!(parse(line, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(parse(line, "post"), None);
        assert_eq!(parse("postgres:x", "postgres"), None);
    }
}
