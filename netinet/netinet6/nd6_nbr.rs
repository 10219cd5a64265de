//! Neighbour solicitations and advertisements, and with them the search for duplicates of our addresses.
//!
//! FreeBSD: sys/netinet6/nd6_nbr.c (RFC 4861 §7.2, RFC 4862 §5.4)

use crate::netinet6::icmp6::{
    ICMP6_HLEN, ND_NEIGHBOR_ADVERT, ND_NEIGHBOR_SOLICIT, ND_ROUTER_SOLICIT, icmp6_prepend,
    icmp6_send,
};
use crate::netinet6::in6::in6_hw_ifid;
use crate::netinet6::in6_src::{in6_clearscope, in6_selectsrc, in6_setscope};
use crate::netinet6::ip6::{IN6ADDR_LINKLOCAL_ALLNODES, Ip6, in6_is_linklocal, in6_solicited_node};
use crate::netinet6::ip6_var::Ip6OutArgs;
use crate::netinet6::nd6::{
    Certainty, Heard, ND_OPT_SOURCE_LINKADDR, ND_OPT_TARGET_LINKADDR, NdOpts, enter, entered,
    nd6_cache_lladdr,
};
use crate::vnet::{InetVnet, NetCx};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use core::sync::atomic::{AtomicU32, Ordering};
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::Leaf;
use sys::kern::subr_epoch::NetEpoch;
use sys::kprintf;
use sys::mbuf::{How, MAX_LINKHDR, MFlags, Mbuf};
use sys::net::if_ethersubr::{EtherAddr, EtherText};
use sys::net::if_llatbl::{LleFlags, LleState};
use sys::net::ifnet::{Ifnet, In6Ifaddr, In6Iff};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::time::Sbintime;

/// The sender is a router.
const ND_NA_FLAG_ROUTER: u8 = 0x80;
/// It answers a solicitation.
const ND_NA_FLAG_SOLICITED: u8 = 0x40;
/// It replaces what is known.
const ND_NA_FLAG_OVERRIDE: u8 = 0x20;
/// Length of a message without options: the fixed part and the target.
const ND_LEN: usize = ICMP6_HLEN + 16;
/// Hop limit of all messages: no router has passed them on.
const ND_HLIM: u8 = 255;

/// A message that has been read.
struct Message {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    /// Zone embedded.
    target: Ipv6Addr,
    flags: u8,
    options: NdOpts,
}

/// Reads a message; `None` if it is malformed (RFC 4861 §7.1).
fn parse(m: &Mbuf, ifp: &Ifnet, off: usize) -> Option<Message> {
    let mut bytes = [0; ND_LEN];
    if !m.copydata(off, &mut bytes) {
        return None;
    }
    let ip6 = Ip6::parse(m.data())?;
    let target: [u8; 16] = *bytes.get(ICMP6_HLEN..)?.first_chunk()?;
    let target = Ipv6Addr::from(target);
    if target.is_multicast() || target.is_unspecified() || in6_clearscope(target) != target {
        return None;
    }
    Some(Message {
        src: ip6.src(),
        dst: ip6.dst(),
        target: in6_setscope(target, ifp),
        flags: *bytes.get(4)?,
        options: NdOpts::parse(m, off + ND_LEN)?,
    })
}

/// A message about `target`, as bytes of an mbuf with room for headers.
fn build(kind: u8, flags: u8, target: Ipv6Addr, option: Option<(u8, EtherAddr)>) -> Option<Mbuf> {
    let mut m = Mbuf::gethdr(How::NoWait)?;
    m.reserve_front(MAX_LINKHDR + Ip6::LEN);
    let mut whole =
        m.append(&[kind, 0, 0, 0, flags, 0, 0, 0]) && m.append(&in6_clearscope(target).octets());
    if let Some((option, address)) = option {
        whole = whole && m.append(&[option, 1]) && m.append(&address);
    }
    whole.then_some(m)
}

