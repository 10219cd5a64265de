//! What happens to frames beyond what a link does: outages, losses by kind, garbled bytes, forged segments; and the
//! digest of everything.

use crate::lab::lock;
use crate::runs::play::FIRST_PORT;
use crate::runs::scenario::{Dice, Scenario, Target};
use netinet::ip::IPPROTO_TCP;
use netinet::tcp::TcpFlags;
use netsim::wire::{Dir, Verdict, Wire};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex};
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};

/// Protocol number of ICMPv6.
const ICMPV6: u8 = 58;
/// Length of an Ethernet header.
const ETHER: usize = 14;

/// What a hook and an observer share with the rest of a run.
#[derive(Default)]
pub struct Shared {
    /// Outages that go on: from A, from B.
    pub outages: [u32; 2],
    /// The longest packet that passes, from A and from B, and whether the sender of a longer one is told.
    pub path_mtu: [Option<(usize, bool)>; 2],
    /// Of all that crosses.
    digest: DefaultHasher,
    /// Frames that crossed.
    pub frames: u64,
    /// The last segment that crossed, and its way.
    pub last: Option<(Dir, Vec<u8>)>,
    /// When something last arrived at each port of the clients: (at the client, at the server).
    pub arrivals: Vec<[Arrivals; 2]>,
}

/// What arrived at one end of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    /// When any segment last arrived, in ms.
    pub any_ms: Option<i64>,
    /// When one last acknowledged more than those before.
    pub progress_ms: Option<i64>,
    ack: Option<u32>,
}

impl Shared {
    /// For so many connections.
    pub fn new(connections: usize) -> Shared {
        Shared {
            arrivals: vec![Default::default(); connections],
            ..Shared::default()
        }
    }

    /// The digest so far.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Adds what an end told.
    pub fn note(&mut self, words: &str) {
        self.digest.write(words.as_bytes());
    }

    fn frame(&mut self, way: u8, ms: i64, frame: &[u8]) {
        self.digest.write_u8(way);
        self.digest.write_i64(ms);
        self.digest.write(frame);
        self.frames += 1;
    }
}

/// A TCP segment in a frame.
pub struct Segment {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Flags.
    pub flags: TcpFlags,
    /// Acknowledgement number.
    pub ack: u32,
    /// Whether it carries data.
    pub data: bool,
}

/// Finds the segment in a frame, checksum not looked at.
pub fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(ETHER..)?;
    let (start, end) = match frame.get(12..ETHER)? {
        [8, 0] if packet.get(9) == Some(&IPPROTO_TCP) => {
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            (usize::from(packet.first()? & 15) * 4, total)
        }
        [0x86, 0xdd] if packet.get(6) == Some(&IPPROTO_TCP) => {
            let len = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            (40, 40 + len)
        }
        _ => return None,
    };
    let th = packet.get(start..end)?;
    let word = |at: usize| th.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let long = |at: usize| th.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    Some(Segment {
        sport: word(0)?,
        dport: word(2)?,
        ack: long(8)?,
        flags: TcpFlags::from_bits_truncate(word(12)? & 0xfff),
        data: th.len() > usize::from(th.get(12)? >> 4) * 4,
    })
}

