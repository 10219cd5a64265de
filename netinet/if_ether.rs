//! The Address Resolution Protocol: finds the Ethernet address of a neighbour.
//!
//! FreeBSD: sys/netinet/if_ether.c, sys/net/if_arp.h (RFC 826, RFC 5227 for announcements)

use crate::in_control::ether_map_ip_multicast;
use crate::ip::{in_linklocal, in_multicast};
use crate::ip_output::is_broadcast;
use crate::vnet::{InetVnet, NetCx};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::subr_epoch::NetEpoch;
use sys::mbuf::{How, MFlags, Mbuf, MbufQueue};
use sys::net::if_ethersubr::{
    ETHER_BROADCAST, ETHER_HDR_LEN, ETHERTYPE_ARP, ETHERTYPE_IP, EtherAddr, ether_output,
};
use sys::net::if_llatbl::{LlEntry, LleFlags, LleState, LltOps};
use sys::net::ifnet::{IFT_ETHER, IfFlags, Ifnet};
use sys::net::netisr::NetisrHandler;
use sys::net::nhop::Nexthop;
use sys::net::vnet::Vnet;
use sys::time::{Sbintime, Ticks};
use sys::{counters, kprintf, tunables};
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Hardware type of Ethernet.
const ARPHRD_ETHER: u16 = 1;
/// Request to resolve an address.
const ARPOP_REQUEST: u16 = 1;
/// Response to a request.
const ARPOP_REPLY: u16 = 2;
/// Seconds between requests (`V_arpt_rexmit`).
const ARPT_REXMIT: i32 = 1;

/// An ARP packet for IPv4 on Ethernet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EtherArp {
    ar_hrd: U16,
    ar_pro: U16,
    ar_hln: u8,
    ar_pln: u8,
    ar_op: U16,
    ar_sha: [u8; 6],
    ar_spa: [u8; 4],
    ar_tha: [u8; 6],
    ar_tpa: [u8; 4],
}

const _: () = assert!(size_of::<EtherArp>() == EtherArp::LEN);

impl EtherArp {
    /// Length of the packet.
    const LEN: usize = 28;
    /// Length of its part that does not depend on address lengths (`struct arphdr`).
    const HDR_LEN: usize = 8;

    fn request(sha: EtherAddr, spa: Ipv4Addr, tpa: Ipv4Addr) -> Self {
        Self {
            ar_hrd: U16::new(ARPHRD_ETHER),
            ar_pro: U16::new(ETHERTYPE_IP),
            ar_hln: 6,
            ar_pln: 4,
            ar_op: U16::new(ARPOP_REQUEST),
            ar_sha: sha,
            ar_spa: spa.octets(),
            ar_tha: [0; 6],
            ar_tpa: tpa.octets(),
        }
    }
}

counters! {
    /// What ARP has seen (`netstat -s -p arp`).
    pub struct ArpStat {
        txrequests: "ARP requests sent",
        txerrors: "ARP requests failed to sent",
        txreplies: "ARP replies sent",
        rxrequests: "ARP requests received",
        rxreplies: "ARP replies received",
        received: "ARP packets received",
        dropped: "total packets dropped due to no ARP entry",
        timeouts: "ARP entrys timed out",
        dupips: "Duplicate IPs seen",
        badpackets: "malformed ARP packets",
    }
}

tunables! {
    /// `net.link.ether.inet`.
    pub struct ArpTunables {
        max_age: u32 = 1200, "net.link.ether.inet.max_age", "ARP entry lifetime in seconds" (1..=86400);
        wait: u32 = 20, "net.link.ether.inet.wait", "Incomplete ARP entry lifetime in seconds" (1..=86400);
        maxtries: u32 = 5, "net.link.ether.inet.maxtries", "ARP resolution attempts before returning error" (1..=1000);
        maxhold: u32 = 16, "net.link.ether.inet.maxhold", "Number of packets to hold per ARP entry" (0..=10000);
        proxyall: bool = false, "net.link.ether.inet.proxyall", "Enable proxy ARP for all suitable requests";
        allow_multicast: bool = false, "net.link.ether.inet.allow_multicast", "Accept multicast addresses";
        log_arp_wrong_iface: bool = true, "net.link.ether.inet.log_arp_wrong_iface", "Log ARP packets arriving on the wrong interface";
        log_arp_movements: bool = true, "net.link.ether.inet.log_arp_movements", "Log ARP replies from MACs different than the one in the cache";
        log_arp_permanent_modify: bool = true, "net.link.ether.inet.log_arp_permanent_modify", "Log ARP replies from MACs different than the one in the permanent ARP entry";
        max_log_per_second: u32 = 1, "net.link.ether.inet.max_log_per_second", "Maximum number of remotely triggered ARP messages that can be logged per second";
    }
}

