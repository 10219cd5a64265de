//! The User Datagram Protocol (RFC 768).
//!
//! FreeBSD: sys/netinet/udp_usrreq.c
//! Input and output take the control block's lock for reading only: any number of threads send and receive on one socket at
//! once. Only bind, connect and options take it for writing.

use crate::in_mcast::{hears_group, inp_freemoptions};
use crate::in_pcb::{In6pFlags, InConninfo, InpFlags, InpHdr, InpRead, Inpcb, Lookup, in_pcbladdr};
use crate::ip::{IP_DF, IP_MAXPACKET, IPPROTO_UDP, IPVERSION, Ip, in_multicast};
use crate::ip_ctloutput::{ip_ctloutput, ip_savecontrol};
use crate::ip_icmp::{Bandlim, ICMP_UNREACH, ICMP_UNREACH_PORT, badport_bandlim, icmp_error};
use crate::ip_output::ip_output;
use crate::ip_var::{IpMoptions, IpOutArgs, IpOutFlags, IpProto, PrcCmd, Quoted, pseudo_sum};
use crate::netinet6::icmp6::{ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOPORT, icmp6_error};
use crate::netinet6::in6_pcb::in6_pcbladdr;
use crate::netinet6::ip6::Ip6;
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::udp::Udphdr;
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use core::net::{IpAddr, Ipv4Addr};
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::kprintf;
use sys::mbuf::{CsumFlags, How, IfIndex, MFlags, Mbuf};
use sys::protosw::{PrFlags, Protosw, SendFlags, SockOpt};
use sys::sockbuf::SbState;
use sys::socket::{SoOptions, SockAddr};
use sys::socketvar::{SoState, Socket};
use sys::tunables;

tunables! {
    /// `net.inet.udp`.
    pub struct UdpTunables {
        checksum: bool = true, "net.inet.udp.checksum", "compute udp checksum";
        maxdgram: u32 = 9216, "net.inet.udp.maxdgram", "Maximum outgoing UDP datagram size" (1..=65535);
        recvspace: u32 = 42080, "net.inet.udp.recvspace", "Maximum space for incoming UDP datagrams" (1..=16777216);
        blackhole: bool = false, "net.inet.udp.blackhole", "Do not send port unreachables for refused connects";
        blackhole_local: bool = false, "net.inet.udp.blackhole_local", "Enforce net.inet.udp.blackhole for locally originated packets";
        log_in_vain: bool = false, "net.inet.udp.log_in_vain", "Log all incoming UDP packets";
    }
}

/// Takes a datagram for a tunnel: `m` begins with the IP header of `hlen` bytes (`udp_tun_func_t`).
pub type UdpTunFunc = fn(cx: &NetCx<'_>, m: Mbuf, hlen: usize);
/// Hears of an ICMP error about a datagram of a tunnel; the quotation begins with the UDP header (`udp_tun_icmp_t`).
pub type UdpTunIcmp = fn(cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>);

/// UDP's own part of a control block.
#[derive(Default)]
pub struct Udpcb {
    /// Who takes the datagrams of a tunnel, in place of the socket.
    u_tun_func: Option<UdpTunFunc>,
    /// Who hears of errors about them.
    u_icmp_func: Option<UdpTunIcmp>,
}

/// A UDP control block.
pub type UdpInpcb = Inpcb<Udpcb>;

/// UDP as a protocol above IP.
pub(crate) struct Udp;

impl IpProto for Udp {
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
        udp_input(cx, m, hlen);
    }

    fn ctlinput(&self, cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>) {
        udp_ctlinput(cx, cmd, quoted);
    }
}

/// A datagram that has been checked: what matters of its header copied out, `m` still whole.
struct Datagram {
    m: Mbuf,
    /// Time to live, or hop limit.
    ttl: u8,
    inc: InConninfo,
    /// Length of IP and UDP headers.
    headers: usize,
}

