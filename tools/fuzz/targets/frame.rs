//! Frames around what a record has for a parser, and how to look at frames of the stack.

use super::input::{Control, Record};
use crate::generate::checksum;
use core::net::{Ipv4Addr, Ipv6Addr};

/// Link address of the stack under test.
pub const OUR_MAC: [u8; 6] = [0x02, 0x46, 0x5a, 0, 0, 1];
/// That of everybody else.
pub const PEER_MAC: [u8; 6] = [0x02, 0x46, 0x5a, 0, 0, 9];
/// Addresses of the stack and its peer.
pub const OUR_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The peer's.
pub const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The stack's in IPv6.
pub const OUR_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The peer's.
pub const PEER_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
/// The port that something listens on, TCP and UDP.
pub const PORT: u16 = 5201;
/// Port of the peer in what is made here.
pub const PEER_PORT: u16 = 4000;

const ETHER: usize = 14;
const IP: usize = 20;
const IP6: usize = 40;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const FRAGMENT: u8 = 44;

/// Which parser a record's bytes are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// Ethernet, with its header.
    Ether,
    /// ARP.
    Arp,
    /// IPv4, with its header.
    Ip,
    /// ICMP.
    Icmp,
    /// A fragment: offset and flags in two bytes, identification and protocol in one each, data.
    Fragment,
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// IPv6, with its header.
    Ip6,
    /// What follows an IPv6 header: the first byte is its next header.
    Ip6Ext,
    /// A fragment as above, of IPv6.
    Fragment6,
    /// ICMPv6, behind a byte that chooses addresses and hop limit.
    Icmp6,
    /// UDP in IPv6.
    Udp6,
    /// TCP in IPv6.
    Tcp6,
}

/// Makes the frame of a record.
pub fn frame(layer: Layer, record: &Record<'_>) -> Vec<u8> {
    let (control, bytes) = (record.control, record.bytes);
    let mut f = match layer {
        Layer::Ether => bytes.to_vec(),
        Layer::Arp => ether(control, 0x0806, bytes),
        Layer::Ip => ether(control, 0x0800, bytes),
        Layer::Icmp => ip(control, ICMP, 0, 0, bytes),
        Layer::Udp => ip(control, UDP, 0, 0, bytes),
        Layer::Tcp => ip(control, TCP, 0, 0, bytes),
        Layer::Fragment => {
            let (off, id, proto, data) = fragment(bytes);
            ip(control, proto, u16::from(id), off, data)
        }
        Layer::Ip6 => ether(control, 0x86dd, bytes),
        Layer::Ip6Ext => {
            let (next, chain) = bytes.split_first().unwrap_or((&59, &[]));
            ip6(control, 0, *next, chain)
        }
        Layer::Fragment6 => {
            let (off, id, next, data) = fragment(bytes);
            // The offset counts from bit 3 here, and "more" is bit 0 (RFC 8200 §4.5).
            let word = (off & 0x1fff) << 3 | off >> 13 & 1;
            let [high, low] = word.to_be_bytes();
            let header = [next, 0, high, low, 0, 0, 0, id];
            ip6(control, 0, FRAGMENT, &[&header, data].concat())
        }
        Layer::Icmp6 => {
            let (how, message) = bytes.split_first().unwrap_or((&0, &[]));
            ip6(control, *how, ICMP6, message)
        }
        Layer::Udp6 => ip6(control, 0, UDP, bytes),
        Layer::Tcp6 => ip6(control, 0, TCP, bytes),
    };
    put_right(&mut f, control);
    f
}

/// Offset and flags, identification, protocol, and data of a fragment's record.
fn fragment(bytes: &[u8]) -> (u16, u8, u8, &[u8]) {
    let mut head = [0; 4];
    let len = bytes.len().min(4);
    head[..len].copy_from_slice(&bytes[..len]);
    let [high, low, id, proto] = head;
    (u16::from_be_bytes([high, low]), id, proto, &bytes[len..])
}

fn ether(control: Control, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = Vec::with_capacity(ETHER + payload.len());
    match (control.group(), ether_type) {
        (true, 0x86dd) => {
            // The group's address follows from the one in the packet (RFC 2464 §7).
            let dst = payload.get(36..40).unwrap_or(&[0, 0, 0, 1]);
            f.extend([0x33, 0x33]);
            f.extend(dst);
        }
        (true, _) => f.extend([0xff; 6]),
        (false, _) => f.extend(OUR_MAC),
    }
    f.extend(PEER_MAC);
    f.extend(ether_type.to_be_bytes());
    f.extend(payload);
    f
}