/// Prints an Ethernet address as FreeBSD's `%6D` does.
struct Mac(EtherAddr);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Whether neighbours on the interface are found by ARP.
pub fn has_arp(ifp: &Ifnet) -> bool {
    ifp.if_type == IFT_ETHER
}

/// What became of a packet given to [`arpresolve`].
pub enum Resolved {
    /// Send it to this address.
    Now(Mbuf, EtherAddr),
    /// It waits for the neighbour's answer, or was dropped for want of room; either way it is not the sender's any more.
    Held,
    /// The neighbour does not answer.
    Failed(Errno),
}

/// Finds the Ethernet address of neighbour `dst` for packet `m`; `lle` is its entry if the sender remembers it. While the
/// entry is valid this takes no lock.
#[inline]
pub fn arpresolve(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    lle: Option<&Arc<LlEntry>>,
    is_gateway: bool,
    m: Mbuf,
    dst: Ipv4Addr,
) -> Resolved {
    if let Some(lle) = lle
        && let Some(address) = lle.resolved()
    {
        return Resolved::Now(m, address);
    }
    if m.flags().intersects(MFlags::BCAST | MFlags::MCAST) {
        if m.flags().contains(MFlags::BCAST) || is_broadcast(cx, ifp, dst) {
            return Resolved::Now(m, ETHER_BROADCAST);
        }
        if in_multicast(dst) {
            return Resolved::Now(m, ether_map_ip_multicast(dst));
        }
    }
    let Some(llt) = ifp.lltable() else {
        cx.vnet.arpstat.dropped.inc();
        return Resolved::Failed(Errno::EAFNOSUPPORT);
    };
    if let Some(lle) = llt.lookup(dst, cx.epoch)
        && let Some(address) = lle.resolved()
    {
        return Resolved::Now(m, address);
    }
    arpresolve_full(cx, ifp, is_gateway, m, dst)
}

/// The slow half: holds the packet and asks, but not faster than once a second.
fn arpresolve_full(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    is_gateway: bool,
    m: Mbuf,
    dst: Ipv4Addr,
) -> Resolved {
    let arp = &cx.vnet.arp;
    let stat = &cx.vnet.arpstat;
    if ifp.flags().intersects(IfFlags::NOARP | IfFlags::STATICARP) {
        stat.dropped.inc();
        return Resolved::Failed(Errno::EINVAL);
    }
    let Some(llt) = ifp.lltable() else {
        stat.dropped.inc();
        return Resolved::Failed(Errno::EAFNOSUPPORT);
    };
    let mut lle = llt.lookup_or_create(dst);
    if lle.with(|la| la.flags.contains(LleFlags::DELETED)) {
        // It is being removed just now: a new one.
        lle = llt.lookup_or_create(dst);
    }
    let maxhold = arp.maxhold.get() as usize;
    let maxtries = arp.maxtries.get() as u16;

    enum Next {
        Send(Mbuf, EtherAddr),
        Wait { failed: bool, ask: bool },
    }
    let next = lle.with(|la| {
        if la.flags.contains(LleFlags::VALID) {
            return Next::Send(m, la.ll_addr);
        }
        let ask = la.la_asked == 0 || cx.now - la.la_expire >= ARPT_REXMIT * 1000;
        la.la_hold.push(m);
        while la.la_hold.len() > maxhold {
            // The oldest goes: what came last is more likely still wanted.
            drop(la.la_hold.pop());
            stat.dropped.inc();
        }
        let failed = la.la_asked >= maxtries;
        if failed {
            la.state = LleState::Down;
        }
        if ask {
            la.la_expire = cx.now;
            la.la_asked = la.la_asked.saturating_add(1);
        }
        Next::Wait { failed, ask }
    });
    match next {
        Next::Send(m, address) => Resolved::Now(m, address),
        Next::Wait { failed, ask } => {
            if ask {
                lle.timer_reset(Sbintime::from_s(i64::from(arp.wait.get())));
                if let Err(error) = arprequest(cx, ifp, None, dst) {
                    return Resolved::Failed(error);
                }
            }
            match (failed, is_gateway) {
                (false, _) => Resolved::Held,
                (true, false) => Resolved::Failed(Errno::EHOSTDOWN),
                (true, true) => Resolved::Failed(Errno::EHOSTUNREACH),
            }
        }
    }
}

