//! Raw sockets of IPv6: any protocol, and what `ping` uses.
//!
//! FreeBSD: sys/netinet6/raw_ip6.c, icmp6.c (icmp6_ctloutput; RFC 3542 §3)
//! Programs see and send what follows the headers of IPv6, never the headers themselves.

use crate::in_pcb::{In6pFlags, InpFlags, InpRead, Inpcb};
use crate::ip_var::{IpMoptions, pseudo_sum};
use crate::netinet6::in6_pcb::in6_pcbladdr;
use crate::netinet6::in6_src::{in6_embedscope, in6_sockaddr};
use crate::netinet6::ip6::{IPPROTO_ICMPV6, Ip6};
use crate::netinet6::ip6_ctloutput::{control_mbuf, ip6_ctloutput, ip6_savecontrol};
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::counters;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::mbuf::{How, IfIndex, Mbuf};
use sys::protosw::{PrFlags, Protosw, SendFlags, SockOpt, SoptDir};
use sys::sockbuf::SbState;
use sys::socket::{
    ICMP6_FILTER, IPPROTO_ICMPV6 as SO_ICMPV6, IPPROTO_IPV6, IPV6_CHECKSUM, SockAddr,
};
use sys::socketvar::{SoState, Socket};
use zerocopy::IntoBytes;

counters! {
    /// What raw sockets of IPv6 have seen (`netstat -s -p rip6`).
    pub struct Rip6Stat {
        rip6s_ipackets: "messages received",
        rip6s_isum: "checksum calculations on inbound",
        rip6s_badsum: "messages with bad checksum",
        rip6s_nosock: "messages dropped due to no socket",
        rip6s_nosockmcast: "multicast messages dropped due to no socket",
        rip6s_fullsock: "messages dropped due to full socket buffers",
        rip6s_opackets: "datagrams output",
    }
}

/// Where an ICMPv6 message has its checksum.
const ICMP6_CKSUM_OFFSET: u16 = 2;

/// What a raw socket has of its own.
pub struct Raw6Pcb {
    /// The protocol it hears; 0: all.
    proto: u8,
    /// Where the kernel computes and checks a checksum (`in6p_cksum`).
    cksum: Option<u16>,
    /// Types of ICMPv6 that it hears, a bit each, as `struct icmp6_filter`.
    filter: [u32; 8],
}

impl Raw6Pcb {
    fn hears(&self, proto: u8, icmp6_type: Option<u8>) -> bool {
        let wanted = self.proto == 0 || self.proto == proto;
        wanted
            && icmp6_type.is_none_or(|kind| {
                let word = self.filter.get(usize::from(kind >> 5));
                word.is_some_and(|word| word & 1 << (kind & 31) != 0)
            })
    }
}

/// A raw socket's control block.
pub type Raw6Inpcb = Inpcb<Raw6Pcb>;

/// Raw sockets there are, so that without any a packet costs one load.
pub(crate) struct Rip6 {
    sockets: AtomicU32,
}

impl Rip6 {
    pub(crate) fn new() -> Self {
        Self {
            sockets: AtomicU32::new(0),
        }
    }
}

