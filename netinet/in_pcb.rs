//! Internet protocol control blocks: who talks to whom, and how a packet finds its socket.
//!
//! FreeBSD: sys/netinet/in_pcb.c, in_pcb.h
//! Differs from FreeBSD: the control block of the protocol above (`P`) lies inside the one lock; hash chains link small
//! immutable nodes instead of the control blocks themselves, so that a reader without a lock never follows a block
//! from one chain into another.

use crate::ip::in_multicast;
use crate::ip_var::{IpMoptions, IpOptions};
use crate::netinet6::in6_pcb::in6_pcbladdr;
use crate::netinet6::in6_src::{in6_embedscope, in6_sockaddr};
use crate::vnet::{InetVnet, NetCx};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_rwlock::{RwLock, RwReadGuard, RwWriteGuard};
use sys::kern::lock_order::{InpClass, PcbHash};
use sys::kern::subr_epoch::{EpochArc, NetEpoch};
use sys::machine;
use sys::mbuf::HashType;
use sys::net::if_llatbl::LlEntry;
use sys::net::ifnet::{IfFlags, Ifaddr, In6Iff};
use sys::net::nhop::Nexthop;
use sys::net::route::InAddr;
use sys::socket::{AF_INET6, SoOptions, SockAddr};
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

bitflags! {
    /// Which families a block talks (`inp_vflag`), with FreeBSD's numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InpVflag: u8 {
        /// IPv4.
        const IPV4 = 0x1;
        /// IPv6.
        const IPV6 = 0x2;
        /// The socket is of `AF_INET6`, whatever it talks.
        const IPV6PROTO = 0x4;
    }
}

impl InpVflag {
    /// The family of `addr`.
    #[inline]
    fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::IPV4,
            IpAddr::V6(_) => Self::IPV6,
        }
    }
}

bitflags! {
    /// `inp_flags` of IPv6 sockets (`IN6P_*`): in FreeBSD's word they share bits with those of IPv4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct In6pFlags: u8 {
        /// Nothing of IPv4 on this socket.
        const IPV6_V6ONLY = 0x01;
        /// Receive destination address and interface.
        const PKTINFO = 0x02;
        /// Receive the hop limit.
        const HOPLIMIT = 0x04;
        /// Receive the traffic class.
        const TCLASS = 0x08;
        /// Choose flow labels.
        const AUTOFLOWLABEL = 0x10;
        /// Packets of 1280 bytes at most.
        const USE_MIN_MTU = 0x20;
        /// The program has set the hop limit.
        const HOPS_SET = 0x40;
    }
}

/// The address of no host, of the family of `like`.
#[inline]
pub fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

fn ipv4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Adds an address to a hash.
pub fn hash_addr(hasher: &mut impl Hasher, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => hasher.write(&addr.octets()),
        IpAddr::V6(addr) => hasher.write(&addr.octets()),
    }
}

/// Addresses and ports of a connection; both addresses are of one family; ports in host order.
///
/// Comparing looks at families before addresses, so that IPv4 costs one word more than without IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InConninfo {
    /// Foreign address.
    pub inc_faddr: IpAddr,
    /// Local address.
    pub inc_laddr: IpAddr,
    /// Foreign port.
    pub inc_fport: u16,
    /// Local port.
    pub inc_lport: u16,
}

impl InConninfo {
    /// Nothing bound, nothing connected.
    pub const UNBOUND: Self = Self {
        inc_faddr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        inc_laddr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        inc_fport: 0,
        inc_lport: 0,
    };

    /// The same for a socket of `AF_INET6`.
    pub const UNBOUND6: Self = Self {
        inc_faddr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        inc_laddr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ..Self::UNBOUND
    };

    /// Whether it is of IPv6 (`INC_ISIPV6`).
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.inc_faddr.is_ipv6()
    }
}

/// The part of a control block that every protocol has; under the block's lock.
pub struct InpHdr {
    /// Addresses and ports. Only this file changes them.
    pub inp_inc: InConninfo,
    /// Flags.
    pub inp_flags: InpFlags,
    /// Families.
    pub inp_vflag: InpVflag,
    /// Flags of IPv6.
    pub in6p_flags: In6pFlags,
    /// Hop limit of what is sent by IPv6.
    pub in6p_hops: u8,
    /// Traffic class of what is sent by IPv6.
    pub in6p_tclass: u8,
    /// Flow label of what is sent by IPv6.
    pub inp_flow: u32,
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
    pub fn faddr(&self) -> IpAddr {
        self.inp_inc.inc_faddr
    }

