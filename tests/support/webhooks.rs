//! An endpoint of webhooks on a port of its own: what it is sent, and how it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::Value;

/// What an endpoint was sent.
#[derive(Debug)]
pub struct Received {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Value,
    pub text: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(held, _)| held.eq_ignore_ascii_case(name)).unwrap().1
    }
}

/// Answers each request with the status line's rest that `answer` returns, or never where it returns none. Returns the port.
pub fn endpoint(answer: impl Fn(Received) -> Option<&'static str> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, answer) = (listener.local_addr().unwrap().port(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                while let Some(received) = request(&mut stream) {
                    let Some(status) = answer(received) else { continue };
                    let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                    if stream.get_mut().write_all(reply.as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// The next request of a connection; none at its end.
fn request(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).ok()?;
    Some(Received { path, headers, body: serde_json::from_slice(&text).unwrap(), text })
}
