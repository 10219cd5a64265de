//! IPv6 addresses of interfaces: assigns and removes them, and keeps the table by which input knows its own.
//!
//! FreeBSD: sys/netinet6/in6.c (in6_control), in6_ifattach.c, in6_mcast.c
//! As in FreeBSD an interface is silent in IPv6 (`ifdisabled`) until it is told otherwise or given an address.

use crate::if_ether::has_arp;
use crate::netinet6::in6_src::in6_setscope;
use crate::netinet6::ip6::{
    IN6ADDR_LINKLOCAL_ALLNODES, ether_map_ipv6_multicast, in6_is_linklocal, in6_solicited_node,
};
use crate::netinet6::{nd6_nbr, nd6_rtr};
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use sys::errno::Errno;
use sys::kern::kern_sx::Sx;
use sys::kern::lock_order::InControl;
use sys::kern::subr_epoch::{EpochCell, NetEpoch};
use sys::kprintf;
use sys::mbuf::IfIndex;
use sys::net::ifnet::{IfFlags, Ifnet, In6Ifaddr, In6Iff};
use sys::net::nd_ifinfo::Nd6Iff;
use sys::net::route::{RouteSpec, RtFlags};

/// A multicast group joined on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct In6Multi {
    /// The interface.
    pub ifindex: IfIndex,
    /// The group, its zone embedded.
    pub group: Ipv6Addr,
    /// How many joined.
    pub refs: u32,
}

#[derive(Clone, Default)]
struct AddrTable {
    /// In order of assignment.
    list: Vec<Arc<In6Ifaddr>>,
    /// The same, ordered by address.
    sorted: Vec<Arc<In6Ifaddr>>,
    multi: Vec<In6Multi>,
}

/// All IPv6 addresses of an instance (`in6_ifaddrhead`, `in6_ifaddrhash`), read without a lock.
pub struct In6IfAddrs {
    table: EpochCell<AddrTable>,
    /// Held by whoever changes addresses.
    change: Sx<(), InControl>,
}

impl In6IfAddrs {
    /// No addresses.
    pub fn new() -> Self {
        Self {
            table: EpochCell::new(AddrTable::default()),
            change: Sx::new(()),
        }
    }

    /// The interface address equal to `addr`.
    #[inline]
    pub fn lookup<'e>(&'e self, epoch: &'e NetEpoch, addr: Ipv6Addr) -> Option<&'e Arc<In6Ifaddr>> {
        let sorted = &self.table.load(epoch).sorted;
        let at = sorted.binary_search_by_key(&addr, |ia| ia.ia_addr).ok()?;
        sorted.get(at)
    }

    /// All addresses in order of assignment.
    pub fn all<'e>(&'e self, epoch: &'e NetEpoch) -> &'e [Arc<In6Ifaddr>] {
        &self.table.load(epoch).list
    }

    /// Whether the group is joined on the interface.
    pub fn is_member(&self, epoch: &NetEpoch, ifindex: IfIndex, group: Ipv6Addr) -> bool {
        let multi = &self.table.load(epoch).multi;
        multi
            .iter()
            .any(|im| im.ifindex == ifindex && im.group == group)
    }

    /// The groups joined.
    pub fn groups(&self, epoch: &NetEpoch) -> Vec<In6Multi> {
        self.table.load(epoch).multi.clone()
    }

    /// Replaces the table by what `f` makes of it; the caller holds `change`.
    fn update(&self, f: impl FnOnce(&mut Vec<Arc<In6Ifaddr>>, &mut Vec<In6Multi>)) {
        let epoch = NetEpoch::enter();
        let mut table = self.table.load(&epoch).clone();
        drop(epoch);
        f(&mut table.list, &mut table.multi);
        table.sorted = table.list.clone();
        table.sorted.sort_by_key(|ia| ia.ia_addr);
        self.table.replace(Box::new(table));
    }
}

impl Default for In6IfAddrs {
    fn default() -> Self {
        Self::new()
    }
}

/// The interface identifier that an Ethernet address makes (RFC 4291, appendix A).
#[doc(alias = "in6_get_hw_ifid")]
pub fn in6_hw_ifid([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
}

/// The link-local address that an Ethernet address makes, without zone.
pub fn in6_linklocal_of(lladdr: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(in6_hw_ifid(lladdr)))
}

