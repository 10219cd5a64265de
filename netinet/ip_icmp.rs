//! The Internet Control Message Protocol: answers pings, sends and hears errors.
//!
//! FreeBSD: sys/netinet/ip_icmp.c, ip_icmp.h (RFC 792, RFC 1122 §3.2.2, RFC 1191, RFC 1812 §4.3)

use crate::ip::{
    IP_MINMTU, IPPROTO_ICMP, IPTOS_ECN_MASK, Ip, in_experimental, in_loopback, in_multicast,
    in_zeronet,
};
use crate::ip_output::ip_output;
use crate::ip_var::{IpOptions, IpOutArgs, IpProto, PrcCmd, Quoted};
use crate::vnet::NetCx;
use alloc::sync::Arc;
use core::net::Ipv4Addr;
use sys::counter::{Counter, CounterArray};
use sys::kprintf;
use sys::machine;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::machine::in_cksum::in_cksum;
use sys::mbuf::{CsumFlags, How, MAX_LINKHDR, MFlags, MHLEN, Mbuf};
use sys::net::ifnet::Ifaddr;
use sys::net::route::RtFlags;
use sys::time::{Sbintime, Ticks};
use sys::tunables;

/// Echo reply.
pub const ICMP_ECHOREPLY: u8 = 0;
/// Destination unreachable.
pub const ICMP_UNREACH: u8 = 3;
/// Source quench (obsolete: RFC 6633).
pub const ICMP_SOURCEQUENCH: u8 = 4;
/// Redirect.
pub const ICMP_REDIRECT: u8 = 5;
/// Echo request.
pub const ICMP_ECHO: u8 = 8;
/// Time exceeded.
pub const ICMP_TIMXCEED: u8 = 11;
/// Parameter problem.
pub const ICMP_PARAMPROB: u8 = 12;
/// Timestamp request.
pub const ICMP_TSTAMP: u8 = 13;
/// Timestamp reply.
pub const ICMP_TSTAMPREPLY: u8 = 14;
/// Information request (obsolete).
pub const ICMP_IREQ: u8 = 15;
/// Address mask request.
pub const ICMP_MASKREQ: u8 = 17;
/// Address mask reply.
pub const ICMP_MASKREPLY: u8 = 18;
/// Largest type we know.
pub const ICMP_MAXTYPE: usize = 40;

/// Unreachable: network.
pub const ICMP_UNREACH_NET: u8 = 0;
/// Unreachable: host.
pub const ICMP_UNREACH_HOST: u8 = 1;
/// Unreachable: protocol.
pub const ICMP_UNREACH_PROTOCOL: u8 = 2;
/// Unreachable: port.
pub const ICMP_UNREACH_PORT: u8 = 3;
/// Unreachable: needs fragmentation, but that is forbidden.
pub const ICMP_UNREACH_NEEDFRAG: u8 = 4;
/// Unreachable: source route failed.
pub const ICMP_UNREACH_SRCFAIL: u8 = 5;
/// Unreachable: prohibited by a filter.
pub const ICMP_UNREACH_FILTER_PROHIB: u8 = 13;
/// Redirect: for a host.
pub const ICMP_REDIRECT_HOST: u8 = 1;
/// Redirect: for a host and type of service; the last code.
const ICMP_REDIRECT_TOSHOST: u8 = 3;
/// Time exceeded: on the way.
pub const ICMP_TIMXCEED_INTRANS: u8 = 0;
/// Time exceeded: in reassembly.
pub const ICMP_TIMXCEED_REASS: u8 = 1;

/// Length of the fixed part of a message.
pub const ICMP_MINLEN: usize = 8;
/// Length of a timestamp message.
const ICMP_TSLEN: usize = ICMP_MINLEN + 3 * 4;

/// Statistics of ICMP (`netstat -s -p icmp`).
pub struct IcmpStat {
    /// Calls of `icmp_error`.
    pub icps_error: Counter,
    /// Errors not sent because the packet was itself an ICMP error.
    pub icps_oldicmp: Counter,
    /// Errors not sent because the packet was too short.
    pub icps_oldshort: Counter,
    /// Messages sent, by type.
    pub icps_outhist: CounterArray,
    /// Bad codes.
    pub icps_badcode: Counter,
    /// Shorter than the minimum.
    pub icps_tooshort: Counter,
    /// Bad checksums.
    pub icps_checksum: Counter,
    /// Length does not fit the type.
    pub icps_badlen: Counter,
    /// Answers generated.
    pub icps_reflect: Counter,
    /// Messages received, by type.
    pub icps_inhist: CounterArray,
    /// Broadcast echo requests ignored.
    pub icps_bmcastecho: Counter,
    /// Broadcast timestamp requests ignored.
    pub icps_bmcasttstamp: Counter,
    /// Answers without a usable address.
    pub icps_badaddr: Counter,
    /// Answers without a route.
    pub icps_noroute: Counter,
    /// Answers withheld by the rate limit.
    pub icps_limited: Counter,
}