/// Gives every raw socket that would hear it a copy of what follows the headers of a packet, which begins at `off`; tells
/// whether there was one.
pub(crate) fn rip6_input(cx: &NetCx<'_>, m: &Mbuf, off: usize, proto: u8) -> bool {
    if cx.vnet.rip6.sockets.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let Some(&ip6) = Ip6::parse(m.data()) else {
        return false;
    };
    let mut kind = [0];
    let icmp6_type = (proto == IPPROTO_ICMPV6 && m.copydata(off, &mut kind)).then_some(kind[0]);
    let mut receivers = cx.vnet.rip6cbinfo.snapshot();
    receivers.retain(|inp| {
        let inp = inp.read();
        inp.ppcb.hears(proto, icmp6_type)
            && (inp.laddr().is_unspecified() || inp.laddr() == ip6.dst())
            && (inp.faddr().is_unspecified() || inp.faddr() == ip6.src())
    });
    if proto != IPPROTO_ICMPV6 {
        let stat = &cx.vnet.rip6stat;
        stat.rip6s_ipackets.inc();
        if receivers.is_empty() {
            stat.rip6s_nosock.inc();
            if ip6.dst().is_multicast() {
                stat.rip6s_nosockmcast.inc();
            }
        }
    }
    for inp in &receivers {
        let inp = inp.read();
        if checksum_holds(cx, &inp, m, &ip6, off, proto)
            && let Some(copy) = m.copypacket(How::NoWait)
        {
            append(cx, &inp, copy, &ip6, off);
        }
    }
    !receivers.is_empty()
}

/// Whether the checksum holds that a socket asked for; that of ICMPv6 has been checked.
fn checksum_holds(
    cx: &NetCx<'_>,
    inp: &InpRead<'_, Raw6Pcb>,
    m: &Mbuf,
    ip6: &Ip6,
    off: usize,
    proto: u8,
) -> bool {
    if inp.ppcb.cksum.is_none() || proto == IPPROTO_ICMPV6 {
        return true;
    }
    let stat = &cx.vnet.rip6stat;
    stat.rip6s_isum.inc();
    let len = (m.pkt_len() - off) as u32;
    let pseudo = pseudo_sum(ip6.src().into(), ip6.dst().into(), proto, len);
    let (folded, carry) = (!m.in_cksum_skip(m.pkt_len(), off)).overflowing_add(pseudo);
    let holds = folded.wrapping_add(u16::from(carry)) == 0xffff;
    if !holds {
        stat.rip6s_badsum.inc();
    }
    holds
}

fn append(cx: &NetCx<'_>, inp: &InpRead<'_, Raw6Pcb>, mut m: Mbuf, ip6: &Ip6, off: usize) {
    let Some(so) = inp.inp_socket.as_ref() else {
        return;
    };
    let mut control = Vec::new();
    ip6_savecontrol(&inp.hdr, ip6, &m, &mut control);
    let control = (!control.is_empty())
        .then(|| control_mbuf(&control))
        .flatten();
    m.trim_front(off);
    let from = in6_sockaddr(ip6.src(), 0);
    let mut rcv = so.rcv.lock();
    if !rcv.state().contains(SbState::CANTRCVMORE)
        && rcv.appendaddr(Some(&from), m, control).is_ok()
    {
        so.sorwakeup(rcv);
    } else {
        drop(rcv);
        cx.vnet.rip6stat.rip6s_fullsock.inc();
    }
}

/// Makes the control block of a new raw socket.
pub fn rip6_attach(
    inet: &Arc<InetVnet>,
    so: &Arc<Socket>,
    proto: u8,
) -> Result<Arc<dyn Protosw>, Errno> {
    so.soreserve(inet.raw.maxdgram.get(), inet.raw.recvspace.get())?;
    let ppcb = Raw6Pcb {
        proto,
        cksum: (proto == IPPROTO_ICMPV6).then_some(ICMP6_CKSUM_OFFSET),
        // ICMP6_FILTER_SETPASSALL
        filter: [u32::MAX; 8],
    };
    let inp = inet.rip6cbinfo.alloc(inet, Some(so), ppcb);
    inet.rip6.sockets.fetch_add(1, Ordering::Relaxed);
    Ok(inp)
}

