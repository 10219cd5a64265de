//! Sends IPv6 packets: route, source address, checksums the interface can't compute, fragments.
//!
//! FreeBSD: sys/netinet6/ip6_output.c, ip6_id.c, nd6.c (nd6_output_ifp)

use crate::if_ether::{Resolved, has_arp};
use crate::in_pcb::{Route, RouteCache};
use crate::ip::IPPROTO_TCP;
use crate::ip_var::IpMoptions;
use crate::netinet6::in6_src::{in6_clearscope, in6_getscope, in6_selectsrc, in6_setscope};
use crate::netinet6::ip6::{
    IP6F_MORE_FRAG, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPV6_MMTU,
    Ip6, Ip6Frag,
};
use crate::netinet6::ip6_input::filter6;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::netinet6::nd6;
use crate::vnet::NetCx;
use alloc::sync::Arc;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::machine;
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, MFlags, Mbuf, MbufQueue};
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_IPV6, ether_output};
use sys::net::if_llatbl::LlEntry;
use sys::net::if_loop::looutput;
use sys::net::ifnet::{IfFlags, Ifnet, In6Ifaddr};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::netisr::NetisrProto;
use sys::net::nhop::Nexthop;
use sys::net::pfil::PfilDir;
use sys::net::route::RtFlags;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32};

/// A flow label that says nothing of the flow: 20 random bits, not zero (RFC 6437 §3).
pub fn ip6_randomflowlabel() -> u32 {
    (machine::random_u64() as u32 & crate::netinet6::ip6::IPV6_FLOWLABEL_MASK).max(1)
}

/// Where a packet goes.
#[derive(Clone, Copy)]
struct Way<'e> {
    ifp: &'e Arc<Ifnet>,
    ia: Option<&'e Arc<In6Ifaddr>>,
    /// The neighbour: a gateway or the destination itself.
    gw: Ipv6Addr,
    mtu: u32,
    lle: Option<&'e Arc<LlEntry<Ipv6Addr>>>,
}