/// Takes a datagram for this host.
pub fn udp_input(cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
    let stat = &cx.vnet.udpstat;
    stat.udps_ipackets.inc();
    let Some(dgram) = check_datagram(cx, m, hlen) else {
        return;
    };
    let dst = dgram.inc.inc_laddr;
    if dst.is_multicast()
        || dgram.m.flags().intersects(MFlags::BCAST | MFlags::MCAST)
        || is_group(cx, dst)
    {
        udp_multi_input(cx, dgram);
        return;
    }
    match cx
        .vnet
        .udbinfo
        .lookup_read(&dgram.inc, Lookup::Wildcard, cx.epoch)
    {
        Some((_, inp)) => {
            if dst.is_ipv4() && dgram.ttl < inp.inp_ip_minttl {
                stat.udps_noport.inc();
                return;
            }
            udp_append(cx, inp, dgram);
        }
        None => no_port(cx, dgram),
    }
}

/// Whether the destination is a broadcast address rather than one of ours.
#[inline]
fn is_group(cx: &NetCx<'_>, dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(dst) => cx.vnet.ifaddrs.lookup(cx.epoch, dst).is_none(),
        IpAddr::V6(_) => false,
    }
}

/// Checks lengths and checksum, and cuts what the UDP length leaves over. `None`: dropped and counted.
#[inline]
fn check_datagram(cx: &NetCx<'_>, m: Mbuf, hlen: usize) -> Option<Datagram> {
    let stat = &cx.vnet.udpstat;
    let headers = hlen + Udphdr::LEN;
    let mut m = if m.len() >= headers {
        m
    } else {
        match m.pullup(headers) {
            Ok(m) => m,
            Err(_) => {
                stat.udps_hdrops.inc();
                return None;
            }
        }
    };
    let ip = Ip::parse(m.data())?;
    let (src, dst, ttl): (IpAddr, IpAddr, u8) = if ip.version() == IPVERSION {
        (ip.src().into(), ip.dst().into(), ip.ip_ttl)
    } else {
        let ip6 = Ip6::parse(m.data())?;
        (ip6.src().into(), ip6.dst().into(), ip6.ip6_hlim)
    };
    let uh = *Udphdr::parse(m.data().get(hlen..)?)?;
    // RFC 768 reserves port 0 for "no reply expected"; nobody listens there.
    if uh.uh_dport.get() == 0 {
        stat.udps_badport.inc();
        return None;
    }
    let len = usize::from(uh.uh_ulen.get());
    let have = m.pkt_len() - hlen;
    if len != have {
        if len > have || len < Udphdr::LEN {
            stat.udps_badlen.inc();
            return None;
        }
        m.trim_back(have - len);
    }
    if uh.uh_sum.get() == 0 {
        stat.udps_nosum.inc();
        // RFC 8200 §8.1: IPv6 has no other checksum, and UDP may not do without.
        if dst.is_ipv6() {
            return None;
        }
    } else if !checksum_is_good(cx, &m, (src, dst), hlen, len) {
        stat.udps_badsum.inc();
        return None;
    }
    let inc = InConninfo {
        inc_faddr: src,
        inc_laddr: dst,
        inc_fport: uh.uh_sport.get(),
        inc_lport: uh.uh_dport.get(),
    };
    Some(Datagram {
        m,
        ttl,
        inc,
        headers,
    })
}

/// Verifies the checksum, by what the interface says or in software.
#[inline]
fn checksum_is_good(
    cx: &NetCx<'_>,
    m: &Mbuf,
    (src, dst): (IpAddr, IpAddr),
    hlen: usize,
    len: usize,
) -> bool {
    let hdr = m.pkthdr();
    if hdr.csum_flags.contains(CsumFlags::DATA_VALID) {
        let sum = hdr.csum_data as u16;
        if hdr.csum_flags.contains(CsumFlags::PSEUDO_HDR) {
            return sum == 0xffff;
        }
        // The interface summed the datagram alone.
        let pseudo = pseudo_sum(src, dst, IPPROTO_UDP, len as u32);
        let (folded, carry) = sum.overflowing_add(pseudo);
        return folded.wrapping_add(u16::from(carry)) == 0xffff;
    }
    match dst {
        IpAddr::V4(_) => cx.vnet.ipstat.ips_swcsum_in.inc(),
        IpAddr::V6(_) => cx.vnet.ip6stat.ip6s_swcsum_in.inc(),
    }
    let pseudo = pseudo_sum(src, dst, IPPROTO_UDP, len as u32);
    // Complemented sum of the datagram; with the pseudo header it must come to all ones.
    let (folded, carry) = (!m.in_cksum_skip(hlen + len, hlen)).overflowing_add(pseudo);
    folded.wrapping_add(u16::from(carry)) == 0xffff
}

