//! The policy kind `events`: the topics, and what holds in each.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::Value;

use super::limits::{self, RateDocument};
use super::push::{self, Subscription, SubscriptionDocument};
use super::relay::RESERVED_TOPIC;
use crate::config::{Findings, pointer_step};
use crate::names::{MAX_NAME_BYTES, Name};
use crate::policy::{Kind, Permit, Policies, Vocabulary};
use crate::primitives::tiers::Tiers;
use crate::primitives::write_rates::{self, LimitsDocument, Rate};

/// What follows a topic's name in that of its dead letters.
pub const DEAD_LETTERS: &str = ".dlq";

/// The kind of document, as the loader takes it.
pub const KIND: Kind = Kind { name: "events", schema, load };

/// An `events` policy document.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsDocument {
    /// The topics, by name. What is not listed does not exist. Each has a second one for its dead letters, `NAME.dlq`,
    /// which is made by itself.
    pub topics: BTreeMap<String, TopicDocument>,
    /// The subscriptions, by name: events of a topic are sent to an endpoint.
    #[serde(default)]
    pub push: BTreeMap<String, SubscriptionDocument>,
    /// How fast each tenant may publish; without it as fast as it can.
    #[serde(default)]
    pub limits: Option<LimitsDocument<RateDocument>>,
}

/// One topic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicDocument {
    /// How long the same `source` and `id` of a tenant count as the same event, in milliseconds; 7 days at the most.
    #[serde(default = "default_dedupe_ms")]
    #[schemars(range(min = 1, max = 604_800_000_u64))]
    pub dedupe_ms: u64,
    /// In how many lanes its events are kept and relayed, each in order; the partitions of its Kafka topic.
    #[serde(default = "default_lanes")]
    #[schemars(range(min = 1, max = 64))]
    pub lanes: NonZeroU16,
    /// The largest event: attributes, data and key, in bytes.
    #[serde(default = "default_max_event_bytes")]
    #[schemars(range(min = 1024, max = 1_000_000))]
    pub max_event_bytes: usize,
    /// The most events in one call.
    #[serde(default = "default_max_batch")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_batch: usize,
    /// What holds for its consumer groups.
    #[serde(default)]
    pub groups: GroupsDocument,
}

/// What holds for the consumer groups of a topic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupsDocument {
    /// How often an event is delivered before it goes to the dead letters.
    #[serde(default = "default_max_attempts")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// How long a delivery is leased where the pull does not say, in milliseconds; 12 hours at the most.
    #[serde(default = "default_lease_ms")]
    #[schemars(range(min = 1000, max = 43_200_000_u64))]
    pub lease_ms: u64,
    /// How many events of a group may be delivered and not done, or wait behind such, at once.
    #[serde(default = "default_max_outstanding")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_outstanding: u32,
    /// How many groups a tenant may have; those of subscriptions, and of services, are not among them. One that nobody
    /// used for as long as events are kept is removed.
    #[serde(default = "default_max_per_tenant")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_per_tenant: u32,
}

impl Default for GroupsDocument {
    fn default() -> Self {
        Self {
            max_attempts: default_max_attempts(),
            lease_ms: default_lease_ms(),
            max_outstanding: default_max_outstanding(),
            max_per_tenant: default_max_per_tenant(),
        }
    }
}

fn default_dedupe_ms() -> u64 {
    86_400_000
}

fn default_lanes() -> NonZeroU16 {
    NonZeroU16::MIN.saturating_add(15)
}

fn default_max_event_bytes() -> usize {
    262_144
}

fn default_max_batch() -> usize {
    100
}

fn default_max_attempts() -> u32 {
    16
}

fn default_lease_ms() -> u64 {
    30_000
}

fn default_max_outstanding() -> u32 {
    1000
}

fn default_max_per_tenant() -> u32 {
    1000
}

/// A topic in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: Name,
    /// The topic of its dead letters.
    pub dead_letters: Name,
    /// How long the same `source` and `id` count as the same event, in milliseconds.
    pub dedupe_ms: u64,
    /// In how many lanes its events are kept.
    pub lanes: NonZeroU16,
    /// The largest event, in bytes.
    pub max_event_bytes: usize,
    /// The most events in one call.
    pub max_batch: usize,
    /// What holds for its consumer groups.
    pub groups: Groups,
}

/// What holds for the consumer groups of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// How often an event is delivered before it goes to the dead letters.
    pub max_attempts: u32,
    /// How long a delivery is leased where the pull does not say, in milliseconds.
    pub lease_ms: u64,
    /// How many events may be delivered and not done, or wait behind such, at once.
    pub max_outstanding: u32,
    /// How many groups a tenant may have.
    pub max_per_tenant: u32,
}

/// The events policy in force.
#[derive(Debug, Default)]
pub struct EventsPolicy {
    topics: BTreeMap<Name, Arc<Topic>>,
    subscriptions: Vec<Arc<Subscription>>,
    limits: Option<Tiers<Rate>>,
}

