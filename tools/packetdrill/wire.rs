//! Packets as bytes: made from a script, read from the stack.

use crate::ast::{Md5, TcpOption};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use md5::Digest;
use sys::machine::in_cksum::in_cksum_partial;

/// Most bytes of options in a TCP header.
pub const MAX_OPTIONS: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_HLEN: usize = 20;
/// Bytes of an IPv4 header without options.
pub const IPV4_HLEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_HLEN: usize = 40;
const UDP_HLEN: usize = 8;

/// ICMP's protocol number.
pub const IPPROTO_ICMP: u8 = 1;
/// TCP's.
pub const IPPROTO_TCP: u8 = 6;
/// UDP's.
pub const IPPROTO_UDP: u8 = 17;
/// ICMPv6's.
pub const IPPROTO_ICMPV6: u8 = 58;

const OPT_EOL: u8 = 0;
const OPT_NOP: u8 = 1;
const OPT_MSS: u8 = 2;
const OPT_WSCALE: u8 = 3;
const OPT_SACKOK: u8 = 4;
const OPT_SACK: u8 = 5;
const OPT_TS: u8 = 8;
const OPT_MD5: u8 = 19;
const OPT_FO: u8 = 34;
const OPT_EXP: u8 = 254;
/// Marks the experimental form of Fast Open.
const EXP_FO_MAGIC: [u8; 2] = [0xf9, 0x89];

/// Flags of a TCP header.
pub struct TcpFlag;

impl TcpFlag {
    /// FIN.
    pub const FIN: u16 = 0x001;
    /// SYN.
    pub const SYN: u16 = 0x002;
    /// RST.
    pub const RST: u16 = 0x004;
    /// PSH.
    pub const PSH: u16 = 0x008;
    /// ACK.
    pub const ACK: u16 = 0x010;
    /// URG.
    pub const URG: u16 = 0x020;
    /// ECE.
    pub const ECE: u16 = 0x040;
    /// CWR.
    pub const CWR: u16 = 0x080;
    /// AE.
    pub const AE: u16 = 0x100;

    const LETTERS: [(char, u16); 9] = [
        ('F', Self::FIN),
        ('S', Self::SYN),
        ('R', Self::RST),
        ('P', Self::PSH),
        ('E', Self::ECE),
        ('W', Self::CWR),
        ('A', Self::AE),
        ('U', Self::URG),
        ('.', Self::ACK),
    ];

    /// The flag of a letter; a digit is a value of the ACE field (AE, CWR, ECE).
    pub fn from_letter(letter: char) -> Option<u16> {
        if let Some(ace) = letter.to_digit(8) {
            return Some((ace as u16) << 6);
        }
        let known = Self::LETTERS.iter().find(|(l, _)| *l == letter);
        known.map(|(_, flag)| *flag)
    }

    /// Flags as a script writes them.
    pub fn show(flags: u16) -> String {
        let set = Self::LETTERS.iter().filter(|(_, flag)| flags & flag != 0);
        let letters: String = set.map(|(letter, _)| *letter).collect();
        match letters.is_empty() {
            true => "-".into(),
            false => letters,
        }
    }
}

/// What an IP header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpHeader {
    /// From.
    pub src: IpAddr,
    /// To.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Flow label; 0 in IPv4.
    pub flowlabel: u32,
}

/// A TCP segment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags; the upper three are reserved.
    pub flags: u16,
    /// Window, unscaled.
    pub win: u16,
    /// Urgent pointer.
    pub urg: u16,
    /// Options.
    pub options: Vec<TcpOption>,
    /// Bytes of payload; all are zero.
    pub len: usize,
}

/// What a packet carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// TCP.
    Tcp(Segment),
    /// UDP: ports and length.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Bytes of payload.
        len: usize,
    },
    /// ICMP of either version.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Something else.
    Other(u8),
}