/// Nobody listens: says so, unless told not to or too often.
fn no_port(cx: &NetCx<'_>, dgram: Datagram) {
    let stat = &cx.vnet.udpstat;
    let Datagram { m, inc, .. } = dgram;
    if cx.vnet.udp.log_in_vain.get() {
        kprintf!(
            "Connection attempt to UDP {}:{} from {}:{}\n",
            inc.inc_laddr,
            inc.inc_lport,
            inc.inc_faddr,
            inc.inc_fport
        );
    }
    stat.udps_noport.inc();
    let local = || match inc.inc_faddr {
        IpAddr::V4(addr) => cx.vnet.ifaddrs.lookup(cx.epoch, addr).is_some(),
        IpAddr::V6(addr) => cx.vnet.in6_ifaddrs.lookup(cx.epoch, addr).is_some(),
    };
    if cx.vnet.udp.blackhole.get() && (cx.vnet.udp.blackhole_local.get() || !local()) {
        return;
    }
    if inc.is_ipv6() {
        if badport_bandlim(cx, Bandlim::Icmp6Unreach) {
            icmp6_error(cx, m, ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOPORT, 0);
        }
        return;
    }
    if !badport_bandlim(cx, Bandlim::IcmpUnreach) {
        return;
    }
    icmp_error(cx, m, ICMP_UNREACH, ICMP_UNREACH_PORT, 0);
}

/// A datagram to a group: every socket that would take it gets a copy.
fn udp_multi_input(cx: &NetCx<'_>, dgram: Datagram) {
    let stat = &cx.vnet.udpstat;
    let inc = dgram.inc;
    let rcvif = dgram.m.pkthdr().rcvif;
    let joined = |hdr: &InpHdr| match inc.inc_laddr {
        IpAddr::V4(group) if in_multicast(group) => {
            let hears = hears_group(cx.vnet, cx.epoch, hdr, group, rcvif);
            if !hears {
                cx.vnet.ipstat.ips_notmember.inc();
            }
            hears
        }
        IpAddr::V4(_) | IpAddr::V6(_) => true,
    };
    let wants = |inp: &UdpInpcb| {
        let inp = inp.read();
        let own = inp.inp_inc;
        inp.talks(inc.inc_laddr)
            && (own.inc_laddr.is_unspecified() || own.inc_laddr == inc.inc_laddr)
            && (own.inc_faddr.is_unspecified()
                || own.inc_faddr == inc.inc_faddr && own.inc_fport == inc.inc_fport)
            && (inc.is_ipv6() || dgram.ttl >= inp.inp_ip_minttl)
            && !inp.inp_flags.contains(InpFlags::DROPPED)
            && joined(&inp.hdr)
    };
    let mut receivers = cx.vnet.udbinfo.snapshot_port(inc.inc_lport);
    receivers.retain(|inp| wants(inp));
    let Some(last) = receivers.pop() else {
        if inc.inc_laddr.is_multicast() {
            stat.udps_noportmcast.inc();
        } else {
            stat.udps_noportbcast.inc();
        }
        return;
    };
    for inp in receivers {
        if let Some(m) = dgram.m.copypacket(How::NoWait) {
            udp_append(
                cx,
                inp.read(),
                Datagram {
                    m,
                    ttl: dgram.ttl,
                    inc,
                    headers: dgram.headers,
                },
            );
        } else {
            stat.udps_fullsock.inc();
        }
    }
    udp_append(cx, last.read(), dgram);
}

