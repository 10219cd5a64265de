//! Neighbours on the link: their states, the packets that wait for them, and how long they are believed.
//!
//! FreeBSD: sys/netinet6/nd6.c (RFC 4861 §7.3)
//! The entries are those of `if_llatbl`, which ARP uses too; `nd6_nbr` has the messages.

use crate::if_ether::Resolved;
use crate::netinet6::icmp6::{ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADDR, icmp6_error};
use crate::netinet6::in6_src::in6_setscope;
use crate::netinet6::ip6::ether_map_ipv6_multicast;
use crate::netinet6::nd6_nbr::nd6_ns_output;
use crate::netinet6::nd6_rtr::PrefixInfo;
use crate::vnet::{InetVnet, NetCx};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::mem;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::machine;
use sys::mbuf::{MFlags, Mbuf, MbufQueue};
use sys::net::if_ethersubr::{ETHERTYPE_IPV6, EtherAddr, ether_output};
use sys::net::if_llatbl::{LlEntry, LleFlags, LleInner, LleState, LltOps};
use sys::net::ifnet::Ifnet;
use sys::time::{Sbintime, Ticks};

/// Option: link-layer address of the sender.
pub(crate) const ND_OPT_SOURCE_LINKADDR: u8 = 1;
/// Option: link-layer address of the target.
pub(crate) const ND_OPT_TARGET_LINKADDR: u8 = 2;
/// Option: a prefix.
const ND_OPT_PREFIX_INFORMATION: u8 = 3;
/// Option: the link's MTU.
const ND_OPT_MTU: u8 = 5;
/// Options of a message that are looked at (`nd6_maxndopt`).
const MAX_OPTIONS: usize = 10;

/// The options of a message that mean something here (`union nd_opts`, `nd6_options`).
#[derive(Default)]
pub(crate) struct NdOpts {
    /// Link-layer address of the sender.
    pub source: Option<EtherAddr>,
    /// Link-layer address of the target.
    pub target: Option<EtherAddr>,
    /// MTU of the link.
    pub mtu: Option<u32>,
    /// Prefixes, in their order.
    pub prefixes: Vec<PrefixInfo>,
}

impl NdOpts {
    /// Reads the options from `at` to the end of a message; `None` if they are malformed.
    pub(crate) fn parse(m: &Mbuf, mut at: usize) -> Option<Self> {
        let mut options = Self::default();
        let end = m.pkt_len();
        for _ in 0..MAX_OPTIONS {
            if at >= end {
                break;
            }
            let mut buffer = [0; PrefixInfo::LEN];
            let have = buffer.len().min(end - at);
            let read = buffer.get_mut(..have)?;
            if !m.copydata(at, read) {
                return None;
            }
            let &mut [kind, len, ..] = read else {
                return None;
            };
            // A length of zero would never end (RFC 4861 §4.6).
            let len = usize::from(len) * 8;
            if len == 0 || at + len > end {
                return None;
            }
            let option = read.get(..len.min(have))?;
            let lladdr = || option.get(2..8).and_then(|bytes| bytes.try_into().ok());
            match kind {
                ND_OPT_SOURCE_LINKADDR => options.source = lladdr(),
                ND_OPT_TARGET_LINKADDR => options.target = lladdr(),
                ND_OPT_PREFIX_INFORMATION => options.prefixes.extend(PrefixInfo::parse(option)),
                ND_OPT_MTU => {
                    let mtu = option.get(4..8).and_then(|bytes| bytes.first_chunk());
                    options.mtu = mtu.map(|bytes| u32::from_be_bytes(*bytes));
                }
                _ => {}
            }
            at += len;
        }
        Some(options)
    }
}

/// A neighbour of IPv6.
pub type Nd6Entry = LlEntry<Ipv6Addr>;

/// Time for which a neighbour counts as reachable: random, so that hosts do not fall into step (RFC 4861 §6.3.2).
#[doc(alias = "ND_COMPUTE_RTIME")]
fn reachable_time(base: u32) -> u32 {
    base / 2 + (machine::random_u64() % u64::from(base.max(1))) as u32
}