/// A packet that the stack sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The IP header.
    pub ip: IpHeader,
    /// Ports of a UDP header around TCP: source, destination.
    pub udp: Option<(u16, u16)>,
    /// What it carries.
    pub payload: Payload,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// The IP packet's bytes.
    pub bytes: Vec<u8>,
}

/// Writes options one after the other; `digest` stands for a valid signature.
pub fn encode_options(options: &[TcpOption], digest: [u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX_OPTIONS);
    for option in options {
        match option {
            TcpOption::Eol => out.push(OPT_EOL),
            TcpOption::Nop => out.push(OPT_NOP),
            TcpOption::Mss(mss) => put(&mut out, OPT_MSS, &mss.to_be_bytes()),
            TcpOption::WindowScale(shift) => put(&mut out, OPT_WSCALE, &[*shift]),
            TcpOption::SackPermitted => put(&mut out, OPT_SACKOK, &[]),
            TcpOption::Sack(blocks) => {
                let words = blocks.iter().flat_map(|(start, end)| [start, end]);
                let bytes: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
                put(&mut out, OPT_SACK, &bytes);
            }
            TcpOption::Timestamps { val, ecr } => {
                let both = u64::from(*val) << 32 | u64::from(*ecr);
                put(&mut out, OPT_TS, &both.to_be_bytes());
            }
            TcpOption::Md5(md5) => {
                let bytes = match md5 {
                    Md5::Valid => digest,
                    Md5::Invalid => digest.map(|byte| !byte),
                    Md5::Digest(digest) => *digest,
                };
                put(&mut out, OPT_MD5, &bytes);
            }
            TcpOption::FastOpen(cookie) => put(&mut out, OPT_FO, cookie),
            TcpOption::FastOpenExperimental(cookie) => {
                put(&mut out, OPT_EXP, &[&EXP_FO_MAGIC[..], cookie].concat());
            }
            TcpOption::Other { kind, data } => put(&mut out, *kind, data),
        }
    }
    out
}

fn put(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    out.extend_from_slice(&[kind, data.len() as u8 + 2]);
    out.extend_from_slice(data);
}

/// Reads options, padding too; says what is malformed.
fn decode_options(mut bytes: &[u8]) -> Result<Vec<TcpOption>, String> {
    let mut options = Vec::new();
    while let [kind, rest @ ..] = bytes {
        bytes = rest;
        match *kind {
            // What follows the end of the list is padding, and has to be zero (RFC 9293 §3.1).
            OPT_EOL if rest.iter().any(|&byte| byte != 0) => {
                return Err("options behind the end of their list".into());
            }
            OPT_EOL => options.push(TcpOption::Eol),
            OPT_NOP => options.push(TcpOption::Nop),
            kind => {
                let len = usize::from(*rest.first().unwrap_or(&0));
                let inside = len.checked_sub(2).and_then(|len| rest.get(1..1 + len));
                let Some(data) = inside else {
                    return Err(format!("option {kind} has length {len}"));
                };
                options.push(decode_option(kind, data));
                bytes = &rest[1 + data.len()..];
            }
        }
    }
    Ok(options)
}

fn decode_option(kind: u8, data: &[u8]) -> TcpOption {
    let word = |at: usize| u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    match (kind, data) {
        (OPT_MSS, &[high, low]) => TcpOption::Mss(u16::from_be_bytes([high, low])),
        (OPT_WSCALE, &[shift]) => TcpOption::WindowScale(shift),
        (OPT_SACKOK, []) => TcpOption::SackPermitted,
        (OPT_SACK, blocks) if blocks.len().is_multiple_of(8) => {
            let starts = (0..blocks.len()).step_by(8);
            TcpOption::Sack(starts.map(|at| (word(at), word(at + 4))).collect())
        }
        (OPT_TS, data) if data.len() == 8 => TcpOption::Timestamps {
            val: word(0),
            ecr: word(4),
        },
        (OPT_MD5, data) if data.len() == 16 => {
            let mut digest = [0; 16];
            digest.copy_from_slice(data);
            TcpOption::Md5(Md5::Digest(digest))
        }
        (OPT_FO, cookie) => TcpOption::FastOpen(cookie.to_vec()),
        (OPT_EXP, data) if data.starts_with(&EXP_FO_MAGIC) => {
            TcpOption::FastOpenExperimental(data[2..].to_vec())
        }
        _ => TcpOption::Other {
            kind,
            data: data.to_vec(),
        },
    }
}

