//! Sends IPv4 packets: route, source address, checksums the interface can't compute, fragments.
//!
//! FreeBSD: sys/netinet/ip_output.c, ip_id.c
//! Differs from FreeBSD: the route is remembered in the control block and read without a lock, so that parallel senders on
//! one socket share it too.

use crate::if_ether::{self, Resolved};
use crate::in_pcb::{Route, RouteCache, group_ifaddr};
use crate::ip::{
    IP_DF, IP_MF, IP_OFFMASK, IPOPT_COPIED, IPOPT_EOL, IPOPT_NOP, Ip, in_loopback, in_multicast,
};
use crate::ip_input::filter;
use crate::ip_var::{IpMoptions, IpOptions, IpOutArgs, IpOutFlags};
use crate::vnet::NetCx;
use alloc::sync::Arc;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::machine::in_cksum::in_cksum;
use sys::machine::{self, PerCpu};
use sys::mbuf::{CsumFlags, How, IfIndex, MFlags, Mbuf, MbufQueue};
use sys::net::if_ethersubr::{ETHER_HDR_LEN, ETHERTYPE_IP, ether_output};
use sys::net::if_llatbl::LlEntry;
use sys::net::if_loop::looutput;
use sys::net::ifnet::{IfFlags, Ifaddr, Ifnet};
use sys::net::netisr::NetisrProto;
use sys::net::nhop::Nexthop;
use sys::net::pfil::PfilDir;
use sys::net::route::RtFlags;

/// Identification for datagrams that may be fragmented: a counter per CPU, interleaved (`V_ip_id`).
pub(crate) struct IpIds {
    counters: PerCpu<AtomicU32>,
}

impl IpIds {
    pub(crate) fn new() -> Self {
        Self {
            counters: PerCpu::new(|_| AtomicU32::new(machine::random_u64() as u32)),
        }
    }

    /// The next identification on this CPU. Two threads of one CPU that interleave here may get the same number, which
    /// is no worse than one repeating after 65536 datagrams.
    fn next(&self) -> u16 {
        let cpu = machine::curcpu();
        let counter = self.counters.get(cpu);
        let n = counter.load(Ordering::Relaxed).wrapping_add(1);
        counter.store(n, Ordering::Relaxed);
        n.wrapping_mul(machine::ncpus() as u32)
            .wrapping_add(cpu as u32) as u16
    }
}

/// Fills the identification (`ip_fillid`). RFC 6864: a datagram that can't be fragmented needs none.
pub(crate) fn ip_fillid(cx: &NetCx<'_>, ip: &mut Ip) {
    let id = if cx.vnet.ip.rfc6864.get() && ip.ip_off.get() & (IP_DF | IP_MF | IP_OFFMASK) == IP_DF
    {
        0
    } else if cx.vnet.ip.random_id.get() {
        machine::random_u64() as u16
    } else {
        cx.vnet.ip_id.next()
    };
    ip.ip_id.set(id);
}

/// Where a packet goes.
#[derive(Clone, Copy)]
struct Way<'e> {
    ifp: &'e Arc<Ifnet>,
    ia: Option<&'e Arc<Ifaddr>>,
    /// The neighbour: a gateway or the destination itself.
    gw: Ipv4Addr,
    via_gateway: bool,
    broadcast: bool,
    mtu: u32,
    /// The neighbour's entry, if it is remembered.
    lle: Option<&'e Arc<LlEntry>>,
}

impl<'e> Way<'e> {
    /// Along a next hop of the routing table.
    fn by_nexthop(cx: &NetCx<'e>, nhop: &'e Arc<Nexthop>, dst: Ipv4Addr) -> Way<'e> {
        Way {
            ifp: &nhop.nh_ifp,
            ia: nhop.nh_ifa.as_ref(),
            gw: nhop.link_dst(dst),
            via_gateway: nhop.gw.is_some(),
            broadcast: is_broadcast(cx, &nhop.nh_ifp, dst),
            mtu: if nhop.nh_mtu == 0 {
                nhop.nh_ifp.mtu()
            } else {
                nhop.nh_mtu.min(nhop.nh_ifp.mtu())
            },
            lle: None,
        }
    }

    /// Straight out of an interface.
    fn by_interface(cx: &NetCx<'e>, ifp: &'e Arc<Ifnet>, dst: Ipv4Addr) -> Way<'e> {
        Way {
            ifp,
            ia: ifp.addrs(cx.epoch).first(),
            gw: dst,
            via_gateway: false,
            broadcast: is_broadcast(cx, ifp, dst),
            mtu: ifp.mtu(),
            lle: None,
        }
    }
}

