//! Takes IPv6 packets from interfaces: checks them, finds whom they are for, walks their extension headers, hands them on.
//!
//! FreeBSD: sys/netinet6/ip6_input.c, route6.c, dest6.c
//! Not carried over: forwarding. A packet that is for somebody else is counted and dropped.

use crate::netinet6::frag6::Reassembly6;
use crate::netinet6::icmp6::{
    ICMP6_PARAM_PROB, ICMP6_PARAMPROB_HEADER, ICMP6_PARAMPROB_NEXTHEADER, ICMP6_PARAMPROB_OPTION,
    icmp6_error,
};
use crate::netinet6::in6_src::{has_zone, in6_clearscope, in6_setscope};
use crate::netinet6::ip6::{
    IP6OPT_PAD1, IP6OPT_PADN, IP6OPT_ROUTER_ALERT, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT,
    IPPROTO_HOPOPTS, IPPROTO_NONE, IPPROTO_ROUTING, IPV6_VERSION, Ip6, in6_mc_scope,
};
use crate::netinet6::raw_ip6::rip6_input;
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::Arc;
use core::net::Ipv6Addr;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::{How, MFlags, Mbuf, MbufQueue};
use sys::net::ifnet::{Ifnet, In6Iff};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::netisr::NetisrHandler;
use sys::net::pfil::{PfilDir, PfilVerdict};
use sys::net::vnet::Vnet;

/// Takes packets of type IPv6 from netisr.
pub struct Ip6Handler {
    inet: Arc<InetVnet>,
}

impl Ip6Handler {
    pub(crate) fn new(inet: &Arc<InetVnet>) -> Self {
        Self { inet: inet.clone() }
    }
}

impl NetisrHandler for Ip6Handler {
    fn input(&self, _vnet: &Arc<Vnet>, epoch: &NetEpoch, m: Mbuf) {
        ip6_input(&NetCx::new(&self.inet, epoch), m);
    }

    fn input_batch(&self, _vnet: &Arc<Vnet>, epoch: &NetEpoch, q: &mut MbufQueue) {
        let cx = NetCx::new(&self.inet, epoch);
        while let Some(m) = q.pop() {
            ip6_input(&cx, m);
        }
    }
}

/// Takes one packet that begins with its IPv6 header.
pub fn ip6_input(cx: &NetCx<'_>, m: Mbuf) {
    // Every way out but the last has counted the packet.
    let Some((m, ifp)) = check_header(cx, m) else {
        return;
    };
    let Some(m) = filter6(cx, ifp, PfilDir::In, m) else {
        return;
    };
    let Some(m) = set_scopes(cx, ifp, m) else {
        return;
    };
    if !is_ours(cx, ifp, &m) {
        return;
    }
    walk_headers(cx, m);
}

/// Checks lengths, version and addresses, and cuts link-layer padding.
#[inline]
fn check_header<'a>(cx: &NetCx<'a>, m: Mbuf) -> Option<(Mbuf, &'a Arc<Ifnet>)> {
    let stat = &cx.vnet.ip6stat;
    stat.ip6s_total.inc();
    let Ok(mut m) = m.pullup(Ip6::LEN) else {
        stat.ip6s_toosmall.inc();
        return None;
    };
    let ip6 = Ip6::parse(m.data())?;
    if ip6.version() != IPV6_VERSION {
        stat.ip6s_badvers.inc();
        return None;
    }
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        // The interface has gone while the packet waited.
        stat.ip6s_nointerface.inc();
        return None;
    };
    if ifp.nd6.flags().contains(Nd6Iff::IFDISABLED) {
        stat.ip6s_ifdisabled.inc();
        return None;
    }
    if !plausible_addresses(ifp, ip6.src(), ip6.dst()) {
        stat.ip6s_badscope.inc();
        return None;
    }
    let len = ip6.packet_len();
    if m.pkt_len() < len {
        stat.ip6s_tooshort.inc();
        return None;
    }
    if m.pkt_len() > len {
        let excess = m.pkt_len() - len;
        m.trim_back(excess);
    }
    Some((m, ifp))
}

/// Whether a packet on a wire may have these addresses (`ip6_input`: "Check with the firewall" and before).
#[inline]
fn plausible_addresses(ifp: &Ifnet, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
    if src.is_multicast() || dst.is_unspecified() {
        return false;
    }
    // RFC 4291 §2.7: scope 0 is reserved, scope 1 stays inside a host.
    if dst.is_multicast()
        && (in6_mc_scope(dst) == 0 || in6_mc_scope(dst) == 1 && !ifp.is_loopback())
    {
        return false;
    }
    // RFC 4291 §2.5.3: the loopback address never appears on a wire. Nor do mapped ones, which could pass filters of IPv4.
    let loopback = (src == Ipv6Addr::LOCALHOST || dst == Ipv6Addr::LOCALHOST) && !ifp.is_loopback();
    let mapped = src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some();
    // The place where we write the zone is zero on the wire.
    let zoned = in6_clearscope(src) != src || in6_clearscope(dst) != dst;
    !loopback && !mapped && !zoned
}