impl IcmpStat {
    pub(crate) fn new() -> Self {
        let histogram = || CounterArray::new(ICMP_MAXTYPE + 1);
        Self {
            icps_error: Counter::new(),
            icps_oldicmp: Counter::new(),
            icps_oldshort: Counter::new(),
            icps_outhist: histogram(),
            icps_badcode: Counter::new(),
            icps_tooshort: Counter::new(),
            icps_checksum: Counter::new(),
            icps_badlen: Counter::new(),
            icps_reflect: Counter::new(),
            icps_inhist: histogram(),
            icps_bmcastecho: Counter::new(),
            icps_bmcasttstamp: Counter::new(),
            icps_badaddr: Counter::new(),
            icps_noroute: Counter::new(),
            icps_limited: Counter::new(),
        }
    }

    /// Starts again from zero.
    pub fn zero(&self) {
        let single = [
            &self.icps_error,
            &self.icps_oldicmp,
            &self.icps_oldshort,
            &self.icps_badcode,
            &self.icps_tooshort,
            &self.icps_checksum,
            &self.icps_badlen,
            &self.icps_reflect,
            &self.icps_bmcastecho,
            &self.icps_bmcasttstamp,
            &self.icps_badaddr,
            &self.icps_noroute,
            &self.icps_limited,
        ];
        for counter in single
            .into_iter()
            .chain(self.icps_outhist.iter())
            .chain(self.icps_inhist.iter())
        {
            counter.zero();
        }
    }
}

/// FreeBSD's name of a message type, as the histograms of `netstat -s` print it.
pub fn icmp_name(kind: usize) -> Option<&'static str> {
    Some(match kind {
        0 => "echo reply",
        3 => "destination unreachable",
        4 => "source quench",
        5 => "routing redirect",
        8 => "echo",
        9 => "router advertisement",
        10 => "router solicitation",
        11 => "time exceeded",
        12 => "parameter problem",
        13 => "time stamp",
        14 => "time stamp reply",
        15 => "information request",
        16 => "information request reply",
        17 => "address mask request",
        18 => "address mask reply",
        30 => "icmp traceroute",
        31 => "datagram conversion error",
        32 => "mobile host redirect",
        33 => "IPv6 where-are-you",
        34 => "IPv6 i-am-here",
        35 => "mobile registration req",
        36 => "mobile registration reply",
        37 => "domain name request",
        38 => "domain name reply",
        39 => "icmp SKIP",
        40 => "icmp photuris",
        _ => return None,
    })
}

tunables! {
    /// `net.inet.icmp`.
    pub struct IcmpTunables {
        icmplim: u32 = 200, "net.inet.icmp.icmplim", "Maximum number of ICMP responses per second";
        icmplim_jitter: u32 = 16, "net.inet.icmp.icmplim_jitter", "Random icmplim jitter adjustment limit";
        icmplim_output: bool = true, "net.inet.icmp.icmplim_output", "Enable logging of ICMP response rate limiting";
        bmcastecho: bool = false, "net.inet.icmp.bmcastecho", "Reply to multicast ICMP Echo Request and Timestamp packets";
        tstamprepl: bool = true, "net.inet.icmp.tstamprepl", "Respond to ICMP Timestamp packets";
        drop_redirect: bool = false, "net.inet.icmp.drop_redirect", "Ignore ICMP redirects";
        log_redirect: bool = false, "net.inet.icmp.log_redirect", "Log ICMP redirects to the console";
        redirtimeout: u32 = 600, "net.inet.icmp.redirtimeout", "Delay in seconds before expiring redirect route" (1..=86400);
        quotelen: u32 = 548, "net.inet.icmp.quotelen", "Number of bytes from original packet to quote in ICMP reply" (8..=65535);
    }
}

/// Kinds of answers whose rate is limited (`BANDLIM_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bandlim {
    /// Unreachables.
    IcmpUnreach = 0,
    /// Echo replies.
    IcmpEcho = 1,
    /// Timestamp replies.
    IcmpTstamp = 2,
    /// Resets from closed ports.
    RstClosedport = 3,
    /// Resets from open ports.
    RstOpenport = 4,
    /// Unreachables of IPv6.
    Icmp6Unreach = 5,
}

