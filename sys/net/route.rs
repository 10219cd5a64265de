//! The routing tables of IPv4 and IPv6: one code, two kinds of numbers.
//!
//! FreeBSD: sys/net/route.c, sys/net/route/route_ctl.c, fib_algo.c, in_fib_algo.c, in6_fib_algo.c
//!
//! Changes go to a trie under a lock. Packets look up in a compiled, immutable form of it, without a lock, under the
//! epoch: an array of address ranges, each with its next hop, found by binary search (FreeBSD's bsearch4); with
//! many routes, the upper 16 bits of the address first choose a slice of that array (as in FreeBSD's dxr).

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use bitflags::bitflags;

use crate::errno::Errno;
use crate::kern::kern_mutex::Mutex;
use crate::kern::lock_order::RibClass;
use crate::kern::subr_epoch::{EpochCell, NetEpoch};
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::net::ifnet::{Ifaddr, Ifnet, In6Ifaddr};
use crate::net::nhop::Nexthop;
use crate::net::radix::{Bits, Prefix, RadixTree};

bitflags! {
    /// Route flags.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RtFlags: u32 {
        /// Usable.
        const UP = 0x1;
        /// Through a gateway.
        const GATEWAY = 0x2;
        /// A host, not a network.
        const HOST = 0x4;
        /// Answer with an error.
        const REJECT = 0x8;
        /// Made by a redirect.
        const DYNAMIC = 0x10;
        /// Changed by a redirect.
        const MODIFIED = 0x20;
        /// Link-layer info present.
        const LLDATA = 0x400;
        /// Manually added.
        const STATIC = 0x800;
        /// Silently dropped.
        const BLACKHOLE = 0x1000;
        /// Protocol specific.
        const PROTO2 = 0x4000;
        /// Protocol specific.
        const PROTO1 = 0x8000;
        /// Protocol specific.
        const PROTO3 = 0x40000;
        /// MTU explicitly given.
        const FIXEDMTU = 0x80000;
        /// Cannot be changed.
        const PINNED = 0x100000;
        /// A local address.
        const LOCAL = 0x200000;
        /// A broadcast address.
        const BROADCAST = 0x400000;
        /// A multicast address.
        const MULTICAST = 0x800000;
    }
}

/// The addresses of one family: what tables of routes, next hops and neighbours are made for.
pub trait InAddr: Copy + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The address as a number.
    type Bits: Bits;
    /// An interface's address of this family.
    type Ifaddr: Send + Sync;
    /// As a number.
    fn bits(self) -> Self::Bits;
    /// From a number.
    fn of_bits(bits: Self::Bits) -> Self;
    /// Largest packet of the family on an interface.
    fn link_mtu(ifp: &Ifnet) -> u32;
    /// The address of an interface to send from to its neighbour `addr`, where the route says it (`ifaof_ifpforaddr`).
    fn ifa_for(ifp: &Ifnet, addr: Self) -> Option<Arc<Self::Ifaddr>>;
}

impl InAddr for Ipv4Addr {
    type Bits = u32;
    type Ifaddr = Ifaddr;

    #[inline]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }

    #[inline]
    fn link_mtu(ifp: &Ifnet) -> u32 {
        ifp.mtu()
    }

    fn ifa_for(ifp: &Ifnet, addr: Self) -> Option<Arc<Ifaddr>> {
        let epoch = NetEpoch::enter();
        let addrs = ifp.addrs(&epoch);
        let near = |ia: &&Arc<Ifaddr>| ia.has_neighbour(addr);
        addrs.iter().find(near).or(addrs.first()).cloned()
    }
}

impl InAddr for Ipv6Addr {
    type Bits = u128;
    type Ifaddr = In6Ifaddr;

    #[inline]
    fn bits(self) -> u128 {
        self.to_bits()
    }

    fn of_bits(bits: u128) -> Self {
        Self::from_bits(bits)
    }

    #[inline]
    fn link_mtu(ifp: &Ifnet) -> u32 {
        ifp.link_mtu6()
    }

    /// None: the source is chosen for each destination (RFC 6724).
    fn ifa_for(_ifp: &Ifnet, _addr: Self) -> Option<Arc<In6Ifaddr>> {
        None
    }
}

