//! Secrets: named in the configuration, read where they are used, never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where a secret is: `${file:PATH}` or `${env:NAME}`. Read again at each use, so that a rotated secret is taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretSource {
    /// A file's content, without the line ending at its end.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

/// A secret's text, which prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret cannot be read; holds no part of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read the secret file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The variable is not set, or not UTF-8.
    #[error("the environment variable {0} is not set")]
    Env(String),
    /// There is nothing in it.
    #[error("the secret {0} is empty")]
    Empty(String),
}

impl SecretSource {
    /// Reads the secret as it is now.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let text = match self {
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|source| SecretError::File { path: path.clone(), source })?,
            Self::Env(name) => std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?,
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() { Err(SecretError::Empty(self.to_string())) } else { Ok(Secret(text.to_owned())) }
    }

    /// Takes a relative file as relative to `base`.
    pub fn resolve(&mut self, base: &Path) {
        if let Self::File(path) = self {
            *path = base.join(&*path);
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "${{file:{}}}", path.display()),
            Self::Env(name) => write!(f, "${{env:{name}}}"),
        }
    }
}

impl From<SecretSource> for String {
    fn from(source: SecretSource) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for SecretSource {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "a secret is named, not written: `${file:PATH}` or `${env:NAME}`";
        let inner = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).ok_or(EXPECTED)?;
        match inner.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            _ => Err(EXPECTED),
        }
    }
}

impl JsonSchema for SecretSource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretSource".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^\$\{(file|env):[^}]+\}$",
            "description": "A secret by reference: `${file:PATH}` or `${env:NAME}`.",
        })
    }
}

impl Secret {
    /// The text, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_reference_and_never_a_literal() {
        for (text, valid) in [
            ("${file:password}", true),
            ("${env:REDIS_PASSWORD}", true),
            ("hunter2", false),
            ("${file:}", false),
            ("${vault:x}", false),
            ("${file:x", false),
        ] {
            assert_eq!(SecretSource::try_from(text.to_owned()).is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn a_secret_file_loses_its_line_ending_and_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "two words \n").unwrap();
        let secret = SecretSource::File(path.clone()).read().unwrap();
        assert_eq!(secret.expose(), "two words ");
        assert_eq!(format!("{secret:?}"), "[redacted]");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(SecretSource::File(path).read(), Err(SecretError::Empty(_))));
    }
}