/// Broadcasts a request for `tip`, from `sip` or from the address of ours that is nearest.
pub fn arprequest(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    sip: Option<Ipv4Addr>,
    tip: Ipv4Addr,
) -> Result<(), Errno> {
    let own = || {
        let addrs = ifp.addrs(cx.epoch);
        let near = addrs.iter().find(|ia| ia.has_neighbour(tip));
        near.or(addrs.first()).map(|ia| ia.ia_addr)
    };
    let result = match sip.or_else(own) {
        Some(sip) => arp_send(
            cx,
            ifp,
            EtherArp::request(ifp.lladdr(), sip, tip),
            ETHER_BROADCAST,
        ),
        None => Err(Errno::EADDRNOTAVAIL),
    };
    match result {
        Ok(()) => cx.vnet.arpstat.txrequests.inc(),
        Err(_) => cx.vnet.arpstat.txerrors.inc(),
    }
    result
}

fn arp_send(cx: &NetCx<'_>, ifp: &Ifnet, packet: EtherArp, to: EtherAddr) -> Result<(), Errno> {
    let mut m = Mbuf::gethdr(How::NoWait).ok_or(Errno::ENOBUFS)?;
    m.reserve_front(sys::mbuf::MAX_LINKHDR);
    m.append(packet.as_bytes());
    if to == ETHER_BROADCAST {
        m.add_flags(MFlags::BCAST);
    }
    m.pkthdr_mut().l2hlen = ETHER_HDR_LEN as u8;
    ether_output(ifp, cx.epoch, m, to, ETHERTYPE_ARP)
}

/// An interface has got an address: announces it, so that neighbours forget who had it before (gratuitous ARP).
pub fn arp_ifinit(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, addr: Ipv4Addr) {
    if ifp.flags().contains(IfFlags::NOARP) || addr == Ipv4Addr::UNSPECIFIED {
        return;
    }
    let _ = arprequest(cx, ifp, Some(addr), addr);
}

/// An interface has another Ethernet address: announces it for every address it has.
pub(crate) fn arp_iflladdr(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>) {
    if !has_arp(ifp) || !ifp.flags().contains(IfFlags::UP) {
        return;
    }
    let epoch = NetEpoch::enter();
    let cx = NetCx::new(inet, &epoch);
    for ia in ifp.addrs(&epoch) {
        arp_ifinit(&cx, ifp, ia.ia_addr);
    }
}

/// Takes ARP packets from netisr.
pub struct ArpHandler {
    inet: Arc<InetVnet>,
}

impl ArpHandler {
    pub(crate) fn new(inet: &Arc<InetVnet>) -> Self {
        Self { inet: inet.clone() }
    }
}

impl NetisrHandler for ArpHandler {
    fn input(&self, _vnet: &Arc<Vnet>, epoch: &NetEpoch, m: Mbuf) {
        arpintr(&NetCx::new(&self.inet, epoch), m);
    }
}

