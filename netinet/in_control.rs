//! Addresses of interfaces: assigns and removes them, and keeps the table by which input knows its own.
//!
//! FreeBSD: sys/netinet/in.c (in_control, in_aifaddr_ioctl, in_difaddr_ioctl, in_ifscrub), in_var.h
//! Not carried over: `in_ifaddr_lock`, an rmlock; the table is read in a section of the network epoch, by one load.

use crate::if_ether;
use crate::ip::{in_experimental, in_loopback, in_multicast, in_zeronet};
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use sys::errno::Errno;
use sys::kern::kern_sx::Sx;
use sys::kern::lock_order::InControl;
use sys::kern::subr_epoch::{EpochCell, NetEpoch};
use sys::mbuf::IfIndex;
use sys::net::ifnet::{IfFlags, Ifaddr, Ifnet};
use sys::net::route::{RouteSpec, RtFlags};

/// 224.0.0.1: every host.
pub const INADDR_ALLHOSTS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// Number of leading ones of a contiguous mask; `None` if it has holes.
pub fn mask_len(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let len = bits.leading_ones();
    (bits.count_ones() == len).then_some(len as u8)
}

/// The mask of `len` leading ones.
pub fn len_mask(len: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(
        u32::MAX
            .checked_shl(32 - u32::from(len.min(32)))
            .unwrap_or(0),
    )
}

/// The mask an address had before there were masks (`in_netmask` by class).
pub fn class_mask(addr: Ipv4Addr) -> Ipv4Addr {
    match addr.octets()[0] {
        0..128 => len_mask(8),
        128..192 => len_mask(16),
        _ => len_mask(24),
    }
}

fn network(addr: Ipv4Addr, mask: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(addr.to_bits() & mask.to_bits())
}

/// The 48-bit group of an IPv4 multicast address (`ETHER_MAP_IP_MULTICAST`).
pub fn ether_map_ip_multicast(group: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

/// A multicast group joined on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InMulti {
    /// The interface.
    pub ifindex: IfIndex,
    /// The group.
    pub group: Ipv4Addr,
    /// How many joined.
    pub refs: u32,
}

/// One immutable state of the address table.
struct AddrTable {
    /// In order of assignment.
    list: Vec<Arc<Ifaddr>>,
    /// The same by address: open addressing, a power of two, at most half full.
    slots: Box<[Option<Arc<Ifaddr>>]>,
    multi: Vec<InMulti>,
}

impl AddrTable {
    fn build(list: Vec<Arc<Ifaddr>>, multi: Vec<InMulti>) -> Self {
        let size = (list.len() * 2).next_power_of_two().max(4);
        let mut slots: Box<[Option<Arc<Ifaddr>>]> = (0..size).map(|_| None).collect();
        for ia in &list {
            let mut at = Self::hash(ia.ia_addr);
            while let Some(Some(_)) = slots.get(at & (size - 1)) {
                at += 1;
            }
            if let Some(slot) = slots.get_mut(at & (size - 1)) {
                *slot = Some(ia.clone());
            }
        }
        Self { list, slots, multi }
    }

    fn hash(addr: Ipv4Addr) -> usize {
        (addr.to_bits().wrapping_mul(0x9e37_79b1) >> 16) as usize
    }

    fn lookup(&self, addr: Ipv4Addr) -> Option<&Arc<Ifaddr>> {
        let mut at = Self::hash(addr);
        loop {
            match self.slots.get(at & (self.slots.len() - 1)) {
                Some(Some(ia)) if ia.ia_addr == addr => return Some(ia),
                Some(Some(_)) => at += 1,
                Some(None) | None => return None,
            }
        }
    }
}

/// All addresses of an instance (`in_ifaddrhead`, `in_ifaddrhash`, `in_multihead`), read without a lock.
pub struct IfAddrs {
    table: EpochCell<AddrTable>,
    /// Held by whoever changes addresses.
    change: Sx<(), InControl>,
}

