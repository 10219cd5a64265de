//! ICMPv6: answers pings, sends and hears errors, hands neighbour discovery on.
//!
//! FreeBSD: sys/netinet6/icmp6.c, sys/netinet/icmp6.h (RFC 4443)

use crate::ip::IPPROTO_TCP;
use crate::ip_var::{IpProto, PrcCmd, Quoted, pseudo_sum};
use crate::netinet6::in6_pcb::in6_ifp_for;
use crate::netinet6::in6_src::{in6_clearscope, in6_selectsrc, in6_setscope};
use crate::netinet6::ip6::{
    IPPROTO_DSTOPTS, IPPROTO_FRAGMENT, IPPROTO_HOPOPTS, IPPROTO_ICMPV6, IPPROTO_ROUTING, IPV6_MMTU,
    Ip6, in6_is_linklocal,
};
use crate::netinet6::ip6_output::ip6_output;
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::netinet6::mld6::{MLD_LISTENER_QUERY, mld_input};
use crate::netinet6::raw_ip6::rip6_input;
use crate::netinet6::{in6, nd6, nd6_nbr, nd6_rtr};
use crate::vnet::NetCx;
use core::net::Ipv6Addr;
use sys::counter::{Counter, CounterArray};
use sys::mbuf::{CsumFlags, How, IfIndex, MAX_LINKHDR, MFlags, Mbuf};
use sys::net::ifnet::Ifnet;
use sys::net::route::{RouteSpec, RtFlags};
use sys::tunables;
use zerocopy::IntoBytes;

/// Destination unreachable.
pub const ICMP6_DST_UNREACH: u8 = 1;
/// Packet too big.
pub const ICMP6_PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const ICMP6_TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const ICMP6_PARAM_PROB: u8 = 4;
/// Echo request.
pub const ICMP6_ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ICMP6_ECHO_REPLY: u8 = 129;
/// Router solicitation.
pub const ND_ROUTER_SOLICIT: u8 = 133;
/// Router advertisement.
pub const ND_ROUTER_ADVERT: u8 = 134;
/// Neighbour solicitation.
pub const ND_NEIGHBOR_SOLICIT: u8 = 135;
/// Neighbour advertisement.
pub const ND_NEIGHBOR_ADVERT: u8 = 136;
/// Redirect.
pub const ND_REDIRECT: u8 = 137;
/// From here on messages inform; below they are errors.
pub const ICMP6_INFOMSG_MASK: u8 = 0x80;

/// Unreachable: no route.
pub const ICMP6_DST_UNREACH_NOROUTE: u8 = 0;
/// Unreachable: prohibited.
pub const ICMP6_DST_UNREACH_ADMIN: u8 = 1;
/// Unreachable: beyond the scope of the source.
pub const ICMP6_DST_UNREACH_BEYONDSCOPE: u8 = 2;
/// Unreachable: address.
pub const ICMP6_DST_UNREACH_ADDR: u8 = 3;
/// Unreachable: port.
pub const ICMP6_DST_UNREACH_NOPORT: u8 = 4;
/// Time exceeded: on the way.
pub const ICMP6_TIME_EXCEED_TRANSIT: u8 = 0;
/// Time exceeded: in reassembly.
pub const ICMP6_TIME_EXCEED_REASSEMBLY: u8 = 1;
/// Parameter problem: a header field.
pub const ICMP6_PARAMPROB_HEADER: u8 = 0;
/// Parameter problem: the next header.
pub const ICMP6_PARAMPROB_NEXTHEADER: u8 = 1;
/// Parameter problem: an option.
pub const ICMP6_PARAMPROB_OPTION: u8 = 2;

/// Length of the fixed part of a message.
pub const ICMP6_HLEN: usize = 8;