/// Checks the shape of an ARP packet: only Ethernet and IPv4, whole, with the right lengths.
fn arpintr(cx: &NetCx<'_>, m: Mbuf) {
    let stat = &cx.vnet.arpstat;
    stat.received.inc();
    let mut bytes = [0; EtherArp::LEN];
    // `ar_hln` and `ar_pln` say how long the packet is; a runt lacks them or the addresses.
    let head = bytes.get_mut(..EtherArp::HDR_LEN).unwrap_or(&mut []);
    let whole = m.copydata(0, head) && m.copydata(0, &mut bytes);
    let Some(ea) = EtherArp::read_from_bytes(&bytes).ok().filter(|ea| {
        whole
            && ea.ar_hrd.get() == ARPHRD_ETHER
            && ea.ar_pro.get() == ETHERTYPE_IP
            && ea.ar_hln == 6
            && ea.ar_pln == 4
    }) else {
        stat.badpackets.inc();
        return;
    };
    let Some(ifp) = cx.vnet.ifnet_byindex(m.pkthdr().rcvif, cx.epoch) else {
        stat.badpackets.inc();
        return;
    };
    if ifp.flags().contains(IfFlags::NOARP) {
        return;
    }
    in_arpinput(cx, ifp, &ea);
}

/// Says something about ARP, but not more often than `max_log_per_second`.
macro_rules! arp_log {
    ($cx:expr, $($arg:tt)*) => {
        if $cx.vnet.icmp_limits.arp_log($cx.now, $cx.vnet.arp.max_log_per_second.get()) {
            kprintf!("arp: {}\n", format_args!($($arg)*));
        }
    };
}

/// Learns from an ARP packet and answers a request for an address of ours (RFC 826, "Packet Reception").
fn in_arpinput(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, ea: &EtherArp) {
    let stat = &cx.vnet.arpstat;
    let isaddr = Ipv4Addr::from(ea.ar_spa);
    let mut itaddr = Ipv4Addr::from(ea.ar_tpa);
    let op = ea.ar_op.get();
    if op == ARPOP_REPLY {
        stat.rxreplies.inc();
    }
    if ea.ar_sha[0] & 1 != 0 && ea.ar_sha != ETHER_BROADCAST && !cx.vnet.arp.allow_multicast.get() {
        arp_log!(cx, "{} is multicast", Mac(ea.ar_sha));
        stat.badpackets.inc();
        return;
    }
    // The address the packet concerns: its target, its sender, or any of the interface.
    let own = |addr| {
        cx.vnet
            .ifaddrs
            .lookup(cx.epoch, addr)
            .filter(|ia| Arc::ptr_eq(&ia.ia_ifp, ifp))
            .map(|ia| ia.ia_addr)
    };
    let Some(myaddr) = own(itaddr)
        .or_else(|| own(isaddr))
        .or_else(|| ifp.addrs(cx.epoch).first().map(|ia| ia.ia_addr))
    else {
        // No address here yet: nothing to learn or to answer.
        return;
    };
    if ea.ar_sha == ifp.lladdr() {
        // From ourselves.
        return;
    }
    if ea.ar_sha == ETHER_BROADCAST {
        arp_log!(cx, "link address is broadcast for IP address {isaddr}!");
        stat.badpackets.inc();
        return;
    }
    // 0.0.0.0 is a probe (RFC 5227), which claims nothing.
    if isaddr == myaddr && isaddr != Ipv4Addr::UNSPECIFIED {
        stat.dupips.inc();
        arp_log!(
            cx,
            "{} is using my IP address {isaddr} on {}!",
            Mac(ea.ar_sha),
            ifp.if_xname
        );
        itaddr = myaddr;
    } else if !ifp.flags().contains(IfFlags::STATICARP) && isaddr != Ipv4Addr::UNSPECIFIED {
        learn(cx, ifp, ea, isaddr, itaddr == myaddr);
    }
    if op != ARPOP_REQUEST {
        return;
    }
    stat.rxrequests.inc();
    if let Some(sha) = answer_for(cx, ifp, isaddr, itaddr, myaddr) {
        let reply = EtherArp {
            ar_op: U16::new(ARPOP_REPLY),
            ar_sha: sha,
            ar_spa: itaddr.octets(),
            ar_tha: ea.ar_sha,
            ar_tpa: ea.ar_spa,
            ..*ea
        };
        // RFC 3927 §2.5: replies about link-local addresses are broadcast.
        let to = if in_linklocal(itaddr) {
            ETHER_BROADCAST
        } else {
            ea.ar_sha
        };
        if arp_send(cx, ifp, reply, to).is_ok() {
            stat.txreplies.inc();
        }
    }
}

