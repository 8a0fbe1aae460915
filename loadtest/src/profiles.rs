//! Which steps a run makes: the default set in about five minutes, the quick one in under one.

use std::time::Duration;

use clap::ValueEnum;

use crate::generator::Load;
use crate::scenarios::{Scenario, Transport, find};

/// A set of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Everything, about five minutes
    Default,
    /// The main figures, under a minute
    Quick,
}

impl Profile {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Quick => "quick",
        }
    }
}

/// One scenario with its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// What.
    pub(crate) scenario: Scenario,
    /// Over what.
    pub(crate) transport: Transport,
    /// Size of a cached value.
    pub(crate) value_bytes: usize,
    /// Spacing of the calls.
    pub(crate) load: Load,
    /// Times that each contender has its turn.
    pub(crate) rounds: usize,
    /// Unmeasured part of a turn.
    pub(crate) warm_up: Duration,
    /// Measured part of a turn.
    pub(crate) measured: Duration,
}

impl Step {
    /// Time that the turns of `contenders` contenders take.
    pub(crate) fn duration(&self, contenders: usize) -> Duration {
        let turns = u32::try_from(self.rounds * contenders).unwrap_or(u32::MAX);
        (self.warm_up + self.measured).saturating_mul(turns)
    }

    /// For the report: what distinguishes this step from others of its scenario.
    pub(crate) fn label(&self) -> String {
        let value = if self.scenario.name.starts_with("cache") {
            format!(" {} B", self.value_bytes)
        } else {
            String::new()
        };
        let load = match self.load {
            Load::Rate(per_second) => format!("{per_second:.0}/s"),
            Load::Saturate | Load::Once(_) => "saturate".to_owned(),
        };
        format!("{}{value}, {}, {load}", self.scenario.name, self.transport.name())
    }
}

/// Which profiles have a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Both,
    Default,
    /// None: only `--scenario` gets it.
    OnRequest,
}

struct Row {
    scenario: &'static str,
    transport: Transport,
    value_bytes: usize,
    open_loop: bool,
    profiles: In,
}

const fn row(scenario: &'static str, transport: Transport, value_bytes: usize, profiles: In) -> Row {
    Row { scenario, transport, value_bytes, open_loop: false, profiles }
}

const fn open_loop(row: Row) -> Row {
    Row { open_loop: true, ..row }
}

const ROWS: [Row; 14] = [
    row("cache-hit-l1", Transport::Tcp, 40, In::Both),
    row("cache-hit-l1", Transport::Tcp, 1024, In::Default),
    row("cache-hit-l1", Transport::Unix, 40, In::Default),
    open_loop(row("cache-hit-l1", Transport::Tcp, 40, In::Both)),
    row("ratelimit-look", Transport::Tcp, 0, In::Both),
    row("ratelimit-take", Transport::Tcp, 0, In::Default),
    row("cache-hit-redis", Transport::Tcp, 40, In::Both),
    row("cache-hit-redis", Transport::Tcp, 1024, In::Default),
    row("cache-hit-redis", Transport::Unix, 40, In::Default),
    open_loop(row("cache-hit-redis", Transport::Tcp, 40, In::Default)),
    row("ratelimit-redis", Transport::Tcp, 0, In::OnRequest),
    row("idle-memory", Transport::Tcp, 0, In::Both),
    row("start-to-ready", Transport::Tcp, 0, In::Both),
    row("idle-connections", Transport::Tcp, 0, In::Both),
];

/// The steps of a profile, and those of the scenarios in `named` that it lacks; `rate` is for the open-loop ones.
pub(crate) fn steps(profile: Profile, named: &[String], rate: f64) -> Vec<Step> {
    // Many short turns: of two equal servers beside compilers, 20 turns of 0.5 s gave ratios of 0.98 to 1.01, and
    // 6 of 1.7 s, as long in all, 0.92 to 1.11.
    let (rounds, warm_up_ms, measured_ms) = match profile {
        Profile::Default => (18_usize, 100, 500),
        Profile::Quick => (8, 100, 400),
    };
    let in_profile =
        |row: &Row| row.profiles == In::Both || (row.profiles == In::Default && profile == Profile::Default);
    let is_lacking = |name: &str| !ROWS.iter().any(|row| row.scenario == name && in_profile(row));
    ROWS.iter()
        .filter(|row| {
            in_profile(row) || (is_lacking(row.scenario) && named.iter().any(|name| name == row.scenario))
        })
        .filter_map(|row| {
            Some(Step {
                scenario: find(row.scenario)?,
                transport: row.transport,
                value_bytes: row.value_bytes,
                load: if row.open_loop { Load::Rate(rate) } else { Load::Saturate },
                rounds: if row.open_loop { rounds.div_ceil(2) } else { rounds },
                warm_up: Duration::from_millis(warm_up_ms),
                measured: Duration::from_millis(measured_ms),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::{Backend, Kind, SCENARIOS};

    fn load_time(profile: Profile) -> Duration {
        let contenders = |step: &Step| match step.scenario.kind {
            Kind::Calls(call) if call.backend == Backend::Redis => 3,
            Kind::Calls(_) => 2,
            _ => 0,
        };
        steps(profile, &[], 1000.0).iter().map(|step| step.duration(contenders(step))).sum()
    }

    #[test]
    fn the_profiles_take_the_time_they_promise() {
        assert!(load_time(Profile::Quick) < Duration::from_secs(40), "{:?}", load_time(Profile::Quick));
        assert!(load_time(Profile::Default) < Duration::from_secs(290), "{:?}", load_time(Profile::Default));
    }

    #[test]
    fn every_scenario_can_be_asked_for_in_every_profile() {
        for scenario in SCENARIOS {
            for profile in [Profile::Default, Profile::Quick] {
                let named = steps(profile, &[scenario.name.to_owned()], 1.0);
                assert!(named.iter().any(|step| step.scenario == scenario), "{}", scenario.name);
            }
        }
    }

    #[test]
    fn labels_tell_the_steps_of_a_profile_apart() {
        let mut labels: Vec<String> = steps(Profile::Default, &[], 10.0).iter().map(Step::label).collect();
        let count = labels.len();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
