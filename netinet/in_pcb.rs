//! Internet protocol control blocks: who talks to whom, and how a packet finds its socket.
//!
//! FreeBSD: sys/netinet/in_pcb.c, in_pcb.h
//! Differs from FreeBSD: the control block of the protocol above (`P`) lies inside the one lock; hash chains link small
//! immutable nodes instead of the control blocks themselves, so that a reader without a lock never follows a block
//! from one chain into another.

use crate::ip::in_multicast;
use crate::ip_var::{IpMoptions, IpOptions};
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::net::Ipv4Addr;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_rwlock::{RwLock, RwReadGuard, RwWriteGuard};
use sys::kern::lock_order::{InpClass, PcbHash};
use sys::kern::subr_epoch::{EpochArc, NetEpoch};
use sys::machine;
use sys::mbuf::HashType;
use sys::net::if_llatbl::LlEntry;
use sys::net::ifnet::{IfFlags, Ifaddr};
use sys::net::nhop::Nexthop;
use sys::socket::{SoOptions, SockAddr, SockAddrIn};
use sys::socketvar::Socket;

bitflags! {
    /// `inp_flags`, with FreeBSD's numbers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InpFlags: u32 {
        /// Receive the options of a datagram.
        const RECVOPTS = 0x1;
        /// Receive the options for a reply.
        const RECVRETOPTS = 0x2;
        /// Receive the destination address.
        const RECVDSTADDR = 0x4;
        /// The program supplies the whole IP header.
        const HDRINCL = 0x8;
        /// Anonymous port from the high range.
        const HIGHPORT = 0x10;
        /// Anonymous port from the low range.
        const LOWPORT = 0x20;
        /// The port was chosen by us.
        const ANONPORT = 0x40;
        /// Receive the interface.
        const RECVIF = 0x80;
        /// Path MTU discovery.
        const MTUDISC = 0x100;
        /// Receive the time to live.
        const RECVTTL = 0x400;
        /// Never fragment.
        const DONTFRAG = 0x800;
        /// May bind to addresses that are not ours.
        const BINDANY = 0x1000;
        /// In the hash tables.
        const INHASHLIST = 0x2000;
        /// Receive the type of service.
        const RECVTOS = 0x4000;
        /// Broadcasts go to 255.255.255.255.
        const ONESBCAST = 0x0200_0000;
        /// The protocol has let go of the block.
        const DROPPED = 0x0400_0000;
        /// The block holds its socket after the program left it.
        const SOCKREF = 0x0800_0000;
        /// Unlinked from every table (`INP_FREED`).
        const FREED = 0x1000_0000;
    }
}

/// Addresses and ports of a connection; ports in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InConninfo {
    /// Foreign address.
    pub inc_faddr: Ipv4Addr,
    /// Local address.
    pub inc_laddr: Ipv4Addr,
    /// Foreign port.
    pub inc_fport: u16,
    /// Local port.
    pub inc_lport: u16,
}

impl InConninfo {
    /// Nothing bound, nothing connected.
    pub const UNBOUND: Self = Self {
        inc_faddr: Ipv4Addr::UNSPECIFIED,
        inc_laddr: Ipv4Addr::UNSPECIFIED,
        inc_fport: 0,
        inc_lport: 0,
    };
}

/// The part of a control block that every protocol has; under the block's lock.
pub struct InpHdr {
    /// Addresses and ports. Only this file changes them.
    pub inp_inc: InConninfo,
    /// Flags.
    pub inp_flags: InpFlags,
    /// Time to live of what is sent.
    pub inp_ip_ttl: u8,
    /// Type of service of what is sent.
    pub inp_ip_tos: u8,
    /// Packets with a smaller time to live are not for us (`IP_MINTTL`).
    pub inp_ip_minttl: u8,
    /// Kind of `inp_flowid`.
    pub inp_flowtype: HashType,
    /// Flow of the packets received, given to those sent, so that both use the same queue.
    pub inp_flowid: u32,
    /// The socket, until it is detached.
    pub inp_socket: Option<Arc<Socket>>,
    /// Options of what is sent.
    pub inp_options: Option<Box<IpOptions>>,
    /// Multicast options.
    pub inp_moptions: Option<Box<IpMoptions>>,
}

impl InpHdr {
    /// Foreign address.
    pub fn faddr(&self) -> Ipv4Addr {
        self.inp_inc.inc_faddr
    }

    /// Local address.
    pub fn laddr(&self) -> Ipv4Addr {
        self.inp_inc.inc_laddr
    }