/// A route as it is added.
pub struct RouteSpec<A: InAddr = Ipv4Addr> {
    /// Network or host.
    pub dst: A,
    /// Prefix length.
    pub prefix_len: u8,
    /// Gateway; none for a route on the link.
    pub gw: Option<A>,
    /// Interface.
    pub ifp: Arc<Ifnet>,
    /// Preferred source; none: the interface's address on the network of the gateway, or its first.
    pub ifa: Option<Arc<A::Ifaddr>>,
    /// Flags (UP is added).
    pub flags: RtFlags,
    /// MTU; 0 means the interface's.
    pub mtu: u32,
}

/// A route as `netstat -rn` shows it.
pub struct RouteEntry<A: InAddr = Ipv4Addr> {
    /// Network or host.
    pub dst: A,
    /// Prefix length.
    pub prefix_len: u8,
    /// Where it leads.
    pub nhop: Arc<Nexthop<A>>,
}

/// Routes from which on the compiled table gets an index by the upper 16 bits.
const INDEX_FROM: usize = 64;
/// No route.
const NO_NHOP: u32 = u32::MAX;

/// The table that packets use.
struct Fib<A: InAddr> {
    /// First address of each range, ascending; the first is 0.
    starts: Vec<A::Bits>,
    /// Which next hop the range has.
    nhops: Vec<u32>,
    /// For each value of the upper 16 bits, the last range that starts at or before its first address.
    index: Option<Box<[u32]>>,
    table: Vec<Arc<Nexthop<A>>>,
}

impl<A: InAddr> Fib<A> {
    fn empty() -> Self {
        Fib {
            starts: vec![A::Bits::ZERO],
            nhops: vec![NO_NHOP],
            index: None,
            table: Vec::new(),
        }
    }

    /// Compiles the prefixes of `tree`, which come in order, into ranges that do not overlap.
    fn compile(tree: &Tree<A>) -> Self {
        let mut fib = Self::empty();
        let mut open: Vec<(Prefix<A::Bits>, u32)> = Vec::new();
        for (prefix, nhop) in tree.iter() {
            while let Some(&(outer, _)) = open.last() {
                if outer.covers(prefix.first()) {
                    break;
                }
                open.pop();
                fib.resume(outer, open.last());
            }
            let n = fib.intern(nhop);
            fib.begin(prefix.first(), n);
            open.push((prefix, n));
        }
        while let Some((inner, _)) = open.pop() {
            fib.resume(inner, open.last());
        }
        if fib.starts.len() >= INDEX_FROM {
            fib.build_index();
        }
        fib
    }

    /// Behind `inner` its surrounding prefix goes on, or nothing.
    fn resume(&mut self, inner: Prefix<A::Bits>, outer: Option<&(Prefix<A::Bits>, u32)>) {
        if let Some(after) = inner.last().successor() {
            self.begin(after, outer.map_or(NO_NHOP, |&(_, n)| n));
        }
    }

    fn begin(&mut self, start: A::Bits, nhop: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.nhops.pop();
        }
        if self.nhops.last() != Some(&nhop) {
            self.starts.push(start);
            self.nhops.push(nhop);
        }
    }

    fn intern(&mut self, nhop: &Arc<Nexthop<A>>) -> u32 {
        // Routes through one gateway share their next hop; neighbours in order mostly do.
        if let Some(last) = self.table.last()
            && Arc::ptr_eq(last, nhop)
        {
            return (self.table.len() - 1) as u32;
        }
        self.table.push(nhop.clone());
        (self.table.len() - 1) as u32
    }

    fn build_index(&mut self) {
        let mut index = vec![0u32; 1 << 16].into_boxed_slice();
        let mut range = 0;
        for (upper, slot) in index.iter_mut().enumerate() {
            let first = A::Bits::from_upper(upper as u16);
            while self
                .starts
                .get(range + 1)
                .is_some_and(|&start| start <= first)
            {
                range += 1;
            }
            *slot = range as u32;
        }
        self.index = Some(index);
    }

    #[inline]
    fn lookup(&self, addr: A::Bits) -> Option<&Arc<Nexthop<A>>> {
        let (from, to) = match &self.index {
            None => (0, self.starts.len()),
            Some(index) => {
                let upper = usize::from(addr.upper());
                let from = index[upper] as usize;
                let to = index
                    .get(upper + 1)
                    .map_or(self.starts.len(), |&next| next as usize + 1);
                (from, to)
            }
        };
        let slice = self.starts.get(from..to)?;
        let range = from
            + slice
                .partition_point(|&start| start <= addr)
                .checked_sub(1)?;
        self.table.get(*self.nhops.get(range)? as usize)
    }
}