/// Runs the packet filters; `None`: they took or dropped it.
#[inline]
pub(crate) fn filter6(cx: &NetCx<'_>, ifp: &Ifnet, dir: PfilDir, m: Mbuf) -> Option<Mbuf> {
    let head = &cx.vnet.pfil_inet6;
    if head.is_empty(dir) {
        return Some(m);
    }
    match head.run(cx.epoch, ifp, dir, m) {
        PfilVerdict::Pass(m) => {
            let m = m.pullup(Ip6::LEN).ok();
            if m.is_none() {
                cx.vnet.ip6stat.ip6s_toosmall.inc();
            }
            m
        }
        PfilVerdict::Dropped => {
            cx.vnet.ip6stat.ip6s_filtered.inc();
            None
        }
        PfilVerdict::Consumed => None,
    }
}

/// Writes the zone of the interface into addresses that need one.
#[inline]
fn set_scopes(cx: &NetCx<'_>, ifp: &Ifnet, m: Mbuf) -> Option<Mbuf> {
    let ip6 = Ip6::parse(m.data())?;
    let (src, dst) = (ip6.src(), ip6.dst());
    if !has_zone(src) && !has_zone(dst) {
        return Some(m);
    }
    let writable = if m.writable() {
        Some(m)
    } else {
        m.unshare(How::NoWait)
    };
    let Some(mut m) = writable else {
        cx.vnet.ip6stat.ip6s_toosmall.inc();
        return None;
    };
    let ip6 = Ip6::parse_mut(m.data_mut())?;
    ip6.set_src(in6_setscope(src, ifp));
    ip6.set_dst(in6_setscope(dst, ifp));
    Some(m)
}

/// Whether a packet is for this host; if not, it is counted.
#[inline]
fn is_ours(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: &Mbuf) -> bool {
    let stat = &cx.vnet.ip6stat;
    let Some(ip6) = Ip6::parse(m.data()) else {
        return false;
    };
    let (src, dst) = (ip6.src(), ip6.dst());
    if dst.is_multicast() {
        let member = cx.vnet.in6_ifaddrs.is_member(cx.epoch, ifp.if_index, dst);
        if !member {
            stat.ip6s_notmember.inc();
        }
        return member;
    }
    let Some(ia) = cx.vnet.in6_ifaddrs.lookup(cx.epoch, dst) else {
        stat.ip6s_cantforward.inc();
        return false;
    };
    // RFC 4862 §5.4: while an address is being checked, only neighbour discovery concerns it, and that is multicast.
    if ia.flags().intersects(In6Iff::NOTREADY) {
        stat.ip6s_notready.inc();
        return false;
    }
    // What comes from ourselves comes by the loopback; a link-local address of ours returns by its own interface.
    let ours = || !has_zone(src) && cx.vnet.in6_ifaddrs.lookup(cx.epoch, src).is_some();
    if cx.vnet.ip6.source_address_validation.get() && !ifp.is_loopback() && ours() {
        stat.ip6s_badscope.inc();
        return false;
    }
    ia.ipackets.inc();
    ia.ibytes.add(m.pkt_len() as u64);
    true
}

/// What a header of the chain leads to.
enum Next {
    /// Another header, so many bytes on.
    Header { nxt: u8, len: usize },
    /// Nothing: the packet was dropped and counted, or waits.
    Done,
}

/// Walks the extension headers and hands the packet to its protocol.
#[inline]
fn walk_headers(cx: &NetCx<'_>, m: Mbuf) {
    let stat = &cx.vnet.ip6stat;
    let (mut m, mut off, mut nxt_at) = (m, Ip6::LEN, 6);
    let Some(mut nxt) = Ip6::parse(m.data()).map(|ip6| ip6.ip6_nxt) else {
        return;
    };
    stat.ip6s_delivered.inc();
    let limit = cx.vnet.ip6.hdrnestlimit.get();
    let mut nest = 0;
    loop {
        if !matches!(
            nxt,
            IPPROTO_HOPOPTS | IPPROTO_DSTOPTS | IPPROTO_ROUTING | IPPROTO_FRAGMENT
        ) {
            deliver(cx, m, off, nxt, nxt_at);
            return;
        }
        nest += 1;
        if limit != 0 && nest > limit {
            stat.ip6s_toomanyhdr.inc();
            return;
        }
        // RFC 8200 §4.1: hop-by-hop options come first or not at all.
        if nxt == IPPROTO_HOPOPTS && nest > 1 {
            stat.ip6s_badoptions.inc();
            icmp6_error(
                cx,
                m,
                ICMP6_PARAM_PROB,
                ICMP6_PARAMPROB_NEXTHEADER,
                nxt_at as u32,
            );
            return;
        }
        if nxt == IPPROTO_FRAGMENT {
            match cx.vnet.frag6.input(cx, m, off, nxt_at) {
                Reassembly6::Whole {
                    m: whole,
                    nxt: next,
                } => {
                    (m, nxt) = (whole, next);
                    continue;
                }
                Reassembly6::Incomplete => return,
            }
        }
        let mut head = [0; 4];
        let whole =
            m.copydata(off, &mut head) && off + (usize::from(head[1]) + 1) * 8 <= m.pkt_len();
        if !whole {
            stat.ip6s_tooshort.inc();
            return;
        }
        let len = (usize::from(head[1]) + 1) * 8;
        let pulled = m.pullup(off + len);
        let Ok(pulled) = pulled else {
            // Longer than one mbuf: nobody needs so many options.
            stat.ip6s_toosmall.inc();
            return;
        };
        let step = if nxt == IPPROTO_ROUTING {
            routing(cx, pulled, off, head)
        } else {
            options(cx, pulled, off, len, head[0])
        };
        let (back, next) = step;
        let (Some(back), Next::Header { nxt: after, len }) = (back, next) else {
            return;
        };
        m = back;
        nxt_at = off;
        off += len;
        nxt = after;
    }
}