    /// Foreign port.
    pub fn fport(&self) -> u16 {
        self.inp_inc.inc_fport
    }

    /// Local port.
    pub fn lport(&self) -> u16 {
        self.inp_inc.inc_lport
    }

    /// Sets addresses of a block that no hash chain knows: a raw socket's.
    pub(crate) fn set_addresses(&mut self, laddr: Option<Ipv4Addr>, faddr: Option<Ipv4Addr>) {
        self.inp_inc.inc_laddr = laddr.unwrap_or(self.laddr());
        self.inp_inc.inc_faddr = faddr.unwrap_or(self.faddr());
    }

    /// Whether the block has been connected to a peer.
    pub fn is_connected(&self) -> bool {
        self.faddr() != Ipv4Addr::UNSPECIFIED
    }

    /// The local address as a socket address.
    pub fn sockaddr(&self) -> SockAddr {
        SockAddr::v4(self.laddr(), self.lport())
    }

    /// The peer's address as a socket address.
    pub fn peeraddr(&self) -> SockAddr {
        SockAddr::v4(self.faddr(), self.fport())
    }
}

/// What the lock of a control block protects; derefs to its general part.
pub struct Inp<P> {
    /// The part every protocol has.
    pub hdr: InpHdr,
    /// The protocol's own part.
    pub ppcb: P,
}

impl<P> Deref for Inp<P> {
    type Target = InpHdr;

    fn deref(&self) -> &InpHdr {
        &self.hdr
    }
}

impl<P> DerefMut for Inp<P> {
    fn deref_mut(&mut self) -> &mut InpHdr {
        &mut self.hdr
    }
}

/// Reading access to a control block.
pub type InpRead<'a, P> = RwReadGuard<'a, Inp<P>, InpClass>;
/// Writing access to a control block.
pub type InpWrite<'a, P> = RwWriteGuard<'a, Inp<P>, InpClass>;

/// A control block.
#[repr(align(64))]
pub struct Inpcb<P: Send + Sync + 'static> {
    /// The stack instance.
    pub inp_vnet: Arc<InetVnet>,
    /// Protocol number.
    pub inp_ip_p: u8,
    /// Order of creation.
    pub inp_gencnt: u64,
    /// Where packets to the peer go, remembered.
    pub inp_route: Route,
    this: Weak<Inpcb<P>>,
    /// `SO_REUSEADDR` and `SO_REUSEPORT` of the socket, for others who bind.
    reuse: AtomicU32,
    /// Place in `PcbTables::list`; under the hash lock.
    list_slot: AtomicUsize,
    /// Place in the port's list; under the hash lock.
    port_slot: AtomicUsize,
    lock: RwLock<Inp<P>, InpClass>,
}

impl<P: Send + Sync + 'static> Inpcb<P> {
    /// Locks the block for reading.
    #[doc(alias = "INP_RLOCK")]
    #[track_caller]
    pub fn read(&self) -> InpRead<'_, P> {
        self.lock.read()
    }

    /// Locks the block for writing.
    #[doc(alias = "INP_WLOCK")]
    #[track_caller]
    pub fn write(&self) -> InpWrite<'_, P> {
        self.lock.write()
    }

    /// Locks the block for writing if nobody else holds it.
    #[doc(alias = "INP_TRY_WLOCK")]
    #[track_caller]
    pub fn try_write(&self) -> Option<InpWrite<'_, P>> {
        self.lock.try_write()
    }

    /// One more reference to the block (`in_pcbref`).
    pub fn arc(&self) -> Arc<Self> {
        // A caller that can name the block holds a reference, so this cannot fail.
        self.this
            .upgrade()
            .expect("a control block in use is referenced")
    }

    /// Takes over `SO_REUSEADDR` and `SO_REUSEPORT` from the socket's options.
    pub fn set_reuse(&self, so_options: SoOptions) {
        self.reuse
            .store((so_options & REUSE).bits(), Ordering::Relaxed);
    }

    fn reuse(&self) -> SoOptions {
        SoOptions::from_bits_retain(self.reuse.load(Ordering::Relaxed))
    }
}

/// The options that let several sockets share an address.
const REUSE: SoOptions = SoOptions::REUSEADDR.union(SoOptions::REUSEPORT);

/// A remembered route: next hop and neighbour, valid while the routing table stands unchanged.
///
/// Read without a lock under the epoch; whoever finds it stale replaces it.
#[derive(Default)]
pub struct Route {
    cell: EpochArc<RouteCache>,
}