fn send(cx: &NetCx<'_>, ifp: &Ifnet, body: Option<Mbuf>, src: Ipv6Addr, dst: Ipv6Addr) {
    let Some(m) = body.and_then(|body| icmp6_prepend(body, src, dst, ND_HLIM)) else {
        cx.vnet.icmp6stat.icp6s_dropped.inc();
        return;
    };
    let args = Ip6OutArgs {
        ifindex: ifp.if_index,
        unspecsrc: src.is_unspecified(),
        ..Ip6OutArgs::default()
    };
    icmp6_send(cx, m, &args);
}

/// Asks for the link-layer address of `target`: all who might have it, or `to` alone whether it is still there.
pub fn nd6_ns_output(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, to: Option<Ipv6Addr>, target: Ipv6Addr) {
    let Some(ia) = in6_selectsrc(cx, target, ifp) else {
        cx.vnet.icmp6stat.icp6s_dropped.inc();
        return;
    };
    let dst = to.unwrap_or_else(|| in6_setscope(in6_solicited_node(target), ifp));
    let option = Some((ND_OPT_SOURCE_LINKADDR, ifp.lladdr()));
    let body = build(ND_NEIGHBOR_SOLICIT, 0, target, option);
    send(cx, ifp, body, ia.ia_addr, dst);
}

/// Asks whether anybody has `target` already.
fn nd6_dad_ns_output(cx: &NetCx<'_>, ifp: &Ifnet, target: Ipv6Addr) {
    let dst = in6_setscope(in6_solicited_node(target), ifp);
    let body = build(ND_NEIGHBOR_SOLICIT, 0, target, None);
    send(cx, ifp, body, Ipv6Addr::UNSPECIFIED, dst);
}

/// Asks for routers.
pub(crate) fn nd6_rs_output(cx: &NetCx<'_>, ifp: &Ifnet, src: Ipv6Addr, dst: Ipv6Addr) {
    let mut body = Mbuf::gethdr(How::NoWait);
    if let Some(m) = &mut body {
        m.reserve_front(MAX_LINKHDR + Ip6::LEN);
        let whole = m.append(&[ND_ROUTER_SOLICIT, 0, 0, 0, 0, 0, 0, 0])
            && m.append(&[ND_OPT_SOURCE_LINKADDR, 1])
            && m.append(&ifp.lladdr());
        debug_assert!(whole, "an mbuf has room for it");
    }
    send(cx, ifp, body, src, dst);
}

/// A solicitation (RFC 4861 §7.2.3).
pub fn nd6_ns_input(cx: &NetCx<'_>, m: Mbuf, off: usize) {
    let stat = &cx.vnet.icmp6stat;
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    let Some(ns) = parse(&m, ifp, off) else {
        stat.icp6s_badns.inc();
        return;
    };
    let solicited_node = in6_setscope(in6_solicited_node(ns.target), ifp);
    // RFC 4861 §7.1.1: a search for duplicates has no source, and goes to the group of its target.
    if ns.src.is_unspecified() && (ns.dst != solicited_node || ns.options.source.is_some()) {
        stat.icp6s_badns.inc();
        return;
    }
    // Who is not on the link gets no entry that would say so.
    if !ns.src.is_unspecified()
        && !cx.vnet.icmp6.nd6_onlink_ns_rfc4861.get()
        && !is_addr_neighbor(cx, ifp, ns.src)
    {
        stat.icp6s_badns.inc();
        return;
    }
    let Some(ia) = cx.vnet.in6_ifaddrs.lookup(cx.epoch, ns.target) else {
        return;
    };
    if !Arc::ptr_eq(&ia.ia_ifp, ifp) || ifp.is_loopback() {
        return;
    }
    if ia.flags().intersects(In6Iff::NOTREADY) {
        // RFC 4862 §5.4.3: another one is looking whether the same address is free. Neither gets it.
        if ns.src.is_unspecified() && ia.flags().contains(In6Iff::TENTATIVE) {
            duplicated(cx.vnet, ia, None);
        }
        return;
    }
    let option = Some((ND_OPT_TARGET_LINKADDR, ifp.lladdr()));
    if ns.src.is_unspecified() {
        let body = build(ND_NEIGHBOR_ADVERT, ND_NA_FLAG_OVERRIDE, ns.target, option);
        send(
            cx,
            ifp,
            body,
            ns.target,
            in6_setscope(IN6ADDR_LINKLOCAL_ALLNODES, ifp),
        );
        return;
    }
    nd6_cache_lladdr(cx, ifp, ns.src, ns.options.source, Heard::Solicitation);
    let flags = ND_NA_FLAG_SOLICITED | ND_NA_FLAG_OVERRIDE;
    let body = build(ND_NEIGHBOR_ADVERT, flags, ns.target, option);
    send(cx, ifp, body, ns.target, ns.src);
}