/// The link-layer address to answer a request for `itaddr` with: ours, or that of a published entry.
fn answer_for(
    cx: &NetCx<'_>,
    ifp: &Arc<Ifnet>,
    isaddr: Ipv4Addr,
    itaddr: Ipv4Addr,
    myaddr: Ipv4Addr,
) -> Option<EtherAddr> {
    if itaddr == myaddr {
        return Some(ifp.lladdr());
    }
    if let Some(lle) = ifp.lltable().and_then(|llt| llt.lookup(itaddr, cx.epoch))
        && let Some(published) = lle.with(|la| {
            la.flags
                .contains(LleFlags::PUB | LleFlags::VALID)
                .then_some(la.ll_addr)
        })
    {
        return Some(published);
    }
    if !cx.vnet.arp.proxyall.get() {
        return None;
    }
    // For hosts that we reach through another interface, and to those that we reach through this one.
    let here = |addr| {
        let nhop = cx.vnet.rib.fib4_lookup(addr, cx.epoch);
        nhop.map(|nhop| Arc::ptr_eq(&nhop.nh_ifp, ifp))
    };
    (here(itaddr) == Some(false) && here(isaddr) != Some(false)).then(|| ifp.lladdr())
}

/// Enters or updates the sender's entry; a new one only if the packet was for us.
fn learn(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, ea: &EtherArp, isaddr: Ipv4Addr, for_us: bool) {
    let Some(llt) = ifp.lltable() else { return };
    let lle = match llt.lookup(isaddr, cx.epoch) {
        Some(lle) => lle.clone(),
        None if for_us && may_be_neighbour(cx, ifp, isaddr) => llt.lookup_or_create(isaddr),
        None => {
            // A neighbour of another interface of ours that speaks here.
            if cx.vnet.arp.log_arp_wrong_iface.get()
                && let Some(home) = arp_ifp(cx.vnet, isaddr)
                && !Arc::ptr_eq(&home, ifp)
            {
                arp_log!(
                    cx,
                    "{isaddr} is on {} but got reply from {} on {}",
                    home.if_xname,
                    Mac(ea.ar_sha),
                    ifp.if_xname
                );
            }
            return;
        }
    };
    let held = lle.with(|la| {
        if la.flags.contains(LleFlags::DELETED) {
            return None;
        }
        if la.flags.contains(LleFlags::VALID) && la.ll_addr != ea.ar_sha {
            if la.flags.contains(LleFlags::STATIC) {
                if cx.vnet.arp.log_arp_permanent_modify.get() {
                    arp_log!(
                        cx,
                        "{} attempts to modify permanent entry for {isaddr} on {}",
                        Mac(ea.ar_sha),
                        ifp.if_xname
                    );
                }
                return None;
            }
            if cx.vnet.arp.log_arp_movements.get() {
                arp_log!(
                    cx,
                    "{isaddr} moved from {} to {} on {}",
                    Mac(la.ll_addr),
                    Mac(ea.ar_sha),
                    ifp.if_xname
                );
            }
        }
        let permanent = la.flags.contains(LleFlags::STATIC);
        la.ll_addr = ea.ar_sha;
        la.flags |= LleFlags::VALID;
        la.state = LleState::Reachable;
        la.la_asked = 0;
        la.la_expire = cx.now + cx.vnet.arp.max_age.get() * 1000;
        Some((mem::replace(&mut la.la_hold, MbufQueue::new()), permanent))
    });
    let Some((mut held, permanent)) = held else {
        return;
    };
    if !permanent {
        lle.timer_reset(reachable_time(cx.vnet));
    }
    while let Some(m) = held.pop() {
        let _ = ether_output(ifp, cx.epoch, m, ea.ar_sha, ETHERTYPE_IP);
    }
}