tunables! {
    /// `net.inet6.icmp6`.
    pub struct Icmp6Tunables {
        errppslimit: u32 = 100, "net.inet6.icmp6.errppslimit", "Maximum number of ICMPv6 error messages per second";
        rediraccept: bool = true, "net.inet6.icmp6.rediraccept", "Accept ICMPv6 redirect messages";
        redirtimeout: u32 = 600, "net.inet6.icmp6.redirtimeout", "Delay in seconds before expiring redirect route" (1..=86400);
        nd6_prune: u32 = 1, "net.inet6.icmp6.nd6_prune", "Frequency in seconds of checks for expired prefixes and routers" (1..=3600);
        nd6_onlink_ns_rfc4861: bool = false, "net.inet6.icmp6.nd6_onlink_ns_rfc4861", "Accept 'on-link' ICMPv6 NS messages in compliance with RFC 4861";
        nd6_delay: u32 = 5, "net.inet6.icmp6.nd6_delay", "Delay in seconds before probing for reachability" (1..=3600);
        nd6_umaxtries: u32 = 3, "net.inet6.icmp6.nd6_umaxtries", "Number of ICMPv6 NS messages sent during reachability detection" (1..=100);
        nd6_mmaxtries: u32 = 3, "net.inet6.icmp6.nd6_mmaxtries", "Number of ICMPv6 NS messages sent during address resolution" (1..=100);
        nd6_gctimer: u32 = 86400, "net.inet6.icmp6.nd6_gctimer", "Delay in seconds between garbage collection passes" (1..=86400);
        nd6_maxqueuelen: u32 = 16, "net.inet6.icmp6.nd6_maxqueuelen", "Maximum packets queued per unresolved neighbor" (0..=10000);
    }
}

/// Statistics of ICMPv6 (`netstat -s -p icmp6`).
pub struct Icmp6Stat {
    /// Calls of `icmp6_error`.
    pub icp6s_error: Counter,
    /// Errors not sent because of who or what they would be about.
    pub icp6s_canterror: Counter,
    /// Errors not sent because of the rate limit.
    pub icp6s_toofreq: Counter,
    /// Messages sent, by type.
    pub icp6s_outhist: CounterArray,
    /// Bad codes.
    pub icp6s_badcode: Counter,
    /// Shorter than the minimum.
    pub icp6s_tooshort: Counter,
    /// Bad checksums.
    pub icp6s_checksum: Counter,
    /// Length does not fit the type.
    pub icp6s_badlen: Counter,
    /// Packets dropped (no memory).
    pub icp6s_dropped: Counter,
    /// Answers generated.
    pub icp6s_reflect: Counter,
    /// Messages received, by type.
    pub icp6s_inhist: CounterArray,
    /// Bad neighbour solicitations.
    pub icp6s_badns: Counter,
    /// Bad neighbour advertisements.
    pub icp6s_badna: Counter,
    /// Bad router solicitations.
    pub icp6s_badrs: Counter,
    /// Bad router advertisements.
    pub icp6s_badra: Counter,
    /// Bad redirects.
    pub icp6s_badredirect: Counter,
    /// Path MTU changes.
    pub icp6s_pmtuchg: Counter,
    /// Packets dropped because their neighbour does not answer.
    pub nd6_dropped: Counter,
}

impl Icmp6Stat {
    pub(crate) fn new() -> Self {
        let histogram = || CounterArray::new(256);
        Self {
            icp6s_error: Counter::new(),
            icp6s_canterror: Counter::new(),
            icp6s_toofreq: Counter::new(),
            icp6s_outhist: histogram(),
            icp6s_badcode: Counter::new(),
            icp6s_tooshort: Counter::new(),
            icp6s_checksum: Counter::new(),
            icp6s_badlen: Counter::new(),
            icp6s_dropped: Counter::new(),
            icp6s_reflect: Counter::new(),
            icp6s_inhist: histogram(),
            icp6s_badns: Counter::new(),
            icp6s_badna: Counter::new(),
            icp6s_badrs: Counter::new(),
            icp6s_badra: Counter::new(),
            icp6s_badredirect: Counter::new(),
            icp6s_pmtuchg: Counter::new(),
            nd6_dropped: Counter::new(),
        }
    }

    /// Starts from zero.
    pub fn zero(&self) {
        let single = [
            &self.icp6s_error,
            &self.icp6s_canterror,
            &self.icp6s_toofreq,
            &self.icp6s_badcode,
            &self.icp6s_tooshort,
            &self.icp6s_checksum,
            &self.icp6s_badlen,
            &self.icp6s_dropped,
            &self.icp6s_reflect,
            &self.icp6s_badns,
            &self.icp6s_badna,
            &self.icp6s_badrs,
            &self.icp6s_badra,
            &self.icp6s_badredirect,
            &self.icp6s_pmtuchg,
            &self.nd6_dropped,
        ];
        let histograms = self.icp6s_outhist.iter().chain(self.icp6s_inhist.iter());
        for counter in single.into_iter().chain(histograms) {
            counter.zero();
        }
    }
}