impl IfAddrs {
    /// No addresses.
    pub fn new() -> Self {
        Self {
            table: EpochCell::new(AddrTable::build(Vec::new(), Vec::new())),
            change: Sx::new(()),
        }
    }

    /// The interface address equal to `addr`.
    #[inline]
    pub fn lookup<'e>(&'e self, epoch: &'e NetEpoch, addr: Ipv4Addr) -> Option<&'e Arc<Ifaddr>> {
        self.table.load(epoch).lookup(addr)
    }

    /// All addresses in order of assignment.
    pub fn all<'e>(&'e self, epoch: &'e NetEpoch) -> &'e [Arc<Ifaddr>] {
        &self.table.load(epoch).list
    }

    /// The first address assigned.
    pub fn first<'e>(&'e self, epoch: &'e NetEpoch) -> Option<&'e Arc<Ifaddr>> {
        self.all(epoch).first()
    }

    /// The broadcast address of the first network that has one.
    pub fn first_broadcast(&self, epoch: &NetEpoch) -> Option<Ipv4Addr> {
        self.all(epoch).iter().find_map(|ia| ia.ia_broadaddr)
    }

    /// Whether `addr` is an address of ours or the broadcast address of a network of ours.
    pub fn is_local_or_broadcast(&self, epoch: &NetEpoch, addr: Ipv4Addr) -> bool {
        self.lookup(epoch, addr).is_some()
            || addr == Ipv4Addr::BROADCAST
            || self
                .all(epoch)
                .iter()
                .any(|ia| ia.ia_broadaddr == Some(addr))
    }

    /// Whether the group is joined on the interface.
    pub fn is_member(&self, epoch: &NetEpoch, ifindex: IfIndex, group: Ipv4Addr) -> bool {
        self.table
            .load(epoch)
            .multi
            .iter()
            .any(|im| im.ifindex == ifindex && im.group == group)
    }

    /// The groups joined.
    pub fn groups(&self, epoch: &NetEpoch) -> Vec<InMulti> {
        self.table.load(epoch).multi.clone()
    }

    /// Replaces the table by what `f` makes of it; the caller holds `change`.
    fn update(&self, f: impl FnOnce(&mut Vec<Arc<Ifaddr>>, &mut Vec<InMulti>)) {
        let epoch = NetEpoch::enter();
        let table = self.table.load(&epoch);
        let (mut list, mut multi) = (table.list.clone(), table.multi.clone());
        drop(epoch);
        f(&mut list, &mut multi);
        self.table.replace(Box::new(AddrTable::build(list, multi)));
    }
}

impl Default for IfAddrs {
    fn default() -> Self {
        Self::new()
    }
}

/// What an address comes with; what is `None` follows from the address.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddrArgs {
    /// Mask.
    pub netmask: Option<Ipv4Addr>,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// Other end of a point-to-point link.
    pub dest: Option<Ipv4Addr>,
}