/// Whether `addr` can be a host on the interface's link (`in_lltable_rtcheck`); otherwise anybody could fill the table.
fn may_be_neighbour(cx: &NetCx<'_>, ifp: &Arc<Ifnet>, addr: Ipv4Addr) -> bool {
    let on_link = |nhop: &&Arc<Nexthop>| Arc::ptr_eq(&nhop.nh_ifp, ifp) && nhop.gw.is_none();
    !in_multicast(addr)
        && !is_broadcast(cx, ifp, addr)
        && cx
            .vnet
            .rib
            .fib4_lookup(addr, cx.epoch)
            .as_ref()
            .is_some_and(on_link)
}

/// How long an entry is believed before it is asked for again: its life less the time the questions may take.
fn reachable_time(inet: &InetVnet) -> Sbintime {
    let (age, tries) = (
        i64::from(inet.arp.max_age.get()),
        i64::from(inet.arp.maxtries.get()),
    );
    let ahead = age - tries * i64::from(ARPT_REXMIT);
    Sbintime::from_s(if ahead > 0 { ahead } else { age })
}

/// Drives the entries of an interface by their timers (`arptimer`).
pub struct ArpTimers {
    inet: Weak<InetVnet>,
}

impl ArpTimers {
    pub(crate) fn new(inet: &Arc<InetVnet>) -> Self {
        Self {
            inet: Arc::downgrade(inet),
        }
    }
}

impl LltOps for ArpTimers {
    fn timer(&self, lle: &Arc<LlEntry>, now: Ticks) {
        let (Some(inet), Some(ifp)) = (self.inet.upgrade(), lle.ifp.upgrade()) else {
            return;
        };
        enum Next {
            Nothing,
            Look,
            Ask,
            Delete,
        }
        let next = lle.with(|la| {
            if la.flags.intersects(LleFlags::STATIC | LleFlags::DELETED) {
                return Next::Nothing;
            }
            match la.state {
                LleState::Reachable => {
                    // It expires soon. Whether it is worth asking shows in whether it is used from now on.
                    lle.take_used();
                    la.state = LleState::Verify;
                    la.la_asked = 0;
                    Next::Look
                }
                LleState::Verify => {
                    let used = lle.take_used() || la.la_asked > 0;
                    if used && u32::from(la.la_asked) < inet.arp.maxtries.get() {
                        la.la_asked += 1;
                        Next::Ask
                    } else if now - la.la_expire < 0 {
                        Next::Look
                    } else {
                        Next::Delete
                    }
                }
                // The last three are states of IPv6.
                LleState::Incomplete
                | LleState::Down
                | LleState::Stale
                | LleState::Delay
                | LleState::Probe => Next::Delete,
            }
        });
        let again = Sbintime::from_s(i64::from(ARPT_REXMIT));
        match next {
            Next::Nothing => {}
            Next::Look => lle.timer_reset(again),
            Next::Ask => {
                lle.timer_reset(again);
                let epoch = NetEpoch::enter();
                let cx = NetCx {
                    vnet: &inet,
                    epoch: &epoch,
                    now,
                };
                let _ = arprequest(&cx, &ifp, None, lle.r_l3addr);
            }
            Next::Delete => {
                let held = lle.with(|la| {
                    let held = la.la_hold.len();
                    la.la_hold.clear();
                    held
                });
                inet.arpstat.dropped.add(held as u64);
                inet.arpstat.timeouts.inc();
                if let Some(llt) = ifp.lltable() {
                    llt.delete(lle);
                }
            }
        }
    }
}

/// A row of `arp -a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArpRow {
    /// The neighbour.
    pub addr: Ipv4Addr,
    /// Its Ethernet address, if it is known.
    pub lladdr: Option<EtherAddr>,
    /// The interface it is on.
    pub ifname: String,
    /// Seconds until the entry expires; `None`: never.
    pub expires_s: Option<u32>,
    /// Answered for by us.
    pub published: bool,
    /// The address is our own.
    pub own: bool,
}