impl EventsPolicy {
    /// The topic of this name. Dead letters are not among them: nobody publishes there.
    #[must_use]
    pub fn topic(&self, name: &Name) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// The topic whose dead letters are called `name`.
    #[must_use]
    pub fn topic_of_dead_letters(&self, name: &Name) -> Option<&Arc<Topic>> {
        let topic = Name::parse(name.as_str().strip_suffix(DEAD_LETTERS)?).ok()?;
        self.topics.get(&topic)
    }

    /// How fast the permit's tenant may publish; none where there is no limit.
    pub(super) fn rate(&self, permit: &Permit) -> Option<&Arc<Rate>> {
        self.limits.as_ref().map(|limits| limits.of(permit))
    }

    /// Every topic, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// Every subscription, by name.
    #[must_use]
    pub fn subscriptions(&self) -> &[Arc<Subscription>] {
        &self.subscriptions
    }
}

fn schema(generator: &mut SchemaGenerator) -> Schema {
    EventsDocument::json_schema(generator)
}

fn load(document: Value, _: &Vocabulary, findings: &mut Findings, policies: &mut Policies) {
    match serde_json::from_value::<EventsDocument>(document) {
        Ok(document) => {
            let policy = read(&document, findings);
            if findings.is_empty() {
                policies.insert(Arc::new(policy));
            }
        }
        Err(error) => {
            findings.add("", error.to_string(), "a document that fits the schema of `kind: events`")
        }
    }
}

fn read(document: &EventsDocument, findings: &mut Findings) -> EventsPolicy {
    let mut topics = BTreeMap::new();
    // Kafka holds `.` and `_` in topics' names for the same, since its metrics do, and makes no second such topic.
    let mut kafka_names: BTreeMap<String, &str> = BTreeMap::new();
    for (text, topic) in &document.topics {
        let pointer = format!("/topics{}", pointer_step(text));
        match names(text) {
            Ok((name, dead_letters)) => {
                for own in [text.clone(), dead_letters.to_string()] {
                    let earlier = kafka_names.insert(own.replace('.', "_"), text);
                    if let Some(earlier) = earlier.filter(|earlier| *earlier != text) {
                        let message = format!("Kafka cannot tell `{own}` from a topic of `{earlier}`");
                        findings.add(&pointer, message, "names that differ in more than `.` and `_`");
                    }
                }
                topics.insert(name.clone(), Arc::new(topic.in_force(name, dead_letters)));
            }
            Err((message, expected)) => findings.add(pointer, message, expected),
        }
    }
    let max_batch = document.topics.values().map(|topic| topic.max_batch as u64).max().unwrap_or(1);
    let limits = document.limits.as_ref();
    let limits = limits.and_then(|document| {
        write_rates::limits(document, &limits::WORDS, &limits::largest(max_batch), findings)
    });
    let mut policy = EventsPolicy { topics, subscriptions: Vec::new(), limits };
    let is_topic = |name: &Name| policy.topic(name).or_else(|| policy.topic_of_dead_letters(name)).is_some();
    policy.subscriptions = push::subscriptions(&document.push, is_topic, findings);
    policy
}

/// A topic's name and that of its dead letters, or what is wrong and what would be right.
fn names(text: &str) -> Result<(Name, Name), (&'static str, String)> {
    let name = Name::parse(text).map_err(|error| ("this is not a topic's name", error.to_string()))?;
    if text == RESERVED_TOPIC {
        return Err((
            "the relay keeps how far it is in the Kafka topic of this name",
            "another name".to_owned(),
        ));
    }
    if text.ends_with(DEAD_LETTERS) {
        let expected = "leave it out: every topic has its dead letters by itself";
        return Err(("a topic of dead letters is made by itself", expected.to_owned()));
    }
    let too_long = |_| {
        let most = MAX_NAME_BYTES - DEAD_LETTERS.len();
        ("the name leaves no room for `.dlq`", format!("at most {most} characters"))
    };
    let dead_letters = Name::parse(&format!("{text}{DEAD_LETTERS}")).map_err(too_long)?;
    Ok((name, dead_letters))
}