/// Whether `dst` is a broadcast address on the interface (`in_broadcast`).
pub(crate) fn is_broadcast(cx: &NetCx<'_>, ifp: &Ifnet, dst: Ipv4Addr) -> bool {
    ifp.flags().contains(IfFlags::BROADCAST)
        && (dst == Ipv4Addr::BROADCAST
            || ifp
                .addrs(cx.epoch)
                .iter()
                .any(|ia| ia.ia_broadaddr == Some(dst)))
}

/// Sends a packet that begins with an IP header, of which `ip_len`, `ip_off` (DF), `ip_tos`, `ip_ttl`, `ip_p`, `ip_dst` and
/// perhaps `ip_src` are filled in; the rest is done here.
///
/// `EMSGSIZE`: does not fit and must not be fragmented, or TSO was asked for and the interface does not do it (any more).
pub fn ip_output(cx: &NetCx<'_>, m: Mbuf, args: &IpOutArgs<'_>) -> Result<(), Errno> {
    let stat = &cx.vnet.ipstat;
    let mut m = match args.options {
        Some(options) if !options.is_empty() => ip_insertoptions(cx, m, options)?,
        _ => m,
    };
    let foreign_header = args
        .flags
        .intersects(IpOutFlags::FORWARDING | IpOutFlags::RAWOUTPUT);
    let Some(ip) = Ip::parse_mut(m.data_mut()) else {
        stat.ips_odropped.inc();
        return Err(Errno::EINVAL);
    };
    if !foreign_header {
        let hlen = Ip::LEN + args.options.map_or(0, IpOptions::len);
        ip.set_hlen(hlen);
        ip_fillid(cx, ip);
        stat.ips_localout.inc();
    }
    let dst = args
        .options
        .and_then(|options| options.first_hop)
        .unwrap_or(ip.dst());

    let way = match find_way(cx, ip, dst, args) {
        Ok(way) => way,
        // A black hole swallows without a word.
        Err(NoWay::BlackHole) => {
            stat.ips_odropped.inc();
            return Ok(());
        }
        Err(NoWay::Error(error)) => {
            if error == Errno::EHOSTUNREACH || error == Errno::ENETUNREACH {
                stat.ips_noroute.inc();
            } else {
                stat.ips_odropped.inc();
            }
            return Err(error);
        }
    };
    if in_multicast(dst) {
        let default = IpMoptions::default();
        let imo = args.imo.unwrap_or(&default);
        if !foreign_header {
            ip.ip_ttl = imo.imo_ttl;
        }
        choose_source(ip, &way, args);
        return output_multicast(cx, m, dst, imo, &way, args);
    }
    choose_source(ip, &way, args);
    if way.broadcast {
        // Must have a broadcast-capable interface, and permission.
        let refused = if !way.ifp.flags().contains(IfFlags::BROADCAST) {
            Some(Errno::EADDRNOTAVAIL)
        } else if !args.flags.contains(IpOutFlags::ALLOWBROADCAST) {
            Some(Errno::EACCES)
        } else if u32::from(ip.ip_len.get()) > way.mtu {
            Some(Errno::EMSGSIZE)
        } else {
            None
        };
        if let Some(error) = refused {
            stat.ips_odropped.inc();
            return Err(error);
        }
        if args.flags.contains(IpOutFlags::SENDONES) {
            ip.set_dst(Ipv4Addr::BROADCAST);
        }
        m.add_flags(MFlags::BCAST);
    }
    send_along(cx, m, &way, args)
}

/// Why a packet goes nowhere.
enum NoWay {
    /// The sender is told.
    Error(Errno),
    /// A route says that it is to vanish (`RTF_BLACKHOLE`).
    BlackHole,
}

impl From<Errno> for NoWay {
    fn from(error: Errno) -> Self {
        NoWay::Error(error)
    }
}

