//! Kafka's jars, and what makes a Java process start sooner: a formatted data folder and an archive of loaded classes,
//! both made once per machine.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::cache;
use crate::kafka::config::{KAFKA_PASSWORD, KAFKA_USER, KafkaOptions, MECHANISMS, properties};
use crate::kafka::protocol::alive_brokers;
use crate::ports::{BUS_OFFSET, Ports};
use crate::process::{Error, Missing, Process, Program, log_tail, run, wait_until};
use crate::user::succeed;

/// The jars that scripts/setup fetched.
const POM: &str = include_str!("../../kafka.xml");
/// A broker's heap: 48 MB works for the tests' loads, 40 MB runs out (measured).
const OPTIONS: &[&str] = &[
    "-Xms128m",
    "-Xmx128m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
];
const FORMAT_DEADLINE: Duration = Duration::from_secs(60);
const START_DEADLINE: Duration = Duration::from_secs(90);
const LOG_LINES: usize = 12;

/// How to run Kafka here.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    classpath: String,
    /// Which Java and which files: an archive of classes fits no others.
    made_of: String,
}

/// What is copied or read at every start.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// A data folder as `kafka.tools.StorageTool` formats it.
    pub(crate) formatted: PathBuf,
    classes: PathBuf,
}

impl Java {
    pub(crate) fn find() -> Result<Self, Error> {
        let jars = cache::folder()?.join(format!("kafka-{}", broker_version()));
        if !jars.is_dir() {
            return Err(Error::new(format!("no Kafka in {} (run scripts/setup test)", jars.display())));
        }
        let fetched = fs::metadata(&jars).and_then(|metadata| metadata.modified());
        let fetched = fetched.map_err(|error| Error::new(format!("{}: {error}", jars.display())))?;
        let classpath = format!("{}/*", jars.display());
        Ok(Self { made_of: format!("{classpath} {fetched:?} {}", version()?), classpath })
    }

    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        let made_of = [broker_version(), KAFKA_USER, KAFKA_PASSWORD];
        let formatted = cache::once("kafka-formatted", &made_of, |path| self.format(path))?;
        let options = OPTIONS.join(" ");
        let made_of = [self.made_of.as_str(), options.as_str()];
        let classes = cache::once("kafka-classes", &made_of, |path| self.archive(path, &formatted))?;
        Ok(Prepared { formatted: formatted.join("data"), classes: classes.join("kafka.jsa") })
    }

    /// Arguments for a broker.
    pub(crate) fn broker(&self, prepared: &Prepared, properties: &Path) -> Vec<String> {
        self.arguments(&format!("-XX:SharedArchiveFile={}", prepared.classes.display()), properties)
    }

    fn arguments(&self, more: &str, properties: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = OPTIONS.iter().map(|&option| option.to_owned()).collect();
        arguments.extend([more, "-cp", &self.classpath, "kafka.Kafka"].map(str::to_owned));
        arguments.push(properties.display().to_string());
        arguments
    }

    fn format(&self, path: &Path) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", path.display()));
        let file = path.join("properties");
        // Ports are not part of what is formatted.
        let text = properties(&KafkaOptions::default(), &[(9092, 9093)], 0, &path.join("data"));
        fs::write(&file, text).map_err(failed)?;
        let mut command = Command::new("java");
        command.args(OPTIONS).args(["-cp", &self.classpath, "kafka.tools.StorageTool", "format"]);
        command.args(["-t", &new_id()?, "-c"]).arg(&file);
        for mechanism in MECHANISMS {
            command
                .args(["--add-scram", &format!("{mechanism}=[name={KAFKA_USER},password={KAFKA_PASSWORD}]")]);
        }
        let output = run(command, FORMAT_DEADLINE)?;
        let text = String::from_utf8_lossy(&output.stderr);
        output.status.success().then_some(()).ok_or_else(|| Error::new(format!("format: {text}")))
    }

    /// Runs one broker and ends it: Java writes then what it loaded.
    fn archive(&self, path: &Path, formatted: &Path) -> Result<(), Error> {
        eprintln!("rig: making Kafka's class archive, once on this machine (about 10 s)");
        let ports = Ports::free(1)?;
        let data = path.join("data");
        copy_formatted(&formatted.join("data"), &data, 1, &new_id()?)?;
        let file = path.join("properties");
        let text = properties(&KafkaOptions::default(), &[(ports.first, ports.first + BUS_OFFSET)], 0, &data);
        let failed = |error: std::io::Error| Error::new(format!("{}: {error}", path.display()));
        fs::write(&file, text).map_err(failed)?;
        let (log, archive) = (path.join("log"), path.join("kafka.jsa"));
        let mut process = Process::start(&Program {
            name: "kafka".to_owned(),
            path: "java".to_owned(),
            arguments: self.arguments(&format!("-XX:ArchiveClassesAtExit={}", archive.display()), &file),
            log: log.clone(),
            user: None,
            end: Signal::TERM,
            discard: Signal::KILL,
            outlives_us: false,
        })?;
        let tail = || log_tail(&log, LOG_LINES);
        let ready = wait_until("a Kafka broker", START_DEADLINE, tail, || {
            if !process.is_running() {
                return Err(Missing::ForGood("it ended".to_owned()));
            }
            let found = alive_brokers(ports.first)?;
            if found == [1] { Ok(()) } else { Err(Missing::Yet(format!("it counts {found:?} as alive"))) }
        });
        // Writing takes longer than ending alone.
        let ended = process.terminate_within(START_DEADLINE);
        ready.and(ended)?;
        fs::remove_dir_all(&data).map_err(failed)?;
        archive.exists().then_some(()).ok_or_else(|| Error::new(format!("Java made no archive\n{}", tail())))
    }
}

