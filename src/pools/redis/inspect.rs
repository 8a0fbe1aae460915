//! `outrigger check`: is an instance what Outrigger needs, and if not, what would be right?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value};

use super::connect::{Address, Dialed, Dialer, NodeError};
use super::topology::View;
use super::{refresh, reply};
use crate::config::RedisInstance;

/// For all answers of one node.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The oldest Redis that is supported.
const OLDEST: (u32, u32) = (7, 0);

/// On keys of a family (keys that begin the same): what the limits and the cache run, in scripts too.
const KEY_COMMANDS: [&str; 27] = [
    "EVALSHA 0 1 KEY",
    "EVAL 0 1 KEY",
    "GET KEY",
    "MGET KEY",
    "GETRANGE KEY 0 1",
    "STRLEN KEY",
    "EXISTS KEY",
    "SET KEY 1 PX 1",
    "DEL KEY",
    "UNLINK KEY",
    "EXPIRE KEY 1",
    "PEXPIRE KEY 1",
    "PEXPIRETIME KEY",
    "PTTL KEY",
    "HGET KEY f",
    "HMGET KEY f",
    "HGETALL KEY",
    "HLEN KEY",
    "HSET KEY f 1",
    "HSETNX KEY f 1",
    "HDEL KEY f",
    "HINCRBY KEY f 1",
    "ZADD KEY 1 m",
    "ZCARD KEY",
    "ZSCORE KEY m",
    "ZREM KEY m",
    "ZRANGEBYSCORE KEY 0 1",
];
/// On no key.
const OTHER_COMMANDS: [&str; 8] =
    ["PING", "TIME", "SCAN 0", "INFO", "CLUSTER SLOTS", "CLUSTER INFO", "CLIENT TRACKING ON BCAST", "ASKING"];
/// On no key, for who deletes from a cache.
const CACHE_COMMANDS: [&str; 2] = ["ROLE", "WAIT 1 1"];

/// Says which of the commands in ARGV the user may not run; runs none of them.
const MAY_NOT: &str = "local denied = {}
for index, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if known and not allowed then denied[#denied + 1] = line end
end
return denied";

/// What eviction does to those who use an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// Some of it must not be evicted (limits, sessions, locks).
    Forbidden,
    /// All of it may be: only caches are there.
    Welcome,
    /// Nobody uses it.
    Indifferent,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What there is, in one line; empty where no node answered.
    pub summary: String,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What would be better.
    pub warnings: Vec<String>,
}

/// Something wrong with an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What was seen. Holds no credential.
    pub message: String,
    /// What would be right.
    pub expected: String,
}

/// What one node says.
struct NodeFacts {
    address: Address,
    version: String,
    cluster_enabled: bool,
    cluster_serves: bool,
    policy: String,
    max_bytes: String,
    /// Replicas that follow it; `None` where it is no primary.
    replicas: Option<usize>,
    denied: Vec<String>,
}

/// Looks at every node of the instance `name`, which is to hold keys of these `families`. Takes a few seconds at most.
pub async fn inspect(
    name: &str,
    instance: &RedisInstance,
    families: &[&str],
    eviction: Eviction,
) -> Inspection {
    let mut found = Inspection::default();
    let dialer = match Dialer::new(instance) {
        Ok(dialer) => dialer,
        Err(error) => {
            found.add(error.to_string(), "a PEM file of the certificate authority that can be read");
            return found;
        }
    };
    let mut addresses = BTreeSet::new();
    for node in &instance.nodes {
        match Address::parse(node) {
            Some(address) => {
                addresses.insert(address);
            }
            None => found.add(format!("`{node}` is no node's address"), "`host:port`"),
        }
    }
    let view = shape(&dialer, &addresses).await;
    if let Some(view) = &view {
        addresses.extend(view.primaries());
        addresses.extend(view.replicas.iter().map(|replica| replica.address.clone()));
    }
    let mut nodes = Vec::new();
    for answer in join_all(addresses.iter().map(|address| facts(&dialer, address, families))).await {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error) => found.add(error.to_string(), error.hint(name)),
        }
    }
    found.judge_nodes(&nodes);
    found.judge_eviction(&nodes, eviction);
    found.judge_rights(&nodes, families);
    if let Some(view) = &view {
        found.judge_shape(view, &nodes);
    }
    found
}