impl<'e> Way<'e> {
    fn by_nexthop(nhop: &'e Arc<Nexthop<Ipv6Addr>>, dst: Ipv6Addr) -> Way<'e> {
        Way {
            ifp: &nhop.nh_ifp,
            ia: nhop.nh_ifa.as_ref(),
            gw: nhop.link_dst(dst),
            mtu: nhop.mtu(),
            lle: None,
        }
    }

    fn by_interface(ifp: &'e Arc<Ifnet>, dst: Ipv6Addr) -> Way<'e> {
        Way {
            ifp,
            ia: None,
            gw: dst,
            mtu: ifp.link_mtu6(),
            lle: None,
        }
    }
}

/// Sends a packet that begins with an IPv6 header, of which everything but perhaps the source is filled in; `ip6_plen` too.
/// Addresses with a scope carry their zone, which is taken out on the way.
///
/// `EMSGSIZE`: does not fit and must not be fragmented, or TSO was asked for and the interface does not do it (any more).
pub fn ip6_output(cx: &NetCx<'_>, mut m: Mbuf, args: &Ip6OutArgs<'_>) -> Result<(), Errno> {
    let stat = &cx.vnet.ip6stat;
    let Some(ip6) = Ip6::parse_mut(m.data_mut()) else {
        stat.ip6s_odropped.inc();
        return Err(Errno::EINVAL);
    };
    if !args.forwarding {
        stat.ip6s_localout.inc();
    }
    let dst = ip6.dst();
    let way = match find_way(cx, dst, args) {
        Ok(way) => way,
        Err(error) => {
            stat.ip6s_noroute.inc();
            return Err(error);
        }
    };
    if ip6.src().is_unspecified() && !args.unspecsrc {
        match in6_selectsrc(cx, dst, way.ifp) {
            Some(ia) => ip6.set_src(ia.ia_addr),
            None => {
                stat.ip6s_odropped.inc();
                return Err(Errno::EADDRNOTAVAIL);
            }
        }
    }
    if args.select_hlim
        && let Some(hops) = way.ifp.nd6.chlim()
    {
        ip6.ip6_hlim = hops;
    }
    // RFC 4291 §2.5.3: the loopback address never leaves the host; nor does an address another zone.
    let src = ip6.src();
    let loopback_outside =
        (src == Ipv6Addr::LOCALHOST || dst == Ipv6Addr::LOCALHOST) && !way.ifp.is_loopback();
    let zone = in6_getscope(src);
    let foreign_zone = zone.is_some() && zone != way.ifp.if_index && !way.ifp.is_loopback();
    if loopback_outside || foreign_zone {
        stat.ip6s_badscope.inc();
        return Err(Errno::EADDRNOTAVAIL);
    }
    if dst.is_multicast() {
        return output_multicast(cx, m, dst, &way, args);
    }
    send_along(cx, m, &way, args)
}

/// Finds interface and neighbour for a destination.
#[inline]
fn find_way<'e>(cx: &NetCx<'e>, dst: Ipv6Addr, args: &Ip6OutArgs<'e>) -> Result<Way<'e>, Errno> {
    let by_index = |index| cx.vnet.ifnet_byindex(index, cx.epoch).ok_or(Errno::ENXIO);
    if args.ifindex.is_some() {
        let ifp = by_index(args.ifindex)?;
        return Ok(Way::by_interface(ifp, in6_setscope(dst, ifp)));
    }
    let generation = cx.vnet.rib6.generation();
    if let Some(ro) = args.ro
        && let Some(cached) = ro.get(cx.epoch, dst, generation)
    {
        let mut way = Way::by_nexthop(&cached.nhop, dst);
        way.lle = cached.lle.as_ref();
        if way.lle.is_none_or(|lle| lle.resolved().is_none())
            && neighbour(cx, way.ifp, way.gw).is_some()
        {
            // The neighbour has answered since, or its entry was made anew.
            remember(cx, ro, dst, &cached.nhop, way.gw);
        }
        return Ok(way);
    }
    if dst.is_multicast() {
        let index = args
            .imo
            .map(|imo| imo.imo_ifindex)
            .filter(|index| index.is_some());
        let zone = Some(in6_getscope(dst)).filter(|index| index.is_some());
        if let Some(index) = zone.or(index) {
            let ifp = by_index(index)?;
            return Ok(Way::by_interface(ifp, in6_setscope(dst, ifp)));
        }
    }
    let Some(nhop) = cx.vnet.rib6.fib6_lookup(dst, cx.epoch) else {
        return Err(Errno::EHOSTUNREACH);
    };
    if nhop
        .nh_flags
        .intersects(RtFlags::REJECT | RtFlags::BLACKHOLE)
    {
        return Err(if nhop.nh_flags.contains(RtFlags::BLACKHOLE) {
            Errno::ENETDOWN
        } else {
            Errno::EHOSTUNREACH
        });
    }
    let way = Way::by_nexthop(nhop, dst);
    if let Some(ro) = args.ro
        && !dst.is_multicast()
    {
        remember(cx, ro, dst, nhop, way.gw);
    }
    Ok(way)
}

/// Remembers a route, with the neighbour if it is known.
fn remember(
    cx: &NetCx<'_>,
    ro: &Route<Ipv6Addr>,
    dst: Ipv6Addr,
    nhop: &Arc<Nexthop<Ipv6Addr>>,
    gw: Ipv6Addr,
) {
    ro.set(RouteCache {
        dst,
        generation: cx.vnet.rib6.generation(),
        nhop: nhop.clone(),
        lle: neighbour(cx, &nhop.nh_ifp, gw).cloned(),
    });
}

fn neighbour<'e>(
    cx: &NetCx<'e>,
    ifp: &'e Arc<Ifnet>,
    gw: Ipv6Addr,
) -> Option<&'e Arc<LlEntry<Ipv6Addr>>> {
    let lle = ifp.lltable6()?.lookup(gw, cx.epoch)?;
    lle.resolved().is_some().then_some(lle)
}