/// Sends what a program has written, with a header before it and the checksum that belongs to it.
fn rip6_output(inp: &Raw6Inpcb, m: Mbuf, dst: Ipv6Addr) -> Result<(), Errno> {
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    let guard = inp.read();
    let proto = guard.ppcb.proto;
    let len = m.pkt_len();
    let plen = u16::try_from(len).map_err(|_| Errno::EMSGSIZE)?;
    let mut kind = [0];
    if proto == IPPROTO_ICMPV6 {
        // An ICMPv6 message has at least its fixed part, which the kernel counts and checksums.
        if len < 4 || !m.copydata(0, &mut kind) {
            return Err(Errno::EINVAL);
        }
        cx.vnet.icmp6stat.icp6s_outhist.inc(usize::from(kind[0]));
    }
    let src = match guard.laddr() {
        core::net::IpAddr::V6(addr) if !addr.is_unspecified() => addr,
        _ => in6_pcbladdr(&cx, &guard.hdr, dst)?,
    };
    let no_bufs = || {
        cx.vnet.ip6stat.ip6s_odropped.inc();
        Errno::ENOBUFS
    };
    let mut m = m.prepend(Ip6::LEN, How::NoWait).map_err(|_| no_bufs())?;
    if m.len() < Ip6::LEN {
        m = m.pullup(Ip6::LEN).map_err(|_| no_bufs())?;
    }
    let mut ip6 = Ip6::new(guard.in6p_tclass, guard.inp_flow);
    ip6.ip6_plen.set(plen);
    ip6.ip6_nxt = proto;
    ip6.ip6_hlim = match guard.inp_moptions.as_deref() {
        Some(imo) if dst.is_multicast() => imo.imo_ttl,
        None if dst.is_multicast() => IpMoptions::default().imo_ttl,
        _ => guard.in6p_hops,
    };
    ip6.set_src(src);
    ip6.set_dst(dst);
    let front = m.data_mut().get_mut(..Ip6::LEN).ok_or_else(no_bufs)?;
    front.copy_from_slice(ip6.as_bytes());
    if let Some(at) = guard.ppcb.cksum.map(usize::from) {
        if at + 2 > len {
            return Err(Errno::EINVAL);
        }
        // The field holds the sum of the pseudo header, so that it is part of the sum.
        let pseudo = pseudo_sum(src.into(), dst.into(), proto, len as u32);
        m.copyback(Ip6::LEN + at, &pseudo.to_be_bytes(), How::NoWait);
        let sum = m.in_cksum_skip(m.pkt_len(), Ip6::LEN);
        m.copyback(Ip6::LEN + at, &sum.to_be_bytes(), How::NoWait);
    }
    m.pkthdr_mut().rcvif = IfIndex::NONE;
    cx.vnet.rip6stat.rip6s_opackets.inc();
    let args = Ip6OutArgs {
        imo: guard.inp_moptions.as_deref(),
        dontfrag: guard.inp_flags.contains(InpFlags::DONTFRAG),
        use_min_mtu: guard.in6p_flags.contains(In6pFlags::USE_MIN_MTU),
        select_hlim: !dst.is_multicast() && !guard.in6p_flags.contains(In6pFlags::HOPS_SET),
        ..Ip6OutArgs::default()
    };
    ip6_output(&cx, m, &args)
}

/// The address that a program names, its zone embedded.
fn address(inp: &Raw6Inpcb, nam: &SockAddr) -> Result<Ipv6Addr, Errno> {
    let SockAddr::In6(sin6) = nam else {
        return Err(Errno::EAFNOSUPPORT);
    };
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    in6_embedscope(&cx, sin6.addr, sin6.scope_id)
}

impl Protosw for Raw6Inpcb {
    fn pr_flags(&self) -> PrFlags {
        PrFlags::ATOMIC | PrFlags::ADDR
    }

    fn bind(&self, _so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let addr = address(self, nam)?;
        let epoch = NetEpoch::enter();
        let ready = |addr| {
            let ia = self.inp_vnet.in6_ifaddrs.lookup(&epoch, addr);
            ia.is_some_and(|ia| !ia.flags().intersects(sys::net::ifnet::In6Iff::NOTREADY))
        };
        if !addr.is_unspecified() && !ready(addr) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.write().set_addresses(Some(addr.into()), None);
        Ok(())
    }