/// Adds an address to an interface (`ifconfig em0 inet6 A/L`): brings the interface up, adds routes, joins the groups that
/// every node joins, and, on Ethernet, checks that nobody else has it, unless `flags` say `NODAD`.
#[doc(alias = "SIOCAIFADDR_IN6")]
pub fn in6_update_ifa(
    inet: &Arc<InetVnet>,
    ifp: &Arc<Ifnet>,
    addr: Ipv6Addr,
    prefixlen: u8,
    flags: In6Iff,
) -> Result<(), Errno> {
    let loopback = addr == Ipv6Addr::LOCALHOST && !ifp.is_loopback();
    if addr.is_multicast()
        || addr.is_unspecified()
        || addr.to_ipv4_mapped().is_some()
        || loopback
        || prefixlen > 128
    {
        return Err(Errno::EINVAL);
    }
    // FreeBSD: an address wakes an interface that speaks no IPv6 yet.
    ifp.nd6.update_flags(Nd6Iff::empty(), Nd6Iff::IFDISABLED);
    if !in6_is_linklocal(addr) {
        add_linklocal(inet, ifp, flags & In6Iff::NODAD)?;
    }
    let addr = in6_setscope(addr, ifp);
    let checked = has_arp(ifp)
        && !flags.contains(In6Iff::NODAD)
        && !ifp.nd6.flags().contains(Nd6Iff::NO_DAD)
        && inet.ip6.dad_count.get() > 0;
    let change = inet.in6_ifaddrs.change.xlock();
    if inet.in6_ifaddrs.lookup(&NetEpoch::enter(), addr).is_some() {
        return Err(Errno::EEXIST);
    }
    let ia = Arc::new(In6Ifaddr::new(ifp, addr, prefixlen, flags));
    if checked {
        ia.update_flags(In6Iff::TENTATIVE, In6Iff::empty());
    }
    ifp.addr6_add(ia.clone());
    inet.in6_ifaddrs.update(|list, _| list.push(ia.clone()));
    drop(change);

    let done = bring_up(inet, ifp, &ia);
    if let Err(error) = done {
        let _ = in6_purgeaddr(inet, ifp, addr);
        return Err(error);
    }
    if checked {
        nd6_nbr::nd6_dad_start(inet, &ia);
    }
    Ok(())
}

/// Gives an interface its link-local address, if it makes itself one and has none (`in6_ifattach_linklocal`).
fn add_linklocal(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>, flags: In6Iff) -> Result<(), Errno> {
    let has = |ia: &Arc<In6Ifaddr>| in6_is_linklocal(ia.ia_addr);
    if !has_arp(ifp)
        || !ifp.nd6.flags().contains(Nd6Iff::AUTO_LINKLOCAL)
        || ifp.addrs6(&NetEpoch::enter()).iter().any(has)
    {
        return Ok(());
    }
    in6_update_ifa(inet, ifp, in6_linklocal_of(ifp.lladdr()), 64, flags)
}

/// An interface has come up: it gets the addresses that every interface has, those that were not checked are, and routers
/// are looked for (`in6_if_up`).
pub fn in6_if_up(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>) {
    if ifp.is_loopback() {
        let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        for (addr, plen) in [(Ipv6Addr::LOCALHOST, 128), (local, 64)] {
            // EEXIST: it has it.
            let _ = in6_update_ifa(inet, ifp, addr, plen, In6Iff::NODAD);
        }
        return;
    }
    if !has_arp(ifp) || ifp.nd6.flags().contains(Nd6Iff::IFDISABLED) {
        return;
    }
    if let Err(error) = add_linklocal(inet, ifp, In6Iff::empty()) {
        kprintf!("{}: no link-local address: {error}\n", ifp.if_xname);
    }
    inet.mld.announce(inet, ifp);
    let tentative = |ia: &&Arc<In6Ifaddr>| ia.flags() & In6Iff::NOTREADY == In6Iff::TENTATIVE;
    for ia in ifp.addrs6(&NetEpoch::enter()).iter().filter(tentative) {
        nd6_nbr::nd6_dad_start(inet, ia);
    }
    if ifp.nd6.flags().contains(Nd6Iff::ACCEPT_RTADV) {
        nd6_rtr::nd6_rs_start(inet, ifp);
    }
}