/// Options as a script writes them.
pub fn show_options(options: &[TcpOption]) -> String {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    let shown: Vec<String> = options
        .iter()
        .map(|option| match option {
            TcpOption::Eol => "eol".into(),
            TcpOption::Nop => "nop".into(),
            TcpOption::Mss(mss) => format!("mss {mss}"),
            TcpOption::WindowScale(shift) => format!("wscale {shift}"),
            TcpOption::SackPermitted => "sackOK".into(),
            TcpOption::Sack(blocks) => {
                let blocks = blocks.iter().map(|(start, end)| format!(" {start}:{end}"));
                format!("sack{}", blocks.collect::<String>())
            }
            TcpOption::Timestamps { val, ecr } => format!("TS val {val} ecr {ecr}"),
            TcpOption::Md5(Md5::Valid) => "md5 valid".into(),
            TcpOption::Md5(Md5::Invalid) => "md5 invalid".into(),
            TcpOption::Md5(Md5::Digest(digest)) => format!("md5 {}", hex(digest)),
            TcpOption::FastOpen(cookie) if cookie.is_empty() => "FO".into(),
            TcpOption::FastOpen(cookie) => format!("FO {}", hex(cookie)),
            TcpOption::FastOpenExperimental(cookie) => format!("FOEXP {}", hex(cookie)),
            TcpOption::Other { kind, data } => format!("kind {kind} {}", hex(data)),
        })
        .collect();
    shown.join(",")
}

/// A sum that is right if `bytes` contain it, of what is between `src` and `dst`.
fn checksum(src: IpAddr, dst: IpAddr, proto: u8, bytes: &[u8]) -> u16 {
    let mut pseudo = Vec::with_capacity(IPV6_HLEN);
    addresses(src, dst, &mut pseudo);
    pseudo.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, proto]);
    let sum = in_cksum_partial(&pseudo, false).finish();
    in_cksum_partial(bytes, false).add_u16(!sum).finish()
}

fn addresses(src: IpAddr, dst: IpAddr, out: &mut Vec<u8>) {
    for addr in [src, dst] {
        match addr {
            IpAddr::V4(addr) => out.extend_from_slice(&addr.octets()),
            IpAddr::V6(addr) => out.extend_from_slice(&addr.octets()),
        }
    }
}

/// A segment as bytes; `md5_key` signs it.
pub fn encode_tcp(src: IpAddr, dst: IpAddr, segment: &Segment, md5_key: &[u8]) -> Vec<u8> {
    let header = |options: &[u8]| {
        let mut out = Vec::with_capacity(TCP_HLEN + options.len() + segment.len);
        out.extend_from_slice(&segment.sport.to_be_bytes());
        out.extend_from_slice(&segment.dport.to_be_bytes());
        out.extend_from_slice(&segment.seq.to_be_bytes());
        out.extend_from_slice(&segment.ack.to_be_bytes());
        let words = (TCP_HLEN + options.len()) as u16 / 4;
        out.extend_from_slice(&(words << 12 | segment.flags & 0xfff).to_be_bytes());
        out.extend_from_slice(&segment.win.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&segment.urg.to_be_bytes());
        out.extend_from_slice(options);
        out.resize(out.len() + segment.len, 0);
        out
    };
    let unsigned = header(&encode_options(&segment.options, [0; 16]));
    let digest = md5_digest(src, dst, &unsigned, md5_key);
    let mut out = header(&encode_options(&segment.options, digest));
    let sum = checksum(src, dst, IPPROTO_TCP, &out);
    out[16..18].copy_from_slice(&sum.to_be_bytes());
    out
}