/// Whether the routes say that an address is on the link (`nd6_is_addr_neighbor`).
fn is_addr_neighbor(cx: &NetCx<'_>, ifp: &Ifnet, addr: Ipv6Addr) -> bool {
    in6_is_linklocal(addr)
        || cx
            .vnet
            .rib6
            .fib6_lookup(addr, cx.epoch)
            .is_some_and(|nhop| nhop.gw.is_none() && nhop.nh_ifp.if_index == ifp.if_index)
}

/// An advertisement (RFC 4861 §7.2.5).
pub fn nd6_na_input(cx: &NetCx<'_>, m: Mbuf, off: usize) {
    let stat = &cx.vnet.icmp6stat;
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        return;
    };
    let Some(na) = parse(&m, ifp, off) else {
        stat.icp6s_badna.inc();
        return;
    };
    let solicited = na.flags & ND_NA_FLAG_SOLICITED != 0;
    // RFC 4861 §7.1.2: what goes to a group answers nobody.
    let to_group = na.dst.is_multicast() || m.flags().contains(MFlags::MCAST);
    if to_group && solicited {
        stat.icp6s_badna.inc();
        return;
    }
    if let Some(ia) = cx.vnet.in6_ifaddrs.lookup(cx.epoch, na.target) {
        // Somebody says that an address of ours is his.
        if Arc::ptr_eq(&ia.ia_ifp, ifp) {
            if ia.flags().contains(In6Iff::TENTATIVE) {
                duplicated(cx.vnet, ia, na.options.target);
            } else {
                kprintf!(
                    "nd6_na_input: duplicate IP6 address {}\n",
                    in6_clearscope(na.target)
                );
            }
        }
        return;
    }
    let Some(lle) = ifp
        .lltable6()
        .and_then(|llt| llt.lookup(na.target, cx.epoch))
    else {
        // We never asked.
        return;
    };
    let override_known = na.flags & ND_NA_FLAG_OVERRIDE != 0;
    let router = na.flags & ND_NA_FLAG_ROUTER != 0;
    let certainty = if solicited {
        Certainty::Confirmed
    } else {
        Certainty::Heard
    };
    let mut no_router_now = false;
    let held = lle.with(|ln| {
        if ln.flags.contains(LleFlags::STATIC) {
            return None;
        }
        let known = ln.flags.contains(LleFlags::VALID);
        if !known {
            // An answer without address answers nothing.
            ln.ll_addr = na.options.target?;
            ln.ln_router = router;
            return Some((enter(ln, certainty), ln.ll_addr));
        }
        let changed = na.options.target.filter(|&address| address != ln.ll_addr);
        if let Some(address) = changed {
            if !override_known {
                // Not believed; but if it may be so, the one we know has to be asked again.
                if ln.state == LleState::Reachable {
                    ln.state = LleState::Stale;
                }
                return None;
            }
            ln.ll_addr = address;
        }
        no_router_now = ln.ln_router && !router;
        ln.ln_router = router;
        if solicited || changed.is_some() {
            return Some((enter(ln, certainty), ln.ll_addr));
        }
        None
    });
    if no_router_now {
        cx.vnet.nd6.router_gone(na.target);
    }
    if let Some((held, address)) = held {
        entered(cx, ifp, lle, held, address);
    }
}

/// A search for duplicates of one address (`struct dadq`).
struct Dad {
    inet: Weak<InetVnet>,
    ia: Arc<In6Ifaddr>,
    /// Solicitations to go.
    left: AtomicU32,
    callout: Callout,
}

/// Searches that are under way.
pub struct DadQueue {
    list: Mutex<Vec<Arc<Dad>>, Leaf>,
}

