//! Which addresses a request that leaves this process may go to. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds answer for their machines' credentials and settings, to whoever asks: EC2 and most others, ECS, EKS,
/// Alibaba Cloud, Azure's wire server (a public address).
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// The same of EC2, EKS and Google Cloud.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254),
];

/// How far requests to a target may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Addresses of the public internet.
    Public,
    /// These, and private, shared (CGNAT), link-local and loopback ones; never a cloud's metadata.
    Private,
    /// This machine alone.
    Loopback,
}

/// What an address is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Public,
    Private,
    /// Metadata, multicast, unspecified, documentation, benchmarks, reserved, and deprecated transition: no server.
    Never,
}

impl Reach {
    /// Whether a connection may be made to `address`.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Public => network(address) == Network::Public,
            Self::Private => network(address) != Network::Never,
            Self::Loopback => address.is_loopback(),
        }
    }
}

fn network(address: IpAddr) -> Network {
    match address {
        IpAddr::V4(address) => network_v4(address),
        IpAddr::V6(address) => network_v6(address),
    }
}

/// By IANA's registry of special-purpose IPv4 addresses (RFC 6890).
fn network_v4(address: Ipv4Addr) -> Network {
    if METADATA_V4.contains(&address) {
        return Network::Never;
    }
    match address.octets() {
        [10 | 127, ..] | [192, 168, ..] | [169, 254, ..] => Network::Private,
        [172, second, ..] if (16..32).contains(&second) => Network::Private,
        [100, second, ..] if (64..128).contains(&second) => Network::Private,
        [0 | 224..=255, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Network::Never,
        _ => Network::Public,
    }
}

/// By IANA's registry of special-purpose IPv6 addresses (RFC 6890): only global unicast, `2000::/3`, is public.
fn network_v6(address: Ipv6Addr) -> Network {
    if METADATA_V6.contains(&address) {
        return Network::Never;
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Network::Private,
        // IPv4-mapped, and NAT64's well-known prefix (RFC 6052): the IPv4 address is where the packets arrive.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            network_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Unique local, and link-local.
        [0xfc00..=0xfdff | 0xfe80..=0xfebf, ..] => Network::Private,
        // Protocol assignments with Teredo; documentation, twice; 6to4, which RFC 7526 ended.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Network::Never,
        [0x2000..=0x3fff, ..] => Network::Public,
        _ => Network::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reached_unless_private_ones_are_allowed() {
        use Network::{Never, Private, Public};
        for (text, expected) in [
            ("8.8.8.8", Public),
            ("172.15.255.255", Public),
            ("172.32.0.1", Public),
            ("100.63.255.255", Public),
            ("100.128.0.1", Public),
            ("198.20.0.1", Public),
            ("223.255.255.255", Public),
            ("10.0.0.1", Private),
            ("127.0.0.1", Private),
            ("127.255.255.254", Private),
            ("172.16.0.1", Private),
            ("172.31.255.255", Private),
            ("192.168.1.1", Private),
            ("169.254.1.1", Private),
            ("100.64.0.1", Private),
            ("169.254.169.254", Never),
            ("169.254.170.2", Never),
            ("100.100.100.200", Never),
            ("168.63.129.16", Never),
            ("0.0.0.0", Never),
            ("0.1.2.3", Never),
            ("192.0.0.1", Never),
            ("192.0.2.1", Never),
            ("192.88.99.1", Never),
            ("198.18.0.1", Never),
            ("198.51.100.1", Never),
            ("203.0.113.1", Never),
            ("224.0.0.1", Never),
            ("255.255.255.255", Never),
            ("2606:4700:4700::1111", Public),
            ("::1", Private),
            ("fc00::1", Private),
            ("fdff::1", Private),
            ("fe80::1", Private),
            ("::ffff:8.8.8.8", Public),
            ("::ffff:127.0.0.1", Private),
            ("::ffff:169.254.169.254", Never),
            ("64:ff9b::8.8.8.8", Public),
            ("64:ff9b::10.0.0.1", Private),
            ("64:ff9b::169.254.169.254", Never),
            ("64:ff9b:1::8.8.8.8", Never),
            ("2002:7f00:1::1", Never),
            ("2001::1", Never),
            ("2001:db8::1", Never),
            ("3fff::1", Never),
            ("fd00:ec2::254", Never),
            ("fd20:ce::254", Never),
            ("ff02::1", Never),
            ("fec0::1", Never),
            ("::", Never),
            ("::7f00:1", Never),
            ("4000::1", Never),
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(network(address), expected, "{text}");
            assert_eq!(Reach::Public.allows(address), expected == Public, "{text}");
            assert_eq!(Reach::Private.allows(address), expected != Never, "{text}");
        }
    }

    #[test]
    fn the_application_s_own_port_is_on_this_machine() {
        for (text, allowed) in [("127.0.0.1", true), ("::1", true), ("10.0.0.1", false), ("8.8.8.8", false)] {
            assert_eq!(Reach::Loopback.allows(text.parse().unwrap()), allowed, "{text}");
        }
    }
}