/// A copy of a formatted folder for another node of another cluster.
pub(crate) fn copy_formatted(from: &Path, to: &Path, node_id: usize, cluster_id: &str) -> Result<(), Error> {
    let mut command = Command::new("cp");
    command.arg("-r").arg(from).arg(to);
    succeed(command)?;
    let file = to.join("meta.properties");
    let text = format!("version=1\ncluster.id={cluster_id}\nnode.id={node_id}\ndirectory.id={}\n", new_id()?);
    fs::write(&file, text).map_err(|error| Error::new(format!("{}: {error}", file.display())))
}

/// An id as Kafka makes them: a random UUID of version 4 in the URL-safe base64 alphabet, 22 characters. Not with a
/// hyphen first: as an argument it would look like an option.
pub(crate) fn new_id() -> Result<String, Error> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| Error::new(format!("/dev/urandom: {error}")))?;
    bytes[0] &= 0x7f;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    // 128 bits, then four zeros.
    let digit = |at: u32| {
        let bits = if at == 21 { number << 4 } else { number >> (122 - 6 * at) };
        char::from(ALPHABET[usize::try_from(bits & 0x3f).unwrap_or(0)])
    };
    Ok((0..22).map(digit).collect())
}

fn broker_version() -> &'static str {
    let broker = POM.split("<artifactId>kafka_2.13</artifactId>").nth(1).unwrap_or_default();
    broker.split("<version>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default()
}

/// What the Java in the path says of itself: its `release` file, which costs less than to start it.
fn version() -> Result<String, Error> {
    let missing = || Error::new("no java in PATH (run scripts/setup test)");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let java = std::env::split_paths(&path).find_map(|folder| folder.join("java").canonicalize().ok());
    let java = java.ok_or_else(missing)?;
    let release = java.parent().and_then(Path::parent).map(|home| home.join("release"));
    if let Some(text) = release.and_then(|file| fs::read_to_string(file).ok()) {
        return Ok(format!("{} {text}", java.display()));
    }
    let mut command = Command::new(java);
    command.arg("-version");
    Ok(String::from_utf8_lossy(&run(command, FORMAT_DEADLINE)?.stderr).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_s_version_is_that_of_the_pom() {
        assert!(broker_version().split('.').count() == 3, "{}", broker_version());
    }

    #[test]
    fn ids_are_base64_of_version_4_uuids() {
        let id = new_id().unwrap();
        assert_eq!(id.len(), 22);
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{id}");
        assert!(
            matches!(id.chars().last(), Some('A' | 'Q' | 'g' | 'w')),
            "{id}: two bits are left at the end"
        );
        assert_ne!(id, new_id().unwrap());
    }
}
