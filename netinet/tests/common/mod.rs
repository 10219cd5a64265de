//! What the tests of IPv4 share: sockets by one line, frames by hand, a wire that is watched.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

use core::net::Ipv4Addr;
use netinet::ip::{IPPROTO_UDP, Ip};
use netinet::udp::Udphdr;
use netsim::wire::{Dir, Verdict};
use netsim::world::{Host, World};
use std::sync::{Arc, Mutex};
use std::vec::Vec;
use sys::errno::Errno;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine::hosted::pump;
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};
use sys::machine::sbinuptime;
use sys::socket::{AF_INET, MsgFlags, SockAddr, SockType};
use sys::time::Sbintime;
use zerocopy::IntoBytes;

pub use netsim::wire::WireConfig;
pub use netsim::world::{ADDR_A, ADDR_B};

/// How long a test waits for what should come.
pub const PATIENCE: Sbintime = Sbintime::from_s(5);

/// Lets virtual time pass.
pub fn pass_ms(ms: i64) {
    pump(sbinuptime() + Sbintime::from_ms(ms));
}

/// Lets virtual time pass.
pub fn pass_s(s: i64) {
    pump(sbinuptime() + Sbintime::from_s(s));
}

/// A UDP socket, bound to a port if it is not 0.
pub fn udp(host: &Host, port: u16) -> SocketHandle {
    let so = SocketHandle::socket(&host.vnet, AF_INET, SockType::Dgram, 0).expect("a UDP socket");
    if port != 0 {
        so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, port))
            .expect("a free port");
    }
    so.set_rcvtimeo(Some(PATIENCE)).expect("a timeout");
    so
}

/// A raw socket of a protocol.
pub fn raw(host: &Host, proto: u8) -> SocketHandle {
    let so = SocketHandle::socket(&host.vnet, AF_INET, SockType::Raw, i32::from(proto))
        .expect("a raw socket");
    so.set_rcvtimeo(Some(PATIENCE)).expect("a timeout");
    so
}

/// Receives one datagram.
pub fn receive(so: &SocketHandle) -> Result<(Vec<u8>, SockAddr), Errno> {
    let mut buffer = vec![0; 70_000];
    let (len, from) = so.recvfrom(&mut buffer, MsgFlags::empty())?;
    buffer.truncate(len);
    Ok((buffer, from.expect("a datagram has a sender")))
}

/// Sends a datagram.
pub fn send_to(so: &SocketHandle, data: &[u8], to: Ipv4Addr, port: u16) -> Result<usize, Errno> {
    so.sendto(data, MsgFlags::empty(), &SockAddr::v4(to, port))
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// An Ethernet frame from host to host around `payload`.
pub fn frame(from: &Host, to: &Host, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&to.ifp.lladdr());
    frame.extend_from_slice(&from.ifp.lladdr());
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An IPv4 packet to build by hand.
#[derive(Clone)]
pub struct Packet {
    /// The header; lengths and checksum are filled in by `bytes`.
    pub ip: Ip,
    /// Options, a multiple of four.
    pub options: Vec<u8>,
    /// What comes behind.
    pub payload: Vec<u8>,
}

impl Packet {
    /// From one host to the other.
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, payload: &[u8]) -> Self {
        let mut ip = Ip::new();
        ip.set_src(src);
        ip.set_dst(dst);
        ip.ip_p = proto;
        ip.ip_ttl = 64;
        ip.ip_id.set(0x1234);
        Self {
            ip,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// With a good checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut ip = self.ip;
        let hlen = Ip::LEN + self.options.len();
        ip.set_hlen(hlen);
        ip.ip_len.set((hlen + self.payload.len()) as u16);
        ip.ip_sum.set(0);
        let mut header = ip.as_bytes().to_vec();
        header.extend_from_slice(&self.options);
        let sum = in_cksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header.extend_from_slice(&self.payload);
        header
    }
}

/// A UDP datagram with its checksum.
pub fn udp_bytes(src: Ipv4Addr, dst: Ipv4Addr, sport: u16, dport: u16, data: &[u8]) -> Vec<u8> {
    let len = (Udphdr::LEN + data.len()) as u16;
    let mut bytes = Vec::new();
    for word in [sport, dport, len, 0] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    let pseudo = in_pseudo(src, dst, u32::from(IPPROTO_UDP) + u32::from(len));
    let sum = match in_cksum_partial(&bytes, false).add_u16(pseudo).finish() {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A frame and which way it went.
type Crossed = (Dir, Vec<u8>);

/// Everything that crosses the wire.
#[derive(Clone, Default)]
pub struct Tap(Arc<Mutex<Vec<Crossed>>>);

impl Tap {
    /// Watches from now on.
    pub fn on(world: &World) -> Self {
        let tap = Self::default();
        let seen = tap.0.clone();
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            seen.lock().unwrap().push((dir, frame.clone()));
            Verdict::Pass
        })));
        tap
    }

    /// Watches from now on, and drops what `drops` says.
    pub fn dropping(
        world: &World,
        mut drops: impl FnMut(Dir, &[u8]) -> bool + Send + 'static,
    ) -> Self {
        let tap = Self::default();
        let seen = tap.0.clone();
        world.wire.set_hook(Some(Box::new(move |dir, _, frame| {
            seen.lock().unwrap().push((dir, frame.clone()));
            if drops(dir, frame) {
                Verdict::Drop
            } else {
                Verdict::Pass
            }
        })));
        tap
    }

    /// What was seen of one way and type so far, Ethernet header removed.
    pub fn seen(&self, dir: Dir, ether_type: u16) -> Vec<Vec<u8>> {
        let seen = self.0.lock().unwrap();
        let wanted = seen
            .iter()
            .filter(|(d, f)| *d == dir && f[12..14] == ether_type.to_be_bytes());
        wanted.map(|(_, frame)| frame[14..].to_vec()).collect()
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