type Tree<A> = RadixTree<Arc<Nexthop<A>>, <A as InAddr>::Bits>;

/// The routing table of one family in one instance.
pub struct Rib<A: InAddr = Ipv4Addr> {
    tree: Mutex<Tree<A>, RibClass>,
    fib: EpochCell<Fib<A>>,
    generation: AtomicU32,
}

impl Rib<Ipv4Addr> {
    /// The next hop towards `dst`: longest prefix, no lock. None where its interface has no link.
    #[inline]
    pub fn fib4_lookup<'e>(
        &'e self,
        dst: Ipv4Addr,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Nexthop>> {
        let nhop = self.fib.load(epoch).lookup(dst.to_bits());
        nhop.filter(|nhop| nhop.nh_ifp.rt_link_is_up())
    }
}

impl Rib<Ipv6Addr> {
    /// The next hop towards `dst`, a scope embedded if it has one: longest prefix, no lock. None where its interface has
    /// no link.
    #[inline]
    pub fn fib6_lookup<'e>(
        &'e self,
        dst: Ipv6Addr,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Nexthop<Ipv6Addr>>> {
        let nhop = self.fib.load(epoch).lookup(dst.to_bits());
        nhop.filter(|nhop| nhop.nh_ifp.rt_link_is_up())
    }
}

impl<A: InAddr> Rib<A> {
    /// An empty table.
    pub fn new() -> Self {
        Rib {
            tree: Mutex::new(RadixTree::new()),
            fib: EpochCell::new(Fib::empty()),
            generation: AtomicU32::new(1),
        }
    }

    /// Changes whenever the table does; for cached next hops.
    #[doc(alias = "rib_gencount")]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Adds a route; EEXIST if the prefix is there.
    #[doc(alias = "rib_add_route")]
    pub fn add(&self, spec: RouteSpec<A>) -> Result<(), Errno> {
        let prefix = spec.prefix();
        let mut tree = self.tree.lock();
        if tree.get(prefix).is_some() {
            return Err(Errno::EEXIST);
        }
        tree.insert(prefix, Arc::new(spec.into_nexthop()));
        self.recompile(&tree);
        Ok(())
    }

    /// Removes a route; ESRCH if there is none.
    #[doc(alias = "rib_del_route")]
    pub fn delete(&self, dst: A, prefix_len: u8) -> Result<RouteEntry<A>, Errno> {
        let prefix = Prefix::new(dst.bits(), prefix_len);
        let mut tree = self.tree.lock();
        let nhop = tree.remove(prefix).ok_or(Errno::ESRCH)?;
        self.recompile(&tree);
        Ok(RouteEntry::new(prefix, nhop))
    }

    /// Replaces a route's next hop; ESRCH if there is none.
    #[doc(alias = "rib_change_route")]
    pub fn change(&self, spec: RouteSpec<A>) -> Result<(), Errno> {
        let prefix = spec.prefix();
        let mut tree = self.tree.lock();
        let nhop = tree.get_mut(prefix).ok_or(Errno::ESRCH)?;
        *nhop = Arc::new(spec.into_nexthop());
        self.recompile(&tree);
        Ok(())
    }

    /// The exact route.
    pub fn get(&self, dst: A, prefix_len: u8) -> Option<RouteEntry<A>> {
        let prefix = Prefix::new(dst.bits(), prefix_len);
        let tree = self.tree.lock();
        tree.get(prefix)
            .map(|nhop| RouteEntry::new(prefix, nhop.clone()))
    }

    /// The route that a packet to `dst` takes (`route get`).
    pub fn lookup_entry(&self, dst: A) -> Option<RouteEntry<A>> {
        let tree = self.tree.lock();
        tree.longest(dst.bits())
            .map(|(prefix, nhop)| RouteEntry::new(prefix, nhop.clone()))
    }

    /// All routes in order of prefix.
    #[doc(alias = "rib_walk")]
    pub fn dump(&self) -> Vec<RouteEntry<A>> {
        let tree = self.tree.lock();
        tree.iter()
            .map(|(prefix, nhop)| RouteEntry::new(prefix, nhop.clone()))
            .collect()
    }