/// What a [`Route`] remembers.
pub struct RouteCache {
    /// For this destination.
    pub dst: Ipv4Addr,
    /// Generation of the routing table at the time.
    pub generation: u32,
    /// Where to.
    pub nhop: Arc<Nexthop>,
    /// The neighbour to give it to, on links that have neighbours.
    pub lle: Option<Arc<LlEntry>>,
}

impl Route {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is remembered for `dst`, if it still holds.
    pub fn get<'e>(&'e self, cx: &NetCx<'e>, dst: Ipv4Addr) -> Option<&'e RouteCache> {
        let entry = self.cell.load(cx.epoch)?;
        (entry.dst == dst && entry.generation == cx.vnet.rib.generation()).then_some(entry)
    }

    /// Remembers.
    pub fn set(&self, entry: RouteCache) {
        self.cell.replace(Some(Arc::new(entry)));
    }

    /// Forgets.
    #[doc(alias = "RO_INVALIDATE_CACHE")]
    pub fn clear(&self) {
        self.cell.replace(None);
    }
}

/// A link of a hash chain: never changes but for what follows it.
struct PcbNode<P: Send + Sync + 'static> {
    inc: InConninfo,
    inp: Arc<Inpcb<P>>,
    next: EpochArc<PcbNode<P>>,
}

/// A port in use.
struct PortEntry<P: Send + Sync + 'static> {
    inc: InConninfo,
    inp: Arc<Inpcb<P>>,
}

/// What the hash lock protects.
struct PcbTables<P: Send + Sync + 'static> {
    /// Bound blocks by local port.
    ports: Box<[Vec<PortEntry<P>>]>,
    /// All blocks.
    list: Vec<Arc<Inpcb<P>>>,
}

/// Whether a lookup may return a block that is bound but not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Only the connection itself.
    Exact,
    /// The connection, else whoever listens (`INPLOOKUP_WILDCARD`).
    Wildcard,
}

/// Where ephemeral ports come from, as the sysctls say.
#[derive(Clone, Copy, Debug)]
pub struct PortRange {
    /// Where the range begins.
    pub first: u16,
    /// Where it ends (may be below `first`).
    pub last: u16,
    /// Whether to start at a random place.
    pub randomized: bool,
}

/// All control blocks of one protocol.
#[doc(alias = "inpcbinfo")]
pub struct Pcbinfo<P: Send + Sync + 'static> {
    /// The protocol's name.
    pub ipi_name: &'static str,
    proto: u8,
    hashseed: u32,
    gencnt: AtomicU64,
    lastport: AtomicU32,
    /// Connected blocks.
    exact: Box<[EpochArc<PcbNode<P>>]>,
    /// Bound, unconnected blocks by local port.
    wild: Box<[EpochArc<PcbNode<P>>]>,
    tables: Mutex<PcbTables<P>, PcbHash>,
}

fn chains<T>(n: usize) -> Box<[EpochArc<T>]>
where
    T: Send + Sync + 'static,
{
    (0..n).map(|_| EpochArc::default()).collect()
}

/// Jenkins' hash of one word (lookup3).
#[doc(alias = "jenkins_hash32")]
fn jhash32(word: u32, seed: u32) -> u32 {
    let mut a = 0xdead_beef_u32.wrapping_add(4).wrapping_add(seed);
    let mut b = a;
    let mut c = a;
    a = a.wrapping_add(word);
    c ^= b;
    c = c.wrapping_sub(b.rotate_left(14));
    a ^= c;
    a = a.wrapping_sub(c.rotate_left(11));
    b ^= a;
    b = b.wrapping_sub(a.rotate_left(25));
    c ^= b;
    c = c.wrapping_sub(b.rotate_left(16));
    a ^= c;
    a = a.wrapping_sub(c.rotate_left(4));
    b ^= a;
    b = b.wrapping_sub(a.rotate_left(14));
    c ^= b;
    c.wrapping_sub(b.rotate_left(24))
}

