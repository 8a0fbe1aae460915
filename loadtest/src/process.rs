//! What `/proc` says of a process and of the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Resident pages, shared ones included.
    pub(crate) rss_bytes: u64,
    /// Resident pages, shared ones in proportion.
    pub(crate) pss_bytes: u64,
}

/// User and system time that a process has used, with the children that it waited for left out.
///
/// # Errors
/// The process is gone.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = parse_stat_ticks(&text).with_context(|| format!("{path} has no utime and stime"))?;
    Ok(ticks_to_time(ticks))
}

/// The process that started `pid`.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat_parent(&text)
}

/// User and system time of `pid`, of its children that run, and of those that it waited for.
///
/// # Errors
/// The process is gone.
pub(crate) fn family_cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let own = parse_stat_ticks(&text).with_context(|| format!("{path} has no utime and stime"))?;
    let mut ticks = own + parse_stat_fields(&text, 13).unwrap_or(0);
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_ascii_whitespace() {
        // One that has ended meanwhile is in its parent's count at the next look.
        let text = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        ticks += parse_stat_ticks(&text).unwrap_or(0);
    }
    Ok(ticks_to_time(ticks))
}

/// Resident memory now.
///
/// # Errors
/// The process is gone, or belongs to another user.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse_smaps_rollup(&text).with_context(|| format!("{path} has no Rss and Pss"))
}

/// Time that all CPUs together were not idle, since boot.
///
/// # Errors
/// No `/proc/stat`.
pub(crate) fn machine_busy_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    Ok(ticks_to_time(parse_busy_ticks(&text).context("/proc/stat has no cpu line")?))
}

/// The machine, as the report names it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// CPUs that this process may use.
    pub(crate) cpus: usize,
    /// Model name from `/proc/cpuinfo`.
    pub(crate) cpu_model: String,
    /// Kernel release.
    pub(crate) kernel: String,
    /// One-minute load average before the run.
    pub(crate) load_average: f64,
}

/// Looks at the machine.
pub(crate) fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        cpu_model: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0),
    }
}

fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// utime + stime (fields 14 and 15, counted behind the command's closing parenthesis, which may itself hold any byte).
fn parse_stat_ticks(text: &str) -> Option<u64> {
    parse_stat_fields(text, 11)
}

/// The sum of two fields that stand together: the one at `place` behind the command, and the next.
fn parse_stat_fields(text: &str, place: usize) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(place);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn parse_stat_parent(text: &str) -> Option<u32> {
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn parse_smaps_rollup(text: &str) -> Option<Memory> {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Memory { rss_bytes: kilobytes("Rss:")? * 1024, pss_bytes: kilobytes("Pss:")? * 1024 })
}

/// user + nice + system + irq + softirq + steal of the first line; idle and iowait are not busy, guest is in user.
fn parse_busy_ticks(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    Some([0, 1, 2, 5, 6, 7].iter().filter_map(|place| ticks.get(*place)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_any_command_name() {
        let text = "42 (a b) S) R 1 42 42 0 -1 4194304 9 0 0 0 120 30 7 8 20 0 3 0 1 2 3";
        assert_eq!(parse_stat_ticks(text), Some(150));
        assert_eq!((parse_stat_fields(text, 13), parse_stat_parent(text)), (Some(15), Some(1)));
        assert_eq!(parse_stat_ticks("42 nonsense"), None);
    }

    #[test]
    fn rss_and_pss_are_read_in_bytes() {
        let text =
            "5500-7fff ---p 00000000 00:00 0 [rollup]\nRss:    1200 kB\nPss:     900 kB\nPss_Dirty: 1 kB\n";
        let expected = Memory { rss_bytes: 1200 * 1024, pss_bytes: 900 * 1024 };
        assert_eq!(parse_smaps_rollup(text), Some(expected));
        assert_eq!(parse_smaps_rollup("Rss: 1 kB\n"), None);
    }

    #[test]
    fn idle_and_iowait_are_not_busy() {
        assert_eq!(parse_busy_ticks("cpu  1 2 4 1000 2000 8 16 32 500 500\ncpu0 1\n"), Some(63));
    }

    #[test]
    fn this_process_has_memory_and_a_machine() {
        assert!(memory(std::process::id()).unwrap().rss_bytes > 0);
        assert!(cpu_time(std::process::id()).is_ok() && machine_busy_time().unwrap() > Duration::ZERO);
        assert!(machine().cpus > 0);
    }
}