/// Finds the Ethernet address of neighbour `dst` for packet `m`; `lle` is its entry if the sender remembers it. While the
/// entry is valid this takes no lock.
#[inline]
pub fn nd6_resolve(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    lle: Option<&Arc<Nd6Entry>>,
    m: Mbuf,
    dst: Ipv6Addr,
) -> Resolved {
    if let Some(address) = lle.and_then(|lle| lle.resolved()) {
        return Resolved::Now(m, address);
    }
    if m.flags().contains(MFlags::MCAST) && dst.is_multicast() {
        return Resolved::Now(m, ether_map_ipv6_multicast(dst));
    }
    let Some(llt) = ifp.lltable6() else {
        cx.vnet.icmp6stat.nd6_dropped.inc();
        return Resolved::Failed(Errno::EAFNOSUPPORT);
    };
    // A gateway on the link may be named without its zone.
    let dst = in6_setscope(dst, ifp);
    if let Some(address) = llt.lookup(dst, cx.epoch).and_then(|lle| lle.resolved()) {
        return Resolved::Now(m, address);
    }
    nd6_resolve_slow(cx, ifp, m, dst)
}

/// Holds the packet and asks for the neighbour, if nobody does already.
fn nd6_resolve_slow(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, m: Mbuf, dst: Ipv6Addr) -> Resolved {
    let Some(llt) = ifp.lltable6() else {
        cx.vnet.icmp6stat.nd6_dropped.inc();
        return Resolved::Failed(Errno::EAFNOSUPPORT);
    };
    let mut lle = llt.lookup_or_create(dst);
    if lle.with(|ln| ln.flags.contains(LleFlags::DELETED)) {
        // It is being removed just now: a new one.
        lle = llt.lookup_or_create(dst);
    }
    let maxhold = cx.vnet.icmp6.nd6_maxqueuelen.get() as usize;
    enum Next {
        Send(Mbuf, EtherAddr),
        Wait { ask: bool },
    }
    let next = lle.with(|ln| {
        if ln.flags.contains(LleFlags::VALID) {
            return Next::Send(m, ln.ll_addr);
        }
        ln.la_hold.push(m);
        while ln.la_hold.len() > maxhold {
            // The oldest goes: what came last is more likely still wanted.
            drop(ln.la_hold.pop());
            cx.vnet.icmp6stat.nd6_dropped.inc();
        }
        let ask = ln.la_asked == 0;
        ln.la_asked = ln.la_asked.max(1);
        Next::Wait { ask }
    });
    match next {
        Next::Send(m, address) => Resolved::Now(m, address),
        Next::Wait { ask } => {
            if ask {
                lle.timer_reset(Sbintime::from_ms(i64::from(ifp.nd6.retrans())));
                nd6_ns_output(cx, ifp, None, dst);
            }
            Resolved::Held
        }
    }
}

/// Sends what waited for a neighbour.
fn flush_holdchain(cx: &NetCx<'_>, ifp: &Ifnet, mut held: MbufQueue, address: EtherAddr) {
    while let Some(m) = held.pop() {
        // The interface counts what it drops.
        let _ = ether_output(ifp, cx.epoch, m, address, ETHERTYPE_IPV6);
    }
}

/// Makes an entry that never expires (`ndp -s`), or changes one.
pub fn nd6_set_static(ifp: &Arc<Ifnet>, addr: Ipv6Addr, address: EtherAddr) -> Result<(), Errno> {
    let llt = ifp.lltable6().ok_or(Errno::EAFNOSUPPORT)?;
    let lle = llt.lookup_or_create(in6_setscope(addr, ifp));
    lle.timer_stop();
    lle.with(|ln| {
        ln.flags |= LleFlags::STATIC | LleFlags::VALID;
        ln.state = LleState::Reachable;
        ln.ll_addr = address;
    });
    Ok(())
}

/// How certain a message makes us of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It answered us: reachable both ways.
    Confirmed,
    /// It said something: its address is known, not whether it hears us.
    Heard,
}

/// A neighbour as `ndp` shows it.
pub struct Nd6Row {
    /// Its address, zone embedded.
    pub addr: Ipv6Addr,
    /// Its link-layer address, if that is known.
    pub lladdr: Option<EtherAddr>,
    /// The interface's name.
    pub ifname: String,
    /// Seconds until the entry ends or is asked about; `None`: never.
    pub expire: Option<i64>,
    /// Its state.
    pub state: LleState,
    /// It says that it is a router.
    pub router: bool,
    /// It is our own address.
    pub own: bool,
}

