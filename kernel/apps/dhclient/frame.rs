//! Sends UDP from an interface that has no address yet, as dhclient does through bpf(4).

use alloc::sync::Arc;
use core::net::Ipv4Addr;

use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};
use sys::mbuf::{How, Mbuf};
use sys::net::if_ethersubr::{ETHERTYPE_IP, ether_output};
use sys::net::ifnet::Ifnet;

/// The server's port.
pub(super) const SERVER_PORT: u16 = 67;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const IPPROTO_UDP: u8 = 17;
const TTL: u8 = 16;
const ETHER_BROADCAST: [u8; 6] = [0xff; 6];

/// A datagram from 0.0.0.0 to everybody; `None` if there is no memory, or `payload` does not fit.
pub(super) fn broadcast(payload: &[u8], sport: u16) -> Option<Mbuf> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let ip_len = u16::try_from(IP_HEADER + usize::from(udp_len)).ok()?;

    let mut ip = [0; IP_HEADER];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[8] = TTL;
    ip[9] = IPPROTO_UDP;
    ip[16..20].copy_from_slice(&Ipv4Addr::BROADCAST.octets());
    let sum = in_cksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = [0; UDP_HEADER];
    udp[0..2].copy_from_slice(&sport.to_be_bytes());
    udp[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let proto_len = u32::from(IPPROTO_UDP) + u32::from(udp_len);
    let pseudo = in_pseudo(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, proto_len);
    // RFC 768: a sum of zero is sent as all ones.
    let sum = match in_cksum_partial(&udp, false)
        .add_bytes(payload, false)
        .add_u16(pseudo)
        .finish()
    {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut m = Mbuf::getcl(How::NoWait)?;
    let copied = m.append(&ip) && m.append(&udp) && m.append(payload);
    copied.then_some(m)
}

/// Sends it to everybody on the interface's link.
pub(super) fn output(ifp: &Arc<Ifnet>, epoch: &NetEpoch, m: Mbuf) -> Result<(), Errno> {
    ether_output(ifp, epoch, m, ETHER_BROADCAST, ETHERTYPE_IP)
}