fn ip(control: Control, proto: u8, id: u16, off: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0];
    p[2..4].copy_from_slice(&((IP + payload.len()) as u16).to_be_bytes());
    p[4..6].copy_from_slice(&id.to_be_bytes());
    p[6..8].copy_from_slice(&off.to_be_bytes());
    p.extend(PEER_IP.octets());
    p.extend(OUR_IP.octets());
    p.extend(payload);
    ether(control, 0x0800, &p)
}

fn ip6(control: Control, how: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let ours = netinet::netinet6::in6::in6_linklocal_of(OUR_MAC);
    let peers = netinet::netinet6::in6::in6_linklocal_of(PEER_MAC);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
    let (src, dst) = match how & 7 {
        0 | 1 => (PEER_IP6, OUR_IP6),
        2 => (peers, ours),
        3 => (peers, all_nodes),
        4 => (PEER_IP6, solicited),
        5 => (Ipv6Addr::UNSPECIFIED, solicited),
        6 => (Ipv6Addr::UNSPECIFIED, all_nodes),
        _ => (ours, OUR_IP6),
    };
    // Neighbour discovery believes only what no router has passed on.
    let hops = if how & 0x30 == 0x30 { 64 } else { 255 };
    let mut p = vec![0x60, 0, 0, 0, 0, 0, next, hops];
    p[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    p.extend(src.octets());
    p.extend(dst.octets());
    p.extend(payload);
    let control = if dst.is_multicast() {
        Control(control.0 | 0xc0)
    } else {
        control
    };
    ether(control, 0x86dd, &p)
}

/// Makes lengths and checksums right, as far as `control` says so and there is room for them.
fn put_right(f: &mut [u8], control: Control) {
    let Some(packet) = f.get_mut(ETHER..) else {
        return;
    };
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IP => put_right_ip(packet, control),
        Some(6) if packet.len() >= IP6 => put_right_ip6(packet, control),
        _ => {}
    }
}

fn put_right_ip(p: &mut [u8], control: Control) {
    if control.lengths() {
        let len = p.len() as u16;
        p[2..4].copy_from_slice(&len.to_be_bytes());
    }
    if !control.sums() {
        return;
    }
    let header = usize::from(p[0] & 15) * 4;
    if header < IP || header > p.len() {
        return;
    }
    let fragment = u16::from_be_bytes([p[6], p[7]]) & 0x3fff != 0;
    let (proto, pseudo) = (p[9], pairs(&p[12..20]) + u32::from(p[9]));
    if !fragment {
        put_right_transport(&mut p[header..], proto, pseudo, control);
    }
    p[10..12].fill(0);
    let sum = checksum(0, &p[..header]);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn put_right_ip6(p: &mut [u8], control: Control) {
    if control.lengths() {
        let len = (p.len() - IP6) as u16;
        p[4..6].copy_from_slice(&len.to_be_bytes());
    }
    if !control.sums() {
        return;
    }
    if let Some((proto, at)) = transport6(p) {
        let pseudo = pairs(&p[8..40]) + u32::from(proto);
        put_right_transport(&mut p[at..], proto, pseudo, control);
    }
}

/// What an IPv6 packet carries behind its extension headers, and where; `None` of a fragment, or if it is malformed.
pub fn transport6(p: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*p.get(6)?, IP6);
    loop {
        match next {
            // Hop by hop, routing, destination options.
            0 | 43 | 60 => {
                let head = p.get(at..at + 8)?;
                next = head[0];
                at += (usize::from(head[1]) + 1) * 8;
            }
            FRAGMENT => return None,
            _ => return (at <= p.len()).then_some((next, at)),
        }
    }
}