/// Sends to a group: out of the interface, and back to us if we are a member.
fn output_multicast(
    cx: &NetCx<'_>,
    mut m: Mbuf,
    group: Ipv6Addr,
    way: &Way<'_>,
    args: &Ip6OutArgs<'_>,
) -> Result<(), Errno> {
    if !way.ifp.flags().contains(IfFlags::MULTICAST) {
        cx.vnet.ip6stat.ip6s_noroute.inc();
        return Err(Errno::ENETUNREACH);
    }
    let default = IpMoptions::default();
    let imo = args.imo.unwrap_or(&default);
    let group = in6_setscope(group, way.ifp);
    let member = cx
        .vnet
        .in6_ifaddrs
        .is_member(cx.epoch, way.ifp.if_index, group);
    // What has no source address yet says so to others, not to us (RFC 4862 §5.4.3).
    if imo.imo_loop && member && !way.ifp.is_loopback() && !args.unspecsrc {
        ip6_mloopback(cx, way.ifp, &m);
    }
    if Ip6::parse(m.data()).is_none_or(|ip6| ip6.ip6_hlim == 0) {
        return Ok(());
    }
    m.add_flags(MFlags::MCAST);
    send_along(cx, m, way, args)
}

/// Queues a copy of a multicast for ourselves, as if it had come in by the interface.
fn ip6_mloopback(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: &Mbuf) {
    let Some(mut copy) = m.dup(How::NoWait) else {
        cx.vnet.ip6stat.ip6s_odropped.inc();
        return;
    };
    if copy
        .pkthdr()
        .csum_flags
        .intersects(CsumFlags::DELAY_DATA_IPV6)
    {
        in6_delayed_cksum(cx, &mut copy);
    }
    clear_scopes(&mut copy);
    let hdr = copy.pkthdr_mut();
    hdr.csum_flags = CsumFlags::empty();
    hdr.rcvif = ifp.if_index;
    copy.add_flags(MFlags::MCAST);
    // A full queue is counted where it is found.
    let _ = sys::net::netisr::queue(cx.vnet, NetisrProto::Ip6, copy);
}

/// Takes the zones out of the addresses: they mean nothing to others.
fn clear_scopes(m: &mut Mbuf) {
    if let Some(ip6) = Ip6::parse_mut(m.data_mut()) {
        ip6.set_src(in6_clearscope(ip6.src()));
        ip6.set_dst(in6_clearscope(ip6.dst()));
    }
}

/// Filters, checksums, and sends as one packet or as fragments.
#[inline]
fn send_along(cx: &NetCx<'_>, m: Mbuf, way: &Way<'_>, args: &Ip6OutArgs<'_>) -> Result<(), Errno> {
    let stat = &cx.vnet.ip6stat;
    let ifp: &Ifnet = way.ifp;
    let Some(mut m) = filter6(cx, ifp, PfilDir::Out, m) else {
        return Err(Errno::EACCES);
    };
    let len = m.pkt_len() as u32;
    let path_mtu = ip6_getpmtu(cx, &m, len, way, args);
    clear_scopes(&mut m);
    let hwassist = ifp.hwassist();
    let csum_flags = m.pkthdr().csum_flags;
    if csum_flags.intersects(CsumFlags::DELAY_DATA_IPV6 - hwassist) {
        in6_delayed_cksum(cx, &mut m);
    }
    let mtu = if args.use_min_mtu {
        path_mtu.min(IPV6_MMTU)
    } else {
        path_mtu
    };
    if len <= mtu || (csum_flags & hwassist).intersects(CsumFlags::IP6_TSO) {
        count_output(way, &m, args);
        m.clrprotoflags();
        return nd6_output_ifp(cx, m, way);
    }
    // A route change may have brought us to an interface without TSO. Routers do not fragment (RFC 8200 §4.5).
    if args.dontfrag || args.forwarding || csum_flags.intersects(CsumFlags::IP6_TSO) {
        stat.ip6s_cantfrag.inc();
        return Err(Errno::EMSGSIZE);
    }
    let mut fragments = ip6_fragment(cx, m, mtu)?;
    stat.ip6s_fragmented.inc();
    let mut result = Ok(());
    while let Some(mut m) = fragments.pop() {
        if result.is_err() {
            // The rest would be of no use to the receiver.
            stat.ip6s_odropped.inc();
            continue;
        }
        count_output(way, &m, args);
        m.clrprotoflags();
        result = nd6_output_ifp(cx, m, way);
    }
    result
}

