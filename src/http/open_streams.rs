//! How many streamed replies are open at once, of everyone and of one tenant, and how they ended.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use super::budget::{Bytes, Load, Share, TenantLoad};
use super::reply::SMALL_BYTES;
use super::{ConnectionState, Problem};
use crate::error::ErrorKind;
use crate::fairness::{NoRoom, Part};
use crate::identity::TenantId;
use crate::telemetry::{MetricError, Registry};

/// What every open stream is counted with, in bytes: less than [`SMALL_BYTES`] on their way, and one small chunk.
const RESERVED_BYTES: usize = 2 * SMALL_BYTES;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its producer had no more.
    Finished,
    /// The process stops.
    Stopping,
    /// The time that its caller gave it was over.
    TimedOut,
    /// Its producer failed.
    Broken,
    /// Its reader went away, or was cut because it took nothing.
    Left,
}

impl Ended {
    const ALL: [Self; 5] = [Self::Finished, Self::Stopping, Self::TimedOut, Self::Broken, Self::Left];

    fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Stopping => "stopping",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::Left => "left",
        }
    }
}

/// The count of everyone's, whose lock is that of the tenants' counts too, and the metrics.
pub(super) struct OpenStreams {
    count: Mutex<usize>,
    open: IntGauge,
    ended: [IntCounter; Ended::ALL.len()],
}

/// A stream's place among the open ones, until this is dropped.
pub(super) struct Place {
    load: Arc<Load>,
    tenant: TenantId,
    of_tenant: Arc<TenantLoad>,
    connection: Arc<ConnectionState>,
    ended: Ended,
    _reserved: Share,
}

impl OpenStreams {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let open = registry.gauge("outrigger_http_streams_open", "Open streamed replies.")?;
        let family = registry.counters(
            "outrigger_http_streams_ended_total",
            "Streamed replies that ended: by themselves, because the process stops or the time that their caller gave \
             was over, broken off, or left by their reader.",
            &["how"],
        )?;
        let ended = Ended::ALL.map(|ended| family.with_label_values(&[ended.label()]));
        Ok(Self { count: Mutex::default(), open, ended })
    }
}

impl Load {
    /// A place for one more stream of `tenant`'s; 503 where it, or all together, have as many as they may, or where its
    /// share has no room for what a stream takes.
    pub(super) fn open_stream(
        self: &Arc<Self>,
        connection: &Arc<ConnectionState>,
        tenant: TenantId,
    ) -> Result<Place, Problem> {
        let mut reserved = Share::new(self, connection, tenant, Bytes::Replies);
        reserved.take(RESERVED_BYTES)?;
        let of_tenant = connection.load.of(self, tenant);
        let (most, tenant_most) = (self.limits.streams, self.limits.tenant_streams);
        let refused = |text: String| Err(Problem::new(ErrorKind::Overloaded, text));
        let mut all = self.streams.count.lock();
        let own = of_tenant.streams.load(Relaxed);
        match Part::new(most as u64, tenant_most as u64).has_room(own as u64, *all as u64, 1) {
            Ok(()) => {
                *all += 1;
                of_tenant.streams.store(own + 1, Relaxed);
            }
            Err(NoRoom::OfTenant) => {
                self.refusals.tenant_streams.inc();
                return refused(format!(
                    "this tenant has {own} streams open, as many as one may beside the others' (`limits.tenant_streams`, \
                     {tenant_most}): end one, or come back"
                ));
            }
            Err(NoRoom::OfAll) => {
                self.refusals.streams.inc();
                return refused(format!(
                    "{all} of {most} streams are open here (`limits.streams`): come back"
                ));
            }
        }
        drop(all);
        self.streams.open.inc();
        Ok(Place {
            load: Arc::clone(self),
            tenant,
            of_tenant,
            connection: Arc::clone(connection),
            ended: Ended::Left,
            _reserved: reserved,
        })
    }
}

impl Place {
    /// Whose stream it is.
    pub(super) fn connection(&self) -> &Arc<ConnectionState> {
        &self.connection
    }

    /// Says how the stream ended.
    pub(super) fn ended(&mut self, ended: Ended) {
        self.ended = ended;
    }

    /// Room for a chunk of so many bytes, where there is some now. One that is larger than half of what its tenant may
    /// have counts as that half, since it would never fit.
    pub(super) fn room_for(&self, length: usize) -> Option<Share> {
        let most = self.load.limits.tenant_bytes.min(self.load.limits.bytes) / 2;
        let mut share = Share::new(&self.load, &self.connection, self.tenant, Bytes::Replies);
        share.has_taken(length.min(most)).then_some(share)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.load.streams.count.lock();
        *all -= 1;
        self.of_tenant.streams.fetch_sub(1, Relaxed);
        drop(all);
        self.load.streams.open.dec();
        if let Some(counter) = self.load.streams.ended.get(self.ended as usize) {
            counter.inc();
        }
    }
}