/// Changes what an interface does in IPv6 (`ifconfig em0 inet6 accept_rtadv -ifdisabled`).
#[doc(alias = "SIOCSIFINFO_FLAGS")]
pub fn nd6_set_ifflags(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>, set: Nd6Iff, clear: Nd6Iff) {
    let old = ifp.nd6.flags();
    ifp.nd6.update_flags(set, clear);
    let new = ifp.nd6.flags();
    if new.contains(Nd6Iff::IFDISABLED) {
        if !old.contains(Nd6Iff::IFDISABLED) {
            for ia in ifp.addrs6(&NetEpoch::enter()) {
                // When IPv6 comes back somebody else may have it.
                ia.update_flags(In6Iff::TENTATIVE, In6Iff::empty());
            }
        }
        return;
    }
    let wakes = Nd6Iff::IFDISABLED;
    let starts = Nd6Iff::ACCEPT_RTADV | Nd6Iff::AUTO_LINKLOCAL;
    let changed = old.contains(wakes) || (new - old).intersects(starts);
    if changed && ifp.flags().contains(IfFlags::UP) {
        in6_if_up(inet, ifp);
    }
}

/// What a new interface does in IPv6 (`nd6_ifattach`): nothing, until it is told or gets an address.
pub(crate) fn nd6_ifattach(inet: &InetVnet, ifp: &Ifnet) {
    let mut flags = Nd6Iff::PERFORMNUD;
    let loopback = ifp.is_loopback();
    flags.set(Nd6Iff::IFDISABLED, !loopback);
    let auto_linklocal = loopback || inet.ip6.auto_linklocal.get();
    flags.set(Nd6Iff::AUTO_LINKLOCAL, auto_linklocal);
    flags.set(
        Nd6Iff::ACCEPT_RTADV,
        !loopback && inet.ip6.accept_rtadv.get(),
    );
    flags.set(Nd6Iff::NO_RADR, !loopback && inet.ip6.no_radr.get());
    ifp.nd6.update_flags(flags, !flags);
}

fn bring_up(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>, ia: &Arc<In6Ifaddr>) -> Result<(), Errno> {
    ifp.change_flags(IfFlags::UP, IfFlags::empty())?;
    add_routes(inet, ia)?;
    if ifp.flags().contains(IfFlags::MULTICAST) {
        for group in groups_of(ia) {
            in6_joingroup(inet, ifp, group)?;
        }
    }
    Ok(())
}

/// The groups that come with an address (RFC 4291 §2.8).
fn groups_of(ia: &In6Ifaddr) -> [Ipv6Addr; 2] {
    [in6_solicited_node(ia.ia_addr), IN6ADDR_LINKLOCAL_ALLNODES]
}

fn prefix_spec(ia: &Arc<In6Ifaddr>) -> Option<RouteSpec<Ipv6Addr>> {
    // The host route to the address covers these; the prefix of an address that was made from an advertised one is the
    // router's affair.
    if ia.ia_prefixlen == 128
        || ia.flags().contains(In6Iff::AUTOCONF)
        || ia.ia_ifp.is_loopback() && !in6_is_linklocal(ia.ia_addr)
    {
        return None;
    }
    // The zone stands in the address and so in the prefix: fe80::/64 of each link is another one.
    Some(RouteSpec {
        dst: ia.ia_addr,
        prefix_len: ia.ia_prefixlen,
        gw: None,
        ifp: ia.ia_ifp.clone(),
        ifa: Some(ia.clone()),
        flags: RtFlags::empty(),
        mtu: 0,
    })
}