/// Finds interface and neighbour for a destination (`ip_output`: "Route packet").
#[inline]
fn find_way<'e>(
    cx: &NetCx<'e>,
    ip: &Ip,
    dst: Ipv4Addr,
    args: &IpOutArgs<'e>,
) -> Result<Way<'e>, NoWay> {
    let by_index = |index: IfIndex| cx.vnet.ifnet_byindex(index, cx.epoch).ok_or(Errno::ENXIO);
    if args.flags.contains(IpOutFlags::SENDTOIF) {
        return Ok(Way::by_interface(cx, by_index(args.ifindex)?, dst));
    }
    if let Some(ro) = args.ro
        && !args
            .flags
            .intersects(IpOutFlags::SENDONES | IpOutFlags::ROUTETOIF)
        && let Some(cached) = ro.get(cx.epoch, dst, cx.vnet.rib.generation())
    {
        let way = cached_way(cached, dst);
        if way.lle.is_none_or(|lle| lle.resolved().is_none())
            && neighbour(cx, way.ifp, way.gw).is_some()
        {
            // The neighbour has answered since, or its entry was made anew.
            remember(cx, ro, dst, &cached.nhop, way.gw);
        }
        return Ok(way);
    }
    if args.flags.contains(IpOutFlags::SENDONES) {
        let ia = cx
            .vnet
            .ifaddrs
            .all(cx.epoch)
            .iter()
            .find(|ia| ia.ia_broadaddr == Some(dst));
        return Ok(Way::by_interface(
            cx,
            &ia.ok_or(Errno::ENETUNREACH)?.ia_ifp,
            dst,
        ));
    }
    if args.flags.contains(IpOutFlags::ROUTETOIF) {
        // Only to networks we are on ourselves.
        let direct = cx.vnet.ifaddrs.all(cx.epoch).iter().find(|ia| {
            ia.ia_dstaddr == Some(dst) || ia.ia_broadaddr == Some(dst) || ia.has_neighbour(dst)
        });
        return Ok(Way::by_interface(
            cx,
            &direct.ok_or(Errno::ENETUNREACH)?.ia_ifp,
            dst,
        ));
    }
    if in_multicast(dst) {
        if let Some(imo) = args.imo
            && imo.imo_ifindex.is_some()
        {
            return Ok(Way::by_interface(cx, by_index(imo.imo_ifindex)?, dst));
        }
        if let Some(ia) = cx.vnet.ifaddrs.lookup(cx.epoch, ip.src()) {
            return Ok(Way::by_interface(cx, &ia.ia_ifp, dst));
        }
    }
    let Some(nhop) = cx.vnet.rib.fib4_lookup(dst, cx.epoch) else {
        // A host without routes still reaches the network it is on by broadcast and multicast.
        if dst == Ipv4Addr::BROADCAST || in_multicast(dst) {
            let flag = if dst == Ipv4Addr::BROADCAST {
                IfFlags::BROADCAST
            } else {
                IfFlags::MULTICAST
            };
            let ia = group_ifaddr(cx, flag);
            return Ok(Way::by_interface(
                cx,
                &ia.ok_or(Errno::ENETUNREACH)?.ia_ifp,
                dst,
            ));
        }
        return Err(Errno::EHOSTUNREACH.into());
    };
    if nhop.nh_flags.contains(RtFlags::BLACKHOLE) {
        return Err(NoWay::BlackHole);
    }
    if nhop.nh_flags.contains(RtFlags::REJECT) {
        return Err(Errno::EHOSTUNREACH.into());
    }
    let way = Way::by_nexthop(cx, nhop, dst);
    if let Some(ro) = args.ro
        && !way.broadcast
        && !in_multicast(dst)
    {
        remember(cx, ro, dst, nhop, way.gw);
    }
    Ok(way)
}

/// The way a remembered route leads; what is remembered is never a broadcast.
#[inline]
fn cached_way<'e>(cached: &'e RouteCache, dst: Ipv4Addr) -> Way<'e> {
    let nhop = &cached.nhop;
    let ifmtu = nhop.nh_ifp.mtu();
    Way {
        ifp: &nhop.nh_ifp,
        ia: nhop.nh_ifa.as_ref(),
        gw: nhop.link_dst(dst),
        via_gateway: nhop.gw.is_some(),
        broadcast: false,
        mtu: if nhop.nh_mtu == 0 {
            ifmtu
        } else {
            nhop.nh_mtu.min(ifmtu)
        },
        lle: cached.lle.as_ref(),
    }
}