impl DadQueue {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(Vec::new()),
        }
    }

    fn take(&self, ia: &Arc<In6Ifaddr>) -> Option<Arc<Dad>> {
        let mut list = self.list.lock();
        let at = list.iter().position(|dad| Arc::ptr_eq(&dad.ia, ia))?;
        Some(list.swap_remove(at))
    }

    /// Stops all.
    pub(crate) fn destroy(&self) {
        let list = core::mem::take(&mut *self.list.lock());
        for dad in list {
            dad.callout.drain();
        }
    }
}

/// Begins to look whether somebody else has an address that is tentative.
pub fn nd6_dad_start(inet: &Arc<InetVnet>, ia: &Arc<In6Ifaddr>) {
    let dad = Arc::new(Dad {
        inet: Arc::downgrade(inet),
        ia: ia.clone(),
        left: AtomicU32::new(inet.ip6.dad_count.get()),
        callout: Callout::new(),
    });
    {
        let mut list = inet.dad.list.lock();
        if list.iter().any(|dad| Arc::ptr_eq(&dad.ia, ia)) {
            // It is being looked for already.
            return;
        }
        list.push(dad.clone());
    }
    // RFC 4862 §5.4.2: not at once, so that hosts that start together do not speak together.
    let delay = (sys::machine::random_u64() % 1000) as i64;
    dad.callout.reset(Sbintime::from_ms(delay), &dad);
}

/// The address goes: nobody need look for others any more.
pub(crate) fn nd6_dad_stop(inet: &InetVnet, ia: &Arc<In6Ifaddr>) {
    if let Some(dad) = inet.dad.take(ia) {
        dad.callout.stop();
    }
}

/// Somebody else has the address: it stays, unusable, until the administrator takes it away (`nd6_dad_duplicated`).
fn duplicated(inet: &InetVnet, ia: &Arc<In6Ifaddr>, who: Option<EtherAddr>) {
    ia.update_flags(In6Iff::DUPLICATED, In6Iff::TENTATIVE);
    nd6_dad_stop(inet, ia);
    kprintf!(
        "{}: DAD detected duplicate IPv6 address {}\n",
        ia.ia_ifp.if_xname,
        in6_clearscope(ia.ia_addr)
    );
    if let Some(who) = who {
        kprintf!("{}: it belongs to {}\n", ia.ia_ifp.if_xname, EtherText(who));
    }
    disable_duplicate(ia);
}

/// The address comes from the interface's own number, which somebody else has too: IPv6 can't work there.
fn disable_duplicate(ia: &In6Ifaddr) {
    let own = in6_hw_ifid(ia.ia_ifp.lladdr());
    let addr = in6_clearscope(ia.ia_addr);
    if in6_is_linklocal(addr) && addr.to_bits() as u64 == own {
        kprintf!(
            "{}: possible hardware address duplication detected, disable IPv6\n",
            ia.ia_ifp.if_xname
        );
        ia.ia_ifp
            .nd6
            .update_flags(Nd6Iff::IFDISABLED, Nd6Iff::empty());
    }
}

impl CalloutTarget for Dad {
    fn callout(self: Arc<Self>, _now: Sbintime) {
        let Some(inet) = self.inet.upgrade() else {
            return;
        };
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&inet, &epoch);
        if !self.ia.flags().contains(In6Iff::TENTATIVE) {
            return;
        }
        let ifp = &self.ia.ia_ifp;
        let again = Sbintime::from_ms(i64::from(ifp.nd6.retrans()));
        // While the interface is down or silent nobody could answer.
        if !ifp.is_running() || ifp.nd6.flags().contains(Nd6Iff::IFDISABLED) {
            self.callout.reset(again, &self);
            return;
        }
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            self.ia.update_flags(In6Iff::empty(), In6Iff::TENTATIVE);
            inet.dad.take(&self.ia);
            // Who waits for the address to ask for routers need wait no longer.
            inet.nd6.kick();
            return;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        self.callout.reset(again, &self);
        nd6_dad_ns_output(&cx, &self.ia.ia_ifp, self.ia.ia_addr);
    }
}