    fn connect(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        let addr = address(self, nam)?;
        self.write().set_addresses(None, Some(addr.into()));
        so.soisconnected();
        Ok(())
    }

    fn disconnect(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        let mut guard = self.write();
        if !guard.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        guard.set_addresses(None, Some(Ipv6Addr::UNSPECIFIED.into()));
        drop(guard);
        so.clear_state(SoState::ISCONNECTED);
        Ok(())
    }

    fn send(
        &self,
        _so: &Arc<Socket>,
        _flags: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        let connected = self.read().is_connected();
        let dst = match to {
            Some(_) if connected => return Err(Errno::EISCONN),
            Some(to) => address(self, to)?,
            None if !connected => return Err(Errno::ENOTCONN),
            None => match self.read().faddr() {
                core::net::IpAddr::V6(addr) => addr,
                core::net::IpAddr::V4(_) => return Err(Errno::EAFNOSUPPORT),
            },
        };
        rip6_output(self, m, dst)
    }

    fn sockaddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(self.read().sockaddr())
    }

    fn peeraddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        self.read().peeraddr()
    }

    fn ctloutput(&self, _so: &Arc<Socket>, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        match (sopt.level, sopt.name) {
            (SO_ICMPV6, ICMP6_FILTER) => filter_option(self, sopt),
            (SO_ICMPV6, _) => Err(Errno::ENOPROTOOPT),
            (IPPROTO_IPV6, IPV6_CHECKSUM) => checksum_option(self, sopt),
            _ => ip6_ctloutput(self, sopt),
        }
    }

    fn close(&self, so: &Arc<Socket>) {
        self.abort(so);
    }

    fn abort(&self, so: &Arc<Socket>) {
        so.soisdisconnected();
    }

    fn detach(&self, _so: &Arc<Socket>) {
        let mut guard = self.write();
        let so = self.inp_vnet.rip6cbinfo.free(self, &mut guard.hdr);
        drop(guard);
        if so.is_some() {
            self.inp_vnet.rip6.sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// `ICMP6_FILTER`: 256 bits, one for each type that is to be heard (RFC 3542 §3.2).
fn filter_option(inp: &Raw6Inpcb, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
    match sopt.dir {
        SoptDir::Set => {
            let bytes: &[u8; 32] = sopt.bytes().try_into().map_err(|_| Errno::EMSGSIZE)?;
            let mut guard = inp.write();
            if guard.ppcb.proto != IPPROTO_ICMPV6 {
                return Err(Errno::EINVAL);
            }
            let words = bytes.as_chunks::<4>().0;
            for (word, bytes) in guard.ppcb.filter.iter_mut().zip(words) {
                *word = u32::from_ne_bytes(*bytes);
            }
            Ok(())
        }
        SoptDir::Get => {
            let filter = inp.read().ppcb.filter;
            sopt.answer(filter.as_bytes())
        }
    }
}

/// `IPV6_CHECKSUM`: where the checksum stands, or -1 for none (RFC 3542 §3.1).
fn checksum_option(inp: &Raw6Inpcb, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
    match sopt.dir {
        SoptDir::Set => {
            let value = sopt.int()?;
            let mut guard = inp.write();
            let cksum = match value {
                -1 => None,
                value if value & 1 != 0 => return Err(Errno::EINVAL),
                value => Some(u16::try_from(value).map_err(|_| Errno::EINVAL)?),
            };
            // That of ICMPv6 is where it is.
            if guard.ppcb.proto == IPPROTO_ICMPV6 && cksum != Some(ICMP6_CKSUM_OFFSET) {
                return Err(Errno::EINVAL);
            }
            guard.ppcb.cksum = cksum;
            Ok(())
        }
        SoptDir::Get => {
            let value = inp.read().ppcb.cksum.map_or(-1, i32::from);
            sopt.answer_int(value)
        }
    }
}