/// Remembers a route, with the neighbour if it is known.
fn remember(cx: &NetCx<'_>, ro: &Route, dst: Ipv4Addr, nhop: &Arc<Nexthop>, gw: Ipv4Addr) {
    let generation = cx.vnet.rib.generation();
    let lle = neighbour(cx, &nhop.nh_ifp, gw).cloned();
    ro.set(RouteCache {
        dst,
        generation,
        nhop: nhop.clone(),
        lle,
    });
}

/// The entry of a neighbour whose address is known.
fn neighbour<'e>(cx: &NetCx<'e>, ifp: &'e Arc<Ifnet>, gw: Ipv4Addr) -> Option<&'e Arc<LlEntry>> {
    if !if_ether::has_arp(ifp) {
        return None;
    }
    ifp.lltable()?
        .lookup(gw, cx.epoch)
        .filter(|lle| lle.resolved().is_some())
}

/// A packet without source address gets the one of the interface it leaves by.
#[inline]
fn choose_source(ip: &mut Ip, way: &Way<'_>, args: &IpOutArgs<'_>) {
    if ip.src() == Ipv4Addr::UNSPECIFIED
        && !args.flags.contains(IpOutFlags::KEEPSRC)
        && let Some(ia) = way.ia
    {
        ip.set_src(ia.ia_addr);
    }
}

/// Sends to a group: out of the interface, and back to us if we are a member.
fn output_multicast(
    cx: &NetCx<'_>,
    mut m: Mbuf,
    group: Ipv4Addr,
    imo: &IpMoptions,
    way: &Way<'_>,
    args: &IpOutArgs<'_>,
) -> Result<(), Errno> {
    if !way.ifp.flags().contains(IfFlags::MULTICAST) {
        cx.vnet.ipstat.ips_noroute.inc();
        return Err(Errno::ENETUNREACH);
    }
    let member = cx.vnet.ifaddrs.is_member(cx.epoch, way.ifp.if_index, group);
    if imo.imo_loop && member && !way.ifp.is_loopback() {
        ip_mloopback(cx, way.ifp, &m);
    }
    // RFC 1112 §6.1: time to live zero stays on this host.
    if Ip::parse(m.data()).is_none_or(|ip| ip.ip_ttl == 0) {
        return Ok(());
    }
    m.add_flags(MFlags::MCAST);
    send_along(cx, m, way, args)
}

/// Queues a copy of a multicast for ourselves, as if it had come in by the interface.
fn ip_mloopback(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: &Mbuf) {
    let Some(mut copy) = m.dup(How::NoWait) else {
        cx.vnet.ipstat.ips_odropped.inc();
        return;
    };
    if copy.pkthdr().csum_flags.intersects(CsumFlags::DELAY_DATA) {
        in_delayed_cksum(cx, &mut copy);
    }
    let hlen = Ip::parse(copy.data()).map_or(Ip::LEN, Ip::hlen);
    set_header_sum(&mut copy, hlen);
    let hdr = copy.pkthdr_mut();
    hdr.csum_flags = CsumFlags::IP_CHECKED | CsumFlags::IP_VALID;
    hdr.rcvif = ifp.if_index;
    let _ = sys::net::netisr::queue(cx.vnet, NetisrProto::Ip, copy);
}