    /// Local address.
    pub fn laddr(&self) -> IpAddr {
        self.inp_inc.inc_laddr
    }

    /// Foreign address of a raw socket, which talks IPv4 alone.
    pub(crate) fn faddr4(&self) -> Ipv4Addr {
        ipv4(self.faddr())
    }

    /// Local address of a raw socket, which talks IPv4 alone.
    pub(crate) fn laddr4(&self) -> Ipv4Addr {
        ipv4(self.laddr())
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
    pub(crate) fn set_addresses(&mut self, laddr: Option<IpAddr>, faddr: Option<IpAddr>) {
        self.inp_inc.inc_laddr = laddr.unwrap_or(self.laddr());
        self.inp_inc.inc_faddr = faddr.unwrap_or(self.faddr());
    }

    /// Whether the block has been connected to a peer.
    pub fn is_connected(&self) -> bool {
        !self.faddr().is_unspecified()
    }

    /// Whether it talks the family of `addr`.
    #[inline]
    pub fn talks(&self, addr: IpAddr) -> bool {
        self.inp_vflag.contains(InpVflag::of(addr))
    }

    /// Whether what it sends goes by IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.inp_inc.is_ipv6()
    }

    /// An address as programs see it on this socket (`in6_mapped_sockaddr`).
    pub fn sockaddr_of(&self, addr: IpAddr, port: u16) -> SockAddr {
        match addr {
            IpAddr::V6(addr) => in6_sockaddr(addr, port),
            IpAddr::V4(addr) if self.inp_vflag.contains(InpVflag::IPV6PROTO) => {
                SockAddr::v6(addr.to_ipv6_mapped(), port)
            }
            IpAddr::V4(addr) => SockAddr::v4(addr, port),
        }
    }

    /// The local address as a socket address.
    pub fn sockaddr(&self) -> SockAddr {
        self.sockaddr_of(self.laddr(), self.lport())
    }

    /// The peer's address as a socket address; `ENOTCONN` without a peer.
    #[doc(alias = "in_getpeeraddr")]
    pub fn peeraddr(&self) -> Result<SockAddr, Errno> {
        if !self.is_connected() {
            return Err(Errno::ENOTCONN);
        }
        Ok(self.sockaddr_of(self.faddr(), self.fport()))
    }

    /// Time to live, or hop limit, of what is sent.
    #[inline]
    pub fn ttl(&self) -> u8 {
        if self.is_ipv6() {
            self.in6p_hops
        } else {
            self.inp_ip_ttl
        }
    }

    /// Type of service, or traffic class, of what is sent.
    #[inline]
    pub fn tos(&self) -> u8 {
        if self.is_ipv6() {
            self.in6p_tclass
        } else {
            self.inp_ip_tos
        }
    }

    /// Sets them.
    pub fn set_marks(&mut self, v6: bool, ttl: u8, tos: u8) {
        if v6 {
            (self.in6p_hops, self.in6p_tclass) = (ttl, tos);
        } else {
            (self.inp_ip_ttl, self.inp_ip_tos) = (ttl, tos);
        }
    }

