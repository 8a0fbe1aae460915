//! Topics made and checked, for `outrigger migrate` and `outrigger check`.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;

use super::classify::{failure, verdict};
use super::settings::{Kafka, Log};
use super::{KafkaFailure, Verdict};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicWanted {
    /// Its name in Kafka.
    pub name: String,
    /// Its partitions: lanes, or shards.
    pub partitions: u16,
    /// Whether Kafka keeps the last record of a key only.
    pub is_compacted: bool,
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReport {
    /// Its name in Kafka.
    pub name: String,
    /// Whether it was made just now.
    pub was_made: bool,
    /// The largest record batch that it takes (`max.message.bytes`), in bytes: a larger event is refused at publish.
    pub max_message_bytes: Option<u64>,
    /// What an operator should change.
    pub mismatches: Vec<TopicMismatch>,
}

/// What differs from what is wanted, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicMismatch {
    /// Lane n is partition n.
    #[error(
        "it has {has} partitions instead of {wanted}: a lane is a partition, so their number cannot change; delete the \
         topic, or name another prefix"
    )]
    Partitions {
        /// As it is.
        has: usize,
        /// As it should be.
        wanted: u16,
    },
    /// Fewer copies.
    #[error("it has {has} copies instead of {wanted}: reassign its partitions")]
    Copies {
        /// As it is.
        has: usize,
        /// As it should be.
        wanted: u16,
    },
    /// A setting.
    #[error("{name} is {has} instead of {wanted}: alter it")]
    Setting {
        /// Its name.
        name: &'static str,
        /// As it is.
        has: String,
        /// As it should be.
        wanted: String,
    },
    /// It could not be made.
    #[error("it could not be made: {0}")]
    NotMade(String),
}

/// Makes the topics that are missing, changes none, and says of each what is not as it should be.
pub async fn ensure_topics(kafka: &Kafka, wanted: &[TopicWanted]) -> Result<Vec<TopicReport>, KafkaFailure> {
    let settings = kafka.settings()?;
    let client = AdminClient::from_config_and_context(&settings, Log::default())
        .map_err(|error| failure("making a client", &error))?;
    let (client, before) = metadata(client).await?;
    let brokers = u16::try_from(before.brokers().len()).unwrap_or(u16::MAX).max(1);
    let copies = kafka.config.replication.min(brokers);
    let missing: Vec<&TopicWanted> =
        wanted.iter().filter(|topic| find(&before, &topic.name).is_none()).collect();
    let mut not_made = make(&client, &missing, copies).await?;
    let (client, after) = metadata(client).await?;
    let configs = describe(&client, wanted).await?;
    let report = |topic: &TopicWanted| {
        let was_made = missing.contains(&topic) && !not_made.contains_key(&topic.name);
        let config = configs.get(&topic.name);
        let mut mismatches: Vec<_> =
            not_made.remove(&topic.name).map(TopicMismatch::NotMade).into_iter().collect();
        if !was_made && mismatches.is_empty() {
            mismatches = compare(topic, copies, find(&after, &topic.name), config);
        }
        let bytes = config.and_then(|config| config.get("max.message.bytes")?.parse().ok());
        TopicReport { name: topic.name.clone(), was_made, max_message_bytes: bytes, mismatches }
    };
    Ok(wanted.iter().map(report).collect())
}

/// The largest record batch that each of these topics takes (`max.message.bytes`), in bytes; what is not told is left out.
pub async fn largest_batches(
    kafka: &Kafka,
    topics: &[TopicWanted],
) -> Result<HashMap<String, u64>, KafkaFailure> {
    let client = AdminClient::from_config_and_context(&kafka.settings()?, Log::default())
        .map_err(|error| failure("making a client", &error))?;
    let largest =
        |(name, config): (String, Config)| Some((name, config.get("max.message.bytes")?.parse().ok()?));
    Ok(describe(&client, topics).await?.into_iter().filter_map(largest).collect())
}

type Config = HashMap<String, String>;

/// What the brokers say of themselves; the client comes back, since asking blocks.
async fn metadata(client: AdminClient<Log>) -> Result<(AdminClient<Log>, Metadata), KafkaFailure> {
    let asked = tokio::task::spawn_blocking(move || match client.inner().fetch_metadata(None, TIMEOUT) {
        Ok(found) => Ok((client, found)),
        Err(error) => Err(client.inner().context().explain(failure("asking for topics", &error))),
    });
    asked.await.unwrap_or_else(|error| {
        Err(KafkaFailure { verdict: Verdict::Again, text: format!("asking for topics: {error}") })
    })
}

/// Copies, and for each topic: how many of them acknowledge a write.
fn least_in_sync(copies: u16) -> u16 {
    copies.saturating_sub(1).clamp(1, 2)
}

