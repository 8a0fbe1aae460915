//! Three requests of Kafka's protocol, as a broker answers them without any client library: which brokers it counts as
//! alive (DescribeCluster), who leads the metadata quorum (DescribeQuorum), and a permission that is granted (CreateAcls).
//! Shapes: kafka.apache.org/protocol, and KIP-700, KIP-595 and KIP-290, in the "flexible" encoding of KIP-482.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::acl::KafkaAcl;

/// A request's key and its version.
type Api = (i16, i16);
const CREATE_ACLS: Api = (30, 2);
const DESCRIBE_QUORUM: Api = (55, 0);
const DESCRIBE_CLUSTER: Api = (60, 0);
const METADATA_TOPIC: &str = "__cluster_metadata";
const TIMEOUT: Duration = Duration::from_secs(2);
/// Far above any reply of a few brokers.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// The ids of the brokers that this one counts as alive, in ascending order.
pub(crate) fn alive_brokers(port: u16) -> Result<Vec<i32>, String> {
    // Without authorized operations; no tagged fields.
    let reply = exchange(port, DESCRIBE_CLUSTER, &[0, 0])?;
    let mut reply = Reply(&reply);
    reply.i32()?; // throttle time
    reply.no_error()?;
    reply.compact_bytes()?; // error message
    reply.compact_bytes()?; // cluster id
    reply.i32()?; // some broker, where a controller is asked for
    let mut ids = Vec::new();
    for _ in 0..reply.length()? {
        ids.push(reply.i32()?);
        reply.compact_bytes()?; // host
        reply.i32()?; // port
        reply.compact_bytes()?; // rack
        reply.tagged_fields()?;
    }
    ids.sort_unstable();
    Ok(ids)
}

/// The id of the controller that leads the metadata quorum.
pub(crate) fn quorum_leader(port: u16) -> Result<i32, String> {
    // One topic with one partition, 0; each level ends in "no tagged fields".
    let mut body = vec![2];
    put_string(&mut body, METADATA_TOPIC);
    body.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    let reply = exchange(port, DESCRIBE_QUORUM, &body)?;
    let mut reply = Reply(&reply);
    reply.no_error()?;
    reply.length()?; // topics
    reply.compact_bytes()?; // its name
    reply.length()?; // partitions
    reply.i32()?; // its number
    reply.no_error()?;
    reply.i32()
}

/// Allows a user operations on what has a name, or a name that begins so; from any host.
pub(crate) fn grant(port: u16, user: &str, acl: &KafkaAcl) -> Result<(), String> {
    const PREFIXED: u8 = 4;
    const LITERAL: u8 = 3;
    const ALLOW: u8 = 3;
    let mut body = vec![u8::try_from(acl.operations.len() + 1).unwrap_or(0)];
    for operation in &acl.operations {
        body.push(acl.resource.code());
        put_string(&mut body, &acl.name);
        body.push(if acl.is_prefix { PREFIXED } else { LITERAL });
        put_string(&mut body, &format!("User:{user}"));
        put_string(&mut body, "*");
        body.extend([operation.code(), ALLOW, 0]);
    }
    body.push(0);
    let reply = exchange(port, CREATE_ACLS, &body)?;
    let mut reply = Reply(&reply);
    reply.i32()?; // throttle time
    for _ in 0..reply.length()? {
        reply.no_error()?;
        reply.compact_bytes()?; // error message
        reply.tagged_fields()?;
    }
    Ok(())
}

/// The body of a reply.
fn exchange(port: u16, api: Api, body: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("port {port}: {error}");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.write_all(&request(api, body)).map_err(failed)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(failed)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_REPLY_BYTES {
        return Err(format!("port {port}: a reply of {length} bytes"));
    }
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply).map_err(failed)?;
    let mut header = Reply(&reply);
    header.i32()?; // correlation id
    header.tagged_fields()?;
    Ok(header.0.to_vec())
}

/// Length; key, version, correlation id, client id, no tagged fields; body.
fn request((key, version): Api, body: &[u8]) -> Vec<u8> {
    let client = b"rig";
    let mut text = Vec::new();
    text.extend(key.to_be_bytes());
    text.extend(version.to_be_bytes());
    text.extend([0, 0, 0, 1]);
    text.extend([0, 3]);
    text.extend(client);
    text.push(0);
    text.extend(body);
    let length = u32::try_from(text.len()).unwrap_or(0);
    [length.to_be_bytes().to_vec(), text].concat()
}

/// Of fewer than 127 bytes: the length, plus one, is then a single byte.
fn put_string(body: &mut Vec<u8>, text: &str) {
    body.push(u8::try_from(text.len() + 1).unwrap_or(0));
    body.extend(text.as_bytes());
}

/// What is left of a reply.
struct Reply<'a>(&'a [u8]);

impl Reply<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("a reply is cut short")?;
        self.0 = rest;
        Ok(*head)
    }

    fn advance(&mut self, count: usize) -> Result<(), String> {
        self.0 = self.0.get(count..).ok_or("a reply is cut short")?;
        Ok(())
    }

    fn i32(&mut self) -> Result<i32, String> {
        self.take().map(i32::from_be_bytes)
    }

    fn no_error(&mut self) -> Result<(), String> {
        match self.take().map(i16::from_be_bytes)? {
            0 => Ok(()),
            code => Err(format!("error {code}")),
        }
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<usize, String> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let [byte] = self.take()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number without end".to_owned())
    }

    /// Of a compact array or string: one less than what is sent; 0 of an absent one.
    fn length(&mut self) -> Result<usize, String> {
        self.varint().map(|length| length.saturating_sub(1))
    }

    fn compact_bytes(&mut self) -> Result<(), String> {
        let length = self.length()?;
        self.advance(length)
    }

    fn tagged_fields(&mut self) -> Result<(), String> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = self.varint()?;
            self.advance(length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_are_read_as_kip_482_has_them() {
        assert_eq!(Reply(&[0x05]).varint(), Ok(5));
        assert_eq!(Reply(&[0xac, 0x02]).varint(), Ok(300));
        assert!(Reply(&[0xff; 6]).varint().is_err());
        let mut reply = Reply(&[3, b'a', b'b', 0, 1, 9, 2, 7, 7, 42]);
        reply.compact_bytes().unwrap();
        reply.compact_bytes().unwrap();
        reply.tagged_fields().unwrap();
        assert_eq!(reply.0, [42]);
        assert!(reply.i32().is_err());
    }
}