/// All neighbours, and our own addresses, by address (`NET_RT_FLAGS`, `RTF_LLINFO`).
pub fn nd6_table(inet: &InetVnet) -> Vec<Nd6Row> {
    let mut rows = Vec::new();
    let now = machine::ticks();
    for ifp in inet.ifnets() {
        let Some(llt) = ifp.lltable6() else { continue };
        for ia in ifp.addrs6(&NetEpoch::enter()) {
            rows.push(Nd6Row {
                addr: ia.ia_addr,
                lladdr: Some(ifp.lladdr()),
                ifname: ifp.if_xname.clone(),
                expire: None,
                state: LleState::Reachable,
                router: false,
                own: true,
            });
        }
        for lle in llt.entries() {
            let timer = lle.timer_deadline();
            rows.push(lle.with(|ln| Nd6Row {
                addr: lle.r_l3addr,
                lladdr: ln.flags.contains(LleFlags::VALID).then_some(ln.ll_addr),
                ifname: ifp.if_xname.clone(),
                expire: match ln.state {
                    _ if ln.flags.contains(LleFlags::STATIC) => None,
                    LleState::Stale => Some(i64::from((ln.la_expire - now).max(0)) / 1000),
                    _ => timer.map(|at| (at - machine::sbinuptime()).as_s().max(0)),
                },
                state: ln.state,
                router: ln.ln_router,
                own: false,
            }));
        }
    }
    rows.sort_by_key(|row| row.addr);
    rows
}

/// Forgets a neighbour (`ndp -d`): `ESRCH` if there is none.
pub fn nd6_delete(inet: &InetVnet, addr: Ipv6Addr) -> Result<(), Errno> {
    let mut found = false;
    for ifp in inet.ifnets() {
        let Some(llt) = ifp.lltable6() else { continue };
        let entries = llt.entries();
        for lle in entries.iter().filter(|lle| lle.r_l3addr == addr) {
            found |= llt.delete(lle);
        }
    }
    if inet.nd6.is_defrouter(addr) {
        inet.nd6.reselect();
    }
    if found { Ok(()) } else { Err(Errno::ESRCH) }
}

/// In what we have heard of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It asked.
    Solicitation,
    /// It advertised itself as a router.
    RouterAdvert,
    /// A router named it as the better router.
    RedirectRouter,
    /// A router named it as a destination on the link.
    RedirectOnlink,
}

/// Learns of a neighbour from what it sent, or a router about it: its link-layer address if that was said, and whether it is
/// a router (RFC 4861 §6.3.4, §7.2.3, §8.3).
pub fn nd6_cache_lladdr(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    from: Ipv6Addr,
    address: Option<EtherAddr>,
    heard: Heard,
) {
    if from.is_unspecified() {
        return;
    }
    let Some(llt) = ifp.lltable6() else { return };
    let router = matches!(heard, Heard::RouterAdvert | Heard::RedirectRouter);
    let Some(address) = address.filter(|address| address[0] & 1 == 0) else {
        // Without an address there is no entry to make; one that is there may learn that it is a router's.
        if router && let Some(lle) = llt.lookup(from, cx.epoch) {
            lle.with(|ln| ln.ln_router = true);
        }
        return;
    };
    let lle = llt.lookup_or_create(from);
    let (held, was_known) = lle.with(|ln| {
        if ln.flags.contains(LleFlags::STATIC) {
            return (None, true);
        }
        let known = ln.flags.contains(LleFlags::VALID);
        if !known || router {
            ln.ln_router = router;
        }
        if known && ln.ll_addr == address {
            return (None, true);
        }
        ln.ll_addr = address;
        (Some(enter(ln, Certainty::Heard)), known)
    });
    if let Some(held) = held {
        entered(cx, ifp, &lle, held, address);
    }
    // A router that had not answered has come back.
    if !was_known && cx.vnet.nd6.is_defrouter(from) {
        cx.vnet.nd6.reselect();
    }
}

/// The neighbour's address is valid now; gives back what waited for it.
pub(crate) fn enter(ln: &mut LleInner, certainty: Certainty) -> MbufQueue {
    ln.flags |= LleFlags::VALID;
    ln.la_asked = 0;
    ln.state = match certainty {
        Certainty::Confirmed => LleState::Reachable,
        Certainty::Heard => LleState::Stale,
    };
    mem::take(&mut ln.la_hold)
}

/// Sets the timer as the entry's state wants, and sends what waited.
pub(crate) fn entered(
    cx: &NetCx<'_>,
    ifp: &Ifnet,
    lle: &Arc<Nd6Entry>,
    held: MbufQueue,
    address: EtherAddr,
) {
    arm(cx, ifp, lle);
    flush_holdchain(cx, ifp, held, address);
}

/// Sets the entry's timer by its state (`nd6_llinfo_setstate`).
fn arm(cx: &NetCx<'_>, ifp: &Ifnet, lle: &Arc<Nd6Entry>) {
    let tun = &cx.vnet.icmp6;
    let now = cx.now;
    let ms = lle.with(|ln| {
        if ln.flags.contains(LleFlags::STATIC) {
            return None;
        }
        Some(match ln.state {
            LleState::Reachable => reachable_time(ifp.nd6.basereachable()),
            LleState::Stale => {
                ln.la_expire = now
                    + tun
                        .nd6_gctimer
                        .get()
                        .saturating_mul(1000)
                        .min(i32::MAX as u32);
                tun.nd6_delay.get() * 1000
            }
            LleState::Delay => tun.nd6_delay.get() * 1000,
            LleState::Probe | LleState::Incomplete | LleState::Verify | LleState::Down => {
                ifp.nd6.retrans()
            }
        })
    });
    if let Some(ms) = ms {
        lle.timer_reset(Sbintime::from_ms(i64::from(ms)));
    }
}