    /// What a program's address means on this socket: a mapped one is of IPv4 where IPv4 is spoken (RFC 3493 §3.7).
    pub fn inet_addr(&self, cx: &NetCx<'_>, nam: &SockAddr) -> Result<(IpAddr, u16), Errno> {
        match nam {
            SockAddr::In(sin) if !self.inp_vflag.contains(InpVflag::IPV6PROTO) => {
                Ok((sin.addr.into(), sin.port))
            }
            SockAddr::In6(sin6) if self.inp_vflag.contains(InpVflag::IPV6PROTO) => {
                let mapped = sin6.addr.to_ipv4_mapped();
                if let Some(addr) = mapped
                    && !self.in6p_flags.contains(In6pFlags::IPV6_V6ONLY)
                {
                    return Ok((addr.into(), sin6.port));
                }
                let addr = in6_embedscope(cx, sin6.addr, sin6.scope_id)?;
                Ok((addr.into(), sin6.port))
            }
            SockAddr::In(_) | SockAddr::In6(_) => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// The families it talks while it is bound to `laddr`.
    fn vflag_at(&self, laddr: IpAddr) -> InpVflag {
        let proto = self.inp_vflag & InpVflag::IPV6PROTO;
        let dual =
            laddr == Ipv6Addr::UNSPECIFIED && !self.in6p_flags.contains(In6pFlags::IPV6_V6ONLY);
        let mut vflag = proto | InpVflag::of(laddr);
        vflag.set(InpVflag::IPV4, dual || laddr.is_ipv4());
        vflag
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
    /// The same by IPv6.
    pub inp_route6: Route<Ipv6Addr>,
    this: Weak<Inpcb<P>>,
    /// `SO_REUSEADDR`, `SO_REUSEPORT` and `SO_REUSEPORT_LB` of the socket, for others who bind.
    reuse: AtomicU32,
    /// It shares what comes for its address with others (`INP_INLBGROUP`).
    balances: AtomicBool,
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

    /// From now on the block takes its share of what comes for its address, if the socket has `SO_REUSEPORT_LB`.
    #[doc(alias = "in_pcbinslbgrouphash")]
    pub fn join_lbgroup(&self) {
        let balances = self.reuse().contains(SoOptions::REUSEPORT_LB);
        self.balances.store(balances, Ordering::Relaxed);
    }

    fn balances(&self) -> bool {
        self.balances.load(Ordering::Relaxed)
    }

    /// Takes over `SO_REUSEADDR`, `SO_REUSEPORT` and `SO_REUSEPORT_LB` from the socket's options.
    pub fn set_reuse(&self, so_options: SoOptions) {
        self.reuse
            .store((so_options & REUSE).bits(), Ordering::Relaxed);
    }

    /// Forgets the way to the peer.
    #[doc(alias = "RO_INVALIDATE_CACHE")]
    pub fn forget_route(&self) {
        self.inp_route.clear();
        self.inp_route6.clear();
    }

    fn reuse(&self) -> SoOptions {
        SoOptions::from_bits_retain(self.reuse.load(Ordering::Relaxed))
    }
}

/// The options that let several sockets share an address.
const REUSE: SoOptions = SoOptions::REUSEADDR
    .union(SoOptions::REUSEPORT)
    .union(SoOptions::REUSEPORT_LB);

/// A remembered route: next hop and neighbour, valid while the routing table stands unchanged.
///
/// Read without a lock under the epoch; whoever finds it stale replaces it.
pub struct Route<A: InAddr = Ipv4Addr> {
    cell: EpochArc<RouteCache<A>>,
}

/// What a [`Route`] remembers.
pub struct RouteCache<A: InAddr = Ipv4Addr> {
    /// For this destination.
    pub dst: A,
    /// Generation of the routing table at the time.
    pub generation: u32,
    /// Where to.
    pub nhop: Arc<Nexthop<A>>,
    /// The neighbour to give it to, on links that have neighbours.
    pub lle: Option<Arc<LlEntry<A>>>,
}

impl<A: InAddr> Default for Route<A> {
    fn default() -> Self {
        Self {
            cell: EpochArc::default(),
        }
    }
}

impl<A: InAddr> Route<A> {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is remembered for `dst`, if the routing table is still of `generation`.
    #[inline]
    pub fn get<'e>(
        &'e self,
        epoch: &'e NetEpoch,
        dst: A,
        generation: u32,
    ) -> Option<&'e RouteCache<A>> {
        let entry = self.cell.load(epoch)?;
        (entry.dst == dst && entry.generation == generation).then_some(entry)
    }

    /// Remembers.
    pub fn set(&self, entry: RouteCache<A>) {
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
    vflag: InpVflag,
    inp: Arc<Inpcb<P>>,
    next: EpochArc<PcbNode<P>>,
}

/// A port in use.
struct PortEntry<P: Send + Sync + 'static> {
    inc: InConninfo,
    vflag: InpVflag,
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
        let v6 = so.is_some_and(|so| so.so_domain == AF_INET6);
        let mut in6p_flags = In6pFlags::empty();
        in6p_flags.set(In6pFlags::IPV6_V6ONLY, v6 && inet.ip6.v6only.get());
        in6p_flags.set(In6pFlags::AUTOFLOWLABEL, inet.ip6.auto_flowlabel.get());
        let mut inp_vflag = InpVflag::IPV4;
        if v6 {
            inp_vflag = InpVflag::IPV6 | InpVflag::IPV6PROTO;
            inp_vflag.set(InpVflag::IPV4, !inet.ip6.v6only.get());
        }
        let mut tables = self.tables.lock();
        let inp = Arc::new_cyclic(|this| Inpcb {
            inp_vnet: inet.clone(),
            inp_ip_p: self.proto,
            inp_gencnt: self.gencnt.fetch_add(1, Ordering::Relaxed) + 1,
            inp_route: Route::new(),
            inp_route6: Route::new(),
            this: this.clone(),
            reuse: AtomicU32::new(0),
            balances: AtomicBool::new(false),
            list_slot: AtomicUsize::new(tables.list.len()),
            port_slot: AtomicUsize::new(usize::MAX),
            lock: RwLock::new(Inp {
                hdr: InpHdr {
                    inp_inc: if v6 {
                        InConninfo::UNBOUND6
                    } else {
                        InConninfo::UNBOUND
                    },
                    inp_vflag,
                    in6p_flags,
                    in6p_hops: inet.ip6.hlim.get() as u8,
                    in6p_tclass: 0,
                    inp_flow: 0,
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
    #[inline]
    fn hash(&self, faddr: IpAddr, lport: u16, fport: u16) -> usize {
        self.peer_hash(faddr, lport, fport) as usize & (self.exact.len() - 1)
    }

    #[inline]
    fn peer_hash(&self, faddr: IpAddr, lport: u16, fport: u16) -> u32 {
        let word = match faddr {
            IpAddr::V4(addr) => addr.to_bits(),
            IpAddr::V6(addr) => {
                let bits = addr.to_bits();
                let half = bits as u64 ^ (bits >> 64) as u64;
                half as u32 ^ (half >> 32) as u32
            }
        };
        jhash32(word, self.hashseed) ^ u32::from(lport ^ fport)
    }

    fn chain(&self, inc: &InConninfo) -> Option<&EpochArc<PcbNode<P>>> {
        if !inc.inc_faddr.is_unspecified() {
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

    /// Finds who is bound to a local port: to the address itself before any address, and an IPv4 socket before one of
    /// IPv6 that takes IPv4 too. Takes no lock.
    fn lookup_wild<'e>(
        &'e self,
        inc: &InConninfo,
        epoch: &'e NetEpoch,
    ) -> Option<&'e Arc<Inpcb<P>>> {
        let (laddr, lport) = (inc.inc_laddr, inc.inc_lport);
        let first = self.wild.get(self.port_index(lport))?.load(epoch);
        let mut node = first;
        let (mut exact, mut any, mut mapped) = (None, None, None);
        // Of those with one address a group comes before one alone.
        let better = |best: &mut Option<&'e PcbNode<P>>, here: &'e PcbNode<P>| {
            let group = |node: &PcbNode<P>| node.inp.balances();
            if best.is_none_or(|best| group(here) && !group(best)) {
                *best = Some(here);
            }
        };
        let family = InpVflag::of(laddr);
        while let Some(here) = node {
            if here.inc.inc_lport == lport && here.vflag.contains(family) {
                if here.inc.inc_laddr == laddr {
                    better(&mut exact, here);
                } else if here.inc.inc_laddr == unspecified(laddr) {
                    better(&mut any, here);
                } else if here.inc.inc_laddr.is_unspecified() {
                    better(&mut mapped, here);
                }
            }
            node = here.next.load(epoch);
        }
        let found = exact.or(any).or(mapped)?;
        if !found.inp.balances() {
            return Some(&found.inp);
        }
        Some(self.lookup_lbgroup(found, first, inc, epoch))
    }

    /// The block of `found`'s group whose turn it is for a peer: always the same for one peer, as long as the group is.
    #[doc(alias = "in_pcblookup_lbgroup")]
    fn lookup_lbgroup<'e>(
        &'e self,
        found: &'e PcbNode<P>,
        first: Option<&'e PcbNode<P>>,
        inc: &InConninfo,
        epoch: &'e NetEpoch,
    ) -> &'e Arc<Inpcb<P>> {
        let members = || {
            let chain = core::iter::successors(first, |here| here.next.load(epoch));
            chain.filter(|here| {
                here.inc == found.inc && here.vflag == found.vflag && here.inp.balances()
            })
        };
        let count = members().count().max(1);
        let hash = self.peer_hash(inc.inc_faddr, inc.inc_lport, inc.inc_fport);
        // Somebody may have left meanwhile.
        members()
            .nth(hash as usize % count)
            .map_or(&found.inp, |here| &here.inp)
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
            (None, Lookup::Wildcard) => self.lookup_wild(inc, epoch),
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
        nam: Option<&SockAddr>,
    ) -> Result<(), Errno> {
        if hdr.lport() != 0 || !hdr.laddr().is_unspecified() {
            return Err(Errno::EINVAL);
        }
        let (laddr, mut lport) = match nam {
            Some(nam) => hdr.inet_addr(cx, nam)?,
            None => (hdr.laddr(), 0),
        };
        let multicast = laddr.is_multicast();
        if !laddr.is_unspecified()
            && !multicast
            && !hdr.inp_flags.contains(InpFlags::BINDANY)
            && !may_bind(cx, laddr)
        {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let vflag = hdr.vflag_at(laddr);
        let reuse = inp.reuse();
        let mut tables = self.tables.lock();
        if lport == 0 {
            let free = |port| {
                self.conflict(&tables, (laddr, vflag), port, true, SoOptions::empty())
                    .is_none()
            };
            lport = self.choose_port(cx, hdr.inp_flags, free)?;
            hdr.inp_flags |= InpFlags::ANONPORT;
        } else {
            // A multicast address is shared by whoever asks for either kind of sharing.
            let reuseport = if multicast && !reuse.is_empty() {
                REUSE
            } else {
                reuse & (SoOptions::REUSEPORT | SoOptions::REUSEPORT_LB)
            };
            if self
                .conflict(&tables, (laddr, vflag), lport, reuse.is_empty(), reuseport)
                .is_some()
            {
                return Err(Errno::EADDRINUSE);
            }
        }
        hdr.inp_inc.inc_laddr = laddr;
        hdr.inp_inc.inc_faddr = unspecified(laddr);
        hdr.inp_inc.inc_lport = lport;
        hdr.inp_vflag = vflag;
        self.insert(&mut tables, inp, hdr);
        Ok(())
    }

    /// Who stands in the way of binding to `laddr:lport` (`in_pcblookup_local`): with `wildcard` any block whose
    /// addresses overlap, else only an unconnected one with the same address; none if both say `reuseport`.
    fn conflict<'t>(
        &self,
        tables: &'t PcbTables<P>,
        (laddr, vflag): (IpAddr, InpVflag),
        lport: u16,
        wildcard: bool,
        reuseport: SoOptions,
    ) -> Option<&'t PortEntry<P>> {
        let bucket = tables.ports.get(self.port_index(lport))?;
        bucket
            .iter()
            .filter(|e| e.inc.inc_lport == lport)
            .find(|e| {
                let families = InpVflag::IPV4 | InpVflag::IPV6;
                let collides = if wildcard {
                    // A block of another family collides if one of the two takes both, but one of IPv6 may stand
                    // beside one of IPv4, which then has the packets of IPv4.
                    let both_any = laddr == Ipv6Addr::UNSPECIFIED
                        && e.inc.inc_laddr == Ipv4Addr::UNSPECIFIED
                        && !e.vflag.contains(InpVflag::IPV6PROTO);
                    (e.vflag & vflag).intersects(families)
                        && !both_any
                        && (e.inc.inc_laddr == laddr
                            || e.inc.inc_laddr.is_unspecified()
                            || laddr.is_unspecified())
                } else {
                    e.inc.inc_faddr.is_unspecified() && e.inc.inc_laddr == laddr
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
        nam: &SockAddr,
    ) -> Result<(), Errno> {
        if hdr.is_connected() {
            return Err(Errno::EISCONN);
        }
        let (faddr, fport) = hdr.inet_addr(cx, nam)?;
        if fport == 0 {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let faddr = real_faddr(cx, faddr)?;
        let laddr = pcb_source(cx, hdr, faddr)?;
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
        self.become_connected(hdr, faddr);
        self.rehash(&mut tables, inp, hdr, inc);
        Ok(())
    }

    /// From now on the block talks to one peer, and so in one family (`in6_pcbconnect`).
    fn become_connected(&self, hdr: &mut InpHdr, faddr: IpAddr) {
        hdr.inp_vflag = hdr.inp_vflag & InpVflag::IPV6PROTO | InpVflag::of(faddr);
        if faddr.is_ipv6() && hdr.in6p_flags.contains(In6pFlags::AUTOFLOWLABEL) {
            hdr.inp_flow = crate::netinet6::ip6_output::ip6_randomflowlabel();
        }
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
        hdr.inp_vflag = hdr.inp_vflag & InpVflag::IPV6PROTO | InpVflag::of(inc.inc_faddr);
        self.rehash(&mut tables, inp, hdr, inc);
        Ok(())
    }

    /// Forgets the peer; the local port stays, the local address does not (as FreeBSD's `udp_disconnect` has it).
    #[doc(alias = "in_pcbdisconnect")]
    pub fn disconnect(&self, inp: &Inpcb<P>, hdr: &mut InpHdr) {
        let unbound = if hdr.inp_vflag.contains(InpVflag::IPV6PROTO) {
            InConninfo::UNBOUND6
        } else {
            InConninfo::UNBOUND
        };
        let inc = InConninfo {
            inc_lport: hdr.lport(),
            ..unbound
        };
        let mut tables = self.tables.lock();
        hdr.inp_vflag = hdr.vflag_at(inc.inc_laddr);
        if inc.inc_lport != 0 {
            self.rehash(&mut tables, inp, hdr, inc);
        } else {
            self.remove(&mut tables, inp, hdr);
            hdr.inp_inc = inc;
        }
        drop(tables);
        inp.forget_route();
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
        inp.forget_route();
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
                vflag: hdr.inp_vflag,
                inp: inp.arc(),
            });
        }
        self.link(inp, inc, hdr.inp_vflag);
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
            entry.vflag = hdr.inp_vflag;
        }
        self.link(inp, inc, hdr.inp_vflag);
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
    fn link(&self, inp: &Inpcb<P>, inc: InConninfo, vflag: InpVflag) {
        if let Some(chain) = self.chain(&inc) {
            let node = PcbNode {
                inc,
                vflag,
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
    pub fn notify_all(&self, faddr: IpAddr, mut notify: impl FnMut(&Arc<Inpcb<P>>)) {
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
            && own.inc_faddr.is_unspecified()
            && own.inc_lport == inc.inc_lport
            && inp.hdr.talks(inc.inc_laddr)
            && (own.inc_laddr == inc.inc_laddr || own.inc_laddr.is_unspecified())
    };
    !inp.hdr.inp_flags.contains(InpFlags::DROPPED) && (*own == *inc || listens())
}

/// Whether a socket may be bound to `addr`: one of ours, and usable.
fn may_bind(cx: &NetCx<'_>, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => cx.vnet.ifaddrs.is_local_or_broadcast(cx.epoch, addr),
        IpAddr::V6(addr) => {
            let unusable = In6Iff::ANYCAST | In6Iff::NOTREADY | In6Iff::DETACHED;
            let ia = cx.vnet.in6_ifaddrs.lookup(cx.epoch, addr);
            ia.is_some_and(|ia| !ia.flags().intersects(unusable))
        }
    }
}

/// The local address with which a block connects to `faddr`: its own, or the best for the way.
fn pcb_source(cx: &NetCx<'_>, hdr: &InpHdr, faddr: IpAddr) -> Result<IpAddr, Errno> {
    let laddr = hdr.laddr();
    if !hdr.inp_vflag.contains(InpVflag::of(faddr)) {
        return Err(Errno::EAFNOSUPPORT);
    }
    match faddr {
        _ if !laddr.is_unspecified() => Ok(laddr),
        IpAddr::V4(faddr) => in_pcbladdr(cx, faddr).map(IpAddr::V4),
        IpAddr::V6(faddr) => in6_pcbladdr(cx, hdr, faddr).map(IpAddr::V6),
    }
}

/// Whom `addr` means as a destination: that of no host is this host.
pub fn real_faddr(cx: &NetCx<'_>, addr: IpAddr) -> Result<IpAddr, Errno> {
    match addr {
        IpAddr::V4(addr) => real_faddr4(cx, addr).map(IpAddr::V4),
        IpAddr::V6(addr) if addr.is_unspecified() => {
            if cx.vnet.ip6.connect_in6addr_wild.get() {
                Ok(IpAddr::V6(Ipv6Addr::LOCALHOST))
            } else {
                Err(Errno::ENETUNREACH)
            }
        }
        IpAddr::V6(_) => Ok(addr),
    }
}

/// Whom `addr` means as a destination: 0.0.0.0 this host, 255.255.255.255 the first network we can broadcast to.
fn real_faddr4(cx: &NetCx<'_>, addr: Ipv4Addr) -> Result<Ipv4Addr, Errno> {
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