/// Puts a datagram into the socket's buffer and wakes who waits for it, or hands it to the tunnel.
#[inline]
fn udp_append(cx: &NetCx<'_>, inp: InpRead<'_, Udpcb>, dgram: Datagram) {
    if let Some(tunnel) = inp.ppcb.u_tun_func {
        // The tunnel may look for control blocks itself.
        drop(inp);
        tunnel(cx, dgram.m, dgram.headers - Udphdr::LEN);
        return;
    }
    let Some(so) = inp.inp_socket.as_ref() else {
        cx.vnet.udpstat.udps_noport.inc();
        return;
    };
    let Datagram {
        mut m,
        inc,
        headers,
        ..
    } = dgram;
    let wanted = InpFlags::RECVOPTS
        | InpFlags::RECVRETOPTS
        | InpFlags::RECVDSTADDR
        | InpFlags::RECVIF
        | InpFlags::RECVTTL
        | InpFlags::RECVTOS;
    let wanted6 = In6pFlags::PKTINFO | In6pFlags::HOPLIMIT | In6pFlags::TCLASS;
    let control = if inp.inp_flags.intersects(wanted)
        || inp.in6p_flags.intersects(wanted6)
        || so.options().contains(SoOptions::TIMESTAMP)
    {
        ip_savecontrol(cx, &inp.hdr, so, &m)
    } else {
        None
    };
    m.trim_front(headers);
    let from = inp.sockaddr_of(inc.inc_faddr, inc.inc_fport);
    let mut rcv = so.rcv.lock();
    if rcv.state().contains(SbState::CANTRCVMORE) {
        drop(rcv);
        cx.vnet.udpstat.udps_fullsock.inc();
        return;
    }
    match rcv.appendaddr(Some(&from), m, control) {
        Ok(()) => so.sorwakeup(rcv),
        Err(refused) => {
            drop(rcv);
            drop(refused);
            cx.vnet.udpstat.udps_fullsock.inc();
        }
    }
}

/// An ICMP error about a datagram of ours: the connected socket hears of it.
fn udp_ctlinput(cx: &NetCx<'_>, cmd: PrcCmd, quoted: &Quoted<'_>) {
    let Some(uh) = Udphdr::parse(quoted.transport) else {
        return;
    };
    let inc = InConninfo {
        inc_faddr: quoted.dst,
        inc_laddr: quoted.src,
        inc_fport: uh.uh_dport.get(),
        inc_lport: uh.uh_sport.get(),
    };
    // Of sockets that are not connected only a tunnel wants to know.
    let found = cx
        .vnet
        .udbinfo
        .lookup_read(&inc, Lookup::Wildcard, cx.epoch);
    let Some((inp_ref, inp)) = found else {
        return;
    };
    if let Some(tunnel) = inp.ppcb.u_icmp_func {
        drop(inp);
        tunnel(cx, cmd, quoted);
        return;
    }
    let Some(error) = cmd.errno().filter(|_| inp.is_connected()) else {
        return;
    };
    if matches!(cmd, PrcCmd::Msgsize(_)) {
        inp_ref.forget_route();
    }
    if let Some(so) = &inp.inp_socket {
        so.set_error(error);
        so.sorwakeup(so.rcv.lock());
        so.sowwakeup(so.snd.lock());
    }
}

/// Where one datagram goes to and comes from.
struct Ends {
    laddr: IpAddr,
    lport: u16,
    faddr: IpAddr,
    fport: u16,
}

/// Finds the ends of a datagram without changing the control block; `None`: it has no local port yet.
#[inline]
fn ends(cx: &NetCx<'_>, hdr: &InpHdr, to: Option<&SockAddr>) -> Result<Option<Ends>, Errno> {
    let (faddr, fport) = match to {
        Some(_) if hdr.is_connected() => return Err(Errno::EISCONN),
        Some(to) => {
            let (addr, port) = hdr.inet_addr(cx, to)?;
            if port == 0 {
                return Err(Errno::EADDRNOTAVAIL);
            }
            if !hdr.talks(addr) {
                return Err(Errno::EAFNOSUPPORT);
            }
            (crate::in_pcb::real_faddr(cx, addr)?, port)
        }
        None if hdr.is_connected() => (hdr.faddr(), hdr.fport()),
        None => return Err(Errno::ENOTCONN),
    };
    if hdr.lport() == 0 {
        return Ok(None);
    }
    let mut laddr = hdr.laddr();
    // A socket bound to a group or a broadcast address sends from an address of ours all the same.
    if !hdr.is_connected()
        && (laddr.is_unspecified() || laddr.is_multicast() || is_group(cx, laddr))
    {
        laddr = source_for(cx, hdr, faddr)?;
    }
    Ok(Some(Ends {
        laddr,
        lport: hdr.lport(),
        faddr,
        fport,
    }))
}

