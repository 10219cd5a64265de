//! Sends and receives DHCP on an interface that has no address yet, as dhclient does through bpf(4).
//!
//! FreeBSD: sbin/dhclient/bpf.c, packet.c

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use sys::errno::Errno;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{WChan, wakeup};
use sys::kern::kern_thread::Pri;
use sys::kern::lock_order::Leaf;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::in_cksum::{in_cksum, in_cksum_partial, in_pseudo};
use sys::mbuf::{CsumFlags, How, Mbuf};
use sys::net::bpf::{BpfDir, BpfTap};
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_ARP, ETHERTYPE_IP, EtherAddr, ether_output};
use sys::net::ifnet::Ifnet;
use sys::time::Sbintime;

/// The server's port.
pub(super) const SERVER_PORT: u16 = 67;
/// The client's.
pub(super) const CLIENT_PORT: u16 = 68;
/// Messages that wait to be read; more are dropped.
const QUEUE_MAX: usize = 8;
/// The longest frame that is looked at.
const MAX_FRAME: usize = 1518;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const IPPROTO_UDP: u8 = 17;
const TTL: u8 = 16;
const ETHER_BROADCAST: [u8; 6] = [0xff; 6];

/// A datagram from the client's port of `src` to everybody; `None` if there is no memory, or `payload` does not fit.
pub(super) fn broadcast(payload: &[u8], src: Ipv4Addr) -> Option<Mbuf> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let ip_len = u16::try_from(IP_HEADER + usize::from(udp_len)).ok()?;

    let mut ip = [0; IP_HEADER];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[8] = TTL;
    ip[9] = IPPROTO_UDP;
    ip[12..16].copy_from_slice(&src.octets());
    ip[16..20].copy_from_slice(&Ipv4Addr::BROADCAST.octets());
    let sum = in_cksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = [0; UDP_HEADER];
    udp[0..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let proto_len = u32::from(IPPROTO_UDP) + u32::from(udp_len);
    let pseudo = in_pseudo(src, Ipv4Addr::BROADCAST, proto_len);
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

/// What came for the client.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Event {
    /// A message to the client's port.
    Message(Vec<u8>),
    /// Somebody has the watched address.
    InUse(Ipv4Addr),
}

/// Sees the frames that an interface receives, and keeps what is for the client.
pub(super) struct Listener {
    inbox: Mutex<Inbox, Leaf>,
}

struct Inbox {
    events: VecDeque<Event>,
    watched: Option<Ipv4Addr>,
}

impl Listener {
    pub(super) fn new() -> Listener {
        Listener {
            inbox: Mutex::new(Inbox {
                events: VecDeque::new(),
                watched: None,
            }),
        }
    }

    /// Reports from now on who has `address`.
    pub(super) fn watch(&self, address: Ipv4Addr) {
        self.inbox.lock().watched = Some(address);
    }

    /// What came, after waiting for it for up to `timo`.
    pub(super) fn wait(&self, timo: Sbintime) -> Option<Event> {
        let mut inbox = self.inbox.lock();
        if inbox.events.is_empty() && timo > Sbintime::ZERO {
            let chan = WChan::of(self);
            (inbox, _) = MutexGuard::msleep(inbox, chan, Pri::PWAIT, "dhcp", Some(timo), true);
        }
        inbox.events.pop_front()
    }
}

impl BpfTap for Listener {
    fn tap(&self, ifp: &Ifnet, dir: BpfDir, m: &Mbuf) {
        // Most frames of a busy interface are neither: copy only what can be one.
        if dir == BpfDir::Out || m.pkt_len() > MAX_FRAME || !concerns(m) {
            return;
        }
        let mut frame = alloc::vec![0; m.pkt_len()];
        if !m.copydata(0, &mut frame) {
            return;
        }
        let frame = frame.as_slice();
        let checked = m.pkthdr().csum_flags.contains(CsumFlags::DATA_VALID);
        let payload = message(frame, checked).map(Vec::from);
        let mut inbox = self.inbox.lock();
        let event = match payload {
            Some(payload) => Event::Message(payload),
            None => match inbox.watched {
                Some(watched) if claims(frame, watched, ifp.lladdr()) => Event::InUse(watched),
                _ => return,
            },
        };
        if inbox.events.len() < QUEUE_MAX {
            inbox.events.push_back(event);
            wakeup(WChan::of(self));
        }
    }
}

/// Whether the frame is ARP, or goes to the client's port.
fn concerns(m: &Mbuf) -> bool {
    let mut head = [0; ETHER_HDR_LEN + IP_HEADER];
    if !m.copydata(0, &mut head) {
        return false;
    }
    let hlen = usize::from(head[ETHER_HDR_LEN] & 0xf) * 4;
    let mut dport = [0; 2];
    match ethertype(&head) {
        Some(ETHERTYPE_ARP) => true,
        Some(ETHERTYPE_IP) => {
            head[ETHER_HDR_LEN + 9] == IPPROTO_UDP
                && m.copydata(ETHER_HDR_LEN + hlen + 2, &mut dport)
                && u16::from_be_bytes(dport) == CLIENT_PORT
        }
        _ => false,
    }
}