/// Largest packet that the path takes, as far as is known. TCP has cut its segments to it already.
#[inline]
fn ip6_getpmtu(cx: &NetCx<'_>, m: &Mbuf, len: u32, way: &Way<'_>, args: &Ip6OutArgs<'_>) -> u32 {
    if len <= IPV6_MMTU || args.forwarding {
        return way.mtu;
    }
    let Some(ip6) = Ip6::parse(m.data()).filter(|ip6| ip6.ip6_nxt != IPPROTO_TCP) else {
        return way.mtu;
    };
    let learned = cx.vnet.tcp.hostcache.mtu(ip6.dst().into(), cx.now);
    learned.map_or(way.mtu, |learned| learned.min(way.mtu))
}

/// Counts on the address whose network the packet goes to; a TSO frame as the segments it will become.
#[inline]
fn count_output(way: &Way<'_>, m: &Mbuf, args: &Ip6OutArgs<'_>) {
    let Some(ia) = way.ia.filter(|_| !args.forwarding) else {
        return;
    };
    let hdr = m.pkthdr();
    if hdr.csum_flags.intersects(CsumFlags::IP6_TSO) && hdr.tso_segsz != 0 {
        ia.opackets
            .add(u64::from(hdr.len) / u64::from(hdr.tso_segsz));
    } else {
        ia.opackets.inc();
    }
    ia.obytes.add(u64::from(hdr.len));
}

/// Hands a packet to its interface: loopback, or by the neighbour's address.
#[inline]
fn nd6_output_ifp(cx: &NetCx<'_>, mut m: Mbuf, way: &Way<'_>) -> Result<(), Errno> {
    let ifp: &Ifnet = way.ifp;
    if ifp.is_loopback() {
        // The packet comes in again by the interface of whose zone it was.
        let zone = cx.vnet.ifnet_byindex(in6_getscope(way.gw), cx.epoch);
        let origin = zone.map_or(ifp, |zone| &**zone);
        return looutput(ifp, origin, cx.epoch, m, NetisrProto::Ip6);
    }
    let silent = ifp.nd6.flags().contains(Nd6Iff::IFDISABLED);
    if !ifp.flags().contains(IfFlags::UP) || silent {
        cx.vnet.ip6stat.ip6s_odropped.inc();
        return Err(Errno::ENETDOWN);
    }
    if !has_arp(ifp) {
        cx.vnet.ip6stat.ip6s_odropped.inc();
        return Err(Errno::EAFNOSUPPORT);
    }
    m.pkthdr_mut().l2hlen = ETHER_HDR_LEN as u8;
    match nd6::nd6_resolve(cx, way.ifp, way.lle, m, way.gw) {
        Resolved::Now(m, address) => {
            let result = ether_output(ifp, cx.epoch, m, address, ETHERTYPE_IPV6);
            if result == Err(Errno::ENOBUFS) {
                cx.vnet.ip6stat.ip6s_odropped.inc();
            }
            result
        }
        // The packet waits for the neighbour's answer: as good as sent.
        Resolved::Held => Ok(()),
        Resolved::Failed(error) => Err(error),
    }
}

/// Computes in software the transport checksum that was left to the interface (`in6_delayed_cksum`).
pub fn in6_delayed_cksum(cx: &NetCx<'_>, m: &mut Mbuf) {
    let flags = m.pkthdr().csum_flags;
    m.pkthdr_mut().csum_flags -= CsumFlags::DELAY_DATA_IPV6;
    // Our own packets have no extension headers but the fragment header, which comes later.
    let (hlen, len) = (Ip6::LEN, m.pkt_len());
    cx.vnet.ip6stat.ip6s_swcsum_out.inc();
    // The field holds the sum of the pseudo header, so that it is part of the sum.
    let mut sum = m.in_cksum_skip(len, hlen);
    if flags.contains(CsumFlags::IP6_UDP) && sum == 0 {
        // RFC 8200 §8.1: zero means "none".
        sum = 0xffff;
    }
    let at = hlen + m.pkthdr().csum_data as usize;
    let bytes = sum.to_be_bytes();
    if m.writable()
        && let Some(field) = m.data_mut().get_mut(at..at + 2)
    {
        field.copy_from_slice(&bytes);
    } else {
        m.copyback(at, &bytes, How::NoWait);
    }
}

