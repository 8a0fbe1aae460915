//! One step: the contenders take turns, and the counters around each turn are read.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cli::RunArgs;
use crate::contender::{Contender, OK};
use crate::generator::{self, Plan, Tally};
use crate::process::{self, Memory};
use crate::profiles::Step;
use crate::progress::Progress;

/// One turn of one contender.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Calls and latencies.
    pub(crate) tally: Tally,
    /// CPU time of the server, where its process is known.
    pub(crate) server_cpu: Option<Duration>,
    /// CPU time of the local Redis nodes; `None` where the step uses none.
    pub(crate) store_cpu: Option<Duration>,
    /// CPU time that all of the machine used.
    pub(crate) machine_busy: Duration,
    /// Memory of the server after the turn.
    pub(crate) memory: Option<Memory>,
}

/// All turns of one contender.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The contender's name.
    pub(crate) name: String,
    /// One turn a round.
    pub(crate) turns: Vec<Turn>,
    /// Bytes of one request.
    pub(crate) request_bytes: usize,
}

/// The order of `contenders` in round `round`: each in turn is first.
pub(crate) fn order(contenders: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..contenders).map(move |place| (place + round) % contenders)
}

/// Runs every turn of a step. `store_pids` are the local Redis nodes behind the contenders.
///
/// # Errors
/// A call was answered with another status than 200, or a process is gone.
pub(crate) fn run(
    arguments: &RunArgs,
    step: &Step,
    contenders: &[Contender],
    store_pids: &[u32],
    progress: &mut Progress,
) -> Result<Vec<Measured>> {
    let mut measured: Vec<Measured> = contenders
        .iter()
        .map(|contender| Measured {
            name: contender.name.clone(),
            turns: Vec::with_capacity(step.rounds),
            request_bytes: contender.request.prepare(&contender.endpoint.host()).size_bytes(),
        })
        .collect();
    for round in 0..step.rounds {
        for place in order(contenders.len(), round) {
            let contender = &contenders[place];
            progress.turn(&step.label(), round + 1, step.rounds, &contender.name);
            let turn = turn(arguments, step, contender, store_pids)
                .with_context(|| format!("{}, contender {}", step.label(), contender.name))?;
            progress.done(step.warm_up + step.measured);
            measured[place].turns.push(turn);
        }
    }
    Ok(measured)
}

fn turn(arguments: &RunArgs, step: &Step, contender: &Contender, store_pids: &[u32]) -> Result<Turn> {
    let plan = Plan {
        endpoint: contender.endpoint.clone(),
        request: contender.request.clone(),
        expected_status: OK,
        connections: arguments.connections as usize,
        threads: arguments.threads(step) as usize,
        load: step.load,
        warm_up: step.warm_up,
        measured: step.measured,
    };
    let mut samples = Vec::with_capacity(2);
    let tally = generator::run(&plan, &mut |_edge| {
        samples.push(Sample::take(contender.pid, store_pids)?);
        Ok(())
    })?;
    let [start, end] = samples.as_slice() else {
        anyhow::bail!("the counters were not read twice");
    };
    let between = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
    Ok(Turn {
        tally,
        server_cpu: between(start.server, end.server),
        store_cpu: between(start.store, end.store),
        machine_busy: end.machine.saturating_sub(start.machine),
        memory: contender.pid.map(process::memory).transpose()?,
    })
}

struct Sample {
    server: Option<Duration>,
    store: Option<Duration>,
    machine: Duration,
}

impl Sample {
    fn take(server: Option<u32>, store_pids: &[u32]) -> Result<Self> {
        let stores: Result<Vec<Duration>> = store_pids.iter().map(|pid| process::cpu_time(*pid)).collect();
        Ok(Self {
            server: server.map(process::cpu_time).transpose()?,
            store: Some(stores?.iter().sum()).filter(|_| !store_pids.is_empty()),
            machine: process::machine_busy_time()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn each_contender_is_first_in_turn() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order(3, round).collect()).collect();
        assert_eq!(rounds, [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2]]);
    }
}
