//! Ethernet input and output.
//!
//! FreeBSD: sys/net/if_ethersubr.c, sys/net/ethernet.h

use core::fmt;

use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::{CsumFlags, How, MFlags, Mbuf, MbufQueue};
use crate::net::bpf::{BpfDir, bpf_mtap};
use crate::net::if_loop::if_simloop;
use crate::net::ifnet::{IfFlags, Ifnet};
use crate::net::netisr::{self, NetisrProto};
use crate::net::pfil::{PfilDir, PfilVerdict};

/// A link-layer address.
pub type EtherAddr = [u8; 6];
/// Bytes of an Ethernet header.
pub const ETHER_HDR_LEN: usize = 14;
/// Bytes of an Ethernet address.
pub const ETHER_ADDR_LEN: usize = 6;
/// Bytes of the frame check sequence.
pub const ETHER_CRC_LEN: usize = 4;
/// Bytes of a VLAN tag.
pub const ETHER_VLAN_ENCAP_LEN: usize = 4;
/// Smallest frame including FCS.
pub const ETHER_MIN_LEN: usize = 64;
/// Largest frame including FCS.
pub const ETHER_MAX_LEN: usize = 1518;
/// Standard MTU.
pub const ETHERMTU: u32 = 1500;
/// The broadcast address.
pub const ETHER_BROADCAST: EtherAddr = [0xff; 6];
/// IPv4.
pub const ETHERTYPE_IP: u16 = 0x0800;
/// ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// A VLAN tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bits of a tag that number the VLAN.
const EVL_VLID_MASK: u16 = 0x0fff;

/// Prints an address the usual way.
pub struct EtherText(pub EtherAddr);

impl fmt::Display for EtherText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The Ethernet header, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtherHeader {
    /// Destination.
    pub ether_dhost: EtherAddr,
    /// Source.
    pub ether_shost: EtherAddr,
    /// Type of the payload.
    pub ether_type: u16,
}

impl EtherHeader {
    /// Reads the header at the start of `frame`; `None` if it is too short.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<EtherHeader> {
        let raw: &[u8; ETHER_HDR_LEN] = frame.first_chunk()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *raw;
        Some(EtherHeader {
            ether_dhost: [d0, d1, d2, d3, d4, d5],
            ether_shost: [s0, s1, s2, s3, s4, s5],
            ether_type: u16::from_be_bytes([t0, t1]),
        })
    }

    /// The header as it stands on the wire.
    #[inline]
    pub fn to_bytes(&self) -> [u8; ETHER_HDR_LEN] {
        let mut raw = [0; ETHER_HDR_LEN];
        raw[..6].copy_from_slice(&self.ether_dhost);
        raw[6..12].copy_from_slice(&self.ether_shost);
        raw[12..].copy_from_slice(&self.ether_type.to_be_bytes());
        raw
    }
}

/// Whether an address names a group (broadcast included).
#[doc(alias = "ETHER_IS_MULTICAST")]
#[inline]
pub fn is_multicast(addr: &EtherAddr) -> bool {
    addr[0] & 1 != 0
}