/// What a type of message is called (`icmp6names`).
pub fn icmp6_name(kind: usize) -> Option<&'static str> {
    Some(match kind {
        1 => "unreach",
        2 => "packet too big",
        3 => "time exceed",
        4 => "parameter problem",
        128 => "echo",
        129 => "echo reply",
        130 => "multicast listener query",
        131 => "MLDv1 listener report",
        132 => "MLDv1 listener done",
        133 => "router solicitation",
        134 => "router advertisement",
        135 => "neighbor solicitation",
        136 => "neighbor advertisement",
        137 => "redirect",
        138 => "router renumbering",
        139 => "node information request",
        140 => "node information reply",
        141 => "inverse neighbor solicitation",
        142 => "inverse neighbor advertisement",
        143 => "MLDv2 listener report",
        _ => return None,
    })
}

/// ICMPv6 as a protocol above IPv6.
pub(crate) struct Icmp6;

impl IpProto for Icmp6 {
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, off: usize) {
        icmp6_input(cx, m, off);
    }
}

/// Takes a message, which begins at `off` of a packet.
pub fn icmp6_input(cx: &NetCx<'_>, m: Mbuf, off: usize) {
    let stat = &cx.vnet.icmp6stat;
    let len = m.pkt_len().saturating_sub(off);
    let Ok(m) = m.pullup(off + ICMP6_HLEN) else {
        stat.icp6s_tooshort.inc();
        return;
    };
    let Some(&ip6) = Ip6::parse(m.data()) else {
        return;
    };
    let (src, dst) = (ip6.src(), ip6.dst());
    let pseudo = pseudo_sum(src.into(), dst.into(), IPPROTO_ICMPV6, len as u32);
    let (folded, carry) = (!m.in_cksum_skip(m.pkt_len(), off)).overflowing_add(pseudo);
    if folded.wrapping_add(u16::from(carry)) != 0xffff {
        stat.icp6s_checksum.inc();
        return;
    }
    let Some(&[kind, code, ..]) = m.data().get(off..) else {
        return;
    };
    stat.icp6s_inhist.inc(usize::from(kind));
    // Programs hear everything; what the kernel answers itself too.
    rip6_input(cx, &m, off, IPPROTO_ICMPV6);
    match kind {
        ICMP6_DST_UNREACH | ICMP6_PACKET_TOO_BIG | ICMP6_TIME_EXCEEDED | ICMP6_PARAM_PROB => {
            match prc_of(kind, code, &m, off) {
                Some(cmd) => notify_error(cx, &m, off, cmd),
                None => stat.icp6s_badcode.inc(),
            }
        }
        ICMP6_ECHO_REQUEST => {
            if code != 0 {
                stat.icp6s_badcode.inc();
            } else {
                echo(cx, m, off);
            }
        }
        // RFC 4861 §6.1, §7.1: a hop limit of 255 shows that no router has passed it on.
        ND_NEIGHBOR_SOLICIT => match (ip6.ip6_hlim, code) {
            (255, 0) => nd6_nbr::nd6_ns_input(cx, m, off),
            _ => stat.icp6s_badns.inc(),
        },
        ND_NEIGHBOR_ADVERT => match (ip6.ip6_hlim, code) {
            (255, 0) => nd6_nbr::nd6_na_input(cx, m, off),
            _ => stat.icp6s_badna.inc(),
        },
        MLD_LISTENER_QUERY => mld_input(cx, &m, off),
        // A host does not answer those who look for routers, but hears when they do it wrong (RFC 4861 §6.1.1).
        ND_ROUTER_SOLICIT if (ip6.ip6_hlim, code) != (255, 0) => stat.icp6s_badrs.inc(),
        ND_ROUTER_SOLICIT => {}
        ND_ROUTER_ADVERT => match (ip6.ip6_hlim, code) {
            (255, 0) => nd6_rtr::nd6_ra_input(cx, m, off),
            _ => stat.icp6s_badra.inc(),
        },
        ND_REDIRECT => match (ip6.ip6_hlim, code) {
            (255, 0) => icmp6_redirect_input(cx, &m, off),
            _ => stat.icp6s_badredirect.inc(),
        },
        _ => {}
    }
}