/// RFC 2385 §2: over pseudo-header, header without options and with checksum 0, data, key.
pub fn md5_digest(src: IpAddr, dst: IpAddr, tcp: &[u8], key: &[u8]) -> [u8; 16] {
    let mut pseudo = Vec::new();
    addresses(src, dst, &mut pseudo);
    match src {
        IpAddr::V4(_) => {
            pseudo.extend_from_slice(&[0, IPPROTO_TCP]);
            pseudo.extend_from_slice(&(tcp.len() as u16).to_be_bytes());
        }
        IpAddr::V6(_) => {
            pseudo.extend_from_slice(&(tcp.len() as u32).to_be_bytes());
            pseudo.extend_from_slice(&[0, 0, 0, IPPROTO_TCP]);
        }
    }
    let off = usize::from(tcp[12] >> 4) * 4;
    let mut md5 = md5::Md5::new();
    md5.update(&pseudo);
    md5.update(&tcp[..16]);
    md5.update([0, 0]);
    md5.update(&tcp[18..TCP_HLEN]);
    md5.update(&tcp[off..]);
    md5.update(key);
    md5.finalize().into()
}

/// Puts a UDP header in front of `inside`.
pub fn encode_udp(src: IpAddr, dst: IpAddr, ports: (u16, u16), inside: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(UDP_HLEN + inside.len());
    out.extend_from_slice(&ports.0.to_be_bytes());
    out.extend_from_slice(&ports.1.to_be_bytes());
    out.extend_from_slice(&((UDP_HLEN + inside.len()) as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(inside);
    let sum = match checksum(src, dst, IPPROTO_UDP, &out) {
        0 => 0xffff,
        sum => sum,
    };
    out[6..8].copy_from_slice(&sum.to_be_bytes());
    out
}

/// An ICMP message of the version that the addresses have.
pub fn encode_icmp(src: IpAddr, dst: IpAddr, head: [u8; 8], quoted: &[u8]) -> Vec<u8> {
    let mut out = head.to_vec();
    out.extend_from_slice(quoted);
    out[2..4].fill(0);
    let sum = match src {
        IpAddr::V4(_) => in_cksum_partial(&out, false).finish(),
        IpAddr::V6(_) => checksum(src, dst, IPPROTO_ICMPV6, &out),
    };
    out[2..4].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Puts an IP header in front of `inside`.
pub fn encode_ip(header: &IpHeader, proto: u8, inside: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(IPV6_HLEN + inside.len());
    match (header.src, header.dst) {
        (IpAddr::V4(_), _) => {
            out.extend_from_slice(&[0x45, header.tos]);
            out.extend_from_slice(&((IPV4_HLEN + inside.len()) as u16).to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, header.ttl, proto, 0, 0]);
            addresses(header.src, header.dst, &mut out);
            let sum = in_cksum_partial(&out, false).finish();
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(_), _) => {
            let first = 6 << 28 | u32::from(header.tos) << 20 | header.flowlabel & 0xf_ffff;
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&(inside.len() as u16).to_be_bytes());
            out.extend_from_slice(&[proto, header.ttl]);
            addresses(header.src, header.dst, &mut out);
        }
    }
    out.extend_from_slice(inside);
    out
}

/// Reads an IP packet; the reason if it is none. `encapsulated` tells whether UDP carries TCP from or to its port.
pub fn decode(packet: &[u8], encapsulated: bool) -> Result<Seen, String> {
    let (ip, proto, inside, mut faults) = decode_ip(packet)?;
    let mut seen = Seen {
        ip,
        udp: None,
        payload: Payload::Other(proto),
        faults: Vec::new(),
        bytes: packet.to_vec(),
    };
    let mut inside = inside;
    let mut proto = proto;
    if proto == IPPROTO_UDP {
        let [s0, s1, d0, d1, l0, l1, c0, c1, rest @ ..] = inside else {
            return Err("a cut UDP header".into());
        };
        let ports = (
            u16::from_be_bytes([*s0, *s1]),
            u16::from_be_bytes([*d0, *d1]),
        );
        if usize::from(u16::from_be_bytes([*l0, *l1])) != inside.len() {
            faults.push("UDP length".into());
        }
        let absent = (*c0, *c1) == (0, 0) && ip.src.is_ipv4();
        if !absent && checksum(ip.src, ip.dst, IPPROTO_UDP, inside) != 0 {
            faults.push("UDP checksum".into());
        }
        seen.payload = Payload::Udp {
            sport: ports.0,
            dport: ports.1,
            len: rest.len(),
        };
        if encapsulated {
            seen.udp = Some(ports);
            inside = rest;
            proto = IPPROTO_TCP;
        }
    }
    match proto {
        IPPROTO_TCP => {
            seen.payload = Payload::Tcp(decode_tcp(&ip, inside, seen.udp.is_some(), &mut faults)?)
        }
        IPPROTO_ICMP | IPPROTO_ICMPV6 => {
            let [kind, code, ..] = inside else {
                return Err("a cut ICMP header".into());
            };
            seen.payload = Payload::Icmp {
                kind: *kind,
                code: *code,
            };
        }
        _ => {}
    }
    seen.faults = faults;
    Ok(seen)
}

type IpParts<'a> = (IpHeader, u8, &'a [u8], Vec<String>);

