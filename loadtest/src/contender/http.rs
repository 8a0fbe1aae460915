//! The bare hyper server that the echo and the Redis contender share: HTTP/1.1, default settings, nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::server::Ready;

/// Where to listen, and where to say so.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenArgs {
    /// TCP address; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Unix socket to listen on as well
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Written once the server accepts: {"pid","api","socket"}
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

/// A handler: one request in, one whole reply out.
pub(crate) trait Handler: Clone + Send + 'static {
    /// Answers one request.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An address that cannot be bound.
pub(crate) async fn serve<H: Handler + Sync>(arguments: ListenArgs, handler: H) -> Result<()> {
    // Ends with the load test even where that is killed; where the kernel refuses, SIGTERM still works.
    let _asked = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    let tcp = TcpListener::bind(arguments.listen).await.with_context(|| arguments.listen.to_string())?;
    if let Some(left_over) = arguments.socket.as_ref().filter(|path| path.exists()) {
        std::fs::remove_file(left_over).context("cannot remove the socket of an earlier run")?;
    }
    let unix =
        arguments.socket.as_ref().map(UnixListener::bind).transpose().context("cannot bind the socket")?;
    let ready = Ready { pid: std::process::id(), api: tcp.local_addr()?, socket: arguments.socket };
    // Before anybody can know that it is ready: a signal that nothing catches ends the process as a failure.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    match &arguments.ready_file {
        Some(path) => ready.write(path)?,
        None => println!("{}", serde_json::to_string(&ready)?),
    }
    let tracker = TaskTracker::new();
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                if let Ok((stream, _)) = accepted && stream.set_nodelay(true).is_ok() {
                    tracker.spawn(connection(stream, handler.clone()));
                }
            }
            accepted = accept_unix(unix.as_ref()) => {
                if let Ok(stream) = accepted {
                    tracker.spawn(connection(stream, handler.clone()));
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

async fn accept_unix(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn connection<S, H>(stream: S, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler + Sync,
{
    let service = service_fn(|request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.handle(request).await) }
    });
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
        && !error.is_incomplete_message()
    {
        eprintln!("connection: {error}");
    }
}