/// The newest view that a configured node has.
async fn shape(dialer: &Dialer, seeds: &BTreeSet<Address>) -> Option<View> {
    let views = join_all(seeds.iter().map(|address| refresh::dial_and_ask(dialer, address))).await;
    views.into_iter().flatten().max_by_key(|view| (view.epoch, view.serves))
}

async fn facts(dialer: &Dialer, address: &Address, families: &[&str]) -> Result<NodeFacts, NodeError> {
    let Dialed { mut connection, driver } = dialer.dial(address, None).await?;
    let mut questions = Pipeline::new();
    questions.cmd("INFO").cmd("CLUSTER").arg("INFO");
    questions.cmd("EVAL").arg(MAY_NOT).arg(0).arg(OTHER_COMMANDS.as_slice());
    if families.contains(&"cache:") {
        questions.arg(CACHE_COMMANDS.as_slice());
    }
    for family in families {
        questions.arg(KEY_COMMANDS.map(|line| of_family(line, family)).as_slice());
    }
    let answered = tokio::select! {
        answers = connection.send_packed_commands(&questions, 0, questions.len()) => answers.ok(),
        () = driver => None,
        () = tokio::time::sleep(ANSWER_WITHIN) => None,
    };
    let answers = answered.ok_or_else(|| NodeError::Silent(address.clone(), ANSWER_WITHIN))?;
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let (info, cluster, denied) = (next(), next(), next());
    if let Value::ServerError(error) = &info
        && matches!(error.code(), "NOAUTH" | "WRONGPASS")
    {
        return Err(NodeError::Password(address.clone(), reply::text(error)));
    }
    Ok(NodeFacts::from_answers(address.clone(), &info, &cluster, denied))
}

impl NodeFacts {
    fn from_answers(address: Address, info: &Value, cluster: &Value, denied: Value) -> Self {
        let info = redis::from_redis_value_ref::<String>(info).unwrap_or_default();
        let cluster = redis::from_redis_value_ref::<String>(cluster).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let value = text.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().to_owned()
        };
        let denied = match denied {
            // The user may not even ask.
            Value::ServerError(error) if error.code() == "NOPERM" => vec!["EVAL".to_owned()],
            answer => redis::from_redis_value(answer).unwrap_or_default(),
        };
        Self {
            address,
            version: field(&info, "redis_version"),
            cluster_enabled: field(&info, "cluster_enabled") != "0",
            cluster_serves: field(&cluster, "cluster_state") != "fail",
            policy: field(&info, "maxmemory_policy"),
            max_bytes: field(&info, "maxmemory"),
            replicas: (field(&info, "role") == "master")
                .then(|| field(&info, "connected_slaves").parse().unwrap_or(0)),
            denied,
        }
    }

    /// A node whose version cannot be read is not called old: the missing right is a problem by itself.
    fn is_old(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|number| number.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) => (major, minor) < OLDEST,
            _ => false,
        }
    }
}

impl Inspection {
    fn add(&mut self, message: impl Into<String>, expected: impl Into<String>) {
        self.problems.push(Problem { message: message.into(), expected: expected.into() });
    }

    /// Adds one problem for all nodes that have it.
    fn add_for(
        &mut self,
        nodes: &[NodeFacts],
        has: impl Fn(&NodeFacts) -> bool,
        message: impl Fn(&NodeFacts) -> String,
        expected: &str,
    ) {
        let mut by_message: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in nodes.iter().filter(|node| has(node)) {
            by_message.entry(message(node)).or_default().push(node.address.to_string());
        }
        for (message, addresses) in by_message {
            self.add(format!("{message} on {}", addresses.join(", ")), expected);
        }
    }

    fn judge_nodes(&mut self, nodes: &[NodeFacts]) {
        self.add_for(
            nodes,
            NodeFacts::is_old,
            |node| format!("Redis {}", node.version),
            "Redis 7.0 or newer",
        );
        self.add_for(
            nodes,
            |node| !node.cluster_enabled,
            |_| "cluster mode is off".to_owned(),
            "`cluster-enabled yes`, and the node joined to a cluster",
        );
        self.add_for(
            nodes,
            |node| node.cluster_enabled && !node.cluster_serves,
            |_| "cluster_state is fail".to_owned(),
            "cluster_state ok: every slot with a primary that runs (`redis-cli --cluster check`)",
        );
    }