fn decode_ip(packet: &[u8]) -> Result<IpParts<'_>, String> {
    let mut faults = Vec::new();
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let hlen = usize::from(packet[0] & 0xf) * 4;
            let header = packet.get(..hlen).filter(|h| h.len() >= IPV4_HLEN);
            let header = header.ok_or("a cut IPv4 header")?;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let inside = packet.get(hlen..total).ok_or("a cut IPv4 packet")?;
            if in_cksum_partial(header, false).finish() != 0 {
                faults.push("IPv4 header checksum".into());
            }
            let addr = |at: usize| {
                IpAddr::V4(Ipv4Addr::new(
                    header[at],
                    header[at + 1],
                    header[at + 2],
                    header[at + 3],
                ))
            };
            let ip = IpHeader {
                src: addr(12),
                dst: addr(16),
                ttl: header[8],
                tos: header[1],
                flowlabel: 0,
            };
            Ok((ip, header[9], inside, faults))
        }
        Some(6) => {
            let header: &[u8; IPV6_HLEN] = packet.first_chunk().ok_or("a cut IPv6 header")?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let inside = packet.get(IPV6_HLEN..IPV6_HLEN + len);
            let inside = inside.ok_or("a cut IPv6 packet")?;
            let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let addr = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            let ip = IpHeader {
                src: addr(8),
                dst: addr(24),
                ttl: header[7],
                tos: (first >> 20) as u8,
                flowlabel: first & 0xf_ffff,
            };
            Ok((ip, header[6], inside, faults))
        }
        _ => Err("no IP packet".into()),
    }
}