/// Puts the Ethernet header in front of `m` and sends it; the source is the interface's address.
///
/// The caller resolved `dst`; `m` carries its header lengths and `l2hlen` is filled in here.
pub fn ether_output(
    ifp: &Ifnet,
    epoch: &NetEpoch,
    m: Mbuf,
    dst: EtherAddr,
    ether_type: u16,
) -> Result<(), Errno> {
    let flags = ifp.flags();
    if flags.contains(IfFlags::MONITOR) || !flags.contains(IfFlags::UP | IfFlags::RUNNING) {
        ifp.counters.oqdrops.inc();
        return Err(Errno::ENETDOWN);
    }
    let mut m = m;
    if is_multicast(&dst) {
        m.add_flags(if dst == ETHER_BROADCAST {
            MFlags::BCAST
        } else {
            MFlags::MCAST
        });
        // A simplex interface does not hear its own broadcasts: we get a copy from here.
        if dst == ETHER_BROADCAST
            && ether_type == ETHERTYPE_IP
            && flags.contains(IfFlags::SIMPLEX)
            && let Some(mut copy) = m.dup(How::NoWait)
        {
            // What the interface would have computed for the wire counts as verified for us.
            let header = copy.pkthdr_mut();
            let mut verified = CsumFlags::empty();
            if header.csum_flags.contains(CsumFlags::IP) {
                verified |= CsumFlags::IP_CHECKED | CsumFlags::IP_VALID;
            }
            if header.csum_flags.intersects(CsumFlags::DELAY_DATA) {
                verified |= CsumFlags::DATA_VALID | CsumFlags::PSEUDO_HDR;
                header.csum_data = 0xffff;
            }
            header.csum_flags = verified;
            // A full queue is counted where it is found.
            let _ = if_simloop(ifp, epoch, copy, NetisrProto::Ip);
        }
    }
    let header = EtherHeader {
        ether_dhost: dst,
        ether_shost: ifp.lladdr(),
        ether_type,
    };
    let Ok(mut m) = m.prepend(ETHER_HDR_LEN, How::NoWait) else {
        ifp.counters.oerrors.inc();
        return Err(Errno::ENOBUFS);
    };
    m.data_mut()[..ETHER_HDR_LEN].copy_from_slice(&header.to_bytes());
    m.pkthdr_mut().l2hlen = ETHER_HDR_LEN as u8;
    ether_output_frame(ifp, epoch, m)
}

/// Sends a complete frame: filters, taps, driver. Counts it.
pub fn ether_output_frame(ifp: &Ifnet, epoch: &NetEpoch, m: Mbuf) -> Result<(), Errno> {
    let m = match ifp.vnet().pfil_ether.run(epoch, ifp, PfilDir::Out, m) {
        PfilVerdict::Pass(m) => m,
        PfilVerdict::Dropped => return Err(Errno::EACCES),
        PfilVerdict::Consumed => return Ok(()),
    };
    bpf_mtap(ifp, epoch, BpfDir::Out, &m);
    let len = m.pkt_len() as u64;
    let group = m.flags().intersects(MFlags::MCAST | MFlags::BCAST);
    let sent = ifp.driver().transmit(ifp, m);
    let counters = &ifp.counters;
    match sent {
        Ok(()) => {
            counters.opackets.inc();
            counters.obytes.add(len);
            if group {
                counters.omcasts.inc();
            }
        }
        Err(_) => counters.oqdrops.inc(),
    }
    sent
}

/// Received frames, all of `ifp`, enter the stack. Frames for one protocol in a row go up together.
#[doc(alias = "ether_input")]
pub fn ether_input_batch(ifp: &Ifnet, epoch: &NetEpoch, frames: &mut MbufQueue) {
    let (mut packets, mut bytes) = (0, 0);
    let mut run = MbufQueue::new();
    let mut run_proto = NetisrProto::Ip;
    let lladdr = ifp.lladdr();
    let vnet = ifp.vnet();
    while let Some(m) = frames.pop() {
        packets += 1;
        bytes += m.pkt_len() as u64;
        let Some((proto, m)) = ether_input_internal(ifp, epoch, &lladdr, m) else {
            continue;
        };
        if proto != run_proto && !run.is_empty() {
            netisr::dispatch_batch(vnet, epoch, run_proto, &mut run);
        }
        run_proto = proto;
        run.push(m);
    }
    ifp.counters.ipackets.add(packets);
    ifp.counters.ibytes.add(bytes);
    netisr::count_direct(NetisrProto::Ether, packets);
    if !run.is_empty() {
        netisr::dispatch_batch(vnet, epoch, run_proto, &mut run);
    }
}