/// The sum of 16-bit words.
fn pairs(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

/// Where the checksum of a protocol stands, and whether it covers addresses (`v6`: ICMPv6's does).
fn sum_at(proto: u8) -> Option<(usize, bool)> {
    match proto {
        ICMP => Some((2, false)),
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        ICMP6 => Some((2, true)),
        _ => None,
    }
}

fn put_right_transport(t: &mut [u8], proto: u8, pseudo: u32, control: Control) {
    let Some((at, covers)) = sum_at(proto) else {
        return;
    };
    if t.len() < at + 2 {
        return;
    }
    if proto == UDP && control.lengths() {
        let len = t.len() as u16;
        t[4..6].copy_from_slice(&len.to_be_bytes());
    }
    t[at..at + 2].fill(0);
    let start = if covers { pseudo + t.len() as u32 } else { 0 };
    let sum = checksum(fold(start), t);
    t[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

/// What is wrong with a frame that the stack sent, if anything: lengths that do not agree, checksums, addresses.
pub fn fault(f: &[u8]) -> Option<String> {
    let Some(packet) = f.get(ETHER..) else {
        return Some(format!("a frame of {} bytes", f.len()));
    };
    if f[6..12] != OUR_MAC {
        return Some("a foreign source address".into());
    }
    match [f[12], f[13]] {
        [8, 0] => fault_ip(packet),
        [8, 6] if packet.len() < 28 => Some(format!("ARP of {} bytes", packet.len())),
        [8, 6] => None,
        [0x86, 0xdd] => fault_ip6(packet),
        other => Some(format!("type {other:02x?}")),
    }
}

fn fault_ip(p: &[u8]) -> Option<String> {
    if p.len() < IP || p[0] >> 4 != 4 {
        return Some("no IPv4 header".into());
    }
    let header = usize::from(p[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([p[2], p[3]]));
    if header < IP || header > p.len() || total != p.len() {
        return Some(format!("header {header}, total {total}, of {}", p.len()));
    }
    if checksum(0, &p[..header]) != 0 {
        return Some("IPv4 checksum".into());
    }
    if u16::from_be_bytes([p[6], p[7]]) & 0x3fff != 0 {
        return None;
    }
    let pseudo = pairs(&p[12..20]) + u32::from(p[9]);
    fault_transport(&p[header..], p[9], pseudo)
}

fn fault_ip6(p: &[u8]) -> Option<String> {
    if p.len() < IP6 || p[0] >> 4 != 6 {
        return Some("no IPv6 header".into());
    }
    let len = usize::from(u16::from_be_bytes([p[4], p[5]]));
    if IP6 + len != p.len() {
        return Some(format!("payload {len}, packet {}", p.len()));
    }
    if p[6] == FRAGMENT {
        return None;
    }
    let Some((proto, at)) = transport6(p) else {
        return Some("extension headers".into());
    };
    let pseudo = pairs(&p[8..40]) + u32::from(proto);
    fault_transport(&p[at..], proto, pseudo)
}

fn fault_transport(t: &[u8], proto: u8, pseudo: u32) -> Option<String> {
    let (at, covers) = sum_at(proto)?;
    let field = t.get(at..at + 2);
    let Some(field) = field else {
        return Some(format!("protocol {proto} in {} bytes", t.len()));
    };
    // RFC 768: no checksum.
    if proto == UDP && field == [0, 0] {
        return None;
    }
    let start = if covers { pseudo + t.len() as u32 } else { 0 };
    if checksum(fold(start), t) != 0 {
        return Some(format!("checksum of protocol {proto}"));
    }
    let offset = (proto == TCP).then(|| usize::from(t[12] >> 4) * 4);
    offset
        .filter(|&offset| offset < 20 || offset > t.len())
        .map(|offset| format!("TCP header of {offset} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Layer; 12] = [
        Layer::Arp,
        Layer::Ip,
        Layer::Icmp,
        Layer::Fragment,
        Layer::Udp,
        Layer::Tcp,
        Layer::Ip6,
        Layer::Ip6Ext,
        Layer::Fragment6,
        Layer::Icmp6,
        Layer::Udp6,
        Layer::Tcp6,
    ];

    /// Whatever a layer makes, turned round as if the stack had sent it, has right sums and lengths.
    #[test]
    fn frames_are_put_right_and_faults_are_found() {
        let mut bytes = vec![0; 60];
        (bytes[0], bytes[12]) = (17, 0x50);
        for layer in ALL {
            let record = Record {
                control: Control::USUAL,
                bytes: &bytes,
            };
            let mut f = frame(layer, &record);
            f[6..12].copy_from_slice(&OUR_MAC);
            let whole = !matches!(layer, Layer::Ip | Layer::Ip6);
            assert_eq!(fault(&f).is_none(), whole, "{layer:?}: {:?}", fault(&f));
            let last = f.len() - 1;
            f[last] ^= 1;
            let covered = matches!(
                layer,
                Layer::Icmp | Layer::Udp | Layer::Tcp | Layer::Icmp6 | Layer::Udp6 | Layer::Tcp6
            );
            if covered {
                assert!(fault(&f).is_some(), "{layer:?}");
            }
        }
    }
}
