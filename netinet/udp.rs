//! The UDP header and the statistics of UDP.
//!
//! FreeBSD: sys/netinet/udp.h, sys/netinet/udp_var.h

use sys::counters;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A UDP header (RFC 768).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udphdr {
    /// Source port.
    pub uh_sport: U16,
    /// Destination port.
    pub uh_dport: U16,
    /// Length of header and data.
    pub uh_ulen: U16,
    /// Checksum; zero: the sender computed none.
    pub uh_sum: U16,
}

const _: () = assert!(size_of::<Udphdr>() == Udphdr::LEN);

impl Udphdr {
    /// Length of the header.
    pub const LEN: usize = 8;
    /// Where `uh_sum` lies: `csum_data` of a packet whose checksum is delayed.
    pub const SUM_OFFSET: u16 = 6;

    /// Views the start of `packet` as a header; `None` if it is too short.
    pub fn parse(packet: &[u8]) -> Option<&Udphdr> {
        Udphdr::ref_from_prefix(packet).ok().map(|(uh, _)| uh)
    }

    /// Views the start of `packet` as a header that can be changed.
    pub fn parse_mut(packet: &mut [u8]) -> Option<&mut Udphdr> {
        Udphdr::mut_from_prefix(packet).ok().map(|(uh, _)| uh)
    }
}

counters! {
    /// What UDP has seen (`netstat -s -p udp`).
    pub struct UdpStat {
        udps_ipackets: "datagrams received",
        udps_hdrops: "with incomplete header",
        udps_badport: "with destination port 0",
        udps_badlen: "with bad data length field",
        udps_badsum: "with bad checksum",
        udps_nosum: "with no checksum",
        udps_noport: "dropped due to no socket",
        udps_noportbcast: "broadcast/multicast datagrams undelivered",
        udps_fullsock: "dropped due to full socket buffers",
        udpps_pcbhashmiss: "not for hashed pcb",
        udps_opackets: "datagrams output",
        udps_fastout: "datagrams output on the fast path",
        udps_noportmcast: "multicast datagrams with no socket",
        udps_filtermcast: "times multicast source filter matched",
    }
}