/// A redirect: a router knows a better way to a destination (RFC 4861 §8).
fn icmp6_redirect_input(cx: &NetCx<'_>, m: &Mbuf, off: usize) {
    if !cx.vnet.icmp6.rediraccept.get() {
        return;
    }
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    let Some(redirect) = Redirect::parse(cx, ifp, m, off) else {
        cx.vnet.icmp6stat.icp6s_badredirect.inc();
        return;
    };
    let Redirect { dst, target, .. } = redirect;
    let onlink = dst == target;
    let heard = if onlink {
        nd6::Heard::RedirectOnlink
    } else {
        nd6::Heard::RedirectRouter
    };
    nd6::nd6_cache_lladdr(cx, ifp, target, redirect.options.target, heard);
    let timeout = cx.vnet.icmp6.redirtimeout.get();
    if !cx.vnet.nd6.redirected(dst, target, ifp, timeout) {
        return;
    }
    let gateway = if onlink {
        RtFlags::empty()
    } else {
        RtFlags::GATEWAY
    };
    let spec = || RouteSpec {
        dst,
        prefix_len: 128,
        gw: (!onlink).then_some(target),
        ifp: ifp.clone(),
        ifa: None,
        flags: RtFlags::HOST | RtFlags::DYNAMIC | gateway,
        mtu: 0,
    };
    // What an earlier redirect made is changed; what the administrator made stays.
    match cx.vnet.rib6.get(dst, 128) {
        None => {
            let _ = cx.vnet.rib6.add(spec());
        }
        Some(route) if route.nhop.nh_flags.contains(RtFlags::DYNAMIC) => {
            let _ = cx.vnet.rib6.change(spec());
        }
        Some(_) => {}
    }
}

/// A redirect that has been read and is to be believed.
struct Redirect {
    target: Ipv6Addr,
    dst: Ipv6Addr,
    options: nd6::NdOpts,
}

impl Redirect {
    /// Length without options: the fixed part, target, destination.
    const LEN: usize = ICMP6_HLEN + 32;

    /// RFC 4861 §8.1; `None` if it is to be dropped.
    fn parse(cx: &NetCx<'_>, ifp: &Ifnet, m: &Mbuf, off: usize) -> Option<Self> {
        let mut fixed = [0; Self::LEN];
        if !m.copydata(off, &mut fixed) {
            return None;
        }
        let address = |at: usize| -> Option<Ipv6Addr> {
            let bytes: [u8; 16] = *fixed.get(at..)?.first_chunk()?;
            let addr = Ipv6Addr::from(bytes);
            (in6_clearscope(addr) == addr).then(|| in6_setscope(addr, ifp))
        };
        let (target, dst) = (address(ICMP6_HLEN)?, address(ICMP6_HLEN + 16)?);
        let src = Ip6::parse(m.data())?.src();
        if !in6_is_linklocal(src) || dst.is_multicast() || dst.is_unspecified() {
            return None;
        }
        if target != dst && !in6_is_linklocal(target) {
            return None;
        }
        // Only the router that we would send to has a say.
        let nhop = cx.vnet.rib6.fib6_lookup(dst, cx.epoch)?;
        if nhop.gw != Some(src) || nhop.nh_ifp.if_index != ifp.if_index {
            return None;
        }
        let options = nd6::NdOpts::parse(m, off + Self::LEN)?;
        Some(Self {
            target,
            dst,
            options,
        })
    }
}