impl Bandlim {
    fn describe(self) -> &'static str {
        match self {
            Bandlim::IcmpUnreach => "icmp unreach",
            Bandlim::IcmpEcho => "icmp ping",
            Bandlim::IcmpTstamp => "icmp tstamp",
            Bandlim::RstClosedport => "closed port RST",
            Bandlim::RstOpenport => "open port RST",
            Bandlim::Icmp6Unreach => "icmp6 unreach",
        }
    }
}

/// Packets of one kind in the current second.
struct Rate {
    since: AtomicU32,
    count: AtomicU32,
    jitter: AtomicU32,
}

impl Rate {
    fn new() -> Self {
        Self {
            since: AtomicU32::new(0),
            count: AtomicU32::new(0),
            jitter: AtomicU32::new(0),
        }
    }

    /// Counts one; the second that just ended had this many, if one ended (`counter_ratecheck`).
    fn tick(&self, now: Ticks) -> (u32, Option<u32>) {
        let since = self.since.load(Ordering::Relaxed);
        let fresh = self.count.load(Ordering::Relaxed) == 0;
        if (fresh || now - Ticks(since) >= 1000)
            && self
                .since
                .compare_exchange(since, now.0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let before = self.count.swap(1, Ordering::Relaxed);
            return (1, (!fresh).then_some(before));
        }
        (
            self.count.fetch_add(1, Ordering::Relaxed).saturating_add(1),
            None,
        )
    }
}

/// Rates of everything a stranger can make us send or log.
pub struct Bandlims {
    rates: [Rate; 6],
    arp: Rate,
    icmp6: Rate,
}

impl Bandlims {
    pub(crate) fn new() -> Self {
        Self {
            rates: core::array::from_fn(|_| Rate::new()),
            arp: Rate::new(),
            icmp6: Rate::new(),
        }
    }

    /// Whether an ICMPv6 error may be sent now, or would be more than `limit` in this second (`icmp6_ratelimit`).
    pub(crate) fn icmp6_error(&self, now: Ticks, limit: u32) -> bool {
        self.icmp6.tick(now).0 <= limit
    }

    /// Whether ARP may log something now.
    pub(crate) fn arp_log(&self, now: Ticks, limit: u32) -> bool {
        self.arp.tick(now).0 <= limit
    }
}

/// Whether an answer of this kind may be sent now, or would exceed `net.inet.icmp.icmplim` (`badport_bandlim`).
///
/// RFC 1812 §4.3.2.8. The limit wanders by a random jitter, so that it can't serve as a side channel about our traffic.
pub fn badport_bandlim(cx: &NetCx<'_>, which: Bandlim) -> bool {
    let limit = cx.vnet.icmp.icmplim.get();
    if limit == 0 {
        return true;
    }
    let Some(rate) = cx.vnet.icmp_limits.rates.get(which as usize) else {
        return true;
    };
    let jitter = cx.vnet.icmp.icmplim_jitter.get();
    let shifted = limit
        .saturating_add(rate.jitter.load(Ordering::Relaxed))
        .saturating_sub(jitter)
        .max(1);
    let (count, ended) = rate.tick(cx.now);
    if let Some(before) = ended.filter(|&before| before > shifted) {
        if jitter != 0 {
            let roll = (machine::random_u64() % u64::from(jitter * 2 + 1)) as u32;
            rate.jitter.store(roll, Ordering::Relaxed);
        }
        if cx.vnet.icmp.icmplim_output.get() {
            kprintf!(
                "Limiting {} response from {before} to {shifted} packets/sec\n",
                which.describe()
            );
        }
    }
    let allowed = count <= shifted;
    if !allowed {
        cx.vnet.icmpstat.icps_limited.inc();
    }
    allowed
}

/// As much of a packet as an error may need later, in an mbuf of its own.
pub(crate) fn error_copy(m: &Mbuf) -> Option<Mbuf> {
    let mut copy = Mbuf::gethdr(How::NoWait)?;
    let len = m.pkt_len().min(MHLEN);
    if !m.copydata(0, copy.extend_mut(len)) {
        return None;
    }
    copy.set_pkt_len(len);
    copy.set_flags(copy.flags() | m.flags() & (MFlags::BCAST | MFlags::MCAST));
    copy.pkthdr_mut().rcvif = m.pkthdr().rcvif;
    Some(copy)
}

