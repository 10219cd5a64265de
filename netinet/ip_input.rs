//! Takes IPv4 packets from interfaces: checks them, finds whom they are for, hands them on.
//!
//! FreeBSD: sys/netinet/ip_input.c, ip_options.c
//! Differs from FreeBSD: a limited broadcast is taken by every broadcast interface, also by one that has no address
//! yet: a program can hear what is told to everybody on the link.

use crate::ip::{
    IPOPT_EOL, IPOPT_LSRR, IPOPT_NOP, IPOPT_RA, IPOPT_RR, IPOPT_SSRR, IPOPT_TS, IPVERSION, Ip,
    MAX_IPOPTLEN, in_experimental, in_linklocal, in_loopback, in_multicast, in_zeronet,
};
use crate::ip_icmp::{
    self, ICMP_PARAMPROB, ICMP_REDIRECT, ICMP_REDIRECT_HOST, ICMP_TIMXCEED, ICMP_TIMXCEED_INTRANS,
    ICMP_UNREACH, ICMP_UNREACH_FILTER_PROHIB, ICMP_UNREACH_HOST, ICMP_UNREACH_NEEDFRAG,
};
use crate::ip_output::ip_output;
use crate::ip_reass::Reassembly;
use crate::ip_var::{IpOutArgs, IpOutFlags};
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::in_cksum::in_cksum;
use sys::mbuf::{CsumFlags, How, MFlags, Mbuf, MbufQueue};
use sys::net::ifnet::{IfFlags, Ifaddr, Ifnet};
use sys::net::netisr::NetisrHandler;
use sys::net::nhop::Nexthop;
use sys::net::pfil::{PfilDir, PfilVerdict};
use sys::net::route::RtFlags;
use sys::net::vnet::Vnet;
use sys::tunables;

tunables! {
    /// `net.inet.ip`.
    pub struct IpTunables {
        forwarding: bool = false, "net.inet.ip.forwarding", "Enable IP forwarding between interfaces";
        redirect: bool = true, "net.inet.ip.redirect", "Enable sending IP redirects";
        ttl: u32 = 64, "net.inet.ip.ttl", "Maximum TTL on IP packets" (1..=255);
        accept_sourceroute: bool = false, "net.inet.ip.accept_sourceroute", "Enable accepting source routed IP packets";
        process_options: u32 = 1, "net.inet.ip.process_options", "Enable IP options processing ([LS]SRR, RR, TS)" (0..=2);
        stealth: bool = false, "net.inet.ip.stealth", "IP stealth mode, no TTL decrementation on forwarding";
        rfc6864: bool = true, "net.inet.ip.rfc6864", "Use constant IP ID for atomic datagrams";
        random_id: bool = false, "net.inet.ip.random_id", "Assign random ip_id values";
        rfc1122_strong_es: bool = false, "net.inet.ip.rfc1122_strong_es", "Packet's IP destination address must match address on arrival interface";
        source_address_validation: bool = true, "net.inet.ip.source_address_validation", "Drop incoming packets with source address that is a local address";
        maxfrags: u32 = 2048, "net.inet.ip.maxfrags", "Maximum number of IPv4 fragments allowed across all reassembly queues";
        maxfragpackets: u32 = 2048, "net.inet.ip.maxfragpackets", "Maximum number of IPv4 fragment reassembly queue entries";
        maxfragsperpacket: u32 = 16, "net.inet.ip.maxfragsperpacket", "Maximum number of IPv4 fragments allowed per packet";
        maxfragbucketsize: u32 = 4, "net.inet.ip.maxfragbucketsize", "Maximum number of IPv4 fragment reassembly queue entries per bucket";
        fragttl: u32 = 30, "net.inet.ip.fragttl", "IP fragment life time on reassembly queue (seconds)" (1..=255);
        first: u32 = 10000, "net.inet.ip.portrange.first", "" (1..=65535);
        last: u32 = 65535, "net.inet.ip.portrange.last", "" (1..=65535);
        hifirst: u32 = 49152, "net.inet.ip.portrange.hifirst", "" (1..=65535);
        hilast: u32 = 65535, "net.inet.ip.portrange.hilast", "" (1..=65535);
        lowfirst: u32 = 1023, "net.inet.ip.portrange.lowfirst", "" (1..=1023);
        lowlast: u32 = 600, "net.inet.ip.portrange.lowlast", "" (1..=1023);
        randomized: bool = true, "net.inet.ip.portrange.randomized", "Enable random port allocation";
        connect_inaddr_wild: bool = true, "net.inet.ip.connect_inaddr_wild", "Allow connecting to INADDR_ANY or INADDR_BROADCAST for connect(2)";
        allow_net240: bool = false, "net.inet.ip.allow_net240", "Allow use of Experimental addresses, aka Class E (240/4)";
        allow_net0: bool = false, "net.inet.ip.allow_net0", "Allow use of addresses in network 0/8";
    }
}