    /// Removes every route through `ifp`.
    #[doc(alias = "rt_ifdetach")]
    pub fn purge_ifp(&self, ifp: &Ifnet) {
        self.purge(|nhop| nhop.nh_ifp.if_index == ifp.if_index);
    }

    /// Removes every route whose preferred source is `ifa`, but for those with a flag of `but`.
    #[doc(alias = "in_ifadown")]
    pub fn purge_ifa(&self, ifa: &Arc<A::Ifaddr>, but: RtFlags) {
        self.purge(|nhop| {
            let own = nhop.nh_ifa.as_ref();
            own.is_some_and(|own| Arc::ptr_eq(own, ifa)) && !nhop.nh_flags.intersects(but)
        });
    }

    fn purge(&self, goes: impl Fn(&Nexthop<A>) -> bool) {
        let mut tree = self.tree.lock();
        let gone: Vec<Prefix<A::Bits>> = tree
            .iter()
            .filter(|(_, nhop)| goes(nhop))
            .map(|(prefix, _)| prefix)
            .collect();
        for prefix in &gone {
            tree.remove(*prefix);
        }
        if !gone.is_empty() {
            self.recompile(&tree);
        }
    }

    /// Gives the routes through `ifp` that have no MTU of their own the interface's present one.
    pub fn refresh_mtu(&self, ifp: &Ifnet) {
        let mut tree = self.tree.lock();
        let stale: Vec<_> = tree
            .iter()
            .filter(|(_, nh)| {
                nh.nh_ifp.if_index == ifp.if_index && !nh.nh_flags.contains(RtFlags::FIXEDMTU)
            })
            .map(|(prefix, nh)| (prefix, nh.clone()))
            .collect();
        if stale.is_empty() {
            return;
        }
        for (prefix, nhop) in stale {
            let fresh = Nexthop {
                nh_mtu: ifp.mtu(),
                ..nhop.copy()
            };
            tree.insert(prefix, Arc::new(fresh));
        }
        self.recompile(&tree);
    }

    fn recompile(&self, tree: &Tree<A>) {
        self.fib.replace(Box::new(Fib::compile(tree)));
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl<A: InAddr> RouteSpec<A> {
    fn prefix(&self) -> Prefix<A::Bits> {
        Prefix::new(self.dst.bits(), self.prefix_len)
    }

    fn into_nexthop(self) -> Nexthop<A> {
        let mut flags = self.flags | RtFlags::UP;
        flags.set(RtFlags::GATEWAY, self.gw.is_some());
        flags.set(RtFlags::HOST, self.prefix_len == A::Bits::LEN);
        flags.set(RtFlags::FIXEDMTU, self.mtu != 0);
        let neighbour = self.gw.unwrap_or(self.dst);
        Nexthop {
            nh_ifa: self.ifa.or_else(|| A::ifa_for(&self.ifp, neighbour)),
            nh_mtu: if self.mtu != 0 {
                self.mtu
            } else {
                self.ifp.mtu()
            },
            nh_ifp: self.ifp,
            gw: self.gw,
            nh_flags: flags,
        }
    }
}

impl<A: InAddr> RouteEntry<A> {
    fn new(prefix: Prefix<A::Bits>, nhop: Arc<Nexthop<A>>) -> Self {
        RouteEntry {
            dst: A::of_bits(prefix.first()),
            prefix_len: prefix.bits(),
            nhop,
        }
    }
}

impl<A: InAddr> Clone for RouteSpec<A> {
    fn clone(&self) -> Self {
        Self {
            ifp: self.ifp.clone(),
            ifa: self.ifa.clone(),
            ..*self
        }
    }
}

impl<A: InAddr> Clone for RouteEntry<A> {
    fn clone(&self) -> Self {
        Self {
            nhop: self.nhop.clone(),
            ..*self
        }
    }
}

impl<A: InAddr> Default for Rib<A> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;
    use crate::mbuf::Mbuf;
    use crate::net::ifnet::{IfDriver, IfnetInit};
    use crate::net::vnet::Vnet;

    struct Nowhere;
    impl IfDriver for Nowhere {
        fn transmit(&self, _ifp: &Ifnet, _m: Mbuf) -> Result<(), Errno> {
            Ok(())
        }
    }

    fn spec(ifp: &Arc<Ifnet>, dst: u32, prefix_len: u8, mark: u32) -> RouteSpec {
        RouteSpec {
            dst: Ipv4Addr::from_bits(dst),
            prefix_len,
            gw: Some(Ipv4Addr::from_bits(mark)),
            ifp: ifp.clone(),
            ifa: None,
            flags: RtFlags::STATIC,
            mtu: 0,
        }
    }

    /// xorshift64*: the table and the questions asked of it differ from seed to seed and not from run to run.
    struct Random(u64);
    impl Random {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
        }
    }

