//! Kafka's side: topics made anew, a reader of committed records, and a bare transactional producer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ledger::Ledger;
use super::message::{data, key};

/// As `loadtest/kafka.yaml` has it.
const PREFIX: &str = "loadtest";
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Callers in one transaction at the most; as in Outrigger.
const MAX_CALLERS: usize = 256;

/// The brokers, and the topic there.
#[derive(Clone, Debug)]
pub(crate) struct Brokers {
    list: String,
    topic: String,
    tenant: Uuid,
}

impl Brokers {
    pub(crate) fn new(list: &str, topic: &str, tenant: Uuid) -> Self {
        Self { list: list.to_owned(), topic: format!("{PREFIX}.{topic}"), tenant }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.list);
        config
    }

    /// Removes what an earlier run left, so that the relay begins with nothing.
    ///
    /// # Errors
    /// The brokers cannot be reached, or keep the topics.
    pub(crate) async fn remove_topics(&self) -> Result<()> {
        let client: AdminClient<DefaultClientContext> = self.config().create()?;
        let cursors = format!("{PREFIX}.cursors");
        let until = Instant::now() + TIMEOUT;
        while Instant::now() < until {
            let found = client.inner().fetch_metadata(None, TIMEOUT).context("asking for topics")?;
            let there: Vec<&str> = found
                .topics()
                .iter()
                .map(|topic| topic.name())
                .filter(|name| *name == self.topic || *name == cursors)
                .collect();
            if there.is_empty() {
                return Ok(());
            }
            client.delete_topics(&there, &AdminOptions::new()).await.context("removing topics")?;
            tokio::time::sleep(POLL).await;
        }
        bail!("{} or {cursors} cannot be removed", self.topic)
    }

    /// Starts to read what is committed from now on.
    ///
    /// # Errors
    /// The brokers cannot be reached.
    pub(crate) fn read(&self, ledger: &Arc<Ledger>, over: &CancellationToken) -> Result<JoinSet<Result<()>>> {
        let consumer: BaseConsumer = self
            .config()
            .set("group.id", PREFIX)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let found = consumer.fetch_metadata(Some(&self.topic), TIMEOUT).context("asking for partitions")?;
        let topic = found.topics().first().context("the topic is not there")?;
        let mut list = TopicPartitionList::new();
        for partition in topic.partitions() {
            let (_, end) = consumer.fetch_watermarks(&self.topic, partition.id(), TIMEOUT)?;
            list.add_partition_offset(&self.topic, partition.id(), Offset::Offset(end))?;
        }
        consumer.assign(&list)?;
        let (ledger, over) = (Arc::clone(ledger), over.clone());
        let mut running = JoinSet::new();
        running.spawn_blocking(move || {
            while !over.is_cancelled() {
                if let Some(message) = consumer.poll(POLL) {
                    let message = message?;
                    let headers = message.headers().context("a record without headers")?;
                    let id =
                        headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
                    let key = message.key().and_then(|key| key.rsplit(|byte| *byte == b'k').next());
                    let number = |bytes: Option<&[u8]>| -> Result<u64> {
                        Ok(std::str::from_utf8(bytes.context("a record without id or key")?)?.parse()?)
                    };
                    ledger.received(number(id)?, number(key)?);
                }
            }
            Ok(())
        });
        Ok(running)
    }
}

type Job = (u64, Vec<u64>, oneshot::Sender<Result<(), Arc<anyhow::Error>>>);

/// What an application would have that writes to Kafka by itself: a queue before one transactional producer, and what waits
/// goes into the next transaction.
#[derive(Clone, Debug)]
pub(crate) struct BareProducer(mpsc::Sender<Job>);

impl BareProducer {
    /// Starts it.
    ///
    /// # Errors
    /// The brokers cannot be reached.
    pub(crate) fn start(brokers: &Brokers) -> Result<Self> {
        let producer: ThreadedProducer<DefaultProducerContext> = brokers
            .config()
            .set("transactional.id", format!("{PREFIX}.bare"))
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            .set("batch.size", "524288")
            .create()?;
        producer.init_transactions(TIMEOUT)?;
        let (jobs, mut waiting) = mpsc::channel::<Job>(8192);
        let brokers = brokers.clone();
        tokio::task::spawn_blocking(move || {
            let mut taken = Vec::new();
            while waiting.blocking_recv_many(&mut taken, MAX_CALLERS) > 0 {
                let done = brokers.transaction(&producer, &taken).map_err(Arc::new);
                for (_, _, answer) in taken.drain(..) {
                    // A caller that was ended at the end of its turn waits no more.
                    drop(answer.send(done.clone()));
                }
            }
        });
        Ok(Self(jobs))
    }

    /// Returns once the events of a caller are committed.
    ///
    /// # Errors
    /// They were not.
    pub(crate) async fn publish(&self, caller: u64, ids: Vec<u64>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.0.send((caller, ids, answer)).await.map_err(|_| anyhow!("the producer ended"))?;
        answered.await.context("the producer ended")?.map_err(|error| anyhow!("{error:#}"))
    }
}

impl Brokers {
    fn transaction(&self, producer: &ThreadedProducer<DefaultProducerContext>, jobs: &[Job]) -> Result<()> {
        let (data, tenant) = (data(), self.tenant.to_string());
        producer.begin_transaction()?;
        for (caller, id) in jobs.iter().flat_map(|(caller, ids, _)| ids.iter().map(move |id| (*caller, *id)))
        {
            let (id_text, key) = (format!("{id:012}"), key(caller, id));
            let key_text = format!("{tenant}/k{key:07}");
            // What a relayed record has, so that the brokers have the same work.
            let headers = [
                ("ce_specversion", "1.0"),
                ("ce_id", &*id_text),
                ("ce_source", "/loadtest"),
                ("ce_type", "lead.made"),
                ("ce_tenantid", &*tenant),
                ("content-type", "application/json"),
                ("outrigger-seq", &*id_text),
            ];
            let headers =
                headers.into_iter().fold(OwnedHeaders::new_with_capacity(7), |all, (key, value)| {
                    all.insert(Header { key, value: Some(value) })
                });
            let record = BaseRecord::to(&self.topic).key(&key_text).payload(&data).headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.commit_transaction(TIMEOUT)?;
        Ok(())
    }
}