/// Takes packets of type IPv4 from netisr.
pub struct IpHandler {
    inet: Arc<InetVnet>,
}

impl IpHandler {
    pub(crate) fn new(inet: &Arc<InetVnet>) -> Self {
        Self { inet: inet.clone() }
    }
}

impl NetisrHandler for IpHandler {
    fn input(&self, _vnet: &Arc<Vnet>, epoch: &NetEpoch, m: Mbuf) {
        ip_input(&NetCx::new(&self.inet, epoch), m);
    }

    fn input_batch(&self, _vnet: &Arc<Vnet>, epoch: &NetEpoch, q: &mut MbufQueue) {
        let cx = NetCx::new(&self.inet, epoch);
        while let Some(m) = q.pop() {
            ip_input(&cx, m);
        }
    }
}

/// Takes one packet that begins with its IP header.
pub fn ip_input(cx: &NetCx<'_>, m: Mbuf) {
    // Every way out but the last has counted the packet.
    let Some((m, ifp, hlen)) = check_header(cx, m) else {
        return;
    };
    let Some(m) = filter(cx, ifp, PfilDir::In, m) else {
        return;
    };
    let Some((m, hlen)) = revalidate(cx, m, hlen) else {
        return;
    };
    let m = if hlen > Ip::LEN {
        match ip_dooptions(cx, ifp, m, hlen) {
            Some(m) => m,
            None => return,
        }
    } else {
        m
    };
    let Some(ip) = Ip::parse(m.data()) else {
        return;
    };
    match destination(cx, ifp, &m, ip) {
        Destination::Ours => ours(cx, m, hlen),
        Destination::Refused => {}
        Destination::Elsewhere if cx.vnet.ip.forwarding.get() => ip_forward(cx, m),
        Destination::Elsewhere => cx.vnet.ipstat.ips_cantforward.inc(),
    }
}

/// Checks lengths, version, addresses and checksum (`ip_input`, first half), and cuts link-layer padding.
#[inline]
fn check_header<'a>(cx: &NetCx<'a>, m: Mbuf) -> Option<(Mbuf, &'a Arc<Ifnet>, usize)> {
    let stat = &cx.vnet.ipstat;
    stat.ips_total.inc();
    if m.pkt_len() < Ip::LEN {
        stat.ips_toosmall.inc();
        return None;
    }
    let mut m = pullup(cx, m, Ip::LEN)?;
    let ip = Ip::parse(m.data())?;
    if ip.version() != IPVERSION {
        stat.ips_badvers.inc();
        return None;
    }
    let hlen = ip.hlen();
    if hlen < Ip::LEN {
        stat.ips_badhlen.inc();
        return None;
    }
    if hlen > m.len() {
        if hlen > m.pkt_len() {
            stat.ips_badhlen.inc();
            return None;
        }
        m = pullup(cx, m, hlen)?;
    }
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        // The interface has gone while the packet waited.
        stat.ips_nointerface.inc();
        return None;
    };
    let ip = Ip::parse(m.data())?;
    // RFC 1122 §3.2.1.3: 127/8 never appears on a wire.
    if (in_loopback(ip.dst()) || in_loopback(ip.src())) && !ifp.is_loopback() {
        stat.ips_badaddr.inc();
        return None;
    }
    let csum = m.pkthdr().csum_flags;
    let good = if csum.contains(CsumFlags::IP_CHECKED) {
        csum.contains(CsumFlags::IP_VALID)
    } else {
        stat.ips_swcsum_in.inc();
        in_cksum(m.data().get(..hlen)?) == 0
    };
    if !good {
        stat.ips_badsum.inc();
        return None;
    }
    let ip_len = usize::from(ip.ip_len.get());
    if ip_len < hlen {
        stat.ips_badlen.inc();
        return None;
    }
    if m.pkt_len() < ip_len {
        stat.ips_tooshort.inc();
        return None;
    }
    if m.pkt_len() > ip_len {
        let excess = m.pkt_len() - ip_len;
        m.trim_back(excess);
    }
    Some((m, ifp, hlen))
}