impl fmt::Display for ArpRow {
    /// As `arp -an` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "? ({}) at ", self.addr)?;
        match self.lladdr {
            Some(lladdr) => write!(f, "{}", Mac(lladdr))?,
            None => f.write_str("(incomplete)")?,
        }
        write!(f, " on {}", self.ifname)?;
        match self.expires_s {
            None => f.write_str(" permanent")?,
            Some(_) if self.lladdr.is_none() => f.write_str(" expired")?,
            Some(s) => write!(f, " expires in {s} seconds")?,
        }
        if self.published {
            f.write_str(" published")?;
        }
        f.write_str(" [ethernet]")
    }
}

/// All neighbours and our own addresses, interface by interface.
pub fn arp_table(inet: &Arc<InetVnet>) -> Vec<ArpRow> {
    let epoch = NetEpoch::enter();
    let now = sys::machine::ticks();
    let mut rows = Vec::new();
    for ifp in inet.ifnets() {
        let Some(llt) = ifp.lltable() else { continue };
        for ia in ifp.addrs(&epoch) {
            rows.push(ArpRow {
                addr: ia.ia_addr,
                lladdr: Some(ifp.lladdr()),
                ifname: ifp.if_xname.clone(),
                expires_s: None,
                published: false,
                own: true,
            });
        }
        for lle in llt.entries() {
            rows.push(lle.with(|la| {
                ArpRow {
                    addr: lle.r_l3addr,
                    lladdr: la.flags.contains(LleFlags::VALID).then_some(la.ll_addr),
                    ifname: ifp.if_xname.clone(),
                    expires_s: (!la.flags.contains(LleFlags::STATIC))
                        .then(|| ((la.la_expire - now).max(0) as u32).div_ceil(1000)),
                    published: la.flags.contains(LleFlags::PUB),
                    own: false,
                }
            }));
        }
    }
    rows.sort_by_key(|row| (row.ifname.clone(), row.addr));
    rows
}

/// The interface whose network `addr` is on.
fn arp_ifp(inet: &InetVnet, addr: Ipv4Addr) -> Option<Arc<Ifnet>> {
    let epoch = NetEpoch::enter();
    let near = |ia: &&Arc<sys::net::ifnet::Ifaddr>| has_arp(&ia.ia_ifp) && ia.has_neighbour(addr);
    inet.ifaddrs
        .all(&epoch)
        .iter()
        .find(near)
        .map(|ia| ia.ia_ifp.clone())
}

/// Enters a neighbour by hand (`arp -s`); it never expires. `ENETUNREACH` if no interface is on its network.
pub fn arp_set(
    inet: &Arc<InetVnet>,
    addr: Ipv4Addr,
    lladdr: EtherAddr,
    published: bool,
) -> Result<(), Errno> {
    let ifp = arp_ifp(inet, addr).ok_or(Errno::ENETUNREACH)?;
    let lle = ifp
        .lltable()
        .ok_or(Errno::EAFNOSUPPORT)?
        .lookup_or_create(addr);
    lle.timer_stop();
    let mut held = lle.with(|la| {
        la.ll_addr = lladdr;
        la.state = LleState::Reachable;
        la.flags |= LleFlags::VALID | LleFlags::STATIC;
        la.flags.set(LleFlags::PUB, published);
        mem::replace(&mut la.la_hold, MbufQueue::new())
    });
    let epoch = NetEpoch::enter();
    while let Some(m) = held.pop() {
        let _ = ether_output(&ifp, &epoch, m, lladdr, ETHERTYPE_IP);
    }
    Ok(())
}

/// Removes a neighbour (`arp -d`). `ENOENT` if there is none.
pub fn arp_delete(inet: &Arc<InetVnet>, addr: Ipv4Addr) -> Result<(), Errno> {
    let mut found = false;
    for ifp in inet.ifnets() {
        let Some(llt) = ifp.lltable() else { continue };
        for lle in llt.entries().iter().filter(|lle| lle.r_l3addr == addr) {
            found |= llt.delete(lle);
        }
    }
    if found { Ok(()) } else { Err(Errno::ENOENT) }
}

/// Removes all neighbours (`arp -ad`).
pub fn arp_flush(inet: &Arc<InetVnet>) {
    for ifp in inet.ifnets() {
        if let Some(llt) = ifp.lltable() {
            llt.flush(true);
        }
    }
}