impl<P: Send + Sync + 'static> Pcbinfo<P> {
    /// An empty table with `hashsize` chains (a power of two; rounded up).
    #[doc(alias = "in_pcbinfo_init")]
    pub fn new(
        name: &'static str,
        proto: u8,
        hashsize: usize,
        porthashsize: usize,
        hashseed: u32,
    ) -> Self {
        let hashsize = hashsize.next_power_of_two();
        let porthashsize = porthashsize.next_power_of_two();
        Self {
            ipi_name: name,
            proto,
            hashseed,
            gencnt: AtomicU64::new(0),
            lastport: AtomicU32::new(0),
            exact: chains(hashsize),
            wild: chains(porthashsize),
            tables: Mutex::new(PcbTables {
                ports: (0..porthashsize).map(|_| Vec::new()).collect(),
                list: Vec::new(),
            }),
        }
    }

    /// Makes a control block that is not bound.
    #[doc(alias = "in_pcballoc")]
    pub fn alloc(&self, inet: &Arc<InetVnet>, so: Option<&Arc<Socket>>, ppcb: P) -> Arc<Inpcb<P>> {
        let mut tables = self.tables.lock();
        let inp = Arc::new_cyclic(|this| Inpcb {
            inp_vnet: inet.clone(),
            inp_ip_p: self.proto,
            inp_gencnt: self.gencnt.fetch_add(1, Ordering::Relaxed) + 1,
            inp_route: Route::new(),
            this: this.clone(),
            reuse: AtomicU32::new(0),
            list_slot: AtomicUsize::new(tables.list.len()),
            port_slot: AtomicUsize::new(usize::MAX),
            lock: RwLock::new(Inp {
                hdr: InpHdr {
                    inp_inc: InConninfo::UNBOUND,
                    inp_flags: InpFlags::empty(),
                    inp_ip_ttl: inet.ip.ttl.get() as u8,
                    inp_ip_tos: 0,
                    inp_ip_minttl: 0,
                    inp_flowtype: HashType::NONE,
                    inp_flowid: 0,
                    inp_socket: so.cloned(),
                    inp_options: None,
                    inp_moptions: None,
                },
                ppcb,
            }),
        });
        tables.list.push(inp.clone());
        inp
    }

    /// How many blocks there are.
    pub fn count(&self) -> usize {
        self.tables.lock().list.len()
    }

    /// How many blocks were ever made (`ipi_gencnt`).
    pub fn generation(&self) -> u64 {
        self.gencnt.load(Ordering::Relaxed)
    }

    /// All blocks at this moment, oldest first (for `netstat`, notifications and broadcasts).
    pub fn snapshot(&self) -> Vec<Arc<Inpcb<P>>> {
        let mut all = self.tables.lock().list.clone();
        all.sort_unstable_by_key(|inp| inp.inp_gencnt);
        all
    }

    /// The blocks bound to `lport` at this moment.
    pub fn snapshot_port(&self, lport: u16) -> Vec<Arc<Inpcb<P>>> {
        let tables = self.tables.lock();
        let Some(bucket) = tables.ports.get(self.port_index(lport)) else {
            return Vec::new();
        };
        bucket
            .iter()
            .filter(|e| e.inc.inc_lport == lport)
            .map(|e| e.inp.clone())
            .collect()
    }

    fn port_index(&self, lport: u16) -> usize {
        usize::from(lport) & (self.wild.len() - 1)
    }

    /// Chain of a connection (`INP_PCBHASH`).
    fn hash(&self, faddr: Ipv4Addr, lport: u16, fport: u16) -> usize {
        let hash = jhash32(faddr.to_bits(), self.hashseed) ^ u32::from(lport ^ fport);
        hash as usize & (self.exact.len() - 1)
    }

    fn chain(&self, inc: &InConninfo) -> Option<&EpochArc<PcbNode<P>>> {
        if inc.inc_faddr != Ipv4Addr::UNSPECIFIED {
            self.exact
                .get(self.hash(inc.inc_faddr, inc.inc_lport, inc.inc_fport))
        } else {
            self.wild.get(self.port_index(inc.inc_lport))
        }
    }

    /// Finds the connection. Takes no lock.
    #[inline]
    fn lookup_exact<'e>(
        &'e self,
        inc: &InConninfo,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Inpcb<P>>> {
        let mut node = self
            .exact
            .get(self.hash(inc.inc_faddr, inc.inc_lport, inc.inc_fport))?
            .load(epoch);
        while let Some(here) = node {
            if here.inc == *inc {
                return Some(&here.inp);
            }
            node = here.next.load(epoch);
        }
        None
    }

    /// Finds who is bound to a local port: to the address itself before any address. Takes no lock.
    fn lookup_wild<'e>(
        &'e self,
        laddr: Ipv4Addr,
        lport: u16,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Inpcb<P>>> {
        let mut node = self.wild.get(self.port_index(lport))?.load(epoch);
        let mut any = None;
        while let Some(here) = node {
            if here.inc.inc_lport == lport {
                if here.inc.inc_laddr == laddr {
                    return Some(&here.inp);
                }
                if here.inc.inc_laddr == Ipv4Addr::UNSPECIFIED && any.is_none() {
                    any = Some(&here.inp);
                }
            }
            node = here.next.load(epoch);
        }
        any
    }

    /// Finds the block for a packet from `inc`'s foreign to its local end. Takes no lock; what it finds may change before
    /// it is locked, see [`Pcbinfo::lookup_write`].
    #[doc(alias = "in_pcblookup")]
    #[inline]
    pub fn lookup<'e>(
        &'e self,
        inc: &InConninfo,
        how: Lookup,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Inpcb<P>>> {
        match (self.lookup_exact(inc, epoch), how) {
            (Some(inp), _) => Some(inp),
            (None, Lookup::Exact) => None,
            (None, Lookup::Wildcard) => self.lookup_wild(inc.inc_laddr, inc.inc_lport, epoch),
        }
    }

    /// Finds the block for a packet and locks it for writing; what it returns still matches `inc`.
    #[track_caller]
    pub fn lookup_write<'e>(
        &'e self,
        inc: &InConninfo,
        how: Lookup,
        epoch: &'e NetEpoch,
    ) -> Option<(&'e Arc<Inpcb<P>>, InpWrite<'e, P>)> {
        // Changes between lookup and lock are rare; a few tries are plenty.
        for _ in 0..4 {
            let inp = self.lookup(inc, how, epoch)?;
            let guard = inp.write();
            if matches(&guard, inc, how) {
                return Some((inp, guard));
            }
        }
        None
    }

    /// Finds the block for a packet and locks it for reading; what it returns still matches `inc`.
    #[track_caller]
    #[inline]
    pub fn lookup_read<'e>(
        &'e self,
        inc: &InConninfo,
        how: Lookup,
        epoch: &'e NetEpoch,
    ) -> Option<(&'e Arc<Inpcb<P>>, InpRead<'e, P>)> {
        for _ in 0..4 {
            let inp = self.lookup(inc, how, epoch)?;
            let guard = inp.read();
            if matches(&guard, inc, how) {
                return Some((inp, guard));
            }
        }
        None
    }

    /// Binds to an address; `None`, or port 0, lets us choose.
    #[doc(alias = "in_pcbbind")]
    pub fn bind(
        &self,
        cx: &NetCx<'_>,
        inp: &Inpcb<P>,
        hdr: &mut InpHdr,
        nam: Option<&SockAddrIn>,
    ) -> Result<(), Errno> {
        if hdr.lport() != 0 || hdr.laddr() != Ipv4Addr::UNSPECIFIED {
            return Err(Errno::EINVAL);
        }
        let (laddr, mut lport) = nam.map_or((Ipv4Addr::UNSPECIFIED, 0), |nam| (nam.addr, nam.port));
        let multicast = in_multicast(laddr);
        if laddr != Ipv4Addr::UNSPECIFIED
            && !multicast
            && !hdr.inp_flags.contains(InpFlags::BINDANY)
            && !cx.vnet.ifaddrs.is_local_or_broadcast(cx.epoch, laddr)
        {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let reuse = inp.reuse();
        let mut tables = self.tables.lock();
        if lport == 0 {
            let free = |port| {
                self.conflict(&tables, laddr, port, true, SoOptions::empty())
                    .is_none()
            };
            lport = self.choose_port(cx, hdr.inp_flags, free)?;
            hdr.inp_flags |= InpFlags::ANONPORT;
        } else {
            // A multicast address is shared by whoever asks for either kind of sharing.
            let reuseport = if multicast && !reuse.is_empty() {
                REUSE
            } else {
                reuse & SoOptions::REUSEPORT
            };
            if self
                .conflict(&tables, laddr, lport, reuse.is_empty(), reuseport)
                .is_some()
            {
                return Err(Errno::EADDRINUSE);
            }
        }
        hdr.inp_inc.inc_laddr = laddr;
        hdr.inp_inc.inc_lport = lport;
        self.insert(&mut tables, inp, hdr);
        Ok(())
    }

    /// Who stands in the way of binding to `laddr:lport` (`in_pcblookup_local`): with `wildcard` any block whose
    /// addresses overlap, else only an unconnected one with the same address; none if both say `reuseport`.
    fn conflict<'t>(
        &self,
        tables: &'t PcbTables<P>,
        laddr: Ipv4Addr,
        lport: u16,
        wildcard: bool,
        reuseport: SoOptions,
    ) -> Option<&'t PortEntry<P>> {
        let bucket = tables.ports.get(self.port_index(lport))?;
        bucket
            .iter()
            .filter(|e| e.inc.inc_lport == lport)
            .find(|e| {
                let collides = if wildcard {
                    e.inc.inc_laddr == laddr
                        || e.inc.inc_laddr == Ipv4Addr::UNSPECIFIED
                        || laddr == Ipv4Addr::UNSPECIFIED
                } else {
                    e.inc.inc_faddr == Ipv4Addr::UNSPECIFIED && e.inc.inc_laddr == laddr
                };
                collides && !e.inp.reuse().intersects(reuseport)
            })
    }

    /// Chooses a local port from the range the socket wants (`in_pcb_lport_dest`): from a random start, one by one.
    fn choose_port(
        &self,
        cx: &NetCx<'_>,
        flags: InpFlags,
        free: impl Fn(u16) -> bool,
    ) -> Result<u16, Errno> {
        let range = cx.vnet.port_range(flags);
        let (low, high) = (range.first.min(range.last), range.first.max(range.last));
        let count = u32::from(high - low).max(1);
        let mut offset = if range.randomized {
            (machine::random_u64() % u64::from(count)) as u32
        } else {
            (self
                .lastport
                .load(Ordering::Relaxed)
                .wrapping_sub(u32::from(low))
                + 1)
                % count
        };
        for _ in 0..=count {
            let port = low + offset as u16;
            if port != 0 && free(port) {
                self.lastport.store(u32::from(port), Ordering::Relaxed);
                return Ok(port);
            }
            offset = (offset + 1) % (count + 1);
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// Connects to `nam`: chooses what is missing of the local end, refuses a tuple that is taken.
    #[doc(alias = "in_pcbconnect")]
    pub fn connect(
        &self,
        cx: &NetCx<'_>,
        inp: &Inpcb<P>,
        hdr: &mut InpHdr,
        nam: &SockAddrIn,
    ) -> Result<(), Errno> {
        if hdr.is_connected() {
            return Err(Errno::EISCONN);
        }
        let (faddr, mut laddr) = self.connect_addrs(cx, hdr, nam)?;
        let fport = nam.port;
        if laddr == Ipv4Addr::UNSPECIFIED {
            laddr = in_pcbladdr(cx, faddr)?;
        }
        let mut inc = InConninfo {
            inc_faddr: faddr,
            inc_laddr: laddr,
            inc_fport: fport,
            inc_lport: hdr.lport(),
        };
        let mut tables = self.tables.lock();
        let free = |inc: &InConninfo| self.lookup_exact(inc, cx.epoch).is_none();
        if inc.inc_lport == 0 {
            inc.inc_lport = self.choose_port(cx, hdr.inp_flags, |lport| {
                free(&InConninfo {
                    inc_lport: lport,
                    ..inc
                })
            })?;
            hdr.inp_flags |= InpFlags::ANONPORT;
        } else if !free(&inc) {
            return Err(Errno::EADDRINUSE);
        }
        self.rehash(&mut tables, inp, hdr, inc);
        Ok(())
    }

    /// The addresses `connect` works with: 0.0.0.0 means this host, 255.255.255.255 the first network.
    fn connect_addrs(
        &self,
        cx: &NetCx<'_>,
        hdr: &InpHdr,
        nam: &SockAddrIn,
    ) -> Result<(Ipv4Addr, Ipv4Addr), Errno> {
        if nam.port == 0 {
            return Err(Errno::EADDRNOTAVAIL);
        }
        Ok((real_faddr(cx, nam.addr)?, hdr.laddr()))
    }

    /// Enters a block whose addresses are already known (a connection that the SYN cache completed). `EADDRINUSE` if
    /// the tuple is taken.
    #[doc(alias = "in_pcbinshash")]
    pub fn insert_connected(
        &self,
        inp: &Inpcb<P>,
        hdr: &mut InpHdr,
        inc: InConninfo,
        epoch: &NetEpoch,
    ) -> Result<(), Errno> {
        let mut tables = self.tables.lock();
        if self.lookup_exact(&inc, epoch).is_some() {
            return Err(Errno::EADDRINUSE);
        }
        self.rehash(&mut tables, inp, hdr, inc);
        Ok(())
    }

    /// Forgets the peer; the local port stays, the local address does not (as FreeBSD's `udp_disconnect` has it).
    #[doc(alias = "in_pcbdisconnect")]
    pub fn disconnect(&self, inp: &Inpcb<P>, hdr: &mut InpHdr) {
        let inc = InConninfo {
            inc_lport: hdr.lport(),
            ..InConninfo::UNBOUND
        };
        let mut tables = self.tables.lock();
        if inc.inc_lport != 0 {
            self.rehash(&mut tables, inp, hdr, inc);
        } else {
            self.remove(&mut tables, inp, hdr);
            hdr.inp_inc = inc;
        }
        drop(tables);
        inp.inp_route.clear();
    }

    /// Takes the block out of the lookup tables: packets no longer find it (`in_pcbdrop`).
    #[doc(alias = "in_pcbdrop")]
    pub fn drop_pcb(&self, inp: &Inpcb<P>, hdr: &mut InpHdr) {
        hdr.inp_flags |= InpFlags::DROPPED;
        let mut tables = self.tables.lock();
        self.remove(&mut tables, inp, hdr);
    }

    /// Takes the block out of all tables, and its socket from it. The memory goes with the last reference.
    #[doc(alias = "in_pcbfree")]
    #[doc(alias = "in_pcbdetach")]
    pub fn free(&self, inp: &Inpcb<P>, hdr: &mut InpHdr) -> Option<Arc<Socket>> {
        if hdr.inp_flags.contains(InpFlags::FREED) {
            return hdr.inp_socket.take();
        }
        hdr.inp_flags |= InpFlags::DROPPED | InpFlags::FREED;
        let mut tables = self.tables.lock();
        self.remove(&mut tables, inp, hdr);
        let slot = inp.list_slot.load(Ordering::Relaxed);
        let listed = tables
            .list
            .get(slot)
            .is_some_and(|listed| core::ptr::eq(&**listed, inp));
        let entry = listed.then(|| tables.list.swap_remove(slot));
        if let Some(moved) = tables.list.get(slot) {
            moved.list_slot.store(slot, Ordering::Relaxed);
        }
        drop(tables);
        inp.inp_route.clear();
        // The caller holds another reference, so this is never the last.
        drop(entry);
        hdr.inp_socket.take()
    }

    /// Links a bound block into port list and chain.
    fn insert(&self, tables: &mut PcbTables<P>, inp: &Inpcb<P>, hdr: &mut InpHdr) {
        let inc = hdr.inp_inc;
        if let Some(bucket) = tables.ports.get_mut(self.port_index(inc.inc_lport)) {
            inp.port_slot.store(bucket.len(), Ordering::Relaxed);
            bucket.push(PortEntry {
                inc,
                inp: inp.arc(),
            });
        }
        self.link(inp, inc);
        hdr.inp_flags |= InpFlags::INHASHLIST;
    }

    /// Moves a block to where its new addresses belong; in between it stands in both places, so that no packet misses it
    /// (`in_pcbrehash`).
    fn rehash(&self, tables: &mut PcbTables<P>, inp: &Inpcb<P>, hdr: &mut InpHdr, inc: InConninfo) {
        let old = hdr.inp_inc;
        if !hdr.inp_flags.contains(InpFlags::INHASHLIST) || old.inc_lport != inc.inc_lport {
            self.remove(tables, inp, hdr);
            hdr.inp_inc = inc;
            self.insert(tables, inp, hdr);
            return;
        }
        let slot = inp.port_slot.load(Ordering::Relaxed);
        if let Some(bucket) = tables.ports.get_mut(self.port_index(inc.inc_lport))
            && let Some(entry) = bucket.get_mut(slot)
        {
            entry.inc = inc;
        }
        self.link(inp, inc);
        hdr.inp_inc = inc;
        self.unlink(inp, &old);
    }

    /// Unlinks a block from port list and chain.
    fn remove(&self, tables: &mut PcbTables<P>, inp: &Inpcb<P>, hdr: &mut InpHdr) {
        if !hdr.inp_flags.contains(InpFlags::INHASHLIST) {
            return;
        }
        hdr.inp_flags -= InpFlags::INHASHLIST;
        let slot = inp.port_slot.load(Ordering::Relaxed);
        if let Some(bucket) = tables.ports.get_mut(self.port_index(hdr.lport()))
            && slot < bucket.len()
        {
            bucket.swap_remove(slot);
            if let Some(moved) = bucket.get(slot) {
                moved.inp.port_slot.store(slot, Ordering::Relaxed);
            }
        }
        self.unlink(inp, &hdr.inp_inc);
    }

    /// Puts a block into the chain of `inc`; the hash lock is held.
    fn link(&self, inp: &Inpcb<P>, inc: InConninfo) {
        if let Some(chain) = self.chain(&inc) {
            let node = PcbNode {
                inc,
                inp: inp.arc(),
                next: EpochArc::default(),
            };
            chain.push_front(Arc::new(node), |node| &node.next);
        }
    }

    /// Takes a block out of the chain of `inc`; the hash lock is held.
    fn unlink(&self, inp: &Inpcb<P>, inc: &InConninfo) {
        let epoch = NetEpoch::enter();
        let mut link = self.chain(inc);
        while let Some(here) = link
            && let Some(node) = here.load(&epoch)
        {
            if core::ptr::eq(&*node.inp, inp) && node.inc == *inc {
                here.replace(node.next.get(&epoch));
                return;
            }
            link = Some(&node.next);
        }
    }

    /// Tells every block that has sent to `faddr` (and port, if not 0) (`in_pcbnotifyall`).
    pub fn notify_all(&self, faddr: Ipv4Addr, mut notify: impl FnMut(&Arc<Inpcb<P>>)) {
        for inp in self.snapshot() {
            if inp.read().faddr() == faddr {
                notify(&inp);
            }
        }
    }
}

/// Whether a block just locked is still the one for a packet of `inc`.
#[inline]
fn matches<P>(inp: &Inp<P>, inc: &InConninfo, how: Lookup) -> bool {
    let own = &inp.hdr.inp_inc;
    let listens = || {
        how == Lookup::Wildcard
            && own.inc_faddr == Ipv4Addr::UNSPECIFIED
            && own.inc_lport == inc.inc_lport
            && (own.inc_laddr == inc.inc_laddr || own.inc_laddr == Ipv4Addr::UNSPECIFIED)
    };
    !inp.hdr.inp_flags.contains(InpFlags::DROPPED) && (*own == *inc || listens())
}

/// Whom `addr` means as a destination: 0.0.0.0 this host, 255.255.255.255 the first network we can broadcast to.
pub fn real_faddr(cx: &NetCx<'_>, addr: Ipv4Addr) -> Result<Ipv4Addr, Errno> {
    if addr == Ipv4Addr::UNSPECIFIED {
        if !cx.vnet.ip.connect_inaddr_wild.get() {
            return Err(Errno::ENETUNREACH);
        }
        return cx
            .vnet
            .ifaddrs
            .first(cx.epoch)
            .map(|ia| ia.ia_addr)
            .ok_or(Errno::ENETUNREACH);
    }
    if addr == Ipv4Addr::BROADCAST {
        return Ok(cx.vnet.ifaddrs.first_broadcast(cx.epoch).unwrap_or(addr));
    }
    Ok(addr)
}

/// The source address for packets to `faddr`, by route.
pub fn in_pcbladdr(cx: &NetCx<'_>, faddr: Ipv4Addr) -> Result<Ipv4Addr, Errno> {
    // To ourselves: the address itself.
    if cx.vnet.ifaddrs.lookup(cx.epoch, faddr).is_some() {
        return Ok(faddr);
    }
    if let Some(nhop) = cx.vnet.rib.fib4_lookup(faddr, cx.epoch) {
        return nhop_source(cx, nhop);
    }
    // Groups need no route: `ip_output` sends them out of the first interface that can.
    let flag = if in_multicast(faddr) {
        IfFlags::MULTICAST
    } else if faddr == Ipv4Addr::BROADCAST {
        IfFlags::BROADCAST
    } else {
        return Err(Errno::ENETUNREACH);
    };
    let ia = group_ifaddr(cx, flag).ok_or(Errno::ENETUNREACH)?;
    Ok(ia.ia_addr)
}

/// The first address on an interface that can multicast or broadcast, as `flag` says.
pub(crate) fn group_ifaddr<'e>(cx: &NetCx<'e>, flag: IfFlags) -> Option<&'e Arc<Ifaddr>> {
    cx.vnet.ifaddrs.all(cx.epoch).iter().find(|ia| {
        let flags = ia.ia_ifp.flags();
        flags.contains(flag) && !flags.contains(IfFlags::LOOPBACK)
    })
}

fn nhop_source(cx: &NetCx<'_>, nhop: &Nexthop) -> Result<Ipv4Addr, Errno> {
    let first = || nhop.nh_ifp.addrs(cx.epoch).first().map(|ia| ia.ia_addr);
    nhop.src().or_else(first).ok_or(Errno::EADDRNOTAVAIL)
}