/// Makes the header contiguous; a packet for which there is no memory counts as too small, as in FreeBSD.
fn pullup(cx: &NetCx<'_>, m: Mbuf, len: usize) -> Option<Mbuf> {
    if m.len() >= len {
        return Some(m);
    }
    let m = m.pullup(len).ok();
    if m.is_none() {
        cx.vnet.ipstat.ips_toosmall.inc();
    }
    m
}

/// Runs the packet filters; `None`: they took or dropped it.
#[inline]
pub(crate) fn filter(cx: &NetCx<'_>, ifp: &Ifnet, dir: PfilDir, m: Mbuf) -> Option<Mbuf> {
    let head = &cx.vnet.pfil_inet;
    if head.is_empty(dir) {
        return Some(m);
    }
    match head.run(cx.epoch, ifp, dir, m) {
        PfilVerdict::Pass(m) => Some(m),
        PfilVerdict::Dropped => {
            cx.vnet.ipstat.ips_filtered.inc();
            None
        }
        PfilVerdict::Consumed => None,
    }
}

/// A filter may have changed the packet: the header must still be there.
#[inline]
fn revalidate(cx: &NetCx<'_>, m: Mbuf, hlen: usize) -> Option<(Mbuf, usize)> {
    if m.len() >= hlen {
        return Some((m, hlen));
    }
    let m = pullup(cx, m, Ip::LEN)?;
    let hlen = Ip::parse(m.data())?.hlen();
    if hlen < Ip::LEN {
        cx.vnet.ipstat.ips_badhlen.inc();
        return None;
    }
    Some((pullup(cx, m, hlen)?, hlen))
}

/// Where a packet belongs.
enum Destination {
    /// To this host.
    Ours,
    /// Perhaps beyond us.
    Elsewhere,
    /// To nobody; counted.
    Refused,
}

/// Decides whether a packet is for this host (`ip_input`: "Check our list of addresses").
#[inline]
fn destination(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: &Mbuf, ip: &Ip) -> Destination {
    let dst = ip.dst();
    if let Some(ia) = cx.vnet.ifaddrs.lookup(cx.epoch, dst) {
        // RFC 1122 §3.3.4.2, the strong model, is off by default, and is not for routers.
        if cx.vnet.ip.rfc1122_strong_es.get()
            && !cx.vnet.ip.forwarding.get()
            && !Arc::ptr_eq(&ia.ia_ifp, ifp)
            && !ifp.is_loopback()
        {
            cx.vnet.ipstat.ips_badaddr.inc();
            return Destination::Refused;
        }
        if cx.vnet.ip.source_address_validation.get()
            && !ifp.is_loopback()
            && cx.vnet.ifaddrs.lookup(cx.epoch, ip.src()).is_some()
        {
            cx.vnet.ipstat.ips_badaddr.inc();
            return Destination::Refused;
        }
        ia.ipackets.inc();
        ia.ibytes.add(m.pkt_len() as u64);
        return Destination::Ours;
    }
    if in_multicast(dst) {
        if cx.vnet.ifaddrs.is_member(cx.epoch, ifp.if_index, dst) {
            return Destination::Ours;
        }
        cx.vnet.ipstat.ips_notmember.inc();
        return Destination::Refused;
    }
    if ifp.flags().contains(IfFlags::BROADCAST)
        && (dst == Ipv4Addr::BROADCAST
            || ifp
                .addrs(cx.epoch)
                .iter()
                .any(|ia| ia.ia_broadaddr == Some(dst)))
    {
        return Destination::Ours;
    }
    if dst == Ipv4Addr::UNSPECIFIED || dst == Ipv4Addr::BROADCAST {
        return Destination::Ours;
    }
    Destination::Elsewhere
}