/// What an error message means to the protocols (`icmp6_errmap`).
fn prc_of(kind: u8, code: u8, m: &Mbuf, off: usize) -> Option<PrcCmd> {
    Some(match (kind, code) {
        (ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOROUTE) => PrcCmd::UnreachNet,
        (ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADDR) => PrcCmd::UnreachHost,
        (ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADMIN) => PrcCmd::UnreachAdminProhib,
        (ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_NOPORT) => PrcCmd::UnreachPort,
        (ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_BEYONDSCOPE) => PrcCmd::Paramprob,
        (ICMP6_PACKET_TOO_BIG, _) => {
            let mtu = m.data().get(off + 4..off + 8)?.first_chunk::<4>()?;
            PrcCmd::Msgsize(u32::from_be_bytes(*mtu))
        }
        (ICMP6_TIME_EXCEEDED, ICMP6_TIME_EXCEED_TRANSIT) => PrcCmd::TimxceedIntrans,
        (ICMP6_TIME_EXCEEDED, ICMP6_TIME_EXCEED_REASSEMBLY) => PrcCmd::TimxceedReass,
        (ICMP6_PARAM_PROB, ICMP6_PARAMPROB_NEXTHEADER) => PrcCmd::UnreachProtocol,
        (ICMP6_PARAM_PROB, ICMP6_PARAMPROB_HEADER | ICMP6_PARAMPROB_OPTION) => PrcCmd::Paramprob,
        _ => return None,
    })
}

/// Tells the protocol whose packet is quoted.
#[doc(alias = "icmp6_notify_error")]
fn notify_error(cx: &NetCx<'_>, m: &Mbuf, off: usize, cmd: PrcCmd) {
    let stat = &cx.vnet.icmp6stat;
    let mut buffer = [0; 256];
    let have = (m.pkt_len() - off - ICMP6_HLEN).min(buffer.len());
    let quoted = buffer.get_mut(..have).unwrap_or(&mut []);
    if !m.copydata(off + ICMP6_HLEN, quoted) {
        stat.icp6s_tooshort.inc();
        return;
    }
    let quoted: &[u8] = quoted;
    let (Some(ip6), Some((nxt, at))) = (Ip6::parse(quoted), transport_of(quoted)) else {
        stat.icp6s_tooshort.inc();
        return;
    };
    let Some(transport) = quoted.get(at..).filter(|t| t.len() >= 8) else {
        stat.icp6s_tooshort.inc();
        return;
    };
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    let (src, dst) = (in6_setscope(ip6.src(), ifp), in6_setscope(ip6.dst(), ifp));
    // Only about packets that could have been ours.
    if dst.is_multicast() || !in6::in6_localip(cx, src) {
        stat.icp6s_canterror.inc();
        return;
    }
    if let PrcCmd::Msgsize(mtu) = cmd {
        stat.icp6s_pmtuchg.inc();
        // TCP looks first whether the segment was its own.
        if nxt != IPPROTO_TCP {
            icmp6_mtudisc_update(cx, dst, mtu);
        }
    }
    let Some(protocol) = cx.vnet.protox6(nxt) else {
        return;
    };
    let about = Quoted {
        src: src.into(),
        dst: dst.into(),
        len: ip6.packet_len() as u32,
        transport,
    };
    protocol.ctlinput(cx, cmd, &about);
}

/// Remembers what the path to `dst` takes; no link is narrower than `IPV6_MMTU` (RFC 8201 §4).
fn icmp6_mtudisc_update(cx: &NetCx<'_>, dst: Ipv6Addr, mtu: u32) {
    let mtu = mtu.max(IPV6_MMTU);
    let tcp = &cx.vnet.tcp;
    let path = in6_ifp_for(cx, dst).map(|ifp| ifp.link_mtu6());
    if path.is_some_and(|path| mtu < path) {
        tcp.hostcache.update_mtu(&tcp.stat, dst.into(), mtu, cx.now);
    }
}

/// The protocol of a packet that may be cut, and where its header begins.
fn transport_of(packet: &[u8]) -> Option<(u8, usize)> {
    let (mut nxt, mut at) = (Ip6::parse(packet)?.ip6_nxt, Ip6::LEN);
    while matches!(
        nxt,
        IPPROTO_HOPOPTS | IPPROTO_DSTOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT
    ) {
        let &[next, len, high, low, ..] = packet.get(at..)? else {
            return None;
        };
        if nxt == IPPROTO_FRAGMENT {
            // Only the first fragment has the header.
            if u16::from_be_bytes([high, low]) & crate::netinet6::ip6::IP6F_OFF_MASK != 0 {
                return None;
            }
            at += 8;
        } else {
            at += (usize::from(len) + 1) * 8;
        }
        nxt = next;
    }
    Some((nxt, at))
}

