//! What becomes of a transaction whose caller left in the middle of a statement.
//!
//! Its statement ends before the connection serves another, and until then it counts in its tenant's share: a caller whose
//! deadlines are short neither works beside its share nor makes others connect anew. What goes on for longer is given up with
//! its connection. A cancel request would spare that, but old PgBouncers lose those of who does not wait for their answer.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Object;
use tokio::runtime::Handle;

use super::metrics::RoleMetrics;
use super::shares::Place;
use crate::tasks::Tasks;

/// Most statements end sooner by themselves.
const GRACE: Duration = Duration::from_millis(250);
/// The server looks every second whether a statement's connection is still there (`BEGIN` says so).
const GIVEN_UP: Duration = Duration::from_millis(1250);

/// How transactions of one pool are ended.
pub(super) struct Way {
    pub(super) metrics: Arc<RoleMetrics>,
    tasks: Tasks,
}

impl Way {
    pub(super) fn new(metrics: RoleMetrics, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { metrics: Arc::new(metrics), tasks })
    }

    /// Lets what is under way on a connection end, and then gives both back.
    pub(super) fn leave(self: &Arc<Self>, connection: Object, place: Option<Place>) {
        // At the end of the process nobody is served any more.
        if Handle::try_current().is_err() {
            drop(Object::take(connection));
            return;
        }
        let way = Arc::clone(self);
        self.tasks.spawn("a transaction without its caller", async move {
            let stopping = way.tasks.stopping();
            let ended = tokio::select! {
                ended = Self::end(&connection) => ended,
                () = stopping.cancelled() => false,
            };
            if !ended {
                drop(Object::take(connection));
                way.metrics.abandoned.inc();
                tokio::select! {
                    () = tokio::time::sleep(GIVEN_UP) => {}
                    () = stopping.cancelled() => {}
                }
            }
            drop(place);
        });
    }

    /// Whether the connection is as good as new.
    async fn end(connection: &Object) -> bool {
        matches!(tokio::time::timeout(GRACE, connection.batch_execute("ROLLBACK")).await, Ok(Ok(())))
    }
}