/// Adds an address to an interface (`ifconfig em0 inet A alias`); the first one is the primary. One that the interface has
/// is added anew, perhaps with another mask. Brings the interface up, adds the route to the network and, on Ethernet,
/// announces the address. `EEXIST` if another interface has it.
#[doc(alias = "SIOCAIFADDR")]
#[doc(alias = "in_aifaddr_ioctl")]
pub fn in_aifaddr(
    inet: &Arc<InetVnet>,
    ifp: &Arc<Ifnet>,
    addr: Ipv4Addr,
    args: &AddrArgs,
) -> Result<(), Errno> {
    let flags = ifp.flags();
    if flags.contains(IfFlags::CANTCONFIG) {
        return Err(Errno::EINVAL);
    }
    if in_multicast(addr)
        || addr == Ipv4Addr::BROADCAST
        || in_zeronet(addr) && !inet.ip.allow_net0.get()
        || in_experimental(addr) && !inet.ip.allow_net240.get()
        || in_loopback(addr) && !ifp.is_loopback()
    {
        return Err(Errno::EINVAL);
    }
    let mask = args.netmask.unwrap_or_else(|| class_mask(addr));
    let len = mask_len(mask).ok_or(Errno::EINVAL)?;
    let has = |epoch: &NetEpoch| ifp.addrs(epoch).iter().any(|ia| ia.ia_addr == addr);
    if has(&NetEpoch::enter()) {
        in_difaddr(inet, ifp, addr)?;
    }
    let broadcast = flags.contains(IfFlags::BROADCAST).then(|| {
        // RFC 3021: a /31 has no broadcast address, nor has a host of its own.
        let of_network = Ipv4Addr::from_bits(addr.to_bits() | !mask.to_bits());
        args.broadcast.or((len < 31).then_some(of_network))
    });

    let change = inet.ifaddrs.change.xlock();
    let epoch = NetEpoch::enter();
    if inet.ifaddrs.lookup(&epoch, addr).is_some() {
        return Err(Errno::EEXIST);
    }
    let first_of_interface = ifp.addrs(&epoch).is_empty();
    drop(epoch);
    let mut ia = Ifaddr::new(ifp, addr, mask, broadcast.flatten());
    ia.ia_dstaddr = args.dest;
    let ia = Arc::new(ia);
    ifp.addr_add(ia.clone());
    inet.ifaddrs.update(|list, _| list.push(ia.clone()));
    drop(change);

    // As SIOCSIFADDR does: an interface with an address is up.
    if let Err(error) = ifp.change_flags(IfFlags::UP, IfFlags::empty()) {
        let _ = in_difaddr(inet, ifp, addr);
        return Err(error);
    }
    if let Err(error) = add_prefix_route(inet, &ia) {
        let _ = in_difaddr(inet, ifp, addr);
        return Err(error);
    }
    add_loopback_route(inet, &ia);
    if first_of_interface && flags.contains(IfFlags::MULTICAST) {
        in_joingroup(inet, ifp, INADDR_ALLHOSTS_GROUP)?;
    }
    if if_ether::has_arp(ifp) {
        let epoch = NetEpoch::enter();
        if_ether::arp_ifinit(&NetCx::new(inet, &epoch), ifp, addr);
    }
    Ok(())
}

/// Removes an address: its routes and those that send from it, its neighbours, its entry.
#[doc(alias = "SIOCDIFADDR")]
#[doc(alias = "in_difaddr_ioctl")]
pub fn in_difaddr(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>, addr: Ipv4Addr) -> Result<(), Errno> {
    let change = inet.ifaddrs.change.xlock();
    let ia = ifp.addr_remove(addr).ok_or(Errno::EADDRNOTAVAIL)?;
    inet.ifaddrs
        .update(|list, _| list.retain(|other| !Arc::ptr_eq(other, &ia)));
    drop(change);

    if !ifp.is_loopback() {
        let _ = inet.rib.delete(addr, 32);
    }
    scrub_prefix_route(inet, &ia);
    // What is left would send from an address that is ours no more (`in_ifadown`).
    inet.rib.purge_ifa(&ia, RtFlags::empty());
    let epoch = NetEpoch::enter();
    let last = ifp.addrs(&epoch).is_empty();
    let net = network(ia.ia_addr, ia.ia_netmask);
    let still = ifp
        .addrs(&epoch)
        .iter()
        .any(|other| network(other.ia_addr, other.ia_netmask) == net);
    drop(epoch);
    if !still && let Some(llt) = ifp.lltable() {
        for lle in llt.entries() {
            if network(lle.r_l3addr, ia.ia_netmask) == net {
                llt.delete(&lle);
            }
        }
    }
    if last {
        let _ = in_leavegroup(inet, ifp, INADDR_ALLHOSTS_GROUP);
    }
    Ok(())
}