/// Checks one frame and takes its header off. `None`: it was dropped (and counted) or consumed.
#[inline]
fn ether_input_internal(
    ifp: &Ifnet,
    epoch: &NetEpoch,
    lladdr: &EtherAddr,
    m: Mbuf,
) -> Option<(NetisrProto, Mbuf)> {
    let flags = ifp.flags();
    if !flags.contains(IfFlags::UP) {
        ifp.counters.iqdrops.inc();
        return None;
    }
    let mut m = m;
    if m.len() < ETHER_HDR_LEN {
        // Too short altogether, or cut into small pieces by the driver.
        match m.pullup(ETHER_HDR_LEN) {
            Ok(whole) => m = whole,
            Err(_) => {
                ifp.counters.ierrors.inc();
                return None;
            }
        }
    }
    let Some(mut header) = EtherHeader::parse(m.data()) else {
        ifp.counters.ierrors.inc();
        return None;
    };
    m.pkthdr_mut().rcvif = ifp.if_index;
    if is_multicast(&header.ether_dhost) {
        m.add_flags(if header.ether_dhost == ETHER_BROADCAST {
            MFlags::BCAST
        } else {
            MFlags::MCAST
        });
        ifp.counters.imcasts.inc();
    } else if header.ether_dhost != *lladdr {
        m.add_flags(MFlags::PROMISC);
    }
    bpf_mtap(ifp, epoch, BpfDir::In, &m);
    if flags.contains(IfFlags::MONITOR) {
        return None;
    }
    if header.ether_type == ETHERTYPE_VLAN && !m.flags().contains(MFlags::VLANTAG) {
        (m, header) = take_vlan_tag(ifp, m, header)?;
    }
    ether_demux(ifp, epoch, m, header)
}

/// Moves a tag from the frame to the packet header.
#[cold]
fn take_vlan_tag(ifp: &Ifnet, m: Mbuf, header: EtherHeader) -> Option<(Mbuf, EtherHeader)> {
    let Ok(mut m) = m.pullup(ETHER_HDR_LEN + ETHER_VLAN_ENCAP_LEN) else {
        ifp.counters.ierrors.inc();
        return None;
    };
    let [.., t0, t1, p0, p1] = *m
        .data()
        .first_chunk::<{ ETHER_HDR_LEN + ETHER_VLAN_ENCAP_LEN }>()?;
    let inner = EtherHeader {
        ether_type: u16::from_be_bytes([p0, p1]),
        ..header
    };
    m.pkthdr_mut().ether_vtag = u16::from_be_bytes([t0, t1]);
    m.add_flags(MFlags::VLANTAG);
    if m.writable() {
        m.data_mut()
            .copy_within(..2 * ETHER_ADDR_LEN, ETHER_VLAN_ENCAP_LEN);
    }
    m.trim_front(ETHER_VLAN_ENCAP_LEN);
    Some((m, inner))
}

/// Finds the protocol of a frame and takes the header off.
#[inline]
fn ether_demux(
    ifp: &Ifnet,
    epoch: &NetEpoch,
    m: Mbuf,
    header: EtherHeader,
) -> Option<(NetisrProto, Mbuf)> {
    let mut m = match ifp.vnet().pfil_ether.run(epoch, ifp, PfilDir::In, m) {
        PfilVerdict::Pass(m) => m,
        PfilVerdict::Dropped | PfilVerdict::Consumed => return None,
    };
    let flags = m.flags();
    if flags.intersects(MFlags::VLANTAG | MFlags::PROMISC) {
        // VLAN 0 carries only a priority. There are no VLAN interfaces to give others to.
        if flags.contains(MFlags::VLANTAG) && m.pkthdr().ether_vtag & EVL_VLID_MASK != 0 {
            ifp.counters.noproto.inc();
            return None;
        }
        m.clear_flags(MFlags::VLANTAG);
        if flags.contains(MFlags::PROMISC) {
            ifp.counters.iqdrops.inc();
            return None;
        }
    }
    let proto = match header.ether_type {
        ETHERTYPE_IP => NetisrProto::Ip,
        ETHERTYPE_ARP if !ifp.flags().contains(IfFlags::NOARP) => NetisrProto::Arp,
        ETHERTYPE_IPV6 if ifp.vnet().netisr_handler(NetisrProto::Ip6, epoch).is_some() => {
            NetisrProto::Ip6
        }
        _ => {
            ifp.counters.noproto.inc();
            return None;
        }
    };
    m.clrprotoflags();
    m.trim_front(ETHER_HDR_LEN);
    Some((proto, m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_what_was_written() {
        let header = EtherHeader {
            ether_dhost: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            ether_shost: [2, 0, 0, 0, 0, 1],
            ether_type: ETHERTYPE_ARP,
        };
        assert_eq!(EtherHeader::parse(&header.to_bytes()), Some(header));
        assert_eq!(EtherHeader::parse(&header.to_bytes()[..13]), None);
        assert_eq!(
            alloc::format!("{}", EtherText(header.ether_dhost)),
            "52:54:00:12:34:56"
        );
    }
}
