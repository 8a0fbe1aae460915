//! What all processes together know of the primaries' histories: kept in Redis, so that one that starts learns of a
//! failover before its time.

use std::time::Duration;

use redis::Value;

use super::history::MOST;
use crate::pools::redis::{RedisFailure, RedisPool, Script, Slot};

/// The record's key, one for a cluster.
const KEY: &[u8] = b"outrigger:rate-limit-histories";
/// How long the record lives unwritten: longer than any bucket should take to fill. With it a cluster that was
/// restarted while no sidecar ran is not taken for a new one.
const LIVES_MS: u64 = 366 * 24 * 3600 * 1000;

/// The record, and the script on it.
pub(super) struct Record {
    script: Script,
    key: Box<[u8]>,
}

/// A history as a process knows it, or as the record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: Box<[u8]>,
    /// How long ago it took another's place, in microseconds.
    pub(super) age_us: Option<u64>,
}

impl Record {
    pub(super) fn new() -> Self {
        Self { script: Script::new(include_str!("record.lua")), key: Box::from(KEY) }
    }

    /// Adds what this process knows and returns what all know of these ids. `None`: there is no record yet, and
    /// it is not to begin now, since these are not (`whole`) the ids of every primary.
    pub(super) async fn share(
        &self,
        pool: &RedisPool,
        known: &[Known],
        whole: bool,
        budget: Duration,
    ) -> Result<Option<Vec<Known>>, RedisFailure> {
        let mut numbers = vec![u8::from(whole).to_string(), MOST.to_string(), LIVES_MS.to_string()];
        numbers.extend(known.iter().map(|known| known.age_us.map_or("-1".to_owned(), |age| age.to_string())));
        let (head, ages) = numbers.split_at(3);
        let mut arguments: Vec<&[u8]> = head.iter().map(String::as_bytes).collect();
        for (known, age) in known.iter().zip(ages) {
            arguments.extend([&*known.id, age.as_bytes()]);
        }
        let answer = pool.script(Slot::of(&self.key), &self.script, &[&self.key], &arguments, budget).await?;
        let Value::Array(ages) = answer else {
            return Err(RedisFailure::Refused("the record's answer is not of its form".to_owned()));
        };
        let age = |value: &Value| match value {
            Value::Int(age) => u64::try_from(*age).ok(),
            _ => Some(0),
        };
        let shared = known.iter().zip(&ages);
        let shared = shared.map(|(known, value)| Known { id: known.id.clone(), age_us: age(value) });
        Ok((ages.len() == known.len()).then(|| shared.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::source_on;
    use super::*;
    use crate::tasks::Tasks;
    use crate::telemetry::BackendState;

    const BUDGET: Duration = Duration::from_secs(5);

    fn known(id: &str, age_us: Option<u64>) -> Known {
        Known { id: Box::from(id.as_bytes()), age_us }
    }

    fn is_young(known: &Known) -> bool {
        known.age_us.is_some_and(|age| age < 60_000_000)
    }

    #[tokio::test]
    async fn it_begins_with_a_whole_cluster_and_then_knows_what_came_later() {
        let tasks = Tasks::default();
        let source = source_on(&rig::shared_redis_nodes(), BackendState::Up, &tasks, 1000).await;
        let key = format!("outrigger:rate-limit-histories-test-{}", uuid::Uuid::new_v4());
        let record = Record { key: key.as_bytes().into(), ..Record::new() };
        let share =
            async |known: &[Known], whole| record.share(&source.pool, known, whole, BUDGET).await.unwrap();
        let (a, b) = (known("a", None), known("b", None));
        assert_eq!(share(std::slice::from_ref(&a), false).await, None, "a part of a cluster is no beginning");
        let begun = share(&[a.clone(), known("lost", Some(5_000_000))], true).await.unwrap();
        assert_eq!(begun[0], a);
        assert!(begun[1].age_us.is_some_and(|age| (5_000_000..60_000_000).contains(&age)), "{begun:?}");
        let later = share(&[a.clone(), b.clone()], false).await.unwrap();
        assert_eq!(later[0], a);
        assert!(is_young(&later[1]), "{later:?}");
        // A process that knows more corrects it, also for the others.
        let corrected = share(&[known("a", Some(7_000_000))], true).await.unwrap();
        assert!(
            corrected[0].age_us.is_some_and(|age| (7_000_000..60_000_000).contains(&age)),
            "{corrected:?}"
        );
        assert!(is_young(&share(std::slice::from_ref(&a), true).await.unwrap()[0]));
        let mut left = redis::cmd("PTTL");
        left.arg(&key);
        let left = source.pool.command(Slot::of(key.as_bytes()), &left, BUDGET).await.unwrap();
        assert!(matches!(left, Value::Int(ms) if ms > 365 * 24 * 3_600_000), "{left:?}");

        for chunk in 0..5 {
            let ids: Vec<_> = (0..256).map(|at| known(&format!("id-{chunk}-{at}"), None)).collect();
            assert!(share(&ids, false).await.unwrap().iter().all(is_young));
        }
        share(&[known("c", None)], false).await.unwrap();
        let mut count = redis::cmd("HLEN");
        count.arg(&key);
        let count = source.pool.command(Slot::of(key.as_bytes()), &count, BUDGET).await.unwrap();
        assert_eq!(count, Value::Int(i64::try_from(MOST).unwrap()));
        let mut remove = redis::cmd("DEL");
        remove.arg(&key);
        source.pool.command(Slot::of(key.as_bytes()), &remove, BUDGET).await.unwrap();
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }
}