/// Answers packet `n` with an error of this type and code (`icmp_error`). `info`: the next hop's MTU for
/// `ICMP_UNREACH_NEEDFRAG`, the better gateway for `ICMP_REDIRECT`. For `ICMP_PARAMPROB` the code is the pointer to the fault.
pub fn icmp_error(cx: &NetCx<'_>, n: Mbuf, kind: u8, code: u8, info: u32) {
    let stat = &cx.vnet.icmpstat;
    if kind != ICMP_REDIRECT {
        stat.icps_error.inc();
    }
    let Ok(n) = n.pullup(Ip::LEN) else {
        stat.icps_oldshort.inc();
        return;
    };
    let Some(&oip) = Ip::parse(n.data()) else {
        return;
    };
    let oiphlen = oip.hlen();
    // RFC 1122 §3.2.2: never about an ICMP error, a later fragment, a broadcast or a source that is no one host.
    if oip.ip_off.get() & crate::ip::IP_OFFMASK != 0 {
        return;
    }
    if oip.ip_p == IPPROTO_ICMP && kind != ICMP_REDIRECT {
        let mut original = [0];
        let queries = [
            ICMP_ECHOREPLY,
            ICMP_ECHO,
            ICMP_TSTAMP,
            ICMP_TSTAMPREPLY,
            ICMP_IREQ,
            ICMP_MASKREQ,
            ICMP_MASKREPLY,
            16,
        ];
        if !n.copydata(oiphlen, &mut original) {
            stat.icps_oldshort.inc();
            return;
        }
        if !queries.contains(&original[0]) {
            stat.icps_oldicmp.inc();
            return;
        }
    }
    if n.flags().intersects(MFlags::BCAST | MFlags::MCAST)
        || !single_host(cx, oip.src())
        || in_multicast(oip.dst())
        || oip.dst() == Ipv4Addr::BROADCAST
    {
        return;
    }
    if oiphlen < Ip::LEN || n.pkt_len() < oiphlen + 8 {
        stat.icps_oldshort.inc();
        return;
    }
    // RFC 1812 §4.3.2.3: as much of the packet as fits; at least the header and 8 bytes. `ip_len` is in the original's
    // order still, so that it is quoted as it came.
    let quotable = usize::from(oip.ip_len.get()).min(n.pkt_len()) - oiphlen.min(n.pkt_len());
    let quote = oiphlen + quotable.min((cx.vnet.icmp.quotelen.get() as usize).max(8));
    let quote = quote.min(crate::ip::IP_MSS.max(548 + 60));

    let Some(mut m) = Mbuf::getm2(
        How::NoWait,
        MAX_LINKHDR + Ip::LEN + ICMP_MINLEN + quote,
        true,
    ) else {
        return;
    };
    let mut message = [0; ICMP_MINLEN];
    message[0] = kind;
    message[1] = code;
    match kind {
        ICMP_PARAMPROB => {
            message[1] = 0;
            message[4] = code;
        }
        ICMP_UNREACH if code == ICMP_UNREACH_NEEDFRAG => {
            let [a, b] = (info.min(u32::from(u16::MAX)) as u16).to_be_bytes();
            (message[6], message[7]) = (a, b);
        }
        ICMP_REDIRECT => message[4..].copy_from_slice(&info.to_be_bytes()),
        _ => {}
    }
    stat.icps_outhist.inc(usize::from(kind));
    let mut ip = Ip::new();
    ip.ip_len.set((Ip::LEN + ICMP_MINLEN + quote) as u16);
    ip.ip_ttl = cx.vnet.ip.ttl.get() as u8;
    ip.ip_p = IPPROTO_ICMP;
    // RFC 1812 §4.3.2.5: errors inherit the precedence, but not the ECN field.
    ip.ip_tos = oip.ip_tos & !IPTOS_ECN_MASK;
    ip.ip_src = oip.ip_src;
    ip.ip_dst = oip.ip_dst;
    m.reserve_front(MAX_LINKHDR);
    use zerocopy::IntoBytes;
    let mut copied = m.append(ip.as_bytes()) && m.append(&message);
    let mut left = quote;
    for segment in n.segments() {
        let part = segment.get(..left.min(segment.len())).unwrap_or(segment);
        copied = copied && m.append(part);
        left -= part.len();
        if left == 0 {
            break;
        }
    }
    if !copied || left != 0 {
        return;
    }
    m.pkthdr_mut().rcvif = n.pkthdr().rcvif;
    m.pkthdr_mut().fibnum = n.pkthdr().fibnum;
    icmp_reflect(cx, m, None);
}