/// A packet for this host: puts fragments together and hands the datagram to its protocol.
#[inline]
fn ours(cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
    let (mut m, mut hlen) = (m, hlen);
    let Some(ip) = Ip::parse(m.data()) else {
        return;
    };
    let mut proto = ip.ip_p;
    if ip.is_fragment() {
        match cx.vnet.reass.input(cx, m, hlen) {
            Reassembly::Whole(whole) => m = whole,
            Reassembly::Incomplete => return,
        }
        let Some(ip) = Ip::parse(m.data()) else {
            return;
        };
        (hlen, proto) = (ip.hlen(), ip.ip_p);
    }
    cx.vnet.ipstat.ips_delivered.inc();
    cx.vnet.protox(proto).input(cx, m, hlen);
}

/// What becomes of a packet whose options can't be had.
#[derive(Debug, PartialEq, Eq)]
enum BadOption {
    /// The sender is told by an error of this type and code.
    Told { kind: u8, code: u8 },
    /// A host that is no router says nothing about a route through it (RFC 1122 §3.3.5).
    NoRouter,
}

/// Handles options as `net.inet.ip.process_options` says (`ip_dooptions`): ignores, processes, or refuses them.
fn ip_dooptions(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: Mbuf, hlen: usize) -> Option<Mbuf> {
    match cx.vnet.ip.process_options.get() {
        0 => return Some(m),
        2 => {
            cx.vnet.ipstat.ips_badoptions.inc();
            ip_icmp::icmp_error(cx, m, ICMP_UNREACH, ICMP_UNREACH_FILTER_PROHIB, 0);
            return None;
        }
        _ => {}
    }
    let mut m = if m.writable() {
        m
    } else {
        m.unshare(How::NoWait)?
    };
    let dst = Ip::parse(m.data())?.dst();
    let is_own = |addr| cx.vnet.ifaddrs.lookup(cx.epoch, addr).is_some();
    let ours = is_own(dst);
    let stop = Stop {
        ours,
        accept_sourceroute: cx.vnet.ip.accept_sourceroute.get(),
        forwarding: cx.vnet.ip.forwarding.get(),
        route: if ours {
            Some(dst)
        } else {
            let nhop = cx.vnet.rib.fib4_lookup(dst, cx.epoch);
            nhop.and_then(|nhop| nhop.src().or_else(|| nearest(cx, &nhop.nh_ifp, dst)))
        },
        stamp: nearest(cx, ifp, dst),
        is_own: &is_own,
        now: cx.now.0,
    };
    let header = m.data_mut().get_mut(..hlen)?;
    match walk_options(header, &stop) {
        Ok(changed) => {
            if changed && let Some(ip) = Ip::parse_mut(header) {
                ip.ip_sum.set(0);
                let sum = in_cksum(header);
                Ip::parse_mut(header)?.ip_sum.set(sum);
            }
            Some(m)
        }
        Err(BadOption::Told { kind, code }) => {
            cx.vnet.ipstat.ips_badoptions.inc();
            ip_icmp::icmp_error(cx, m, kind, code, 0);
            None
        }
        Err(BadOption::NoRouter) => {
            cx.vnet.ipstat.ips_cantforward.inc();
            None
        }
    }
}

/// The address of an interface that is on the network of `addr`, or its first (`ifaof_ifpforaddr`).
fn nearest(cx: &NetCx<'_>, ifp: &Ifnet, addr: Ipv4Addr) -> Option<Ipv4Addr> {
    let addrs = ifp.addrs(cx.epoch);
    let near = |ia: &&Arc<Ifaddr>| ia.has_neighbour(addr);
    let ia = addrs.iter().find(near).or(addrs.first());
    ia.map(|ia| ia.ia_addr)
}

/// What a stop of the packet's way enters into its options.
struct Stop<'a> {
    /// The packet's destination is an address of ours.
    ours: bool,
    accept_sourceroute: bool,
    forwarding: bool,
    /// For a record of the route: the destination if it is ours, else the address the packet leaves by.
    route: Option<Ipv4Addr>,
    /// For a time stamp: of the interface the packet came in by.
    stamp: Option<Ipv4Addr>,
    /// Whether an address named beforehand is one of ours.
    is_own: &'a dyn Fn(Ipv4Addr) -> bool,
    /// Milliseconds since boot.
    now: u32,
}