    fn judge_eviction(&mut self, nodes: &[NodeFacts], eviction: Eviction) {
        match eviction {
            Eviction::Forbidden => self.add_for(
                nodes,
                |node| !matches!(node.policy.as_str(), "" | "noeviction"),
                |node| format!("maxmemory-policy is {}", node.policy),
                "`maxmemory-policy noeviction`: limits, sessions and locks must not be evicted; give caches an instance of their own",
            ),
            Eviction::Welcome => {
                let keeps = nodes.iter().filter(|node| node.policy == "noeviction");
                let addresses: Vec<_> = keeps.map(|node| node.address.to_string()).collect();
                if !addresses.is_empty() {
                    self.warnings.push(format!(
                        "maxmemory-policy is noeviction on {}: only the cache uses this instance, and once it is full new values are \
                         refused; with `maxmemory-policy allkeys-lru` and a `maxmemory` old values give way",
                        addresses.join(", ")
                    ));
                }
            }
            Eviction::Indifferent => {}
        }
    }

    fn judge_rights(&mut self, nodes: &[NodeFacts], families: &[&str]) {
        let denied: BTreeSet<&str> =
            nodes.iter().flat_map(|node| node.denied.iter().map(String::as_str)).collect();
        let missing = missing_rights(&denied, families);
        if !missing.is_empty() {
            self.add(
                format!("the ACL user may not run: {}", missing.join(", ")),
                "the rights in docs/operations.md, section \"Redis ACL\"",
            );
        }
    }

    fn judge_shape(&mut self, view: &View, nodes: &[NodeFacts]) {
        let owned: usize = view.ranges.iter().map(|(first, last, _)| usize::from(last - first) + 1).sum();
        if owned < super::slot::SLOTS {
            self.add(
                format!("{} slots have no owner", super::slot::SLOTS - owned),
                "an owner for each of the 16384 slots (`redis-cli --cluster fix`)",
            );
        }
        let distinct = |of: fn(&NodeFacts) -> &String| {
            let values: BTreeSet<&str> = nodes.iter().map(of).map(String::as_str).collect();
            values.into_iter().collect::<Vec<_>>().join(" and ")
        };
        let followed = || nodes.iter().filter_map(|node| node.replicas);
        let alone = match followed().filter(|replicas| *replicas == 0).count() {
            0 => String::new(),
            some => format!(" ({some} without a replica: what only they have is lost with them)"),
        };
        self.summary = format!(
            "{} primaries{alone}, {} replicas, Redis {}, maxmemory {}, {}",
            view.primaries().len(),
            followed().sum::<usize>(),
            distinct(|node| &node.version),
            distinct(|node| &node.max_bytes),
            distinct(|node| &node.policy),
        );
    }
}

/// A command on a key of a family.
fn of_family(line: &str, family: &str) -> String {
    line.replace("KEY", &format!("{family}outrigger-check"))
}

/// What is denied, as an operator reads it: a family of which nothing is allowed in a few words.
fn missing_rights(denied: &BTreeSet<&str>, families: &[&str]) -> Vec<String> {
    let (on_keys, others): (Vec<&str>, Vec<&str>) =
        denied.iter().partition(|line| line.contains("outrigger-check"));
    let mut missing: Vec<String> = others.into_iter().map(str::to_owned).collect();
    for family in families {
        let key = of_family("KEY", family);
        let of_this: Vec<_> = on_keys.iter().filter(|line| line.contains(&key)).collect();
        if of_this.len() == KEY_COMMANDS.len() {
            missing.push(format!("anything on {family}*"));
        } else {
            missing.extend(of_this.into_iter().map(|line| line.replace(&key, &format!("{family}*"))));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_a_family_of_which_all_is_missing_in_short() {
        let cache = KEY_COMMANDS.map(|command| of_family(command, "cache:"));
        let get = of_family("GET KEY", "tenant:");
        let denied: BTreeSet<&str> = cache.iter().map(String::as_str).chain([get.as_str(), "INFO"]).collect();
        let missing = missing_rights(&denied, &["cache:", "outrigger:", "tenant:"]);
        assert_eq!(missing, ["INFO", "anything on cache:*", "GET tenant:*"]);
    }

    #[test]
    fn versions_before_seven_are_old() {
        for (version, old) in
            [("7.0.15", false), ("6.2.14", true), ("8.0.0", false), ("", false), ("7.2", false)]
        {
            let info = Value::BulkString(format!("redis_version:{version}\r\n").into_bytes());
            let address = Address::new("127.0.0.1", 1);
            let node = NodeFacts::from_answers(address, &info, &Value::Nil, Value::Nil);
            assert_eq!(node.is_old(), old, "{version}");
        }
    }
}