/// Answers an echo request: the same message back (RFC 4443 §4.2).
fn echo(cx: &NetCx<'_>, m: Mbuf, off: usize) {
    let stat = &cx.vnet.icmp6stat;
    let Some(&ip6) = Ip6::parse(m.data()) else {
        return;
    };
    let rcvif = m.pkthdr().rcvif;
    let flow = (m.pkthdr().flowid, m.pkthdr().rsstype);
    // The request may lie in memory that others read; the answer is a copy, without extension headers.
    let mut body = m;
    body.trim_front(off);
    let body = if body.writable() {
        Some(body)
    } else {
        body.unshare(How::NoWait)
    };
    let Some(mut body) = body else {
        stat.icp6s_dropped.inc();
        return;
    };
    if let Some(kind) = body.data_mut().first_mut() {
        *kind = ICMP6_ECHO_REPLY;
    }
    stat.icp6s_reflect.inc();
    reply(cx, body, &ip6, rcvif, flow);
}

/// Sends a message back to where packet `ip6` came from, from the address it came to if that is one of ours.
#[doc(alias = "icmp6_reflect")]
fn reply(cx: &NetCx<'_>, body: Mbuf, ip6: &Ip6, rcvif: IfIndex, flow: (u32, sys::mbuf::HashType)) {
    let stat = &cx.vnet.icmp6stat;
    let to = ip6.src();
    let own = cx
        .vnet
        .in6_ifaddrs
        .lookup(cx.epoch, ip6.dst())
        .map(|ia| ia.ia_addr);
    let chosen = || {
        let ifp = in6_ifp_for(cx, to).or_else(|| cx.vnet.ifnet_byindex(rcvif, cx.epoch))?;
        in6_selectsrc(cx, to, ifp).map(|ia| ia.ia_addr)
    };
    let Some(from) = own.or_else(chosen) else {
        stat.icp6s_canterror.inc();
        return;
    };
    let Some(mut m) = icmp6_prepend(body, from, to, cx.vnet.ip6.hlim.get() as u8) else {
        stat.icp6s_dropped.inc();
        return;
    };
    m.clear_flags(MFlags::BCAST | MFlags::MCAST);
    let hdr = m.pkthdr_mut();
    (hdr.flowid, hdr.rsstype) = flow;
    hdr.rcvif = IfIndex::NONE;
    hdr.csum_flags = CsumFlags::empty();
    let args = Ip6OutArgs {
        select_hlim: true,
        ..Ip6OutArgs::default()
    };
    icmp6_send(cx, m, &args);
}

/// Puts an IPv6 header in front of a message.
pub(crate) fn icmp6_prepend(body: Mbuf, src: Ipv6Addr, dst: Ipv6Addr, hlim: u8) -> Option<Mbuf> {
    let plen = u16::try_from(body.pkt_len()).ok()?;
    let mut m = body.prepend(Ip6::LEN, How::NoWait).ok()?;
    if m.len() < Ip6::LEN + ICMP6_HLEN {
        m = m.pullup(Ip6::LEN + ICMP6_HLEN).ok()?;
    }
    let mut ip6 = Ip6::new(0, 0);
    ip6.ip6_plen.set(plen);
    ip6.ip6_nxt = IPPROTO_ICMPV6;
    ip6.ip6_hlim = hlim;
    ip6.set_src(src);
    ip6.set_dst(dst);
    m.data_mut()
        .get_mut(..Ip6::LEN)?
        .copy_from_slice(ip6.as_bytes());
    Some(m)
}

/// Checksums and sends a message that begins with its IPv6 header.
pub(crate) fn icmp6_send(cx: &NetCx<'_>, mut m: Mbuf, args: &Ip6OutArgs<'_>) {
    let Some(&ip6) = Ip6::parse(m.data()) else {
        return;
    };
    let len = m.pkt_len() - Ip6::LEN;
    let Some(field) = m.data_mut().get_mut(Ip6::LEN + 2..Ip6::LEN + 4) else {
        return;
    };
    field.copy_from_slice(
        &pseudo_sum(
            ip6.src().into(),
            ip6.dst().into(),
            IPPROTO_ICMPV6,
            len as u32,
        )
        .to_be_bytes(),
    );
    let sum = m.in_cksum_skip(m.pkt_len(), Ip6::LEN).to_be_bytes();
    let data = m.data_mut();
    if let Some(field) = data.get_mut(Ip6::LEN + 2..Ip6::LEN + 4) {
        field.copy_from_slice(&sum);
    }
    let kind = data.get(Ip6::LEN).copied().unwrap_or(0);
    cx.vnet.icmp6stat.icp6s_outhist.inc(usize::from(kind));
    // ip6_output has counted what becomes of it.
    let _ = ip6_output(cx, m, args);
}