/// Walks the options of a header: records route and time stamp, refuses source routes and malformed options.
/// Says whether it changed the header.
fn walk_options(header: &mut [u8], stop: &Stop<'_>) -> Result<bool, BadOption> {
    // The pointer of a parameter problem: where the fault is, from the start of the header (RFC 792).
    let param = |at: usize| BadOption::Told {
        kind: ICMP_PARAMPROB,
        code: at as u8,
    };
    let mut changed = false;
    let mut at = Ip::LEN;
    while let Some(&opt) = header.get(at) {
        if opt == IPOPT_EOL {
            break;
        }
        if opt == IPOPT_NOP {
            at += 1;
            continue;
        }
        let optlen = usize::from(*header.get(at + 1).ok_or(param(at))?);
        if optlen < 2 || at + optlen > header.len() {
            return Err(param(at + 1));
        }
        let body = header.get_mut(at..at + optlen).ok_or(param(at + 1))?;
        match opt {
            IPOPT_LSRR | IPOPT_SSRR => {
                let &mut [_, _, pointer, ..] = body else {
                    return Err(param(at + 1));
                };
                if pointer < 4 {
                    return Err(param(at + 2));
                }
                // A route that ends here is only a record of the way; anything else would be forwarded.
                let ended = usize::from(pointer) + 3 > optlen;
                if stop.ours && !ended && !stop.forwarding {
                    return Err(BadOption::NoRouter);
                }
                if !(stop.ours && ended && stop.accept_sourceroute) {
                    return Err(BadOption::Told {
                        kind: ICMP_UNREACH,
                        code: ip_icmp::ICMP_UNREACH_SRCFAIL,
                    });
                }
            }
            IPOPT_RR => changed |= record_route(body, stop.route).map_err(|off| param(at + off))?,
            IPOPT_TS => changed |= record_time(body, stop).map_err(|off| param(at + off))?,
            IPOPT_RA if optlen != 4 => return Err(param(at + 1)),
            _ => {}
        }
        at += optlen;
    }
    Ok(changed)
}

/// RFC 791, Record Route: enters our address where the pointer says. The error is the offset of the fault.
fn record_route(option: &mut [u8], own: Option<Ipv4Addr>) -> Result<bool, usize> {
    let &[_, _, pointer, ..] = &*option else {
        return Err(1);
    };
    if pointer < 4 {
        return Err(2);
    }
    let at = usize::from(pointer) - 1;
    let (Some(own), Some(slot)) = (own, option.get_mut(at..at + 4)) else {
        return Ok(false);
    };
    slot.copy_from_slice(&own.octets());
    if let Some(p) = option.get_mut(2) {
        *p = pointer.saturating_add(4);
    }
    Ok(true)
}

/// RFC 791, Internet Timestamp: enters the time, and our address if asked for; a full option counts in its overflow field.
fn record_time(option: &mut [u8], stop: &Stop<'_>) -> Result<bool, usize> {
    const TSONLY: u8 = 0;
    const TSANDADDR: u8 = 1;
    const PRESPEC: u8 = 3;
    let &[_, optlen, pointer, oflw_flag, ..] = &*option else {
        return Err(1);
    };
    if optlen > MAX_IPOPTLEN as u8 {
        return Err(1);
    }
    if pointer < 5 {
        return Err(2);
    }
    let mut at = usize::from(pointer) - 1;
    let flag = oflw_flag & 0xf;
    let need = if flag == TSONLY { 4 } else { 8 };
    if at + need > option.len() {
        let overflow = (oflw_flag >> 4) + 1;
        if overflow > 0xf {
            return Err(3);
        }
        if let Some(field) = option.get_mut(3) {
            *field = overflow << 4 | flag;
        }
        return Ok(true);
    }
    match flag {
        TSONLY => {}
        TSANDADDR => {
            let Some(own) = stop.stamp else {
                return Ok(false);
            };
            if let Some(slot) = option.get_mut(at..at + 4) {
                slot.copy_from_slice(&own.octets());
            }
            at += 4;
        }
        PRESPEC => {
            let named = option.get(at..).and_then(|rest| rest.first_chunk::<4>());
            if !named.is_some_and(|&named| (stop.is_own)(named.into())) {
                return Ok(false);
            }
            at += 4;
        }
        _ => return Err(3),
    }
    // Not milliseconds since midnight UT, which we do not know: RFC 792's high bit says so.
    let stamp = stop.now | 0x8000_0000;
    if let Some(slot) = option.get_mut(at..at + 4) {
        slot.copy_from_slice(&stamp.to_be_bytes());
    }
    if let Some(p) = option.get_mut(2) {
        *p = pointer.saturating_add(need as u8);
    }
    Ok(true)
}

