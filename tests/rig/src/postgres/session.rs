//! A session that stays open.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use crate::process::Error;

/// A session that ran some statements. What it left open is rolled back when this is dropped.
#[derive(Debug)]
pub struct HeldSession(Child);

impl HeldSession {
    /// Returns once the statements were run.
    pub(crate) fn begin(mut psql: Command, statements: &str) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::new(format!("psql: {error}"));
        let spawned = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut session = Self(spawned);
        let input = session.0.stdin.as_mut().ok_or_else(|| Error::new("psql has no input"))?;
        writeln!(input, "{statements}\n\\echo held").map_err(failed)?;
        let output = session.0.stdout.take().ok_or_else(|| Error::new("psql has no output"))?;
        for line in BufReader::new(output).lines() {
            if line.map_err(failed)? == "held" {
                return Ok(session);
            }
        }
        Err(Error::new("psql ended before its statements did"))
    }
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("rig: psql: {error}");
        }
    }
}
