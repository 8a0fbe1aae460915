//! One connection to Outrigger, a call at a time.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::generator::parse_reply;

/// A connection that stays open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// To a server's API.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(64 * 1024) })
    }

    /// The body of the reply to a whole request, which must have this status.
    pub(crate) async fn call(&mut self, request: &[u8], expected: u16) -> Result<&[u8]> {
        self.stream.write_all(request).await?;
        self.received.clear();
        loop {
            if self.stream.read_buf(&mut self.received).await? == 0 {
                bail!("the connection was closed after {:?}", String::from_utf8_lossy(&self.received));
            }
            let Some(reply) = parse_reply(&self.received)? else { continue };
            if self.received.len() < reply.total_bytes() {
                let missing = reply.total_bytes() - self.received.len();
                self.received.reserve(missing);
                continue;
            }
            if reply.status != expected {
                bail!("expected status {expected}, got:\n{}", String::from_utf8_lossy(&self.received));
            }
            return Ok(&self.received[reply.head_bytes..reply.total_bytes()]);
        }
    }

    /// Sends a request whose reply is a stream.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request).await?)
    }

    /// What has come of a stream; nothing at its end.
    pub(crate) async fn receive(&mut self) -> Result<&[u8]> {
        self.received.clear();
        self.stream.read_buf(&mut self.received).await?;
        Ok(&self.received)
    }
}