/// The source address for a datagram of an unbound socket.
fn source_for(cx: &NetCx<'_>, hdr: &InpHdr, faddr: IpAddr) -> Result<IpAddr, Errno> {
    match faddr {
        IpAddr::V4(faddr) => source_for4(cx, hdr, faddr).map(IpAddr::V4),
        IpAddr::V6(faddr) => in6_pcbladdr(cx, hdr, faddr).map(IpAddr::V6),
    }
}

fn source_for4(cx: &NetCx<'_>, hdr: &InpHdr, faddr: Ipv4Addr) -> Result<Ipv4Addr, Errno> {
    if in_multicast(faddr)
        && let Some(imo) = hdr.inp_moptions.as_deref()
        && imo.imo_ifindex.is_some()
    {
        let ifp = cx
            .vnet
            .ifnet_byindex(imo.imo_ifindex, cx.epoch)
            .ok_or(Errno::ENXIO)?;
        return ifp
            .addrs(cx.epoch)
            .first()
            .map(|ia| ia.ia_addr)
            .ok_or(Errno::EADDRNOTAVAIL);
    }
    in_pcbladdr(cx, faddr)
}

/// Sends a datagram.
#[inline]
pub fn udp_output(
    inp: &UdpInpcb,
    so: &Socket,
    m: Mbuf,
    to: Option<&SockAddr>,
    flags: SendFlags,
) -> Result<(), Errno> {
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(&inp.inp_vnet, &epoch);
    let len = m.pkt_len();
    if len + Ip::LEN + Udphdr::LEN > IP_MAXPACKET {
        return Err(Errno::EMSGSIZE);
    }
    let mut guard = inp.read();
    let ends = match ends(&cx, &guard, to)? {
        Some(ends) => ends,
        None => {
            // The first datagram of a socket that was never bound: give it a port.
            drop(guard);
            let mut writer = inp.write();
            if writer.lport() == 0 {
                cx.vnet.udbinfo.bind(&cx, inp, &mut writer.hdr, None)?;
            }
            drop(writer);
            guard = inp.read();
            self::ends(&cx, &guard, to)?.ok_or(Errno::EADDRNOTAVAIL)?
        }
    };
    let (laddr, faddr) = match (ends.laddr, ends.faddr) {
        (IpAddr::V4(laddr), IpAddr::V4(faddr)) => (laddr, faddr),
        (IpAddr::V6(_), _) | (_, IpAddr::V6(_)) => return udp6_output(&cx, inp, &guard, m, &ends),
    };
    let mut m = m.prepend(Ip::LEN + Udphdr::LEN, How::NoWait).map_err(|_| {
        cx.vnet.ipstat.ips_odropped.inc();
        Errno::ENOBUFS
    })?;
    let Some((ip, rest)) = m.data_mut().split_first_chunk_mut::<{ Ip::LEN }>() else {
        return Err(Errno::ENOBUFS);
    };
    let ulen = (Udphdr::LEN + len) as u16;
    let checksum = cx.vnet.udp.checksum.get();
    if let Some(uh) = Udphdr::parse_mut(rest) {
        uh.uh_sport.set(ends.lport);
        uh.uh_dport.set(ends.fport);
        uh.uh_ulen.set(ulen);
        let pseudo = pseudo_sum(ends.laddr, ends.faddr, IPPROTO_UDP, u32::from(ulen));
        uh.uh_sum.set(if checksum { pseudo } else { 0 });
    }
    if let Some(ip) = Ip::parse_mut(ip) {
        ip.ip_tos = guard.inp_ip_tos;
        ip.ip_len.set(ulen + Ip::LEN as u16);
        ip.ip_off
            .set(if guard.inp_flags.contains(InpFlags::DONTFRAG) {
                IP_DF
            } else {
                0
            });
        ip.ip_ttl = guard.inp_ip_ttl;
        ip.ip_p = IPPROTO_UDP;
        ip.set_src(laddr);
        ip.set_dst(faddr);
    }
    let hdr = m.pkthdr_mut();
    if checksum {
        hdr.csum_flags = CsumFlags::IP_UDP;
        hdr.csum_data = u32::from(Udphdr::SUM_OFFSET);
    }
    hdr.l4hlen = Udphdr::LEN as u8;
    hdr.rcvif = IfIndex::NONE;
    if guard.inp_flowid != 0 {
        hdr.flowid = guard.inp_flowid;
        hdr.rsstype = guard.inp_flowtype;
    }
    let options = so.options();
    let mut out = IpOutFlags::empty();
    if options.contains(SoOptions::BROADCAST) {
        out |= IpOutFlags::ALLOWBROADCAST;
    }
    if options.contains(SoOptions::DONTROUTE) || flags.contains(SendFlags::DONTROUTE) {
        out |= IpOutFlags::ROUTETOIF;
    }
    if guard.inp_flags.contains(InpFlags::ONESBCAST) {
        out |= IpOutFlags::SENDONES;
    }
    cx.vnet.udpstat.udps_opackets.inc();
    let args = IpOutArgs {
        options: guard.inp_options.as_deref(),
        // Who sends to many would forget one route for the other each time.
        ro: guard.is_connected().then_some(&inp.inp_route),
        flags: out,
        imo: guard.inp_moptions.as_deref(),
        ifindex: IfIndex::NONE,
    };
    ip_output(&cx, m, &args)
}