/// The hook that makes the trouble of a scenario.
pub fn hook(
    scenario: &Scenario,
    wire: &Wire,
    shared: Arc<Mutex<Shared>>,
    begun: Arc<Mutex<bool>>,
) -> netsim::wire::Hook {
    let mut dice = Dice::new(scenario.seed ^ 0x6a7b);
    let mut targets: Vec<Target> = scenario.targets.clone();
    let garble = scenario.garble;
    let mut standing = HashSet::new();
    let forges = scenario.forge_ms > 0;
    let wire = wire.clone();
    Box::new(move |dir, _, frame| {
        let ms = crate::lab::now_ms();
        let mut shared = lock(&shared);
        shared.frame(dir as u8, ms, frame);
        // Before both ends have a connection, whoever knows its addresses can break it: that is no defect.
        if forges && segment(frame).is_some_and(|s| stands(&mut standing, &s)) {
            shared.last = Some((dir, frame.clone()));
        }
        if !*lock(&begun) {
            return Verdict::Pass;
        }
        if shared.outages[usize::from(dir == Dir::BtoA)] > 0 {
            return Verdict::Drop;
        }
        if let Some((mtu, told)) = shared.path_mtu[usize::from(dir == Dir::BtoA)]
            && packet_len(frame) > mtu
        {
            drop(shared);
            if told && let Some(report) = too_big(frame, mtu) {
                let back = if dir == Dir::AtoB {
                    Dir::BtoA
                } else {
                    Dir::AtoB
                };
                wire.inject(back, &report);
            }
            return Verdict::Drop;
        }
        if let Some(found) = segment(frame)
            && let Some(target) = targets.iter_mut().find(|t| t.hits(&found))
        {
            target.count -= 1;
            return Verdict::Drop;
        }
        // An Ethernet has its own checksum, which the wire does not have, and ARP has none besides.
        let arp = frame[12..ETHER] == [8, 6];
        if !arp && frame.len() > ETHER && dice.chance(garble) {
            spoil(&mut dice, frame);
        }
        Verdict::Pass
    })
}

/// Length of the IP packet in a frame, padding not counted; 0 if there is none.
fn packet_len(frame: &[u8]) -> usize {
    let word = |at: usize| {
        let bytes = frame.get(at..at + 2).and_then(|b| b.try_into().ok());
        bytes.map_or(0, |b| usize::from(u16::from_be_bytes(b)))
    };
    match frame.get(12..ETHER) {
        Some([8, 0]) => word(ETHER + 2),
        Some([0x86, 0xdd]) => 40 + word(ETHER + 4),
        _ => 0,
    }
}

/// What a router says to the sender of a packet that is too long for its next link, as if it stood at the other end.
fn too_big(frame: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let mut report = Vec::new();
    report.extend_from_slice(frame.get(6..12)?);
    report.extend_from_slice(frame.get(..6)?);
    report.extend_from_slice(frame.get(12..ETHER)?);
    let packet = frame.get(ETHER..)?;
    let v4 = frame[12..ETHER] == [8, 0];
    // RFC 792: the header and eight bytes; RFC 4443 §3.2: as much as fits 1280 bytes.
    let quoted = if v4 {
        packet.get(..28)?
    } else {
        &packet[..packet.len().min(1232)]
    };
    let mut icmp = if v4 {
        let mtu = (mtu as u16).to_be_bytes();
        vec![3, 4, 0, 0, 0, 0, mtu[0], mtu[1]]
    } else {
        let mut icmp = vec![2, 0, 0, 0];
        icmp.extend_from_slice(&(mtu as u32).to_be_bytes());
        icmp
    };
    icmp.extend_from_slice(quoted);
    let len = icmp.len() as u16;
    if v4 {
        let sum = in_cksum(&icmp).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        let total = (len + 20).to_be_bytes();
        let mut ip = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 1, 0, 0];
        ip.extend_from_slice(packet.get(16..20)?);
        ip.extend_from_slice(packet.get(12..16)?);
        let sum = in_cksum(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        report.extend_from_slice(&ip);
    } else {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend_from_slice(&len.to_be_bytes());
        ip.extend_from_slice(&[ICMPV6, 64]);
        ip.extend_from_slice(packet.get(24..40)?);
        ip.extend_from_slice(packet.get(8..24)?);
        let pseudo = pseudo6(&ip[8..40], ICMPV6, len);
        let sum = in_cksum_partial(&icmp, false).add_u16(pseudo).finish();
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        report.extend_from_slice(&ip);
    }
    report.extend_from_slice(&icmp);
    Some(report)
}