/// Whether `addr` can be the source of a packet one may answer.
fn single_host(cx: &NetCx<'_>, addr: Ipv4Addr) -> bool {
    addr != Ipv4Addr::UNSPECIFIED
        && addr != Ipv4Addr::BROADCAST
        && !in_multicast(addr)
        && (!in_experimental(addr) || cx.vnet.ip.allow_net240.get())
        && (!in_zeronet(addr) || cx.vnet.ip.allow_net0.get())
}

/// ICMP as a protocol above IP.
pub(crate) struct Icmp;

impl IpProto for Icmp {
    fn input(&self, cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
        icmp_input(cx, m, hlen);
    }
}

/// Takes a message: answers queries, tells protocols of errors, and hands everything to raw sockets.
pub fn icmp_input(cx: &NetCx<'_>, m: Mbuf, hlen: usize) {
    let stat = &cx.vnet.icmpstat;
    let icmplen = m.pkt_len().saturating_sub(hlen);
    if icmplen < ICMP_MINLEN {
        stat.icps_tooshort.inc();
        return;
    }
    let Ok(m) = m.pullup(hlen + ICMP_MINLEN) else {
        stat.icps_tooshort.inc();
        return;
    };
    let end = m.pkt_len();
    if m.in_cksum_skip(end, hlen) != 0 {
        stat.icps_checksum.inc();
        return;
    }
    let Some(&[kind, code, ..]) = m.data().get(hlen..) else {
        return;
    };
    stat.icps_inhist.inc(usize::from(kind));
    let m = match kind {
        ICMP_UNREACH | ICMP_TIMXCEED | ICMP_PARAMPROB => match prc_of(kind, code, &m, hlen) {
            Some(cmd) => deliver_error(cx, m, hlen, icmplen, cmd),
            None => {
                stat.icps_badcode.inc();
                Some(m)
            }
        },
        ICMP_ECHO => {
            if is_group(cx, &m) && !cx.vnet.icmp.bmcastecho.get() {
                stat.icps_bmcastecho.inc();
                Some(m)
            } else if !badport_bandlim(cx, Bandlim::IcmpEcho) {
                return;
            } else {
                answer(cx, m, hlen, ICMP_ECHOREPLY)
            }
        }
        ICMP_TSTAMP => {
            if !cx.vnet.icmp.tstamprepl.get() {
                Some(m)
            } else if is_group(cx, &m) && !cx.vnet.icmp.bmcastecho.get() {
                stat.icps_bmcasttstamp.inc();
                Some(m)
            } else if icmplen < ICMP_TSLEN {
                stat.icps_badlen.inc();
                Some(m)
            } else if !badport_bandlim(cx, Bandlim::IcmpTstamp) {
                return;
            } else {
                answer(cx, m, hlen, ICMP_TSTAMPREPLY)
            }
        }
        ICMP_REDIRECT => {
            redirect_input(cx, &m, hlen, icmplen, code);
            Some(m)
        }
        // Not carried over: address masks are never answered.
        _ => Some(m),
    };
    if let Some(m) = m {
        // Nobody need listen.
        drop(crate::raw_ip::rip_deliver(cx, m, IPPROTO_ICMP));
    }
}

/// What an error message means to the protocols (`icmp_input`: "deliver").
fn prc_of(kind: u8, code: u8, m: &Mbuf, hlen: usize) -> Option<PrcCmd> {
    Some(match (kind, code) {
        (ICMP_UNREACH, ICMP_UNREACH_NEEDFRAG) => {
            let mtu = m
                .data()
                .get(hlen + 6..hlen + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u16::from_be_bytes);
            PrcCmd::Msgsize(u32::from(mtu))
        }
        // Net, host and what means the same (RFC 1122 §3.2.2.1): isolated, unknown, type of service.
        (ICMP_UNREACH, 0 | 6 | 11) => PrcCmd::UnreachNet,
        // And precedence, which nobody sets any more (RFC 1812 §5.2.7.1): a soft error.
        (ICMP_UNREACH, 1 | 7 | 8 | 12 | 14 | 15) => PrcCmd::UnreachHost,
        (ICMP_UNREACH, ICMP_UNREACH_PROTOCOL) => PrcCmd::UnreachProtocol,
        (ICMP_UNREACH, ICMP_UNREACH_PORT) => PrcCmd::UnreachPort,
        (ICMP_UNREACH, ICMP_UNREACH_SRCFAIL) => PrcCmd::UnreachSrcfail,
        (ICMP_UNREACH, 9 | 10 | 13) => PrcCmd::UnreachAdminProhib,
        (ICMP_TIMXCEED, ICMP_TIMXCEED_INTRANS) => PrcCmd::TimxceedIntrans,
        (ICMP_TIMXCEED, ICMP_TIMXCEED_REASS) => PrcCmd::TimxceedReass,
        (ICMP_PARAMPROB, 0 | 1) => PrcCmd::Paramprob,
        _ => return None,
    })
}

