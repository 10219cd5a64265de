//! Ethernet input and output.
//!
//! FreeBSD: sys/net/if_ethersubr.c, sys/net/ethernet.h

use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::Mbuf;
use crate::net::ifnet::Ifnet;

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

/// Puts the Ethernet header in front of `m` and sends it: source is the interface's address.
pub fn ether_output(
    _ifp: &Ifnet,
    _epoch: &NetEpoch,
    _m: Mbuf,
    _dst: EtherAddr,
    _ether_type: u16,
) -> Result<(), Errno> {
    todo!()
}

/// Sends a complete frame: filters, taps, driver.
pub fn ether_output_frame(_ifp: &Ifnet, _epoch: &NetEpoch, _m: Mbuf) -> Result<(), Errno> {
    todo!()
}
