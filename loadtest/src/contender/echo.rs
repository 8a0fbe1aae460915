//! `loadtest contender echo`: what bare hyper costs, the yardstick for Outrigger's overhead.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::{Request, Response};

use super::http::{Handler, ListenArgs, serve};

/// Options of the echo.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// Bytes in every reply's body
    #[arg(long, default_value_t = 40)]
    body_bytes: usize,
    /// Waits so long before each reply, to see how a slow server looks in the report
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    delay_us: u64,
}

#[derive(Clone)]
struct Echo {
    body: Bytes,
    delay: Duration,
}

impl Handler for Echo {
    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !request.body().is_end_stream() {
            // A body is read, as any handler would; a broken one shows when the reply is written.
            drop(request.into_body().collect().await);
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        Response::new(Full::new(self.body.clone()))
    }
}

/// Serves until SIGTERM.
///
/// # Errors
/// An address that cannot be bound.
pub(crate) async fn run(arguments: EchoArgs) -> Result<()> {
    let body = Bytes::from(vec![b'x'; arguments.body_bytes]);
    serve(arguments.listen, Echo { body, delay: Duration::from_micros(arguments.delay_us) }).await
}