/// Sends a packet on towards its destination (`ip_forward`).
///
/// Not carried over: source routes, the fast path of `ip_tryforward`.
fn ip_forward(cx: &NetCx<'_>, m: Mbuf) {
    let stat = &cx.vnet.ipstat;
    let Some(ip) = Ip::parse(m.data()) else {
        return;
    };
    let dst = ip.dst();
    // RFC 1812 §5.3.4: what came as a link-layer broadcast is not forwarded.
    if m.flags().intersects(MFlags::BCAST | MFlags::MCAST)
        || !can_forward(cx, dst)
        || !can_forward(cx, ip.src())
    {
        stat.ips_cantforward.inc();
        return;
    }
    if ip.ip_ttl <= 1 && !cx.vnet.ip.stealth.get() {
        stat.ips_cantforward.inc();
        ip_icmp::icmp_error(cx, m, ICMP_TIMXCEED, ICMP_TIMXCEED_INTRANS, 0);
        return;
    }
    let Some(nhop) = cx.vnet.rib.fib4_lookup(dst, cx.epoch) else {
        stat.ips_cantforward.inc();
        ip_icmp::icmp_error(cx, m, ICMP_UNREACH, ICMP_UNREACH_HOST, 0);
        return;
    };
    if nhop.nh_flags.contains(RtFlags::BLACKHOLE) {
        stat.ips_cantforward.inc();
        return;
    }
    let mtu = nhop.nh_mtu;
    let redirect = redirect_to(cx, &m, nhop);
    // Enough of the packet for an error, should it not go out: what fits into an mbuf, as in FreeBSD.
    let copy = ip_icmp::error_copy(&m);
    let Some(mut m) = (if m.writable() {
        Some(m)
    } else {
        m.unshare(How::NoWait)
    }) else {
        stat.ips_cantforward.inc();
        return;
    };
    if !cx.vnet.ip.stealth.get()
        && let Some(ip) = Ip::parse_mut(m.data_mut())
    {
        ip.ip_ttl -= 1;
    }
    // Checksums the receiving interface vouched for are no business of the sending one.
    let csum = &mut m.pkthdr_mut().csum_flags;
    *csum &= CsumFlags::DELAY_DATA | CsumFlags::IP_TSO;
    // Without ALLOWBROADCAST: a broadcast to another network ends here (RFC 2644).
    let args = IpOutArgs {
        flags: IpOutFlags::FORWARDING,
        ..Default::default()
    };
    let (code, next_mtu) = match ip_output(cx, m, &args) {
        Ok(()) => {
            stat.ips_forward.inc();
            if let (Some(gateway), Some(copy)) = (redirect, copy) {
                stat.ips_redirectsent.inc();
                let gateway = gateway.to_bits();
                ip_icmp::icmp_error(cx, copy, ICMP_REDIRECT, ICMP_REDIRECT_HOST, gateway);
            }
            return;
        }
        Err(Errno::EMSGSIZE) => (ICMP_UNREACH_NEEDFRAG, mtu),
        // No buffers, or a filter: says nothing (RFC 1812 §4.3.3.3 has no source quench any more).
        Err(Errno::ENOBUFS | Errno::EACCES) => {
            stat.ips_cantforward.inc();
            return;
        }
        Err(_) => (ICMP_UNREACH_HOST, 0),
    };
    stat.ips_cantforward.inc();
    if let Some(copy) = copy {
        ip_icmp::icmp_error(cx, copy, ICMP_UNREACH, code, next_mtu);
    }
}

