//! Which protocol a new connection speaks: seen in its first bytes, none of which are taken.
//!
//! Reading them into a buffer of their own first would make hyper's reader double its buffer for every
//! connection: 16 KiB instead of 8, for as long as the connection is there.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// How HTTP/2 with prior knowledge begins (RFC 9113, 3.4); no method of HTTP/1 does.
const PREFACE: &[u8; 3] = b"PRI";
/// How often a connection is looked at whose first bytes could still become either.
const AGAIN_AFTER: Duration = Duration::from_millis(1);

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A stream whose next bytes can be looked at.
pub(super) trait Peek: Sync {
    /// Waits for bytes and copies them without taking them; 0 at the end of the stream.
    fn peek_bytes(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
}

impl Peek for TcpStream {
    async fn peek_bytes(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.peek(buffer).await
    }
}

impl Peek for UnixStream {
    async fn peek_bytes(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let peek = || {
            let (read, _) = rustix::net::recv(self, &mut *buffer, rustix::net::RecvFlags::PEEK)?;
            Ok(read)
        };
        self.async_io(Interest::READABLE, peek).await
    }
}

/// Waits for the connection's first bytes and says what they are the beginning of.
pub(super) async fn protocol_of(stream: &impl Peek) -> io::Result<Protocol> {
    let mut first = [0; PREFACE.len()];
    loop {
        let read = stream.peek_bytes(&mut first).await?;
        let seen = first.get(..read).unwrap_or(&first);
        if seen == PREFACE {
            return Ok(Protocol::Http2);
        }
        if seen.is_empty() || !PREFACE.starts_with(seen) {
            return Ok(Protocol::Http1);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_and_stay() {
        for (first, expected) in [
            (&b"PRI * HTTP/2.0\r\n"[..], Protocol::Http2),
            (b"PRI", Protocol::Http2),
            (b"PUT /", Protocol::Http1),
            (b"GET /", Protocol::Http1),
            (b"\x16\x03\x01", Protocol::Http1),
            (b"", Protocol::Http1),
        ] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(first).await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(protocol_of(&server).await.unwrap(), expected, "{first:?}");
            let mut taken = [0; 32];
            server.readable().await.unwrap();
            assert_eq!(server.try_read(&mut taken).unwrap(), first.len());
        }
    }

    #[tokio::test]
    async fn a_preface_in_pieces_is_waited_for() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"P").await.unwrap();
        let (found, ()) = tokio::join!(protocol_of(&server), async {
            tokio::task::yield_now().await;
            client.write_all(b"RI *").await.unwrap();
        });
        assert_eq!(found.unwrap(), Protocol::Http2);
    }
}