fn decode_tcp(
    ip: &IpHeader,
    tcp: &[u8],
    in_udp: bool,
    faults: &mut Vec<String>,
) -> Result<Segment, String> {
    let fixed: &[u8; TCP_HLEN] = tcp.first_chunk().ok_or("a cut TCP header")?;
    let off = usize::from(fixed[12] >> 4) * 4;
    let options = tcp
        .get(TCP_HLEN..off)
        .ok_or("a TCP header of a wrong length")?;
    // Inside UDP the outer checksum protects the segment, and the inner one is zero.
    let sum = u16::from_be_bytes([fixed[16], fixed[17]]);
    if !(in_udp && sum == 0) && checksum(ip.src, ip.dst, IPPROTO_TCP, tcp) != 0 {
        faults.push("TCP checksum".into());
    }
    if tcp[off..].iter().any(|&byte| byte != 0) {
        faults.push("payload: only zeros were sent".into());
    }
    let half = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
    Ok(Segment {
        sport: half(0),
        dport: half(2),
        seq: word(4),
        ack: word(8),
        flags: half(12) & 0xfff,
        win: half(14),
        urg: half(18),
        options: decode_options(options)?,
        len: tcp.len() - off,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(v6: bool) -> (IpAddr, IpAddr) {
        match v6 {
            false => ([192, 0, 2, 1].into(), [192, 168, 0, 1].into()),
            true => (
                [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
                [0xfd3d, 0, 0, 0, 0, 0, 0, 1].into(),
            ),
        }
    }

    fn segment() -> Segment {
        Segment {
            sport: 1,
            dport: 8080,
            seq: 0xfedc_ba98,
            ack: 7,
            flags: TcpFlag::SYN | TcpFlag::ACK | TcpFlag::AE,
            win: 0xbeef,
            urg: 3,
            options: vec![
                TcpOption::Mss(1460),
                TcpOption::Nop,
                TcpOption::WindowScale(6),
                TcpOption::Sack(vec![(1, 2)]),
                TcpOption::Other {
                    kind: 77,
                    data: vec![5, 6],
                },
                TcpOption::FastOpen(vec![1, 2]),
                TcpOption::Eol,
                TcpOption::Eol,
            ],
            len: 10,
        }
    }

    #[test]
    fn a_segment_survives_writing_and_reading_in_both_versions_and_in_udp() {
        for (v6, in_udp) in [(false, false), (true, false), (false, true), (true, true)] {
            let (src, dst) = ends(v6);
            let header = IpHeader {
                src,
                dst,
                ttl: 5,
                tos: 0x13,
                flowlabel: 0,
            };
            let mut inside = encode_tcp(src, dst, &segment(), b"");
            let mut proto = IPPROTO_TCP;
            if in_udp {
                inside = encode_udp(src, dst, (9, 9811), &inside);
                proto = IPPROTO_UDP;
            }
            let seen = decode(&encode_ip(&header, proto, &inside), in_udp).expect("a packet");
            assert_eq!(seen.ip, header);
            assert_eq!(seen.payload, Payload::Tcp(segment()));
            assert_eq!(seen.udp, in_udp.then_some((9, 9811)));
            assert!(seen.faults.is_empty(), "{:?}", seen.faults);
        }
    }

    #[test]
    fn a_wrong_checksum_and_foreign_payload_are_noticed() {
        let (src, dst) = ends(false);
        let header = IpHeader {
            src,
            dst,
            ttl: 5,
            tos: 0,
            flowlabel: 0,
        };
        let mut packet = encode_ip(&header, IPPROTO_TCP, &encode_tcp(src, dst, &segment(), b""));
        *packet.last_mut().expect("not empty") = 1;
        let seen = decode(&packet, false).expect("a packet");
        assert_eq!(seen.faults.len(), 2, "{:?}", seen.faults);
        assert!(decode(&packet[..30], false).is_err());
    }

    #[test]
    fn a_signature_depends_on_the_key_and_not_on_itself() {
        let (src, dst) = ends(false);
        let signed = Segment {
            options: vec![TcpOption::Nop, TcpOption::Nop, TcpOption::Md5(Md5::Valid)],
            ..segment()
        };
        let bytes = encode_tcp(src, dst, &signed, b"secret");
        let digest = md5_digest(src, dst, &bytes, b"secret");
        assert_eq!(bytes[24..40], digest);
        assert_ne!(bytes[24..40], md5_digest(src, dst, &bytes, b"public"));
    }
}