fn ethertype(frame: &[u8]) -> Option<u16> {
    let bytes = frame.get(12..14)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// What a frame carries to the client's port from the server's, if it is whole (`decode_udp_ip_header`); `checked` if the
/// interface has verified its checksum.
fn message(frame: &[u8], checked: bool) -> Option<&[u8]> {
    if ethertype(frame)? != ETHERTYPE_IP {
        return None;
    }
    let packet = frame.get(ETHER_HDR_LEN..)?;
    let header: &[u8; IP_HEADER] = packet.first_chunk()?;
    let hlen = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // More fragments, or an offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || hlen < IP_HEADER || header[9] != IPPROTO_UDP || fragment {
        return None;
    }
    let packet = packet.get(..total)?;
    if in_cksum(packet.get(..hlen)?) != 0 {
        return None;
    }
    let datagram = packet.get(hlen..)?;
    let udp: &[u8; UDP_HEADER] = datagram.first_chunk()?;
    let [s0, s1, d0, d1, l0, l1, c0, c1] = *udp;
    let len = u16::from_be_bytes([l0, l1]);
    let ports = [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])];
    let datagram = datagram.get(..usize::from(len))?;
    if ports != [SERVER_PORT, CLIENT_PORT] {
        return None;
    }
    // RFC 768: a sum of zero is none.
    if !checked && [c0, c1] != [0, 0] {
        let address = |at: usize| {
            let octets = header.get(at..)?.first_chunk::<4>()?;
            Some(Ipv4Addr::from(*octets))
        };
        let proto_len = u32::from(IPPROTO_UDP) + u32::from(len);
        let pseudo = in_pseudo(address(12)?, address(16)?, proto_len);
        if in_cksum_partial(datagram, false).add_u16(pseudo).finish() != 0 {
            return None;
        }
    }
    datagram.get(UDP_HEADER..)
}

/// Whether a frame is ARP of somebody who has `address`, or looks himself whether it is free (RFC 5227 §2.1.1).
fn claims(frame: &[u8], address: Ipv4Addr, own: EtherAddr) -> bool {
    const ARPOP_REQUEST: [u8; 2] = [0, 1];
    let Some(arp) = frame.get(ETHER_HDR_LEN..ETHER_HDR_LEN + 28) else {
        return false;
    };
    let address = address.octets();
    let probe = arp[6..8] == ARPOP_REQUEST && arp[14..18] == [0; 4] && arp[24..28] == address;
    ethertype(frame) == Some(ETHERTYPE_ARP)
        && arp[..6] == [0, 1, 8, 0, 6, 4]
        && arp[8..14] != own
        && (arp[14..18] == address || probe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::machine::hosted::Machine;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    /// A frame of a server's to us: what the client sends, with the ports turned round.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let m = broadcast(payload, CLIENT).unwrap();
        let mut frame = alloc::vec![0; ETHER_HDR_LEN + m.pkt_len()];
        frame[12..14].copy_from_slice(&ETHERTYPE_IP.to_be_bytes());
        assert!(m.copydata(0, &mut frame[ETHER_HDR_LEN..]));
        // The sum of both ports stays, and so does the checksum.
        frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    #[test]
    fn a_message_is_read_whole_padded_and_unspoilt_only() {
        Machine::builder().run(|| {
            let whole = frame(b"lease");
            assert_eq!(message(&whole, false), Some(&b"lease"[..]));
            let mut padded = whole.clone();
            padded.resize(60, 0);
            assert_eq!(message(&padded, false), Some(&b"lease"[..]));
            for len in 0..whole.len() {
                assert_eq!(message(&whole[..len], true), None);
            }
            let mut spoilt = whole.clone();
            *spoilt.last_mut().unwrap() ^= 1;
            assert_eq!(message(&spoilt, false), None);
            // Where the interface has looked, its word counts.
            assert!(message(&spoilt, true).is_some());
            let mut elsewhere = whole;
            elsewhere[37] = 69;
            assert_eq!(message(&elsewhere, true), None);
        });
    }

    #[test]
    fn an_address_is_in_use_if_another_speaks_for_it_or_probes_for_it_too() {
        const OWN: EtherAddr = [2; 6];
        let arp = |op: u8, sha: u8, spa: [u8; 4], tpa: [u8; 4]| {
            let mut frame = Vec::from([0; 12]);
            frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
            frame.extend_from_slice(&[sha; 6]);
            frame.extend_from_slice(&spa);
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&tpa);
            frame
        };
        let (ours, none, theirs) = (CLIENT.octets(), [0; 4], [10, 0, 2, 99]);
        assert!(claims(&arp(2, 3, ours, none), CLIENT, OWN));
        assert!(claims(&arp(1, 3, ours, ours), CLIENT, OWN));
        assert!(claims(&arp(1, 3, none, ours), CLIENT, OWN));
        // Somebody looks for it, somebody else speaks, and our own probe comes back.
        assert!(!claims(&arp(1, 3, theirs, ours), CLIENT, OWN));
        assert!(!claims(&arp(2, 3, theirs, none), CLIENT, OWN));
        assert!(!claims(&arp(1, 2, none, ours), CLIENT, OWN));
    }
}