/// Hands a packet to the protocol above, whose header begins at `off`.
#[inline]
fn deliver(cx: &NetCx<'_>, m: Mbuf, off: usize, nxt: u8, nxt_at: usize) {
    match cx.vnet.protox6(nxt) {
        Some(protocol) => protocol.input(cx, m, off),
        None if nxt == IPPROTO_NONE => {}
        None if rip6_input(cx, &m, off, nxt) => {}
        None => {
            cx.vnet.ip6stat.ip6s_noproto.inc();
            icmp6_error(
                cx,
                m,
                ICMP6_PARAM_PROB,
                ICMP6_PARAMPROB_NEXTHEADER,
                nxt_at as u32,
            );
        }
    }
}

/// A routing header (`route6_input`): RFC 5095 forbids type 0, and we are no hop of any other.
fn routing(cx: &NetCx<'_>, m: Mbuf, off: usize, head: [u8; 4]) -> (Option<Mbuf>, Next) {
    let [nxt, len, _, segments_left] = head;
    if segments_left == 0 {
        let len = (usize::from(len) + 1) * 8;
        return (Some(m), Next::Header { nxt, len });
    }
    cx.vnet.ip6stat.ip6s_badoptions.inc();
    icmp6_error(
        cx,
        m,
        ICMP6_PARAM_PROB,
        ICMP6_PARAMPROB_HEADER,
        off as u32 + 2,
    );
    (None, Next::Done)
}

/// Options for every hop or for the destination: what we don't know says itself what to do (RFC 8200 §4.2).
fn options(cx: &NetCx<'_>, m: Mbuf, off: usize, len: usize, nxt: u8) -> (Option<Mbuf>, Next) {
    let unknown = match walk_options(m.data().get(off + 2..off + len).unwrap_or(&[])) {
        Ok(None) => return (Some(m), Next::Header { nxt, len }),
        Ok(Some(unknown)) => unknown,
        Err(Truncated) => {
            cx.vnet.ip6stat.ip6s_badoptions.inc();
            return (None, Next::Done);
        }
    };
    cx.vnet.ip6stat.ip6s_badoptions.inc();
    let group = Ip6::parse(m.data()).is_some_and(|ip6| ip6.dst().is_multicast())
        || m.flags().intersects(MFlags::BCAST | MFlags::MCAST);
    match unknown.kind >> 6 {
        2 => {}
        3 if !group => {}
        _ => return (None, Next::Done),
    }
    let pointer = (off + 2 + unknown.at) as u32;
    icmp6_error(cx, m, ICMP6_PARAM_PROB, ICMP6_PARAMPROB_OPTION, pointer);
    (None, Next::Done)
}

/// An option that is longer than its header.
#[derive(Debug, PartialEq, Eq)]
struct Truncated;

/// An option that is not to be skipped.
#[derive(Debug, PartialEq, Eq)]
struct Unknown {
    kind: u8,
    at: usize,
}

/// Walks options; the first that we don't know and may not skip ends the walk.
fn walk_options(bytes: &[u8]) -> Result<Option<Unknown>, Truncated> {
    let mut at = 0;
    while let Some(&kind) = bytes.get(at) {
        if kind == IP6OPT_PAD1 {
            at += 1;
            continue;
        }
        let len = 2 + usize::from(*bytes.get(at + 1).ok_or(Truncated)?);
        if at + len > bytes.len() {
            return Err(Truncated);
        }
        let known = matches!(kind, IP6OPT_PADN | IP6OPT_ROUTER_ALERT);
        // The upper two bits: 0 skips the option, the others drop the packet.
        if !known && kind >> 6 != 0 {
            return Ok(Some(Unknown { kind, at }));
        }
        at += len;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_may_be_skipped_are_and_others_are_named() {
        assert_eq!(walk_options(&[0, 0, 1, 2, 0, 0, 5, 2, 0, 0]), Ok(None));
        assert_eq!(walk_options(&[0x3f, 1, 9, 0]), Ok(None));
        let named = Unknown { kind: 0xc2, at: 1 };
        assert_eq!(walk_options(&[0, 0xc2, 0]), Ok(Some(named)));
        assert_eq!(walk_options(&[1, 4, 0, 0]), Err(Truncated));
        assert_eq!(walk_options(&[1]), Err(Truncated));
    }
}