/// The sum of IPv6's pseudo header: both addresses, protocol, length.
fn pseudo6(addresses: &[u8], proto: u8, len: u16) -> u16 {
    let words = addresses
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum = words.sum::<u32>() + u32::from(proto) + u32::from(len);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether the server's end of a connection has said more than its SYN, and so has a socket.
fn stands(standing: &mut HashSet<u16>, found: &Segment) -> bool {
    if found.flags.intersects(TcpFlags::SYN | TcpFlags::RST) {
        return false;
    }
    if found.dport >= FIRST_PORT {
        standing.insert(found.dport);
        return true;
    }
    standing.contains(&found.sport)
}

impl Target {
    fn hits(&self, found: &Segment) -> bool {
        self.count > 0
            && found.flags.contains(self.flags)
            && !found.flags.intersects(self.without)
            && self.data.is_none_or(|data| data == found.data)
    }
}

/// Flips bits so that a checksum finds it: one, or a burst of up to 15.
fn spoil(dice: &mut Dice, frame: &mut [u8]) {
    let bits = (frame.len() - ETHER) as u64 * 8;
    let first = dice.range(0..=bits - 1);
    let mut mask = dice.range(0..=0x7fff) as u16 | 1;
    if dice.chance(0.5) {
        mask = 1;
    }
    for i in 0..15 {
        let bit = first + i;
        if mask >> i & 1 == 1 && bit < bits {
            frame[ETHER + (bit / 8) as usize] ^= 1 << (7 - bit % 8);
        }
    }
}

/// The observer that notes what arrives.
pub fn observer(shared: Arc<Mutex<Shared>>) -> netsim::wire::Observer {
    Box::new(move |dir, at, frame| {
        let mut shared = lock(&shared);
        let ms = at.as_millis() as i64;
        shared.frame(2 + dir as u8, ms, frame);
        let Some(found) = segment(frame) else {
            return;
        };
        // The client's port tells the connection, and whether the client sends or receives.
        let connections = shared.arrivals.len() as u16;
        let of = |port: u16| {
            let n = port.wrapping_sub(FIRST_PORT);
            (n < connections).then_some(usize::from(n))
        };
        let (connection, end) = match (of(found.dport), of(found.sport)) {
            (Some(n), _) => (n, 0),
            (None, Some(n)) => (n, 1),
            (None, None) => return,
        };
        let arrivals = &mut shared.arrivals[connection][end];
        arrivals.any_ms = Some(ms);
        let more = arrivals
            .ack
            .is_none_or(|before| found.ack.wrapping_sub(before) as i32 > 0);
        if found.flags.contains(TcpFlags::ACK) && more {
            arrivals.ack = Some(found.ack);
            arrivals.progress_ms = Some(ms);
        }
    })
}

/// Makes a segment that neither end sent, from the addresses of one that did: any numbers, any flags, good checksums.
pub fn forge(dice: &mut Dice, like: &[u8]) -> Option<Vec<u8>> {
    let v4 = like.get(12..ETHER)? == [8, 0];
    let start = ETHER + if v4 { 20 } else { 40 };
    segment(like)?;
    let mut frame = like.get(..start + 20)?.to_vec();
    let data = dice.range(0..=200) as usize;
    let (seq, ack) = (dice.word(), dice.word());
    let flags = dice.pick(&[0x02, 0x04, 0x10, 0x10, 0x11, 0x12, 0x14, 0x18, 0x29, 0x00]);
    let th = &mut frame[start..];
    th[4..8].copy_from_slice(&seq.to_be_bytes());
    th[8..12].copy_from_slice(&ack.to_be_bytes());
    th[12] = 0x50;
    th[13] = flags;
    th[16..18].fill(0);
    frame.resize(start + 20 + data, 0xee);
    let len = (20 + data) as u16;
    let pseudo = if v4 {
        frame[ETHER] = 0x45;
        frame[16..18].copy_from_slice(&(len + 20).to_be_bytes());
        frame[24..26].fill(0);
        let sum = in_cksum(&frame[ETHER..start]).to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
        let addr = |at: usize| {
            core::net::Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap_or_default())
        };
        in_pseudo(addr(26), addr(30), u32::from(IPPROTO_TCP) + u32::from(len))
    } else {
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        pseudo6(&frame[22..54], IPPROTO_TCP, len)
    };
    let sum = in_cksum_partial(&frame[start..], false)
        .add_u16(pseudo)
        .finish();
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}