/// Answers packet `m` with an error (RFC 4443 §2.4). `param`: the MTU of "packet too big", the pointer of "parameter
/// problem".
pub fn icmp6_error(cx: &NetCx<'_>, m: Mbuf, kind: u8, code: u8, param: u32) {
    let stat = &cx.vnet.icmp6stat;
    stat.icp6s_error.inc();
    let Ok(m) = m.pullup(Ip6::LEN) else {
        stat.icp6s_tooshort.inc();
        return;
    };
    let Some(&ip6) = Ip6::parse(m.data()) else {
        return;
    };
    let (src, dst) = (ip6.src(), ip6.dst());
    // RFC 4443 §2.4 (e): never about errors, nor to a source that is no one host, and about a group only what it must
    // hear.
    let about_group = dst.is_multicast() || m.flags().intersects(MFlags::BCAST | MFlags::MCAST);
    let allowed_for_group =
        kind == ICMP6_PACKET_TOO_BIG || kind == ICMP6_PARAM_PROB && code == ICMP6_PARAMPROB_OPTION;
    if src.is_unspecified()
        || src.is_multicast()
        || about_group && !allowed_for_group
        || is_error(&m)
    {
        stat.icp6s_canterror.inc();
        return;
    }
    let limit = cx.vnet.icmp6.errppslimit.get();
    if !cx.vnet.icmp_limits.icmp6_error(cx.now, limit) {
        stat.icp6s_toofreq.inc();
        return;
    }
    // RFC 4443 §2.4 (c): as much of the packet as fits into the smallest MTU.
    let quote = m.pkt_len().min(IPV6_MMTU as usize - Ip6::LEN - ICMP6_HLEN);
    let room = MAX_LINKHDR + Ip6::LEN + ICMP6_HLEN;
    let Some(mut body) = Mbuf::getm2(How::NoWait, room + quote, true) else {
        stat.icp6s_dropped.inc();
        return;
    };
    body.reserve_front(MAX_LINKHDR + Ip6::LEN);
    let mut head = [kind, code, 0, 0, 0, 0, 0, 0];
    head[4..].copy_from_slice(&param.to_be_bytes());
    // Quoted as it was on the wire: without our zones.
    let mut wire = ip6;
    wire.set_src(crate::netinet6::in6_src::in6_clearscope(src));
    wire.set_dst(crate::netinet6::in6_src::in6_clearscope(dst));
    let mut copied = body.append(&head) && body.append(wire.as_bytes());
    let (mut skip, mut left) = (Ip6::LEN, quote - Ip6::LEN.min(quote));
    for segment in m.segments() {
        let part = segment.get(skip.min(segment.len())..).unwrap_or(&[]);
        skip = skip.saturating_sub(segment.len());
        let part = part.get(..left.min(part.len())).unwrap_or(part);
        copied = copied && body.append(part);
        left -= part.len();
    }
    if !copied {
        stat.icp6s_dropped.inc();
        return;
    }
    let flow = (m.pkthdr().flowid, m.pkthdr().rsstype);
    reply(cx, body, &ip6, m.pkthdr().rcvif, flow);
}

/// Whether a packet is itself an ICMPv6 error, or a redirect, or cannot be told not to be one.
fn is_error(m: &Mbuf) -> bool {
    let mut head = [0; 256];
    let have = m.pkt_len().min(head.len());
    let Some(head) = head.get_mut(..have) else {
        return true;
    };
    if !m.copydata(0, head) {
        return true;
    }
    match transport_of(head) {
        Some((IPPROTO_ICMPV6, at)) => head
            .get(at)
            .is_none_or(|&kind| kind & ICMP6_INFOMSG_MASK == 0 || kind == ND_REDIRECT),
        Some(_) | None => false,
    }
}