/// Gives the interface `addr` as its only primary address (`ifconfig em0 inet A`): the old primary goes.
#[doc(alias = "SIOCSIFADDR")]
pub fn in_sifaddr(
    inet: &Arc<InetVnet>,
    ifp: &Arc<Ifnet>,
    addr: Ipv4Addr,
    args: &AddrArgs,
) -> Result<(), Errno> {
    let epoch = NetEpoch::enter();
    let old = ifp.addrs(&epoch).first().map(|ia| ia.ia_addr);
    drop(epoch);
    if let Some(old) = old {
        in_difaddr(inet, ifp, old)?;
    }
    in_aifaddr(inet, ifp, addr, args)
}

/// The route to the network of `ia` (`in_addprefix`): for the loopback, and for a network of one address, a host route.
fn add_prefix_route(inet: &InetVnet, ia: &Arc<Ifaddr>) -> Result<(), Errno> {
    let Some(spec) = prefix_route(ia) else {
        return Ok(());
    };
    match inet.rib.add(spec) {
        // Another address in the same network has brought the route.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn prefix_route(ia: &Arc<Ifaddr>) -> Option<RouteSpec> {
    let ifp = &ia.ia_ifp;
    let len = mask_len(ia.ia_netmask)?;
    let (dst, prefix_len, flags) = if ifp.is_loopback() {
        (ia.ia_addr, 32, RtFlags::HOST)
    } else if let Some(dest) = ia.ia_dstaddr {
        (dest, 32, RtFlags::HOST)
    } else if len == 32 {
        return None;
    } else {
        (network(ia.ia_addr, ia.ia_netmask), len, RtFlags::empty())
    };
    Some(RouteSpec {
        dst,
        prefix_len,
        gw: None,
        ifp: ifp.clone(),
        ifa: Some(ia.clone()),
        flags,
        mtu: 0,
    })
}

/// Takes away the network's route, or hands it to another address of the same network (`in_scrubprefix`).
fn scrub_prefix_route(inet: &InetVnet, ia: &Arc<Ifaddr>) {
    let Some(spec) = prefix_route(ia) else { return };
    let ours = inet
        .rib
        .get(spec.dst, spec.prefix_len)
        .is_some_and(|route| {
            route
                .nhop
                .nh_ifa
                .as_ref()
                .is_some_and(|ifa| Arc::ptr_eq(ifa, ia))
        });
    if !ours {
        return;
    }
    let _ = inet.rib.delete(spec.dst, spec.prefix_len);
    let epoch = NetEpoch::enter();
    let heir = inet.ifaddrs.all(&epoch).iter().find(|other| {
        other.ia_ifp.flags().contains(IfFlags::UP)
            && prefix_route(other)
                .is_some_and(|s| s.dst == spec.dst && s.prefix_len == spec.prefix_len)
    });
    if let Some(heir) = heir {
        let _ = add_prefix_route(inet, heir);
    }
}

/// The route by which we reach our own address: through lo0 (`ifa_add_loopback_route`).
fn add_loopback_route(inet: &InetVnet, ia: &Arc<Ifaddr>) {
    if ia.ia_ifp.is_loopback() {
        return;
    }
    let Some(lo) = inet.ifnets().into_iter().find(|ifp| ifp.is_loopback()) else {
        return;
    };
    let _ = inet.rib.add(RouteSpec {
        dst: ia.ia_addr,
        prefix_len: 32,
        gw: None,
        ifp: lo,
        ifa: Some(ia.clone()),
        flags: RtFlags::HOST | RtFlags::STATIC | RtFlags::PINNED,
        mtu: 0,
    });
}

/// A loopback interface has come: our other addresses are now reached through it.
pub(crate) fn loopback_attached(inet: &InetVnet) {
    let epoch = NetEpoch::enter();
    for ia in inet.ifaddrs.all(&epoch) {
        add_loopback_route(inet, ia);
    }
}

/// An interface was switched off: the routes to its networks go, and whatever else sends from its addresses, but for
/// routes set by hand (`in_ifadown` without `delete`). The addresses stay, and can be reached by ourselves.
#[doc(alias = "IFNET_EVENT_DOWN")]
pub(crate) fn in_ifdown(inet: &InetVnet, ifp: &Arc<Ifnet>) {
    let epoch = NetEpoch::enter();
    for ia in ifp.addrs(&epoch) {
        scrub_prefix_route(inet, ia);
        inet.rib.purge_ifa(ia, RtFlags::STATIC);
    }
}

/// An interface was switched on again: its networks are reached through it.
#[doc(alias = "IFNET_EVENT_UP")]
pub(crate) fn in_ifup(inet: &InetVnet, ifp: &Arc<Ifnet>) {
    let epoch = NetEpoch::enter();
    for ia in ifp.addrs(&epoch) {
        // Fails only where a route of somebody else's stands, which stays.
        let _ = add_prefix_route(inet, ia);
        add_loopback_route(inet, ia);
    }
}

/// An interface goes: its addresses go with it (`in_ifdetach`).
pub(crate) fn in_ifdetach(inet: &Arc<InetVnet>, ifp: &Arc<Ifnet>) {
    loop {
        let epoch = NetEpoch::enter();
        let addr = ifp.addrs(&epoch).first().map(|ia| ia.ia_addr);
        drop(epoch);
        match addr {
            Some(addr) if in_difaddr(inet, ifp, addr).is_ok() => {}
            _ => break,
        }
    }
    let change = inet.ifaddrs.change.xlock();
    inet.ifaddrs
        .update(|_, multi| multi.retain(|im| im.ifindex != ifp.if_index));
    drop(change);
}

/// Joins a multicast group on an interface.
///
/// Not carried over: IGMP. Nothing tells a router of the membership, so that groups work on the local link only.
pub fn in_joingroup(inet: &InetVnet, ifp: &Arc<Ifnet>, group: Ipv4Addr) -> Result<(), Errno> {
    if !in_multicast(group) {
        return Err(Errno::EINVAL);
    }
    let _change = inet.ifaddrs.change.xlock();
    let mut first = true;
    inet.ifaddrs.update(|_, multi| {
        match multi
            .iter_mut()
            .find(|im| im.ifindex == ifp.if_index && im.group == group)
        {
            Some(im) => {
                im.refs += 1;
                first = false;
            }
            None => multi.push(InMulti {
                ifindex: ifp.if_index,
                group,
                refs: 1,
            }),
        }
    });
    if first {
        ifp.multi_add(ether_map_ip_multicast(group));
    }
    Ok(())
}

/// Leaves a multicast group; `EADDRNOTAVAIL` if it was not joined.
pub fn in_leavegroup(inet: &InetVnet, ifp: &Arc<Ifnet>, group: Ipv4Addr) -> Result<(), Errno> {
    let _change = inet.ifaddrs.change.xlock();
    let mut found = false;
    let mut last = false;
    inet.ifaddrs.update(|_, multi| {
        if let Some(at) = multi
            .iter()
            .position(|im| im.ifindex == ifp.if_index && im.group == group)
            && let Some(im) = multi.get_mut(at)
        {
            found = true;
            im.refs -= 1;
            if im.refs == 0 {
                multi.swap_remove(at);
                last = true;
            }
        }
    });
    if last {
        ifp.multi_del(ether_map_ip_multicast(group));
    }
    if found {
        Ok(())
    } else {
        Err(Errno::EADDRNOTAVAIL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_their_lengths_turn_into_each_other() {
        for len in 0..=32 {
            assert_eq!(mask_len(len_mask(len)), Some(len));
        }
        assert_eq!(mask_len(Ipv4Addr::new(255, 0, 255, 0)), None);
        assert_eq!(class_mask(Ipv4Addr::new(10, 1, 2, 3)), len_mask(8));
        assert_eq!(class_mask(Ipv4Addr::new(172, 16, 2, 3)), len_mask(16));
        assert_eq!(class_mask(Ipv4Addr::new(192, 168, 2, 3)), len_mask(24));
    }

    #[test]
    fn a_group_maps_to_its_lower_23_bits() {
        let mapped = ether_map_ip_multicast(Ipv4Addr::new(239, 129, 2, 3));
        assert_eq!(mapped, [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03]);
    }
}
