//! The IPv4 header and the numbers that go with it.
//!
//! FreeBSD: sys/netinet/ip.h, sys/netinet/in.h

use core::net::Ipv4Addr;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version number of IPv4.
pub const IPVERSION: u8 = 4;
/// Default time to live.
pub const IPDEFTTL: u8 = 64;
/// Largest IPv4 packet.
pub const IP_MAXPACKET: usize = 65535;
/// Smallest MTU of any link (RFC 791).
pub const IP_MSS: usize = 576;
/// Smallest MTU we believe in an ICMP message (RFC 1191: no link is narrower than 68).
pub const IP_MINMTU: u32 = 68;

/// `ip_off`: reserved bit ("evil").
pub const IP_RF: u16 = 0x8000;
/// `ip_off`: don't fragment.
pub const IP_DF: u16 = 0x4000;
/// `ip_off`: more fragments follow.
pub const IP_MF: u16 = 0x2000;
/// `ip_off`: offset in units of eight bytes.
pub const IP_OFFMASK: u16 = 0x1fff;

/// `ip_tos`: the ECN field.
pub const IPTOS_ECN_MASK: u8 = 0x03;
/// Not ECN-capable.
pub const IPTOS_ECN_NOTECT: u8 = 0x00;
/// ECN-capable transport, codepoint 1.
pub const IPTOS_ECN_ECT1: u8 = 0x01;
/// ECN-capable transport, codepoint 0.
pub const IPTOS_ECN_ECT0: u8 = 0x02;
/// Congestion experienced.
pub const IPTOS_ECN_CE: u8 = 0x03;
/// Low delay: what `ping` and interactive sessions ask for.
pub const IPTOS_LOWDELAY: u8 = 0x10;

/// Protocol numbers (`ip_p`).
pub const IPPROTO_ICMP: u8 = 1;
/// Internet Group Management Protocol.
pub const IPPROTO_IGMP: u8 = 2;
/// Transmission Control Protocol.
pub const IPPROTO_TCP: u8 = 6;
/// User Datagram Protocol.
pub const IPPROTO_UDP: u8 = 17;
/// Raw IP.
pub const IPPROTO_RAW: u8 = 255;

/// Option types.
pub const IPOPT_EOL: u8 = 0;
/// No operation.
pub const IPOPT_NOP: u8 = 1;
/// Record route.
pub const IPOPT_RR: u8 = 7;
/// Time stamp.
pub const IPOPT_TS: u8 = 68;
/// Loose source route.
pub const IPOPT_LSRR: u8 = 131;
/// Strict source route.
pub const IPOPT_SSRR: u8 = 137;
/// Router alert.
pub const IPOPT_RA: u8 = 148;
/// Bit of an option that is copied into every fragment.
pub const IPOPT_COPIED: u8 = 0x80;
/// Largest option area.
pub const MAX_IPOPTLEN: usize = 40;

/// The fixed part of an IPv4 header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ip {
    /// Version (high four bits) and header length in words.
    pub ip_vhl: u8,
    /// Type of service: DSCP and ECN.
    pub ip_tos: u8,
    /// Total length.
    pub ip_len: U16,
    /// Identification.
    pub ip_id: U16,
    /// Flags and fragment offset.
    pub ip_off: U16,
    /// Time to live.
    pub ip_ttl: u8,
    /// Protocol.
    pub ip_p: u8,
    /// Header checksum.
    pub ip_sum: U16,
    /// Source address.
    pub ip_src: [u8; 4],
    /// Destination address.
    pub ip_dst: [u8; 4],
}

const _: () = assert!(size_of::<Ip>() == Ip::LEN);

impl Ip {
    /// Length of a header without options.
    pub const LEN: usize = 20;

    /// A header without options: version and length set, everything else zero.
    pub fn new() -> Self {
        Self {
            ip_vhl: IPVERSION << 4 | 5,
            ip_tos: 0,
            ip_len: U16::ZERO,
            ip_id: U16::ZERO,
            ip_off: U16::ZERO,
            ip_ttl: 0,
            ip_p: 0,
            ip_sum: U16::ZERO,
            ip_src: [0; 4],
            ip_dst: [0; 4],
        }
    }

    /// Views the start of `packet` as a header; `None` if it is too short.
    pub fn parse(packet: &[u8]) -> Option<&Ip> {
        Ip::ref_from_prefix(packet).ok().map(|(ip, _)| ip)
    }

    /// Views the start of `packet` as a header that can be changed.
    pub fn parse_mut(packet: &mut [u8]) -> Option<&mut Ip> {
        Ip::mut_from_prefix(packet).ok().map(|(ip, _)| ip)
    }

    /// Version.
    pub fn version(&self) -> u8 {
        self.ip_vhl >> 4
    }

    /// Header length in bytes (`ip_hl << 2`).
    pub fn hlen(&self) -> usize {
        usize::from(self.ip_vhl & 0xf) * 4
    }

    /// Sets the header length in bytes; `hlen` is a multiple of four, at most 60.
    pub fn set_hlen(&mut self, hlen: usize) {
        self.ip_vhl = IPVERSION << 4 | (hlen / 4) as u8 & 0xf;
    }

    /// Source address.
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.ip_src)
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.ip_dst)
    }

    /// Sets the source address.
    pub fn set_src(&mut self, src: Ipv4Addr) {
        self.ip_src = src.octets();
    }

    /// Sets the destination address.
    pub fn set_dst(&mut self, dst: Ipv4Addr) {
        self.ip_dst = dst.octets();
    }

    /// Whether this is a fragment (first, middle or last).
    pub fn is_fragment(&self) -> bool {
        self.ip_off.get() & (IP_MF | IP_OFFMASK) != 0
    }
}

impl Default for Ip {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether `addr` is in 224.0.0.0/4 (`IN_MULTICAST`).
pub fn in_multicast(addr: Ipv4Addr) -> bool {
    addr.octets()[0] & 0xf0 == 0xe0
}

/// Whether `addr` is in 127.0.0.0/8.
pub fn in_loopback(addr: Ipv4Addr) -> bool {
    addr.octets()[0] == 127
}

/// Whether `addr` is in 0.0.0.0/8 (`IN_ZERONET`).
pub fn in_zeronet(addr: Ipv4Addr) -> bool {
    addr.octets()[0] == 0
}

/// Whether `addr` is in 240.0.0.0/4 and not the limited broadcast address (`IN_EXPERIMENTAL`).
pub fn in_experimental(addr: Ipv4Addr) -> bool {
    addr.octets()[0] & 0xf0 == 0xf0 && addr != Ipv4Addr::BROADCAST
}

/// Whether `addr` is in 169.254.0.0/16 (`IN_LINKLOCAL`).
pub fn in_linklocal(addr: Ipv4Addr) -> bool {
    addr.octets()[0] == 169 && addr.octets()[1] == 254
}