/// Filters, checksums, and sends as one packet or as fragments (`ip_output`: "sendit").
#[inline]
fn send_along(cx: &NetCx<'_>, m: Mbuf, way: &Way<'_>, args: &IpOutArgs<'_>) -> Result<(), Errno> {
    let stat = &cx.vnet.ipstat;
    let ifp: &Ifnet = way.ifp;
    let Some(mut m) = filter(cx, ifp, PfilDir::Out, m) else {
        return Err(Errno::EACCES);
    };
    let Some(ip) = Ip::parse(m.data()) else {
        stat.ips_odropped.inc();
        return Err(Errno::EINVAL);
    };
    let hlen = ip.hlen();
    let ip_len = u32::from(ip.ip_len.get());
    let ip_off = ip.ip_off.get();
    // RFC 1122 §3.2.1.3: 127/8 never appears on a wire.
    if (in_loopback(ip.dst()) || in_loopback(ip.src())) && !ifp.is_loopback() {
        stat.ips_badaddr.inc();
        return Err(Errno::EADDRNOTAVAIL);
    }
    let hwassist = ifp.hwassist();
    let hdr = m.pkthdr_mut();
    hdr.l3hlen = hlen as u8;
    hdr.csum_flags |= CsumFlags::IP;
    if hdr.csum_flags.intersects(CsumFlags::DELAY_DATA - hwassist) {
        in_delayed_cksum(cx, &mut m);
    }
    let csum_flags = m.pkthdr().csum_flags;
    if ip_len <= way.mtu || (csum_flags & hwassist).intersects(CsumFlags::IP_TSO) {
        finish_header(&mut m, hlen, hwassist);
        if let Some(ia) = way.ia
            && !args.flags.contains(IpOutFlags::FORWARDING)
        {
            count_output(ia, &m);
        }
        m.clrprotoflags();
        return if_output(cx, m, way);
    }
    // A route change may have brought us to an interface without TSO: TCP must cut the segments itself.
    if ip_off & IP_DF != 0 || csum_flags.intersects(CsumFlags::IP_TSO) {
        stat.ips_cantfrag.inc();
        return Err(Errno::EMSGSIZE);
    }
    let mut fragments = ip_fragment(cx, m, way.mtu, hwassist)?;
    stat.ips_fragmented.inc();
    let mut result = Ok(());
    while let Some(mut m) = fragments.pop() {
        if result.is_err() {
            // The rest would be of no use to the receiver.
            stat.ips_odropped.inc();
            continue;
        }
        if let Some(ia) = way.ia
            && !args.flags.contains(IpOutFlags::FORWARDING)
        {
            count_output(ia, &m);
        }
        m.clrprotoflags();
        result = if_output(cx, m, way);
    }
    result
}

/// Counts on the source address; a TSO frame as the segments it will become.
#[inline]
fn count_output(ia: &Ifaddr, m: &Mbuf) {
    let hdr = m.pkthdr();
    if hdr.csum_flags.intersects(CsumFlags::IP_TSO) && hdr.tso_segsz != 0 {
        ia.opackets
            .add(u64::from(hdr.len) / u64::from(hdr.tso_segsz));
    } else {
        ia.opackets.inc();
    }
    ia.obytes.add(u64::from(hdr.len));
}

/// Leaves the header checksum to the interface, or computes it.
#[inline]
fn finish_header(m: &mut Mbuf, hlen: usize, hwassist: CsumFlags) {
    if hwassist.contains(CsumFlags::IP) {
        if let Some(ip) = Ip::parse_mut(m.data_mut()) {
            ip.ip_sum.set(0);
        }
    } else {
        set_header_sum(m, hlen);
        m.pkthdr_mut().csum_flags -= CsumFlags::IP;
    }
}

fn set_header_sum(m: &mut Mbuf, hlen: usize) {
    let Some(header) = m.data_mut().get_mut(..hlen) else {
        return;
    };
    if let Some(ip) = Ip::parse_mut(header) {
        ip.ip_sum.set(0);
    }
    let sum = in_cksum(header);
    if let Some(ip) = Ip::parse_mut(header) {
        ip.ip_sum.set(sum);
    }
}

/// Hands a packet to its interface (`if_output`): loopback, or by the neighbour's address.
#[inline]
fn if_output(cx: &NetCx<'_>, mut m: Mbuf, way: &Way<'_>) -> Result<(), Errno> {
    let ifp: &Ifnet = way.ifp;
    if ifp.is_loopback() {
        return looutput(ifp, ifp, cx.epoch, m, NetisrProto::Ip);
    }
    if !ifp.flags().contains(IfFlags::UP) {
        cx.vnet.ipstat.ips_odropped.inc();
        return Err(Errno::ENETDOWN);
    }
    m.pkthdr_mut().l2hlen = ETHER_HDR_LEN as u8;
    match if_ether::arpresolve(cx, way.ifp, way.lle, way.via_gateway, m, way.gw) {
        Resolved::Now(m, address) => {
            let result = ether_output(ifp, cx.epoch, m, address, ETHERTYPE_IP);
            if result == Err(Errno::ENOBUFS) {
                cx.vnet.ipstat.ips_odropped.inc();
            }
            result
        }
        // The packet waits for the neighbour's answer: as good as sent.
        Resolved::Held => Ok(()),
        Resolved::Failed(error) => Err(error),
    }
}

