//! A raw HTTP/2 client: frames as they are on the wire.

use super::client::Client;
use super::sidecar::Sidecar;

const PING: (u8, u8) = (6, 0);

/// An HTTP/2 connection with prior knowledge, and its frames.
pub struct Http2(Client);

impl Http2 {
    pub fn open(sidecar: &Sidecar) -> Self {
        Self::over(sidecar.client())
    }

    /// The same on a connection that is there.
    pub fn over(mut client: Client) -> Self {
        client.write_raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        Self(client)
    }

    pub fn ping(&mut self) {
        self.0.write_raw(b"\0\0\x08\x06\0\0\0\0\0outrigge").unwrap();
    }

    /// A whole GET on this stream.
    pub fn get(&mut self, stream: u8, path: &str, bearer: &str) {
        self.get_with(stream, path, &[("authorization", bearer)]);
    }

    /// A whole GET with these headers, as literals without indexing (RFC 7541, 6.2.2), in as many frames as they take.
    pub fn get_with(&mut self, stream: u8, path: &str, headers: &[(&str, &str)]) {
        const FRAME_BYTES: usize = 16_384;
        let mut block = Vec::new();
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", path)];
        for (name, value) in pseudo.iter().chain(headers) {
            block.push(0);
            push_text(&mut block, name);
            push_text(&mut block, value);
        }
        let pieces: Vec<&[u8]> = block.chunks(FRAME_BYTES).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
            // HEADERS that end the stream, then CONTINUATION; the last one ends the headers.
            let (kind, mut flags) = if at == 0 { (1, 1) } else { (9, 0) };
            if at + 1 == pieces.len() {
                flags |= 4;
            }
            let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
            frame.extend(*piece);
            self.0.write_raw(&frame).unwrap();
        }
    }

    /// Resets this stream: CANCEL.
    pub fn reset(&mut self, stream: u8) {
        self.0.write_raw(&[0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 8]).unwrap();
    }

    /// The bytes of the next DATA frame; none at the end of the connection.
    pub fn next_data(&mut self) -> Option<Vec<u8>> {
        loop {
            let (kind, _, payload) = self.read_frame()?;
            if kind == 0 {
                return Some(payload);
            }
        }
    }

    /// The next frame's type and flags; none at the end of the connection.
    pub fn next_frame(&mut self) -> Option<(u8, u8)> {
        self.read_frame().map(|(kind, flags, _)| (kind, flags))
    }

    /// The next frame's type, flags and payload; none at the end of the connection.
    pub fn read_frame(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_raw(&mut head).ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.0.read_raw(&mut payload).ok()?;
        if (head[3], head[4]) == PING {
            // As every client does: a server that ends a connection waits for it.
            let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat();
            self.0.write_raw(&answer).ok()?;
        }
        Some((head[3], head[4], payload))
    }
}

/// A string literal: its length as an integer with a prefix of 7 bits (RFC 7541, 5.1), then its bytes.
fn push_text(block: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ ..127 => block.push(length as u8),
        length => {
            block.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                block.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend(text.as_bytes());
}