/// Sends a datagram by IPv6 (udp6_usrreq.c).
fn udp6_output(
    cx: &NetCx<'_>,
    inp: &UdpInpcb,
    guard: &InpRead<'_, Udpcb>,
    m: Mbuf,
    ends: &Ends,
) -> Result<(), Errno> {
    let (IpAddr::V6(laddr), IpAddr::V6(faddr)) = (ends.laddr, ends.faddr) else {
        return Err(Errno::EAFNOSUPPORT);
    };
    let ulen = (Udphdr::LEN + m.pkt_len()) as u16;
    let no_bufs = || {
        cx.vnet.ip6stat.ip6s_odropped.inc();
        Errno::ENOBUFS
    };
    let headers = Ip6::LEN + Udphdr::LEN;
    let mut m = m.prepend(headers, How::NoWait).map_err(|_| no_bufs())?;
    let Some((front, rest)) = m.data_mut().split_first_chunk_mut::<{ Ip6::LEN }>() else {
        return Err(no_bufs());
    };
    if let Some(uh) = Udphdr::parse_mut(rest) {
        uh.uh_sport.set(ends.lport);
        uh.uh_dport.set(ends.fport);
        uh.uh_ulen.set(ulen);
        uh.uh_sum.set(pseudo_sum(
            ends.laddr,
            ends.faddr,
            IPPROTO_UDP,
            u32::from(ulen),
        ));
    }
    if let Some(ip6) = Ip6::parse_mut(front) {
        *ip6 = Ip6::new(guard.in6p_tclass, guard.inp_flow);
        ip6.ip6_plen.set(ulen);
        ip6.ip6_nxt = IPPROTO_UDP;
        ip6.ip6_hlim = match guard.inp_moptions.as_deref() {
            Some(imo) if faddr.is_multicast() => imo.imo_ttl,
            None if faddr.is_multicast() => IpMoptions::default().imo_ttl,
            _ => guard.in6p_hops,
        };
        ip6.set_src(laddr);
        ip6.set_dst(faddr);
    }
    let hdr = m.pkthdr_mut();
    hdr.csum_flags = CsumFlags::IP6_UDP;
    hdr.csum_data = u32::from(Udphdr::SUM_OFFSET);
    hdr.l3hlen = Ip6::LEN as u8;
    hdr.l4hlen = Udphdr::LEN as u8;
    hdr.rcvif = IfIndex::NONE;
    if guard.inp_flowid != 0 {
        hdr.flowid = guard.inp_flowid;
        hdr.rsstype = guard.inp_flowtype;
    }
    cx.vnet.udpstat.udps_opackets.inc();
    let args = Ip6OutArgs {
        ro: guard.is_connected().then_some(&inp.inp_route6),
        imo: guard.inp_moptions.as_deref(),
        dontfrag: guard.inp_flags.contains(InpFlags::DONTFRAG),
        select_hlim: !faddr.is_multicast() && !guard.in6p_flags.contains(In6pFlags::HOPS_SET),
        use_min_mtu: guard.in6p_flags.contains(In6pFlags::USE_MIN_MTU),
        ..Ip6OutArgs::default()
    };
    ip6_output(cx, m, &args)
}

