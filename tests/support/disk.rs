//! A file system of a few megabytes that a test can fill.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs; unmounted when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one of so many mebibytes. Needs root and the right to mount: a test that cannot fill a disk fails.
    pub fn of_mib(mib: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "outrigger-test"])
            .arg(directory.path())
            .output()
            .expect("the `mount` command (util-linux)");
        assert!(
            mounted.status.success(),
            "this test fills a file system of its own, and `mount` refuses to make one: {}run it as root, in a \
             container with CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined)",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file until there is no room left for one more page, as another program may.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("somebody-elses-file");
        let mut file = File::options().create(true).append(true).open(&path).unwrap();
        for piece in [1 << 20, 1 << 16, 1 << 12] {
            let bytes = vec![7_u8; piece];
            loop {
                match file.write(&bytes) {
                    Ok(written) if written == bytes.len() => {}
                    Ok(_) => break,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the process under test may be ending still.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.path().display());
        }
    }
}