impl TopicDocument {
    fn in_force(&self, name: Name, dead_letters: Name) -> Topic {
        Topic {
            name,
            dead_letters,
            dedupe_ms: self.dedupe_ms,
            lanes: self.lanes,
            max_event_bytes: self.max_event_bytes,
            max_batch: self.max_batch,
            groups: Groups {
                max_attempts: self.groups.max_attempts,
                lease_ms: self.groups.lease_ms,
                max_outstanding: self.groups.max_outstanding,
                max_per_tenant: self.groups.max_per_tenant,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Vocabulary, check_documents};

    const SHIPPED: &str = include_str!("../../../policies/events.yaml");
    static EVENTS: Kind = KIND;

    fn checked(text: &str) -> Result<Policies, Vec<String>> {
        let vocabulary = Vocabulary { kinds: vec![&EVENTS], ..Vocabulary::default() };
        let files = [("events.yaml".to_owned(), text.to_owned())];
        check_documents(&vocabulary, 1, &files)
            .map(|checked| checked.policies)
            .map_err(|report| report.to_string().lines().map(str::to_owned).collect())
    }

    #[test]
    fn the_shipped_policy_has_the_topics_that_the_contract_names() {
        let policies = checked(SHIPPED).unwrap();
        let policy = policies.get::<EventsPolicy>().unwrap();
        let names: Vec<_> = policy.topics().map(|topic| topic.name.as_str()).collect();
        assert_eq!(names, ["leads", "payments", "sla", "voice"]);
        let dead = Name::parse("payments.dlq").unwrap();
        assert_eq!(policy.topic_of_dead_letters(&dead).unwrap().name.as_str(), "payments");
        assert!(policy.topic(&dead).is_none());
    }

    #[test]
    fn a_topic_without_a_word_has_the_defaults() {
        let policies = checked("kind: events\ntopics:\n  t: {}\n").unwrap();
        let topic = policies.get::<EventsPolicy>().unwrap().topic(&Name::parse("t").unwrap()).unwrap();
        let expected = Topic {
            name: Name::parse("t").unwrap(),
            dead_letters: Name::parse("t.dlq").unwrap(),
            dedupe_ms: 86_400_000,
            lanes: NonZeroU16::new(16).unwrap(),
            max_event_bytes: 262_144,
            max_batch: 100,
            groups: Groups {
                max_attempts: 16,
                lease_ms: 30_000,
                max_outstanding: 1000,
                max_per_tenant: 1000,
            },
        };
        assert_eq!(**topic, expected);
    }

    #[test]
    fn everything_wrong_beyond_the_schema_is_found_with_its_place() {
        let (mut findings, mut policies) = (Findings::default(), Policies::default());
        let topics = ["a.b", "a_b", "leads", "leads.dlq", "Voice", "x_dlq", "x", "cursors", &"n".repeat(61)];
        let topics: serde_json::Map<_, _> =
            topics.iter().map(|name| ((*name).to_owned(), serde_json::json!({}))).collect();
        load(serde_json::json!({"topics": topics}), &Vocabulary::default(), &mut findings, &mut policies);
        let mut places: Vec<_> = findings.iter().map(|finding| finding.pointer.clone()).collect();
        places.sort_unstable();
        places.dedup();
        let long = format!("/topics/{}", "n".repeat(61));
        assert_eq!(
            places,
            ["/topics/Voice", "/topics/a_b", "/topics/cursors", "/topics/leads.dlq", &long, "/topics/x_dlq"]
        );
        assert!(policies.get::<EventsPolicy>().is_none());
    }

    #[test]
    fn limits_that_have_no_room_for_a_call_or_name_no_tenant_are_found_with_their_place() {
        let topics = serde_json::json!({"t": {"max_batch": 1000}});
        let rate = |events: u64, bytes: u64, seconds: u64| serde_json::json!({"events_per_second": events, "bytes_per_second": bytes, "burst_seconds": seconds});
        let limits = serde_json::json!({
            "tiers": {"free": rate(100, 10_485_760, 9), "pro": rate(1000, 1, 1), "enterprise": rate(1000, 1_073_741_823, 60)},
            "tenants": {"A": rate(1000, 10_485_760, 1)},
        });
        let (mut findings, mut policies) = (Findings::default(), Policies::default());
        load(
            serde_json::json!({"topics": topics, "limits": limits}),
            &Vocabulary::default(),
            &mut findings,
            &mut policies,
        );
        let places: Vec<_> = findings.iter().map(|finding| finding.pointer.clone()).collect();
        assert_eq!(
            places,
            ["/limits/tiers/free", "/limits/tiers/pro", "/limits/tiers/enterprise", "/limits/tenants/A"]
        );
        let limits = serde_json::json!({"tiers": {"free": rate(100, 1_048_576, 10)}});
        load(
            serde_json::json!({"topics": topics, "limits": limits}),
            &Vocabulary::default(),
            &mut Findings::default(),
            &mut policies,
        );
        assert!(policies.get::<EventsPolicy>().unwrap().limits.is_some());
    }

    #[test]
    fn every_bound_is_held_by_the_schema() {
        for (field, least, most) in [
            ("dedupe_ms", 1, 604_800_000),
            ("lanes", 1, 64),
            ("max_event_bytes", 1024, 1_000_000),
            ("max_batch", 1, 1000),
            ("groups: {max_attempts", 1, 1000),
            ("groups: {lease_ms", 1000, 43_200_000),
            ("groups: {max_outstanding", 1, 10_000),
            ("groups: {max_per_tenant", 1, 100_000),
        ] {
            let close = if field.contains('{') { "}" } else { "" };
            let with =
                |value: u64| checked(&format!("kind: events\ntopics:\n  t: {{{field}: {value}{close}}}\n"));
            assert!(with(least).is_ok() && with(most).is_ok(), "{field}");
            for value in [least - 1, most + 1] {
                let lines = with(value).err().unwrap_or_default().join("\n");
                assert!(lines.contains("events.yaml"), "{field}: {value}: {lines}");
            }
        }
        assert!(checked("kind: events\ntopics:\n  t: {pushes: 1}\n").is_err());
    }
}