/// The timers of neighbours (`nd6_llinfo_timer`).
pub struct Nd6Timers {
    inet: Weak<InetVnet>,
}

impl Nd6Timers {
    pub(crate) fn new(inet: &Arc<InetVnet>) -> Self {
        Self {
            inet: Arc::downgrade(inet),
        }
    }
}

/// What a timer brings about.
enum Next {
    Wait,
    Solicit { unicast: bool },
    Delete,
    GiveUp(MbufQueue),
}

impl LltOps<Ipv6Addr> for Nd6Timers {
    fn timer(&self, lle: &Arc<Nd6Entry>, _now: Ticks) {
        let (Some(inet), Some(ifp)) = (self.inet.upgrade(), lle.ifp.upgrade()) else {
            return;
        };
        let epoch = NetEpoch::enter();
        let cx = NetCx::new(&inet, &epoch);
        let tun = &inet.icmp6;
        let used = lle.take_used();
        let is_defrouter = inet.nd6.is_defrouter(lle.r_l3addr);
        let next = lle.with(|ln| match ln.state {
            LleState::Incomplete | LleState::Verify | LleState::Down => {
                if u32::from(ln.la_asked) < tun.nd6_mmaxtries.get() {
                    ln.la_asked += 1;
                    Next::Solicit { unicast: false }
                } else {
                    Next::GiveUp(mem::take(&mut ln.la_hold))
                }
            }
            LleState::Reachable => {
                ln.state = LleState::Stale;
                ln.la_expire = cx.now
                    + tun
                        .nd6_gctimer
                        .get()
                        .saturating_mul(1000)
                        .min(i32::MAX as u32);
                Next::Wait
            }
            LleState::Stale if used => {
                // RFC 4861 §7.3.3: somebody sends to it; what comes back may confirm it yet.
                ln.state = LleState::Delay;
                Next::Wait
            }
            // Of a default router it is remembered that it was there.
            LleState::Stale if cx.now - ln.la_expire >= 0 && !is_defrouter => Next::Delete,
            LleState::Stale => Next::Wait,
            LleState::Delay => {
                ln.state = LleState::Probe;
                ln.la_asked = 1;
                Next::Solicit { unicast: true }
            }
            LleState::Probe => {
                if u32::from(ln.la_asked) < tun.nd6_umaxtries.get() {
                    ln.la_asked += 1;
                    Next::Solicit { unicast: true }
                } else {
                    Next::Delete
                }
            }
        });
        match next {
            Next::Wait => rearm(&cx, lle),
            Next::Solicit { unicast } => {
                lle.timer_reset(Sbintime::from_ms(i64::from(ifp.nd6.retrans())));
                let to = unicast.then_some(lle.r_l3addr);
                nd6_ns_output(&cx, &ifp, to, lle.r_l3addr);
            }
            Next::Delete => nd6_free(&inet, &ifp, lle),
            Next::GiveUp(mut held) => {
                nd6_free(&inet, &ifp, lle);
                // RFC 4861 §7.2.2: the senders hear that nobody is there.
                while let Some(mut m) = held.pop() {
                    inet.icmp6stat.nd6_dropped.inc();
                    m.pkthdr_mut().rcvif = ifp.if_index;
                    icmp6_error(&cx, m, ICMP6_DST_UNREACH, ICMP6_DST_UNREACH_ADDR, 0);
                }
            }
        }
    }
}

/// Forgets a neighbour; if it was a default router, another one may be better (RFC 4861 §7.3.3).
fn nd6_free(inet: &InetVnet, ifp: &Ifnet, lle: &Arc<Nd6Entry>) {
    if let Some(llt) = ifp.lltable6() {
        llt.delete(lle);
    }
    if inet.nd6.is_defrouter(lle.r_l3addr) {
        inet.nd6.reselect();
    }
}

/// The timer again, without moving the end of a stale entry.
fn rearm(cx: &NetCx<'_>, lle: &Arc<Nd6Entry>) {
    let delay = i64::from(cx.vnet.icmp6.nd6_delay.get());
    lle.timer_reset(Sbintime::from_s(delay));
}