/// Tells the protocol whose packet is quoted. Gives the message back for raw sockets.
fn deliver_error(
    cx: &NetCx<'_>,
    m: Mbuf,
    hlen: usize,
    icmplen: usize,
    cmd: PrcCmd,
) -> Option<Mbuf> {
    let stat = &cx.vnet.icmpstat;
    // The quoted header must be whole, with the eight bytes that name the ports.
    if icmplen < ICMP_MINLEN + Ip::LEN + 8 {
        stat.icps_badlen.inc();
        return None;
    }
    let mut quoted = [0; 60 + 60];
    let have = (icmplen - ICMP_MINLEN).min(quoted.len());
    let copied = quoted.get_mut(..have)?;
    if !m.copydata(hlen + ICMP_MINLEN, copied) {
        stat.icps_badlen.inc();
        return None;
    }
    let quoted: &[u8] = copied;
    let ip = Ip::parse(quoted)?;
    if ip.version() != 4 || ip.hlen() < Ip::LEN || ip.hlen() + 8 > quoted.len() {
        stat.icps_badlen.inc();
        return None;
    }
    // Only about packets that could have been ours.
    if in_multicast(ip.dst()) || cx.vnet.ifaddrs.lookup(cx.epoch, ip.src()).is_none() {
        stat.icps_badaddr.inc();
        return Some(m);
    }
    let cmd = match cmd {
        PrcCmd::Msgsize(mtu) => PrcCmd::Msgsize(plausible_mtu(mtu, usize::from(ip.ip_len.get()))),
        cmd => cmd,
    };
    let about = Quoted {
        src: ip.src().into(),
        dst: ip.dst().into(),
        len: u32::from(ip.ip_len.get()),
        transport: quoted.get(ip.hlen()..)?,
    };
    cx.vnet.protox(ip.ip_p).ctlinput(cx, cmd, &about);
    Some(m)
}

/// A redirect: a router knows a better way to a host. It is obeyed if it comes from the router that we would use.
fn redirect_input(cx: &NetCx<'_>, m: &Mbuf, hlen: usize, icmplen: usize, code: u8) {
    let stat = &cx.vnet.icmpstat;
    let icmp = &cx.vnet.icmp;
    let mut quoted = [0; ICMP_MINLEN + Ip::LEN];
    let whole = m.copydata(hlen, &mut quoted);
    let (Some(from), Some(about)) = (
        Ip::parse(m.data()).map(Ip::src),
        Ip::parse(quoted.get(ICMP_MINLEN..).unwrap_or(&[])),
    ) else {
        return;
    };
    let [_, _, _, _, g0, g1, g2, g3, ..] = quoted;
    let gateway = Ipv4Addr::new(g0, g1, g2, g3);
    if icmp.log_redirect.get() && whole {
        kprintf!("icmp redirect from {from}: {} => {gateway}\n", about.dst());
    }
    // RFC 1812 §5.2.7.2: a router does not let others tell it the way.
    if icmp.drop_redirect.get() || cx.vnet.ip.forwarding.get() {
        return;
    }
    if code > ICMP_REDIRECT_TOSHOST {
        stat.icps_badcode.inc();
        return;
    }
    if !whole || about.hlen() < Ip::LEN || icmplen < ICMP_MINLEN + about.hlen() + 8 {
        stat.icps_badlen.inc();
        return;
    }
    if let Some(ifa) = redirect_gateway(cx, m, from, about.dst(), gateway) {
        let lifetime = Sbintime::from_s(i64::from(icmp.redirtimeout.get()));
        let tmproutes = &cx.vnet.tmproutes;
        // Where there is a route already it stays.
        let _ = tmproutes.add_redirect(cx.vnet, about.dst(), gateway, &ifa, lifetime);
    }
}