/// Makes topics; those that could not be made, each with the reason.
async fn make(
    client: &AdminClient<Log>,
    missing: &[&TopicWanted],
    copies: u16,
) -> Result<HashMap<String, String>, KafkaFailure> {
    if missing.is_empty() {
        return Ok(HashMap::new());
    }
    let in_sync = least_in_sync(copies).to_string();
    let new = |topic: &&'_ TopicWanted| {
        let partitions = i32::from(topic.partitions);
        (partitions, topic.is_compacted)
    };
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let (partitions, is_compacted) = new(topic);
            let made = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(i32::from(copies)))
                .set("min.insync.replicas", &in_sync);
            // A cursor is written with every transaction: small segments let compaction come soon.
            if is_compacted {
                made.set("cleanup.policy", "compact").set("segment.bytes", "16777216")
            } else {
                made
            }
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let results =
        client.create_topics(&topics, &options).await.map_err(|error| failure("making topics", &error))?;
    let mut not_made = HashMap::new();
    for result in results {
        match result {
            // Another one was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                tracing::warn!(topic = name, %code, verdict = ?verdict(code), "topic not made");
                not_made.insert(name, code.to_string());
            }
        }
    }
    Ok(not_made)
}

async fn describe(
    client: &AdminClient<Log>,
    wanted: &[TopicWanted],
) -> Result<HashMap<String, Config>, KafkaFailure> {
    let names: Vec<_> = wanted.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let described = client
        .describe_configs(&names, &options)
        .await
        .map_err(|error| failure("asking for topics' settings", &error))?;
    let mut configs = HashMap::new();
    for (topic, resource) in wanted.iter().zip(described) {
        match resource {
            Ok(resource) => {
                let entries = resource.entries.into_iter();
                let config = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                configs.insert(topic.name.clone(), config);
            }
            Err(code) => tracing::warn!(topic = topic.name, %code, "the topic's settings are not told"),
        }
    }
    Ok(configs)
}

struct Found {
    partitions: usize,
    copies: usize,
}

fn find(metadata: &Metadata, name: &str) -> Option<Found> {
    let topic = metadata.topics().iter().find(|topic| topic.name() == name && topic.error().is_none())?;
    let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
    Some(Found { partitions: topic.partitions().len(), copies: copies.unwrap_or(0) })
}

fn compare(
    wanted: &TopicWanted,
    copies: u16,
    found: Option<Found>,
    config: Option<&Config>,
) -> Vec<TopicMismatch> {
    let Some(found) = found else { return vec![TopicMismatch::NotMade("it is not there".to_owned())] };
    let mut mismatches = Vec::new();
    if found.partitions != usize::from(wanted.partitions) {
        mismatches.push(TopicMismatch::Partitions { has: found.partitions, wanted: wanted.partitions });
    }
    if found.copies < usize::from(copies) {
        mismatches.push(TopicMismatch::Copies { has: found.copies, wanted: copies });
    }
    let mut setting = |name: &'static str, fits: &dyn Fn(&str) -> bool, wanted: &str| {
        if let Some(has) = config.and_then(|config| config.get(name)).filter(|has| !fits(has)) {
            mismatches.push(TopicMismatch::Setting { name, has: has.clone(), wanted: wanted.to_owned() });
        }
    };
    let in_sync = least_in_sync(copies);
    setting(
        "min.insync.replicas",
        &|has| has.parse().is_ok_and(|has: u16| has >= in_sync),
        &in_sync.to_string(),
    );
    if wanted.is_compacted {
        setting("cleanup.policy", &|has| has == "compact", "compact");
    } else {
        setting("cleanup.policy", &|has| !has.contains("compact"), "delete");
    }
    mismatches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_said_in_words() {
        let wanted = TopicWanted { name: "outrigger.leads".to_owned(), partitions: 64, is_compacted: false };
        let config = |pairs: &[(&str, &str)]| -> Config {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let good = config(&[("min.insync.replicas", "2"), ("cleanup.policy", "delete")]);
        let found = |partitions, copies| Some(Found { partitions, copies });
        assert_eq!(compare(&wanted, 3, found(64, 3), Some(&good)), []);
        let bad = config(&[("min.insync.replicas", "1"), ("cleanup.policy", "compact")]);
        let words: Vec<String> =
            compare(&wanted, 3, found(6, 1), Some(&bad)).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "it has 6 partitions instead of 64: a lane is a partition, so their number cannot change; delete the \
                 topic, or name another prefix",
                "it has 1 copies instead of 3: reassign its partitions",
                "min.insync.replicas is 1 instead of 2: alter it",
                "cleanup.policy is compact instead of delete: alter it",
            ]
        );
        assert_eq!(compare(&wanted, 3, None, None).len(), 1);
    }

    #[test]
    fn one_copy_may_be_away() {
        assert_eq!([1, 2, 3, 5].map(least_in_sync), [1, 1, 2, 2]);
    }
}