/// Computes in software the transport checksum that was left to the interface (`in_delayed_cksum`).
pub fn in_delayed_cksum(cx: &NetCx<'_>, m: &mut Mbuf) {
    let flags = m.pkthdr().csum_flags;
    m.pkthdr_mut().csum_flags -= CsumFlags::DELAY_DATA;
    let Some(ip) = Ip::parse(m.data()) else {
        return;
    };
    let (hlen, ip_len) = (ip.hlen(), usize::from(ip.ip_len.get()));
    if ip_len < hlen || ip_len > m.pkt_len() {
        return;
    }
    cx.vnet.ipstat.ips_swcsum_out.inc();
    // The field holds the sum of the pseudo header, so that it is part of the sum.
    let mut sum = m.in_cksum_skip(ip_len, hlen);
    if flags.contains(CsumFlags::IP_UDP) && sum == 0 {
        // RFC 768: zero means "none".
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

/// Cuts a packet into fragments of at most `mtu` bytes (`ip_fragment`). Checksums above IP are computed before.
pub fn ip_fragment(
    cx: &NetCx<'_>,
    mut m: Mbuf,
    mtu: u32,
    hwassist: CsumFlags,
) -> Result<MbufQueue, Errno> {
    let stat = &cx.vnet.ipstat;
    // No interface adds up a checksum over several packets.
    if m.pkthdr().csum_flags.intersects(CsumFlags::DELAY_DATA) {
        in_delayed_cksum(cx, &mut m);
    }
    let header = *Ip::parse(m.data()).ok_or(Errno::EINVAL)?;
    let (hlen, ip_len, ip_off) = (
        header.hlen(),
        usize::from(header.ip_len.get()),
        header.ip_off.get(),
    );
    let room = (mtu as usize).saturating_sub(hlen) & !7;
    if ip_off & IP_DF != 0 || room < 8 || ip_len < hlen {
        stat.ips_cantfrag.inc();
        return Err(Errno::EMSGSIZE);
    }
    let mut fragments = MbufQueue::new();
    let copied = copied_options(&m, hlen);
    let later_hlen = Ip::LEN + copied.len();
    let later_room = (mtu as usize - later_hlen) & !7;
    // The first fragment is the packet itself, cut. Its header is written before the data is shared with the others.
    if let Some(ip) = Ip::parse_mut(m.data_mut()) {
        ip.ip_len.set((hlen + room) as u16);
        ip.ip_off.set(ip_off | IP_MF);
    }
    finish_header(&mut m, hlen, hwassist);
    let mut off = hlen + room;
    while off < ip_len {
        let len = later_room.min(ip_len - off);
        let last = off + len >= ip_len;
        let Some(mut fragment) = fragment_of(&m, &header, copied.bytes(), off, len) else {
            stat.ips_odropped.inc();
            return Err(Errno::ENOBUFS);
        };
        if let Some(ip) = Ip::parse_mut(fragment.data_mut()) {
            let more = if last { ip_off & IP_MF } else { IP_MF };
            let units = (ip_off & IP_OFFMASK).wrapping_add(((off - hlen) / 8) as u16);
            ip.ip_off.set(units & IP_OFFMASK | more);
        }
        finish_header(&mut fragment, later_hlen, hwassist);
        stat.ips_ofragments.inc();
        fragments.push(fragment);
        off += len;
    }
    let excess = m.pkt_len().saturating_sub(hlen + room);
    m.trim_back(excess);
    stat.ips_ofragments.inc();
    fragments.push_front(m);
    Ok(fragments)
}

/// One later fragment: a header of its own before a shared copy of the data.
fn fragment_of(m: &Mbuf, header: &Ip, options: &[u8], off: usize, len: usize) -> Option<Mbuf> {
    let mut fragment = Mbuf::gethdr(How::NoWait)?;
    let hlen = Ip::LEN + options.len();
    fragment.reserve_front(sys::mbuf::MAX_LINKHDR);
    let room = fragment.extend_mut(hlen);
    room.get_mut(Ip::LEN..)?.copy_from_slice(options);
    let ip = Ip::parse_mut(room)?;
    *ip = *header;
    ip.set_hlen(hlen);
    ip.ip_len.set((hlen + len) as u16);
    let data = m.copym(off, len, How::NoWait)?;
    fragment.cat(data);
    fragment.set_pkt_len(hlen + len);
    fragment.set_flags(fragment.flags() | m.flags() & (MFlags::BCAST | MFlags::MCAST));
    let (from, to) = (m.pkthdr(), fragment.pkthdr_mut());
    to.rcvif = from.rcvif;
    to.flowid = from.flowid;
    to.rsstype = from.rsstype;
    to.fibnum = from.fibnum;
    to.csum_flags = from.csum_flags & CsumFlags::IP;
    to.l3hlen = hlen as u8;
    Some(fragment)
}

/// The options that every fragment carries (`ip_optcopy`).
fn copied_options(m: &Mbuf, hlen: usize) -> IpOptions {
    let mut bytes = [0; crate::ip::MAX_IPOPTLEN];
    let mut len = 0;
    let mut rest = m.data().get(Ip::LEN..hlen).unwrap_or(&[]);
    while let Some(&opt) = rest.first() {
        if opt == IPOPT_EOL {
            break;
        }
        let optlen = if opt == IPOPT_NOP {
            1
        } else {
            rest.get(1).map_or(0, |&len| usize::from(len))
        };
        let Some(option) = rest.get(..optlen).filter(|option| !option.is_empty()) else {
            break;
        };
        if opt & IPOPT_COPIED != 0
            && let Some(room) = bytes.get_mut(len..len + optlen)
        {
            room.copy_from_slice(option);
            len += optlen;
        }
        rest = rest.get(optlen..).unwrap_or(&[]);
    }
    bytes
        .get(..len)
        .and_then(IpOptions::new)
        .unwrap_or_else(IpOptions::none)
}

/// Inserts options behind the header (`ip_insertoptions`).
fn ip_insertoptions(cx: &NetCx<'_>, m: Mbuf, options: &IpOptions) -> Result<Mbuf, Errno> {
    let too_long = |cx: &NetCx<'_>| {
        cx.vnet.ipstat.ips_odropped.inc();
        Errno::EMSGSIZE
    };
    let header = *Ip::parse(m.data()).ok_or(Errno::EINVAL)?;
    let len = u16::try_from(usize::from(header.ip_len.get()) + options.len())
        .map_err(|_| too_long(cx))?;
    let mut m = m.prepend(options.len(), How::NoWait).map_err(|_| {
        cx.vnet.ipstat.ips_odropped.inc();
        Errno::ENOBUFS
    })?;
    // The header may have got an mbuf of its own: make room for both in one piece.
    let hlen = Ip::LEN + options.len();
    if m.len() < hlen {
        m = m.pullup(hlen).map_err(|_| {
            cx.vnet.ipstat.ips_odropped.inc();
            Errno::ENOBUFS
        })?;
    }
    let data = m.data_mut();
    if let Some(room) = data.get_mut(Ip::LEN..hlen) {
        room.copy_from_slice(options.bytes());
    }
    if let Some(ip) = Ip::parse_mut(data) {
        *ip = header;
        ip.set_hlen(hlen);
        ip.ip_len.set(len);
    }
    Ok(m)
}

/// The MTU of the way to `dst`, if there is one: what TCP derives its segment size from.
pub fn route_mtu(cx: &NetCx<'_>, dst: Ipv4Addr) -> Option<u32> {
    let nhop = cx.vnet.rib.fib4_lookup(dst, cx.epoch)?;
    Some(Way::by_nexthop(cx, nhop, dst).mtu)
}

/// The interface packets to `dst` leave by.
pub fn route_ifp<'e>(cx: &NetCx<'e>, dst: Ipv4Addr) -> Option<&'e Arc<Ifnet>> {
    cx.vnet
        .rib
        .fib4_lookup(dst, cx.epoch)
        .map(|nhop| &nhop.nh_ifp)
}