/// Whom the sender of a packet should rather give packets for that destination to: the packet leaves by the interface it
/// came by, its sender is a neighbour there, and the route is neither the default one nor made by a redirect
/// (RFC 1812 §5.2.7.2).
fn redirect_to(cx: &NetCx<'_>, m: &Mbuf, nhop: &Nexthop) -> Option<Ipv4Addr> {
    if !cx.vnet.ip.redirect.get() || nhop.nh_ifp.if_index != m.pkthdr().rcvif {
        return None;
    }
    let ip = Ip::parse(m.data())?;
    let ia = nhop.nh_ifa.as_ref()?;
    let neighbour = ia.has_neighbour(ip.src());
    let redirected = nhop
        .nh_flags
        .intersects(RtFlags::DYNAMIC | RtFlags::MODIFIED);
    // A packet with options may be on a way that its sender chose.
    if !neighbour || redirected || ip.hlen() != Ip::LEN {
        return None;
    }
    let route = cx.vnet.rib.lookup_entry(ip.dst())?;
    (route.prefix_len != 0).then(|| nhop.link_dst(ip.dst()))
}

/// Whether packets from or to `addr` may leave their network (`in_canforward`).
fn can_forward(cx: &NetCx<'_>, addr: Ipv4Addr) -> bool {
    let never = addr == Ipv4Addr::UNSPECIFIED
        || addr == Ipv4Addr::BROADCAST
        || in_multicast(addr)
        || in_loopback(addr)
        || in_linklocal(addr);
    !never
        && (!in_zeronet(addr) || cx.vnet.ip.allow_net0.get())
        && (!in_experimental(addr) || cx.vnet.ip.allow_net240.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    /// Walks `options` behind a header and returns what became of them.
    fn walk(options: &[u8]) -> Result<Vec<u8>, (u8, u8)> {
        let mut header = [0; Ip::LEN].to_vec();
        header.extend_from_slice(options);
        let stop = Stop {
            ours: true,
            accept_sourceroute: false,
            forwarding: false,
            route: Some(OWN),
            stamp: Some(OWN),
            is_own: &|addr| addr == OWN,
            now: 0x0102_0304,
        };
        walk_options(&mut header, &stop)
            .map(|_| header[Ip::LEN..].to_vec())
            .map_err(|bad| match bad {
                BadOption::Told { kind, code } => (kind, code),
                BadOption::NoRouter => panic!("no source route here"),
            })
    }

    #[test]
    fn options_that_do_not_end_name_where_they_break() {
        assert_eq!(walk(&[IPOPT_RR]), Err((ICMP_PARAMPROB, 20)));
        assert_eq!(walk(&[IPOPT_NOP, 200, 1, 0]), Err((ICMP_PARAMPROB, 22)));
        assert_eq!(walk(&[200, 5, 0, 0]), Err((ICMP_PARAMPROB, 21)));
        assert_eq!(
            walk(&[IPOPT_RR, 7, 3, 0, 0, 0, 0, 0]),
            Err((ICMP_PARAMPROB, 22))
        );
    }

    #[test]
    fn a_full_record_stays_as_it_is() {
        let full = [IPOPT_RR, 7, 8, 1, 2, 3, 4, IPOPT_EOL];
        assert_eq!(walk(&full), Ok(full.to_vec()));
    }

    #[test]
    fn time_stamps_are_entered_or_their_want_of_room_counted() {
        let stamped = walk(&[IPOPT_TS, 8, 5, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(stamped, [IPOPT_TS, 8, 9, 0, 0x81, 2, 3, 4]);
        let with_address = walk(&[IPOPT_TS, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(
            with_address,
            [IPOPT_TS, 12, 13, 1, 10, 0, 0, 1, 0x81, 2, 3, 4]
        );
        let full = walk(&[IPOPT_TS, 8, 9, 0x20, 1, 1, 1, 1]).unwrap();
        assert_eq!(full[3], 0x30);
        assert_eq!(
            walk(&[IPOPT_TS, 8, 9, 0xf0, 1, 1, 1, 1]),
            Err((ICMP_PARAMPROB, 23))
        );
    }
}