    #[test]
    fn lookups_agree_with_a_search_through_all_routes_while_the_table_changes() {
        for seed in 1..12u64 {
            Machine::builder().run(move || {
                let vnet = Vnet::new("test");
                let ifp = vnet.if_attach(
                    IfnetInit::ether("t", 0, [2, 0, 0, 0, 0, 1]),
                    Arc::new(Nowhere),
                );
                let mut random = Random(seed);
                let mut linear: Vec<(Prefix, u32)> = Vec::new();
                // Few bits in play, so that prefixes nest and collide.
                let address =
                    |r: u32| (r & 0x0f) << 28 | (r & 0xf0) << 12 | (r & 0xf00) >> 4 | r >> 28;
                for round in 0..300u32 {
                    let prefix = Prefix::new(address(random.next()), (random.next() % 33) as u8);
                    let (dst, len) = (Ipv4Addr::from_bits(prefix.first()), prefix.bits());
                    let known = linear.iter().position(|(p, _)| *p == prefix);
                    match (random.next() % 4, known) {
                        (0, Some(at)) => {
                            assert!(vnet.rib.delete(dst, len).is_ok());
                            linear.remove(at);
                        }
                        (1, Some(at)) => {
                            assert!(
                                vnet.rib
                                    .change(spec(&ifp, prefix.first(), len, round))
                                    .is_ok()
                            );
                            linear[at].1 = round;
                        }
                        (_, Some(_)) => {
                            let again = vnet.rib.add(spec(&ifp, prefix.first(), len, round));
                            assert_eq!(again, Err(Errno::EEXIST));
                        }
                        (_, None) => {
                            assert!(vnet.rib.delete(dst, len).is_err());
                            vnet.rib
                                .add(spec(&ifp, prefix.first(), len, round))
                                .unwrap();
                            linear.push((prefix, round));
                        }
                    }
                    let epoch = NetEpoch::enter();
                    for _ in 0..50 {
                        let addr = address(random.next());
                        let expect = linear
                            .iter()
                            .filter(|(p, _)| p.covers(addr))
                            .max_by_key(|(p, _)| p.bits());
                        let found = vnet.rib.fib4_lookup(Ipv4Addr::from_bits(addr), &epoch);
                        let gateway = found.and_then(|nh| nh.gw).map(Ipv4Addr::to_bits);
                        assert_eq!(
                            gateway,
                            expect.map(|(_, mark)| *mark),
                            "seed {seed} round {round}"
                        );
                    }
                }
                assert_eq!(vnet.rib.dump().len(), linear.len());
                vnet.destroy();
            });
        }
    }

    #[test]
    fn a_cached_next_hop_is_known_to_be_stale_after_any_change() {
        Machine::builder().run(|| {
            let vnet = Vnet::new("test");
            let ifp = vnet.if_attach(
                IfnetInit::ether("t", 0, [2, 0, 0, 0, 0, 1]),
                Arc::new(Nowhere),
            );
            let before = vnet.rib.generation();
            vnet.rib.add(spec(&ifp, 0, 0, 1)).unwrap();
            assert_ne!(vnet.rib.generation(), before);
            vnet.destroy();
            assert!(vnet.rib.dump().is_empty());
        });
    }

    #[test]
    fn the_routes_follow_the_mtu_of_their_interface() {
        Machine::builder().run(|| {
            let vnet = Vnet::new("test");
            let ifp = vnet.if_attach(
                IfnetInit::ether("t", 0, [2, 0, 0, 0, 0, 1]),
                Arc::new(Nowhere),
            );
            vnet.rib.add(spec(&ifp, 0x0a00_0000, 8, 1)).unwrap();
            ifp.set_mtu(1400).unwrap();
            let epoch = NetEpoch::enter();
            let nhop = vnet
                .rib
                .fib4_lookup(Ipv4Addr::new(10, 1, 1, 1), &epoch)
                .unwrap();
            assert_eq!(nhop.nh_mtu, 1400);
            drop(epoch);
            vnet.destroy();
        });
    }
}