/// The address of ours by whose network `gateway` is a neighbour, if a redirect of `from` to it is to be believed
/// (`icmp_verify_redirect_gateway`; RFC 1122 §3.2.2.2).
fn redirect_gateway(
    cx: &NetCx<'_>,
    m: &Mbuf,
    from: Ipv4Addr,
    dst: Ipv4Addr,
    gateway: Ipv4Addr,
) -> Option<Arc<Ifaddr>> {
    let nhop = cx.vnet.rib.fib4_lookup(dst, cx.epoch)?;
    let ia = nhop.nh_ifa.as_ref()?;
    let neighbour = ia.has_neighbour(gateway);
    // From another than our router for this host it is old or wrong; one to ourselves would be a loop.
    let believed = nhop.gw == Some(from)
        && nhop.nh_ifp.if_index == m.pkthdr().rcvif
        && !nhop.nh_flags.contains(RtFlags::HOST)
        && neighbour
        && single_host(cx, gateway)
        && !cx.vnet.ifaddrs.is_local_or_broadcast(cx.epoch, gateway);
    believed.then(|| ia.clone())
}

/// The MTU to believe: what the router says, or, if it says nothing, the next lower of the usual ones (RFC 1191 §7.1).
fn plausible_mtu(mtu: u32, ip_len: usize) -> u32 {
    const PLATEAUS: [u32; 10] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296];
    if mtu >= IP_MINMTU {
        return mtu;
    }
    if mtu != 0 {
        return IP_MINMTU;
    }
    PLATEAUS
        .into_iter()
        .find(|&plateau| (plateau as usize) < ip_len)
        .unwrap_or(IP_MINMTU)
}

/// Whether a message came to a broadcast or multicast address.
fn is_group(cx: &NetCx<'_>, m: &Mbuf) -> bool {
    m.flags().intersects(MFlags::BCAST | MFlags::MCAST)
        || Ip::parse(m.data()).is_none_or(|ip| cx.vnet.ifaddrs.lookup(cx.epoch, ip.dst()).is_none())
}

/// Turns a query into its answer and sends it back; a raw socket that listens hears the query too.
fn answer(cx: &NetCx<'_>, m: Mbuf, hlen: usize, kind: u8) -> Option<Mbuf> {
    let stat = &cx.vnet.icmpstat;
    let listener = crate::raw_ip::rip_wants(cx, IPPROTO_ICMP)
        .then(|| m.copypacket(How::NoWait))
        .flatten();
    // A shared cluster must not be written to: a raw socket may still read it.
    let Some(mut m) = (if m.writable() {
        Some(m)
    } else {
        m.unshare(How::NoWait)
    }) else {
        return listener;
    };
    let want = hlen
        + if kind == ICMP_TSTAMPREPLY {
            ICMP_TSLEN
        } else {
            ICMP_MINLEN
        };
    if m.len() < want {
        m = m.pullup(want).ok()?;
    }
    let now = cx.now.0;
    let data = m.data_mut().get_mut(hlen..)?;
    data.first_chunk_mut::<2>()?.copy_from_slice(&[kind, 0]);
    if kind == ICMP_TSTAMPREPLY {
        // RFC 792: the high bit says that the time is not milliseconds since midnight UT.
        let stamp = (now | 0x8000_0000).to_be_bytes();
        data.get_mut(12..16)?.copy_from_slice(&stamp);
        data.get_mut(16..20)?.copy_from_slice(&stamp);
    }
    stat.icps_reflect.inc();
    stat.icps_outhist.inc(usize::from(kind));
    let options = m
        .data()
        .get(Ip::LEN..hlen)
        .filter(|options| !options.is_empty())
        .and_then(reply_options);
    // The reply has a plain header; options return by `icmp_reflect`.
    if hlen > Ip::LEN {
        m = strip_options(m, hlen)?;
    }
    icmp_reflect(cx, m, options);
    listener
}

/// Of a request's options, those an answer repeats: record route and time stamps as they came.
fn reply_options(options: &[u8]) -> Option<IpOptions> {
    let mut rest = options;
    while let Some(&opt) = rest.first() {
        match opt {
            crate::ip::IPOPT_EOL => break,
            crate::ip::IPOPT_NOP => rest = rest.get(1..)?,
            crate::ip::IPOPT_RR | crate::ip::IPOPT_TS => {
                rest = rest.get(usize::from(*rest.get(1)?).max(1)..)?
            }
            // A source route would have to be reversed, which nobody uses; others are not repeated.
            _ => return None,
        }
    }
    IpOptions::new(options)
}

/// Cuts the options out of a packet (`ip_stripoptions`).
fn strip_options(mut m: Mbuf, hlen: usize) -> Option<Mbuf> {
    let header = *Ip::parse(m.data())?;
    m.trim_front(hlen - Ip::LEN);
    let ip = Ip::parse_mut(m.data_mut())?;
    *ip = header;
    ip.set_hlen(Ip::LEN);
    ip.ip_len.set(header.ip_len.get() - (hlen - Ip::LEN) as u16);
    Some(m)
}