/// Cuts a packet into fragments of at most `mtu` bytes (RFC 8200 §4.5). Checksums above IP are computed before.
pub fn ip6_fragment(cx: &NetCx<'_>, mut m: Mbuf, mtu: u32) -> Result<MbufQueue, Errno> {
    let stat = &cx.vnet.ip6stat;
    if m.pkthdr().csum_flags.intersects(CsumFlags::DELAY_DATA_IPV6) {
        in6_delayed_cksum(cx, &mut m);
    }
    let Some((unfragmentable, nxt_at, nxt)) = unfragmentable_part(&m) else {
        stat.ip6s_cantfrag.inc();
        return Err(Errno::EMSGSIZE);
    };
    let hlen = unfragmentable + Ip6Frag::LEN;
    let room = (mtu as usize).saturating_sub(hlen) & !7;
    if room < 8 {
        stat.ip6s_cantfrag.inc();
        return Err(Errno::EMSGSIZE);
    }
    let ident = machine::random_u64() as u32;
    let total = m.pkt_len();
    let mut fragments = MbufQueue::new();
    let mut off = unfragmentable;
    while off < total {
        let len = room.min(total - off);
        let last = off + len >= total;
        let frag = Ip6Frag {
            ip6f_nxt: nxt,
            ip6f_reserved: 0,
            ip6f_offlg: U16::new(
                (off - unfragmentable) as u16 | if last { 0 } else { IP6F_MORE_FRAG },
            ),
            ip6f_ident: U32::new(ident),
        };
        let Some(fragment) = fragment_of(&m, unfragmentable, nxt_at, &frag, off, len) else {
            stat.ip6s_odropped.inc();
            return Err(Errno::ENOBUFS);
        };
        stat.ip6s_ofragments.inc();
        fragments.push(fragment);
        off += len;
    }
    Ok(fragments)
}

/// Length of what every fragment repeats, where its last "next header" stands, and what that says.
fn unfragmentable_part(m: &Mbuf) -> Option<(usize, usize, u8)> {
    let (mut len, mut nxt_at) = (Ip6::LEN, 6);
    let mut nxt = Ip6::parse(m.data())?.ip6_nxt;
    // Up to the routing header, or else the hop-by-hop options.
    let (mut at, mut here) = (len, nxt);
    while matches!(here, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS) {
        let mut head = [0; 2];
        if !m.copydata(at, &mut head) {
            return None;
        }
        let (here_at, kind) = (at, here);
        here = head[0];
        at += (usize::from(head[1]) + 1) * 8;
        if kind != IPPROTO_DSTOPTS {
            (len, nxt_at, nxt) = (at, here_at, here);
        }
    }
    (len <= m.len()).then_some((len, nxt_at, nxt))
}

fn fragment_of(
    m: &Mbuf,
    unfragmentable: usize,
    nxt_at: usize,
    frag: &Ip6Frag,
    off: usize,
    len: usize,
) -> Option<Mbuf> {
    let hlen = unfragmentable + Ip6Frag::LEN;
    let mut fragment = Mbuf::getm2(How::NoWait, MAX_LINKHDR + hlen, true)?;
    fragment.reserve_front(MAX_LINKHDR);
    let room = fragment.extend_mut(hlen);
    let (front, back) = room.split_at_mut_checked(unfragmentable)?;
    front.copy_from_slice(m.data().get(..unfragmentable)?);
    *front.get_mut(nxt_at)? = IPPROTO_FRAGMENT;
    back.get_mut(..Ip6Frag::LEN)?
        .copy_from_slice(frag.as_bytes());
    let ip6 = Ip6::parse_mut(front)?;
    ip6.ip6_plen.set((hlen - Ip6::LEN + len) as u16);
    let data = m.copym(off, len, How::NoWait)?;
    fragment.cat(data);
    fragment.set_pkt_len(hlen + len);
    fragment.set_flags(fragment.flags() | m.flags() & (MFlags::BCAST | MFlags::MCAST));
    let (from, to) = (m.pkthdr(), fragment.pkthdr_mut());
    to.rcvif = from.rcvif;
    to.flowid = from.flowid;
    to.rsstype = from.rsstype;
    to.fibnum = from.fibnum;
    Some(fragment)
}