/// Makes the control block of a new UDP socket.
pub fn udp_attach(inet: &Arc<InetVnet>, so: &Arc<Socket>) -> Result<Arc<dyn Protosw>, Errno> {
    so.soreserve(inet.udp.maxdgram.get(), inet.udp.recvspace.get())?;
    Ok(inet.udbinfo.alloc(inet, Some(so), Udpcb::default()))
}

/// Makes a UDP socket the end of a tunnel: what comes for it goes to `input`, errors to `icmp`. `EBUSY` if it is one
/// already, `EINVAL` if it is no UDP socket.
pub fn udp_set_kernel_tunneling(
    inet: &InetVnet,
    so: &SocketHandle,
    input: UdpTunFunc,
    icmp: UdpTunIcmp,
) -> Result<(), Errno> {
    let is = |inp: &&Arc<UdpInpcb>| {
        let inp = inp.read();
        let own = inp.inp_socket.as_ref();
        own.is_some_and(|own| Arc::ptr_eq(own, so.inner()))
    };
    let all = inet.udbinfo.snapshot();
    let inp = all.iter().find(is).ok_or(Errno::EINVAL)?;
    let mut guard = inp.write();
    if guard.ppcb.u_tun_func.is_some() {
        return Err(Errno::EBUSY);
    }
    guard.ppcb.u_tun_func = Some(input);
    guard.ppcb.u_icmp_func = Some(icmp);
    Ok(())
}

impl Protosw for UdpInpcb {
    fn pr_flags(&self) -> PrFlags {
        PrFlags::ATOMIC | PrFlags::ADDR
    }

    fn bind(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        self.set_reuse(so.options());
        self.join_lbgroup();
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&self.inp_vnet, &epoch);
        cx.vnet
            .udbinfo
            .bind(&cx, self, &mut self.write().hdr, Some(nam))
    }

    fn connect(&self, so: &Arc<Socket>, nam: &SockAddr) -> Result<(), Errno> {
        self.set_reuse(so.options());
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&self.inp_vnet, &epoch);
        let mut guard = self.write();
        cx.vnet.udbinfo.connect(&cx, self, &mut guard.hdr, nam)?;
        drop(guard);
        so.soisconnected();
        Ok(())
    }

    fn disconnect(&self, so: &Arc<Socket>) -> Result<(), Errno> {
        let mut guard = self.write();
        if !guard.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        self.inp_vnet.udbinfo.disconnect(self, &mut guard.hdr);
        drop(guard);
        so.clear_state(SoState::ISCONNECTED);
        Ok(())
    }

    fn send(
        &self,
        so: &Arc<Socket>,
        flags: SendFlags,
        m: Mbuf,
        to: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        udp_output(self, so, m, to, flags)
    }

    fn sockaddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        Ok(self.read().sockaddr())
    }

    fn peeraddr(&self, _so: &Arc<Socket>) -> Result<SockAddr, Errno> {
        self.read().peeraddr()
    }

    fn ctloutput(&self, so: &Arc<Socket>, sopt: &mut SockOpt<'_>) -> Result<(), Errno> {
        ip_ctloutput(self, so, sopt)
    }

    fn close(&self, so: &Arc<Socket>) {
        self.abort(so);
    }

    fn abort(&self, so: &Arc<Socket>) {
        let mut guard = self.write();
        if guard.is_connected() {
            self.inp_vnet.udbinfo.disconnect(self, &mut guard.hdr);
            drop(guard);
            so.soisdisconnected();
        }
    }

    fn detach(&self, _so: &Arc<Socket>) {
        let mut guard = self.write();
        let imo = guard.inp_moptions.take();
        let so = self.inp_vnet.udbinfo.free(self, &mut guard.hdr);
        drop(guard);
        inp_freemoptions(&self.inp_vnet, imo);
        drop(so);
    }
}