/// Sends a message back to where its IP header says it came from, from the address it came to if that is one of ours.
fn icmp_reflect(cx: &NetCx<'_>, mut m: Mbuf, options: Option<IpOptions>) {
    let stat = &cx.vnet.icmpstat;
    let Some(&ip) = Ip::parse(m.data()) else {
        return;
    };
    let (src, dst) = (ip.src(), ip.dst());
    if !single_host(cx, src) {
        stat.icps_badaddr.inc();
        return;
    }
    let rcvif = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch);
    if in_loopback(src) && rcvif.is_none_or(|ifp| !ifp.is_loopback()) {
        stat.icps_badaddr.inc();
        return;
    }
    // To one of our addresses: answer with it. To a group or to nobody: with the address of the interface the packet came
    // in by, else of the one the answer leaves by.
    let own = cx.vnet.ifaddrs.lookup(cx.epoch, dst).map(|ia| ia.ia_addr);
    let of_interface = || {
        rcvif
            .and_then(|ifp| ifp.addrs(cx.epoch).first())
            .map(|ia| ia.ia_addr)
    };
    let Some(from) = own
        .or_else(of_interface)
        .or_else(|| crate::in_pcb::in_pcbladdr(cx, src).ok())
    else {
        stat.icps_noroute.inc();
        return;
    };
    let flowid = (m.pkthdr().flowid, m.pkthdr().rsstype);
    if let Some(reply) = Ip::parse_mut(m.data_mut()) {
        reply.set_src(from);
        reply.set_dst(src);
        reply.ip_ttl = cx.vnet.ip.ttl.get() as u8;
        reply.ip_off.set(0);
    }
    m.clear_flags(MFlags::BCAST | MFlags::MCAST);
    let hdr = m.pkthdr_mut();
    hdr.rcvif = sys::mbuf::IfIndex::NONE;
    hdr.csum_flags = CsumFlags::empty();
    (hdr.flowid, hdr.rsstype) = flowid;
    icmp_send(cx, m, options.as_ref());
}

/// Checksums and sends a message that begins with its plain IP header (`icmp_send`).
fn icmp_send(cx: &NetCx<'_>, mut m: Mbuf, options: Option<&IpOptions>) {
    let hlen = Ip::LEN;
    let Some(field) = m.data_mut().get_mut(hlen + 2..hlen + 4) else {
        return;
    };
    field.copy_from_slice(&[0; 2]);
    let end = m.pkt_len();
    let sum = m.in_cksum_skip(end, hlen).to_be_bytes();
    if let Some(field) = m.data_mut().get_mut(hlen + 2..hlen + 4) {
        field.copy_from_slice(&sum);
    }
    let args = IpOutArgs {
        options,
        ..Default::default()
    };
    // ip_output has counted what becomes of it.
    let _ = ip_output(cx, m, &args);
}

/// Builds an ICMP message with an IP header for a raw sender: type, code, identifier, sequence number, data.
pub fn icmp_echo_message(id: u16, seq: u16, data: &[u8]) -> alloc::vec::Vec<u8> {
    let mut message = alloc::vec::Vec::with_capacity(ICMP_MINLEN + data.len());
    message.extend_from_slice(&[ICMP_ECHO, 0, 0, 0]);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&seq.to_be_bytes());
    message.extend_from_slice(data);
    let sum = in_cksum(&message).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_that_names_no_mtu_means_the_next_lower_plateau() {
        assert_eq!(plausible_mtu(1400, 1500), 1400);
        assert_eq!(plausible_mtu(0, 1500), 1492);
        assert_eq!(plausible_mtu(0, 1492), 1006);
        assert_eq!(plausible_mtu(0, 296), IP_MINMTU);
        assert_eq!(plausible_mtu(20, 1500), IP_MINMTU);
    }

    #[test]
    fn a_rate_counts_by_seconds() {
        let rate = Rate::new();
        assert_eq!(rate.tick(Ticks(5_000)), (1, None));
        assert_eq!(rate.tick(Ticks(5_500)), (2, None));
        assert_eq!(rate.tick(Ticks(5_999)), (3, None));
        assert_eq!(rate.tick(Ticks(6_000)), (1, Some(3)));
        assert_eq!(rate.tick(Ticks(9_000)), (1, Some(1)));
    }
}