/// The routes of an address: to its prefix on the link, and to itself by the loopback.
fn add_routes(inet: &InetVnet, ia: &Arc<In6Ifaddr>) -> Result<(), Errno> {
    if let Some(spec) = prefix_spec(ia) {
        match inet.rib6.add(spec) {
            // Another address with the same prefix has brought the route.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    let lo = if ia.ia_ifp.is_loopback() {
        Some(ia.ia_ifp.clone())
    } else {
        inet.loif()
    };
    let Some(lo) = lo else { return Ok(()) };
    let spec = RouteSpec {
        dst: ia.ia_addr,
        prefix_len: 128,
        gw: None,
        ifp: lo,
        ifa: Some(ia.clone()),
        flags: RtFlags::HOST | RtFlags::STATIC | RtFlags::PINNED,
        mtu: 0,
    };
    match inet.rib6.add(spec) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes an address: its routes, its groups, its entry (`SIOCDIFADDR_IN6`). `addr` carries its zone.
pub fn in6_purgeaddr(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>, addr: Ipv6Addr) -> Result<(), Errno> {
    let addr = in6_setscope(addr, ifp);
    let change = inet.in6_ifaddrs.change.xlock();
    let ia = ifp.addr6_remove(addr).ok_or(Errno::EADDRNOTAVAIL)?;
    inet.in6_ifaddrs
        .update(|list, _| list.retain(|other| !Arc::ptr_eq(other, &ia)));
    drop(change);
    nd6_nbr::nd6_dad_stop(inet, &ia);
    let _ = inet.rib6.delete(addr, 128);
    if let Some(spec) = prefix_spec(&ia) {
        let ours = inet
            .rib6
            .get(spec.dst, spec.prefix_len)
            .and_then(|route| route.nhop.nh_ifa.clone())
            .is_some_and(|ifa| Arc::ptr_eq(&ifa, &ia));
        if ours {
            let _ = inet.rib6.delete(spec.dst, spec.prefix_len);
            // Another address with the same prefix inherits the route.
            let heirs: Vec<_> = ifp.addrs6(&NetEpoch::enter()).to_vec();
            for heir in heirs {
                let _ = add_routes(inet, &heir);
            }
        }
    }
    for group in groups_of(&ia) {
        let _ = in6_leavegroup(inet, ifp, group);
    }
    Ok(())
}

/// An interface goes: its addresses go with it (`in6_ifdetach`).
pub(crate) fn in6_ifdetach(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>) {
    let addrs: Vec<_> = ifp
        .addrs6(&NetEpoch::enter())
        .iter()
        .map(|ia| ia.ia_addr)
        .collect();
    for addr in addrs {
        let _ = in6_purgeaddr(inet, ifp, addr);
    }
    inet.nd6.purge(ifp);
    inet.mld.purge(ifp);
    let _change = inet.in6_ifaddrs.change.xlock();
    inet.in6_ifaddrs
        .update(|_, multi| multi.retain(|im| im.ifindex != ifp.if_index));
}

/// Joins a multicast group on an interface, and its Ethernet group with it.
pub fn in6_joingroup(inet: &InetVnet, ifp: &Arc<Ifnet>, group: Ipv6Addr) -> Result<(), Errno> {
    if !group.is_multicast() {
        return Err(Errno::EINVAL);
    }
    let group = in6_setscope(group, ifp);
    let change = inet.in6_ifaddrs.change.xlock();
    let mut first = true;
    inet.in6_ifaddrs.update(|_, multi| {
        match multi
            .iter_mut()
            .find(|im| im.ifindex == ifp.if_index && im.group == group)
        {
            Some(im) => {
                im.refs += 1;
                first = false;
            }
            None => multi.push(In6Multi {
                ifindex: ifp.if_index,
                group,
                refs: 1,
            }),
        }
    });
    if first {
        ifp.multi_add(ether_map_ipv6_multicast(group));
    }
    drop(change);
    if first {
        inet.mld.joined(ifp, group);
    }
    Ok(())
}

/// Leaves a multicast group; `EADDRNOTAVAIL` if it was not joined.
pub fn in6_leavegroup(inet: &InetVnet, ifp: &Arc<Ifnet>, group: Ipv6Addr) -> Result<(), Errno> {
    let group = in6_setscope(group, ifp);
    let change = inet.in6_ifaddrs.change.xlock();
    let (mut found, mut last) = (false, false);
    inet.in6_ifaddrs.update(|_, multi| {
        if let Some(im) = multi
            .iter_mut()
            .find(|im| im.ifindex == ifp.if_index && im.group == group)
        {
            found = true;
            im.refs -= 1;
            last = im.refs == 0;
        }
        multi.retain(|im| im.refs != 0);
    });
    if last {
        ifp.multi_del(ether_map_ipv6_multicast(group));
    }
    drop(change);
    if last {
        inet.mld.left(ifp, group);
    }
    if found {
        Ok(())
    } else {
        Err(Errno::EADDRNOTAVAIL)
    }
}

/// Whether `addr` is ours and may be talked to.
pub fn in6_localip(cx: &NetCx<'_>, addr: Ipv6Addr) -> bool {
    cx.vnet.in6_ifaddrs.lookup(cx.epoch, addr).is_some()
}
