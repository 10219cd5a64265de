//! The mbuf: 256 bytes that carry packet data or point at it.
//!
//! FreeBSD: sys/sys/mbuf.h
//! Differs from FreeBSD: `Mbuf` owns a whole chain and frees it when dropped; what may be written is decided by
//! `&mut` and the reference count together. The layout is FreeBSD 14's.
//!
//! Here stand the type, its fields and what follows from them; `kern/kern_mbuf.rs` makes and frees mbufs,
//! `kern/uipc_mbuf.rs` has the algorithms.

use crate::errno::Errno;
use crate::machine::atomic::{AtomicU32, Ordering};
use alloc::boxed::Box;
use bitflags::bitflags;
use core::fmt;
use core::mem::{ManuallyDrop, MaybeUninit, offset_of, size_of};
use core::ptr::{NonNull, addr_of, addr_of_mut};

pub use crate::kern::kern_mbuf::{MbZoneStat, MbufStat};
pub use crate::vm::uma::How;

/// Bytes in an mbuf.
pub const MSIZE: usize = 256;
/// log2 of `MCLBYTES`.
pub const MCLSHIFT: usize = 11;
/// Bytes in a cluster.
pub const MCLBYTES: usize = 1 << MCLSHIFT;
/// Bytes in a page-sized cluster.
pub const MJUMPAGESIZE: usize = 4096;
/// Bytes in a 9k cluster.
pub const MJUM9BYTES: usize = 9 * 1024;
/// Bytes in a 16k cluster.
pub const MJUM16BYTES: usize = 16 * 1024;
/// Data bytes in an mbuf without packet header.
pub const MLEN: usize = MSIZE - 32;
/// Data bytes in an mbuf with packet header.
pub const MHLEN: usize = MLEN - size_of::<PktHdr>();
/// Smallest payload that is worth a cluster.
pub const MINCLSIZE: usize = MHLEN + 1;
/// As a length: to the end of the chain.
pub const M_COPYALL: usize = 1_000_000_000;
/// No memory domain.
pub const M_NODOM: u8 = 255;
/// Room to leave for link headers.
pub const MAX_LINKHDR: usize = 16;
/// Room to leave for protocol headers: IPv4 or IPv6 with TCP, as FreeBSD with both.
pub const MAX_PROTOHDR: usize = 60;
/// Room to leave for all headers.
pub const MAX_HDR: usize = MAX_LINKHDR + MAX_PROTOHDR;

bitflags! {
    /// What an mbuf is and what its packet went through (FreeBSD 14's bits).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct MFlags: u32 {
        /// Has external storage.
        const EXT = 0x0000_0001;
        /// First of a packet: has a packet header.
        const PKTHDR = 0x0000_0002;
        /// End of a record.
        const EOR = 0x0000_0004;
        /// The data must not be written.
        const RDONLY = 0x0000_0008;
        /// Sent or received as link-level broadcast.
        const BCAST = 0x0000_0010;
        /// Sent or received as link-level multicast.
        const MCAST = 0x0000_0020;
        /// Not for us; seen in promiscuous mode.
        const PROMISC = 0x0000_0040;
        /// `ether_vtag` is valid.
        const VLANTAG = 0x0000_0080;
        /// Unmapped external pages. Never set: all memory here is mapped.
        const EXTPG = 0x0000_0100;
        /// The mbuf is embedded in its own storage.
        const NOFREE = 0x0000_0200;
        /// `rcv_tstmp` is valid.
        const TSTMP = 0x0000_0400;
        /// `rcv_tstmp` is high precision.
        const TSTMP_HPREC = 0x0000_0800;
        /// LRO timestamp.
        const TSTMP_LRO = 0x0000_1000;
        /// Protocol-specific.
        const PROTO1 = 0x0000_2000;
        /// Protocol-specific.
        const PROTO2 = 0x0000_4000;
        /// Protocol-specific.
        const PROTO3 = 0x0000_8000;
        /// Protocol-specific.
        const PROTO4 = 0x0001_0000;
        /// Protocol-specific.
        const PROTO5 = 0x0002_0000;
        /// Protocol-specific.
        const PROTO6 = 0x0004_0000;
        /// Protocol-specific.
        const PROTO7 = 0x0008_0000;
        /// Protocol-specific.
        const PROTO8 = 0x0010_0000;
        /// Protocol-specific.
        const PROTO9 = 0x0020_0000;
        /// Protocol-specific.
        const PROTO10 = 0x0040_0000;
        /// Protocol-specific.
        const PROTO11 = 0x0080_0000;

        /// All protocol-specific flags, cleared where a packet changes layer.
        const PROTOFLAGS = 0x00ff_e000;
        /// Kept when a packet header is copied.
        const COPYFLAGS = 0x0000_0002 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x400 | 0x800 | 0x1000
            | 0x00ff_e000;
        /// Kept when a packet's first mbuf becomes an inner one.
        const DEMOTEFLAGS = 0x1 | 0x8 | 0x100 | 0x200;
    }
}

bitflags! {
    /// Checksum and segmentation work: asked for on output, reported on input (FreeBSD 14's bits).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    #[repr(transparent)]
    pub struct CsumFlags: u32 {
        /// Compute the IPv4 header checksum.
        const IP = 0x0000_0001;
        /// Compute UDP over IPv4.
        const IP_UDP = 0x0000_0002;
        /// Compute TCP over IPv4.
        const IP_TCP = 0x0000_0004;
        /// Compute SCTP over IPv4.
        const IP_SCTP = 0x0000_0008;
        /// Segment TCP over IPv4.
        const IP_TSO = 0x0000_0010;
        /// iSCSI over IPv4.
        const IP_ISCSI = 0x0000_0020;
        /// Compute UDP over IPv6.
        const IP6_UDP = 0x0000_0200;
        /// Compute TCP over IPv6.
        const IP6_TCP = 0x0000_0400;
        /// Compute SCTP over IPv6.
        const IP6_SCTP = 0x0000_0800;
        /// Segment TCP over IPv6.
        const IP6_TSO = 0x0000_1000;
        /// iSCSI over IPv6.
        const IP6_ISCSI = 0x0000_2000;
        /// Inner IPv6 UDP.
        const INNER_IP6_UDP = 0x0000_0040;
        /// Inner IPv6 TCP.
        const INNER_IP6_TCP = 0x0000_0080;
        /// Inner IPv6 TSO.
        const INNER_IP6_TSO = 0x0000_0100;
        /// Inner IPv4 header.
        const INNER_IP = 0x0000_4000;
        /// Inner IPv4 UDP.
        const INNER_IP_UDP = 0x0000_8000;
        /// Inner IPv4 TCP.
        const INNER_IP_TCP = 0x0001_0000;
        /// Inner IPv4 TSO.
        const INNER_IP_TSO = 0x0002_0000;
        /// VXLAN encapsulation.
        const ENCAP_VXLAN = 0x0004_0000;
        /// Inner IP header was checked.
        const INNER_L3_CALC = 0x0010_0000;
        /// Inner IP header was good.
        const INNER_L3_VALID = 0x0020_0000;
        /// Inner transport checksum was computed.
        const INNER_L4_CALC = 0x0040_0000;
        /// Inner transport checksum was good.
        const INNER_L4_VALID = 0x0080_0000;
        /// The IP header was checked.
        const L3_CALC = 0x0100_0000;
        /// The IP header was good.
        const L3_VALID = 0x0200_0000;
        /// The sum includes the pseudo header.
        const L4_CALC = 0x0400_0000;
        /// `csum_data` holds a sum.
        const L4_VALID = 0x0800_0000;
        /// TLS was decrypted.
        const L5_CALC = 0x1000_0000;
        /// TLS was good.
        const L5_VALID = 0x2000_0000;
        /// LRO merged segments.
        const COALESCED = 0x4000_0000;
        /// Has a send tag.
        const SND_TAG = 0x8000_0000;

        /// Old name of `IP_TCP`.
        const TCP = 0x0000_0004;
        /// Old name of `IP_UDP`.
        const UDP = 0x0000_0002;
        /// Any TSO.
        const TSO = 0x0000_1010;
        /// Old name of `L3_CALC`.
        const IP_CHECKED = 0x0100_0000;
        /// Old name of `L3_VALID`.
        const IP_VALID = 0x0200_0000;
        /// Old name of `L4_VALID`.
        const DATA_VALID = 0x0800_0000;
        /// Old name of `L4_CALC`.
        const PSEUDO_HDR = 0x0400_0000;
        /// Transport checksums over IPv4 that `ip_output` may leave to the interface.
        const DELAY_DATA = 0x0000_0006;
        /// Header checksums that `ip_output` may leave to the interface.
        const DELAY_IP = 0x0000_0001;
        /// Transport checksums over IPv6 that `ip6_output` may leave to the interface.
        const DELAY_DATA_IPV6 = 0x0000_0600;
    }
}

/// Kind of hash in `flowid`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
#[doc(alias = "M_HASHTYPE")]
pub struct HashType(pub u8);

impl HashType {
    /// No hash.
    pub const NONE: Self = Self(0);
    /// The value is a real hash of the flow.
    pub const HASHPROP: u8 = 0x80;
    /// RSS over IPv4 addresses.
    pub const RSS_IPV4: Self = Self(0x81);
    /// RSS over IPv4 addresses and TCP ports.
    pub const RSS_TCP_IPV4: Self = Self(0x82);
    /// RSS over IPv6 addresses.
    pub const RSS_IPV6: Self = Self(0x83);
    /// RSS over IPv6 addresses and TCP ports.
    pub const RSS_TCP_IPV6: Self = Self(0x84);
    /// RSS over IPv4 addresses and UDP ports.
    pub const RSS_UDP_IPV4: Self = Self(0x87);
    /// RSS over IPv6 addresses and UDP ports.
    pub const RSS_UDP_IPV6: Self = Self(0x89);
    /// An ordering, not a hash.
    pub const OPAQUE: Self = Self(0x3f);
    /// A hash of unknown make.
    pub const OPAQUE_HASH: Self = Self(0xbf);
}

/// What an mbuf's data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[doc(alias = "MT_DATA")]
pub enum MbufType {
    /// Free.
    NotMbuf = 0,
    /// Packet data.
    Data = 1,
    /// A socket address.
    Soname = 8,
    /// Control data.
    Control = 14,
    /// Out-of-band data.
    OobData = 16,
}

/// Sizes of clusters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ClusterSize {
    /// 2048 bytes.
    K2,
    /// A page.
    K4,
    /// 9216 bytes.
    K9,
    /// 16384 bytes.
    K16,
}

impl ClusterSize {
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::K2 => MCLBYTES,
            Self::K4 => MJUMPAGESIZE,
            Self::K9 => MJUM9BYTES,
            Self::K16 => MJUM16BYTES,
        }
    }

    /// The smallest that holds `len` bytes.
    pub const fn at_least(len: usize) -> Option<Self> {
        if len <= MCLBYTES {
            Some(Self::K2)
        } else if len <= MJUMPAGESIZE {
            Some(Self::K4)
        } else if len <= MJUM9BYTES {
            Some(Self::K9)
        } else if len <= MJUM16BYTES {
            Some(Self::K16)
        } else {
            None
        }
    }
}

/// An interface by number; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
#[repr(transparent)]
pub struct IfIndex(pub u16);

impl IfIndex {
    /// No interface.
    pub const NONE: Self = Self(0);

    /// Whether it names an interface.
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// No mbuf or cluster was to be had; what was handed in is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "ENOBUFS")]
pub struct NoBufs;

impl From<NoBufs> for Errno {
    fn from(_: NoBufs) -> Self {
        Errno::ENOBUFS
    }
}

/// The chain is shorter than asked for, or there was no mbuf to gather it in; it is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Short;

/// What is known of a packet: stands in its first mbuf.
#[repr(C)]
#[derive(Debug)]
#[doc(alias = "m_pkthdr")]
pub struct PktHdr {
    /// Interface it came in by.
    pub rcvif: IfIndex,
    /// Generation of that index, so that a reused index is noticed.
    pub rcvgen: u16,
    pub(crate) _pad0: u32,
    /// Lowest interface it came in by, under a vlan or lagg.
    pub leaf_rcvif: IfIndex,
    /// Generation of that index.
    pub leaf_rcvgen: u16,
    pub(crate) _pad1: u32,
    /// What else is attached.
    pub tags: TagList,
    /// Length of the whole packet.
    pub len: u32,
    /// Flow or hash, for choosing queues.
    pub flowid: u32,
    /// Checksum and segmentation state.
    pub csum_flags: CsumFlags,
    /// Routing table to use.
    pub fibnum: u16,
    /// Memory domain (255: none).
    pub numa_domain: u8,
    /// Kind of `flowid`.
    pub rsstype: HashType,
    /// Link header bytes.
    pub l2hlen: u8,
    /// Network header bytes.
    pub l3hlen: u8,
    /// Transport header bytes.
    pub l4hlen: u8,
    /// Header bytes above transport.
    pub l5hlen: u8,
    /// Inner link header bytes.
    pub inner_l2hlen: u8,
    /// Inner network header bytes.
    pub inner_l3hlen: u8,
    /// Inner transport header bytes.
    pub inner_l4hlen: u8,
    /// Inner header bytes above transport.
    pub inner_l5hlen: u8,
    /// VLAN tag, if `MFlags::VLANTAG`.
    pub ether_vtag: u16,
    /// TSO: payload bytes per segment. On input the same field is `lro_nsegs`.
    pub tso_segsz: u16,
    /// Output: offset of the checksum field in the transport header. Input: the sum.
    pub csum_data: u32,
    /// LRO: payload bytes.
    pub lro_tcp_d_len: u16,
    /// LRO: payload sum.
    pub lro_tcp_d_csum: u16,
    /// LRO: offset of the TCP header.
    pub lro_tcp_h_off: u16,
    /// LRO: Ethernet type.
    pub lro_etype: u16,
}

impl Default for PktHdr {
    fn default() -> Self {
        Self::new()
    }
}

impl PktHdr {
    /// A packet of which nothing is known.
    pub const fn new() -> Self {
        Self {
            rcvif: IfIndex::NONE,
            rcvgen: 0,
            _pad0: 0,
            leaf_rcvif: IfIndex::NONE,
            leaf_rcvgen: 0,
            _pad1: 0,
            tags: TagList::new(),
            len: 0,
            flowid: 0,
            csum_flags: CsumFlags::empty(),
            fibnum: 0,
            numa_domain: M_NODOM,
            rsstype: HashType::NONE,
            l2hlen: 0,
            l3hlen: 0,
            l4hlen: 0,
            l5hlen: 0,
            inner_l2hlen: 0,
            inner_l3hlen: 0,
            inner_l4hlen: 0,
            inner_l5hlen: 0,
            ether_vtag: 0,
            tso_segsz: 0,
            csum_data: 0,
            lro_tcp_d_len: 0,
            lro_tcp_d_csum: 0,
            lro_tcp_h_off: 0,
            lro_etype: 0,
        }
    }

    /// Segments that LRO merged into this packet (0: LRO did not see it).
    pub fn lro_nsegs(&self) -> u16 {
        self.tso_segsz
    }

    /// Sets the number of merged segments.
    pub fn set_lro_nsegs(&mut self, n: u16) {
        self.tso_segsz = n;
    }

    /// Time of reception in ns, if `MFlags::TSTMP`; shares its bytes with the header lengths.
    pub fn rcv_tstmp(&self) -> u64 {
        u64::from_ne_bytes([
            self.l2hlen,
            self.l3hlen,
            self.l4hlen,
            self.l5hlen,
            self.inner_l2hlen,
            self.inner_l3hlen,
            self.inner_l4hlen,
            self.inner_l5hlen,
        ])
    }

    /// Sets the time of reception.
    pub fn set_rcv_tstmp(&mut self, ns: u64) {
        [
            self.l2hlen,
            self.l3hlen,
            self.l4hlen,
            self.l5hlen,
            self.inner_l2hlen,
            self.inner_l3hlen,
            self.inner_l4hlen,
            self.inner_l5hlen,
        ] = ns.to_ne_bytes();
    }
}

/// Something attached to a packet.
#[derive(Debug)]
pub struct MTag {
    next: Option<Box<MTag>>,
    /// Module that defines `id`.
    pub cookie: u32,
    /// What it is, to that module.
    pub id: u16,
    /// What it says.
    pub payload: Box<[u8]>,
}

/// Tags of a packet, last attached first.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct TagList(Option<Box<MTag>>);

/// The 256 bytes.
#[repr(C)]
#[repr(align(256))]
#[doc(alias = "mbuf")]
pub struct RawMbuf {
    pub(crate) m_next: Option<Mbuf>,
    m_nextpkt: Option<Mbuf>,
    m_data: *mut u8,
    m_len: u32,
    m_type_flags: u32,
    body: MaybeUninit<[u8; MLEN]>,
}

/// External storage: stands behind the packet header's place whether there is one or not.
#[repr(C)]
pub(crate) struct MExt {
    /// References to the storage, if this mbuf is its owner (`EXT_FLAG_EMBREF`); otherwise unused.
    pub(crate) count: AtomicU32,
    /// Bytes at `buf`.
    pub(crate) size: u32,
    /// The mbuf that owns storage and count; it stays until the last reference is gone.
    pub(crate) owner: *mut RawMbuf,
    pub(crate) buf: *mut u8,
    pub(crate) ext_type: ExtType,
    /// Of `ExtType::External` owners: the storage.
    pub(crate) storage: MaybeUninit<*mut dyn ExtStorage>,
}

/// Where external storage came from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[doc(alias = "EXT_PACKET")]
pub(crate) enum ExtType {
    /// A page.
    Jumbop = 3,
    /// 9k.
    Jumbo9 = 4,
    /// 16k.
    Jumbo16 = 5,
    /// 2k, joined with its mbuf in the packet zone.
    Packet = 6,
    /// Somebody's read-only bytes (`EXT_NET_DRV`, `EXT_MOD_TYPE`).
    External = 252,
}

impl ExtType {
    #[inline(always)]
    pub(crate) fn is_cluster(self) -> bool {
        !matches!(self, Self::External)
    }
}

/// Bytes that packets may refer to without copying them. Dropped with the last packet.
#[doc(alias = "m_extadd")]
pub trait ExtStorage: Send + Sync + 'static {
    /// The bytes. Asked for once, and used until the storage is dropped.
    fn bytes(&self) -> &[u8];
}

const TYPE_BITS: u32 = 8;
const TYPE_MASK: u32 = (1 << TYPE_BITS) - 1;
const EXT_OFFSET: usize = 32 + size_of::<PktHdr>();
const _: () = {
    assert!(size_of::<RawMbuf>() == MSIZE);
    assert!(size_of::<PktHdr>() == 64);
    assert!(MLEN == 224 && MHLEN == 160);
    assert!(offset_of!(RawMbuf, m_data) == 16);
    assert!(offset_of!(RawMbuf, body) == 32);
    assert!(offset_of!(PktHdr, tags) == 16);
    assert!(offset_of!(PktHdr, len) == 24);
    assert!(offset_of!(PktHdr, csum_flags) == 32);
    assert!(offset_of!(PktHdr, rsstype) == 39);
    assert!(offset_of!(PktHdr, l2hlen) == 40);
    assert!(offset_of!(PktHdr, csum_data) == 52);
    assert!(size_of::<MExt>() <= MHLEN && EXT_OFFSET == 96);
};

/// A chain of mbufs that its holder owns. Dropping it frees it.
///
/// A packet is a chain whose first mbuf has a packet header. In FreeBSD's terms an `Mbuf` is what a
/// `struct mbuf *m` is that one may `m_freem`.
///
/// What holds of every `RawMbuf` that an `Mbuf` reaches, and what all `unsafe` here and in `kern/*_mbuf.rs` rests
/// on:
/// 1. its header fields are initialised, and so are the packet header if `PKTHDR` and `MExt` if `EXT`;
/// 2. `m_data .. m_data + m_len` lies within its buffer (`buffer`), whose bytes are all initialised, because
///    memory of zones comes from the machine and not from the language;
/// 3. exactly one `Mbuf` or zone holds it; the references to external storage are counted in its owner;
/// 4. no `&` or `&mut` to a whole `RawMbuf` is ever made: fields are reached through the raw pointer.
#[repr(transparent)]
#[doc(alias = "struct mbuf")]
pub struct Mbuf(NonNull<RawMbuf>);

// SAFETY: an `Mbuf` is the only handle of its chain. What chains share (external storage) is written only while
// its atomic count is 1, and read-only otherwise.
unsafe impl Send for Mbuf {}
// SAFETY: through `&Mbuf` nothing is written but the atomic reference count.
unsafe impl Sync for Mbuf {}

/// The parts of a `RawMbuf` by pointer. They compute addresses; what is there is the caller's to know.
impl RawMbuf {
    /// # Safety
    /// `m` points at a `RawMbuf`.
    #[inline(always)]
    pub(crate) unsafe fn dat(m: *mut RawMbuf) -> *mut u8 {
        // SAFETY: in bounds by the caller's promise.
        unsafe { addr_of_mut!((*m).body).cast() }
    }

    /// # Safety
    /// `m` points at a `RawMbuf`.
    #[inline(always)]
    pub(crate) unsafe fn pkthdr(m: *mut RawMbuf) -> *mut PktHdr {
        // SAFETY: as for `dat`; the header stands at its start.
        unsafe { Self::dat(m).cast() }
    }

    /// # Safety
    /// `m` points at a `RawMbuf`.
    #[inline(always)]
    pub(crate) unsafe fn pktdat(m: *mut RawMbuf) -> *mut u8 {
        // SAFETY: as for `dat`; the const assertions say that it fits.
        unsafe { Self::dat(m).add(size_of::<PktHdr>()) }
    }

    /// # Safety
    /// `m` points at a `RawMbuf`.
    #[inline(always)]
    pub(crate) unsafe fn ext(m: *mut RawMbuf) -> *mut MExt {
        // SAFETY: as for `pktdat`, where it stands whether there is a packet header or not.
        unsafe { Self::pktdat(m).cast() }
    }

    /// # Safety
    /// `m` points at a `RawMbuf` whose header fields are initialised.
    #[inline(always)]
    pub(crate) unsafe fn flags(m: *mut RawMbuf) -> MFlags {
        // SAFETY: the promise.
        MFlags::from_bits_retain(unsafe { (*m).m_type_flags } >> TYPE_BITS)
    }

    /// Writes the header fields of an mbuf fresh from its zone.
    ///
    /// # Safety
    /// `m` points at a `RawMbuf` that nothing else reaches; `data` lies in the buffer that `flags` imply.
    #[inline(always)]
    pub(crate) unsafe fn init(m: *mut RawMbuf, data: *mut u8, flags: MFlags) {
        // SAFETY: exclusive by the caller's promise. `write`: what is overwritten owns nothing.
        unsafe {
            addr_of_mut!((*m).m_next).write(None);
            addr_of_mut!((*m).m_nextpkt).write(None);
            (*m).m_data = data;
            (*m).m_len = 0;
            (*m).m_type_flags = MbufType::Data as u32 | (flags.bits() << TYPE_BITS);
        }
    }

    /// Makes `n` refer to the external storage of `m`. Flags and data are the caller's to set.
    ///
    /// # Safety
    /// Both point at mbufs that the caller holds; `m` has external storage and `n` none, and no data.
    #[inline]
    pub(crate) unsafe fn share_ext(n: *mut RawMbuf, m: *mut RawMbuf) {
        // SAFETY: `m`'s storage and its owner live as long as `m` refers to them. `Relaxed`: who holds one
        // reference may make another; nothing is published by it.
        unsafe {
            let ext = Self::ext(m);
            (*Self::ext((*ext).owner))
                .count
                .fetch_add(1, Ordering::Relaxed);
            Self::ext(n).write(MExt {
                count: AtomicU32::new(0),
                size: (*ext).size,
                owner: (*ext).owner,
                buf: (*ext).buf,
                ext_type: (*ext).ext_type,
                storage: MaybeUninit::uninit(),
            });
        }
    }
}

impl Mbuf {
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut RawMbuf {
        self.0.as_ptr()
    }

    /// Takes over an mbuf by pointer.
    ///
    /// # Safety
    /// `m` heads a chain as described at `Mbuf`, and the caller gives up its hold of it.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(m: NonNull<RawMbuf>) -> Mbuf {
        Mbuf(m)
    }

    /// Gives the chain up as a pointer.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> NonNull<RawMbuf> {
        ManuallyDrop::new(self).0
    }

    /// Flags of the first mbuf.
    #[inline(always)]
    pub fn flags(&self) -> MFlags {
        // SAFETY: invariant 1.
        unsafe { RawMbuf::flags(self.raw()) }
    }

    /// Replaces all flags, those about storage included.
    ///
    /// # Safety
    /// The invariants must hold with the new flags.
    #[inline(always)]
    pub(crate) unsafe fn set_flags_raw(&mut self, flags: MFlags) {
        let m = self.raw();
        // SAFETY: invariant 1; the flags are the caller's promise.
        unsafe {
            (*m).m_type_flags = ((*m).m_type_flags & TYPE_MASK) | (flags.bits() << TYPE_BITS);
        }
    }

    /// Replaces the flags that are not about storage; `EXT`, `PKTHDR`, `NOFREE` and `EXTPG` stay as they are.
    #[inline]
    pub fn set_flags(&mut self, flags: MFlags) {
        const STORAGE: MFlags = MFlags::EXT
            .union(MFlags::PKTHDR)
            .union(MFlags::NOFREE)
            .union(MFlags::EXTPG);
        let kept = self.flags() & STORAGE;
        // SAFETY: the flags that the invariants speak of are kept. Read-only storage stays so without the flag.
        unsafe { self.set_flags_raw(kept | flags.difference(STORAGE)) }
    }

    /// Sets `flags` besides those that are set.
    #[inline]
    pub fn add_flags(&mut self, flags: MFlags) {
        self.set_flags(self.flags() | flags);
    }

    /// Clears `flags`.
    #[inline]
    pub fn clear_flags(&mut self, flags: MFlags) {
        self.set_flags(self.flags() - flags);
    }

    /// Clears the protocol-specific flags, as at every change of layer.
    #[doc(alias = "m_clrprotoflags")]
    pub fn clrprotoflags(&mut self) {
        let mut m = Some(self);
        while let Some(this) = m {
            this.clear_flags(MFlags::PROTOFLAGS);
            m = this.next_mut();
        }
    }

    /// What the first mbuf holds.
    pub fn mtype(&self) -> MbufType {
        // SAFETY: invariant 1.
        match unsafe { (*self.raw()).m_type_flags } & TYPE_MASK {
            1 => MbufType::Data,
            8 => MbufType::Soname,
            14 => MbufType::Control,
            16 => MbufType::OobData,
            _ => MbufType::NotMbuf,
        }
    }

    /// Says what the first mbuf holds.
    pub fn set_mtype(&mut self, mtype: MbufType) {
        let m = self.raw();
        // SAFETY: invariant 1.
        unsafe { (*m).m_type_flags = ((*m).m_type_flags & !TYPE_MASK) | mtype as u32 }
    }

    /// Bytes in the first mbuf.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: invariant 1.
        unsafe { (*self.raw()).m_len as usize }
    }

    /// Whether the first mbuf is empty.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in the whole chain.
    #[doc(alias = "m_length")]
    pub fn length(&self) -> usize {
        self.iter().map(Mbuf::len).sum()
    }

    /// Whether this is a packet.
    #[inline(always)]
    pub fn has_pkthdr(&self) -> bool {
        self.flags().contains(MFlags::PKTHDR)
    }

    /// The packet header. Panics without one: to ask for it is a mistake of the caller, not of the packet.
    #[inline]
    #[track_caller]
    #[doc(alias = "M_ASSERTPKTHDR")]
    pub fn pkthdr(&self) -> &PktHdr {
        assert!(self.has_pkthdr(), "not a packet: M_PKTHDR is not set");
        // SAFETY: invariant 1, for as long as the chain is borrowed.
        unsafe { &*RawMbuf::pkthdr(self.raw()) }
    }

    /// The packet header, to change.
    #[inline]
    #[track_caller]
    pub fn pkthdr_mut(&mut self) -> &mut PktHdr {
        assert!(self.has_pkthdr(), "not a packet: M_PKTHDR is not set");
        // SAFETY: invariant 1; exclusive because the chain is (invariant 3).
        unsafe { &mut *RawMbuf::pkthdr(self.raw()) }
    }

    /// Length of the packet by its header.
    #[inline]
    #[track_caller]
    pub fn pkt_len(&self) -> usize {
        self.pkthdr().len as usize
    }

    /// Sets the packet's length.
    #[inline]
    #[track_caller]
    pub fn set_pkt_len(&mut self, len: usize) {
        self.pkthdr_mut().len = len as u32;
    }

    /// The packet's length becomes that of the chain.
    #[doc(alias = "m_fixhdr")]
    pub fn fixhdr(&mut self) -> usize {
        let len = self.length();
        self.set_pkt_len(len);
        len
    }

    #[inline(always)]
    pub(crate) fn data_ptr(&self) -> *mut u8 {
        // SAFETY: invariant 1.
        unsafe { (*self.raw()).m_data }
    }

    /// The first mbuf's bytes.
    #[inline]
    #[doc(alias = "mtod")]
    pub fn data(&self) -> &[u8] {
        // SAFETY: invariant 2. Nobody writes: we are borrowed, and other holders of shared storage may not.
        unsafe { core::slice::from_raw_parts(self.data_ptr(), self.len()) }
    }

    /// The first mbuf's bytes, to write. Panics if they are shared: ask `writable`, or `unshare` first.
    #[inline]
    #[track_caller]
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.writable_data()
            .expect("write to a shared or read-only mbuf")
    }

    /// The first mbuf's bytes if they may be written.
    #[inline]
    pub fn writable_data(&mut self) -> Option<&mut [u8]> {
        self.writable().then(|| {
            // SAFETY: invariant 2; `writable` says that nobody shares the bytes, `&mut` that nobody gets to.
            unsafe { core::slice::from_raw_parts_mut(self.data_ptr(), self.len()) }
        })
    }

    /// Whether the first mbuf's bytes may be written: not read-only and not shared.
    #[doc(alias = "M_WRITABLE")]
    #[inline]
    pub fn writable(&self) -> bool {
        let flags = self.flags();
        !flags.contains(MFlags::RDONLY) && (!flags.contains(MFlags::EXT) || self.ext_exclusive())
    }

    /// Whether the external storage is ours alone and of a kind that may be written.
    #[inline]
    fn ext_exclusive(&self) -> bool {
        // SAFETY: invariants 1 and 3: there is an `MExt`, and its owner lives while it is referred to. `Acquire`
        // so that what other holders did before they let go is over.
        unsafe {
            let ext = RawMbuf::ext(self.raw());
            (*ext).ext_type.is_cluster()
                && (*RawMbuf::ext((*ext).owner)).count.load(Ordering::Acquire) == 1
        }
    }

    /// Whether the first mbuf's bytes are somebody's `ExtStorage`.
    #[inline]
    pub(crate) fn has_foreign_storage(&self) -> bool {
        // SAFETY: invariant 1.
        self.flags().contains(MFlags::EXT)
            && unsafe { !(*RawMbuf::ext(self.raw())).ext_type.is_cluster() }
    }

    /// Start and size of the first mbuf's buffer.
    #[inline(always)]
    pub(crate) fn buffer(&self) -> (*mut u8, usize) {
        let m = self.raw();
        let flags = self.flags();
        // SAFETY: invariant 1.
        unsafe {
            if flags.contains(MFlags::EXT) {
                let ext = RawMbuf::ext(m);
                ((*ext).buf, (*ext).size as usize)
            } else if flags.contains(MFlags::PKTHDR) {
                (RawMbuf::pktdat(m), MHLEN)
            } else {
                (RawMbuf::dat(m), MLEN)
            }
        }
    }

    /// Bytes of the first mbuf's buffer before its data.
    #[inline(always)]
    pub(crate) fn offset_in_buffer(&self) -> usize {
        self.data_ptr().addr() - self.buffer().0.addr()
    }

    /// Bytes that fit before the first mbuf's data; 0 if it may not be written.
    #[doc(alias = "M_LEADINGSPACE")]
    #[inline]
    pub fn leading_space(&self) -> usize {
        if self.writable() {
            self.offset_in_buffer()
        } else {
            0
        }
    }

    /// Bytes that fit after the first mbuf's data; 0 if it may not be written.
    #[doc(alias = "M_TRAILINGSPACE")]
    #[inline]
    pub fn trailing_space(&self) -> usize {
        if self.writable() {
            self.size() - self.offset_in_buffer() - self.len()
        } else {
            0
        }
    }

    /// Bytes of the first mbuf's buffer, used or not.
    #[doc(alias = "M_SIZE")]
    #[inline]
    pub fn size(&self) -> usize {
        self.buffer().1
    }

    /// Bytes of memory that the chain occupies, as socket buffers count them.
    #[doc(alias = "sb_mbcnt")]
    pub fn mbcnt(&self) -> usize {
        self.iter()
            .map(|m| {
                MSIZE
                    + if m.flags().contains(MFlags::EXT) {
                        m.size()
                    } else {
                        0
                    }
            })
            .sum()
    }

    /// Sets start and length of the first mbuf's data.
    ///
    /// # Safety
    /// Invariant 2 must hold with them.
    #[inline(always)]
    pub(crate) unsafe fn set_data_raw(&mut self, data: *mut u8, len: usize) {
        let m = self.raw();
        // SAFETY: invariant 1; the values are the caller's promise.
        unsafe {
            (*m).m_data = data;
            (*m).m_len = len as u32;
        }
    }

    /// Sets the first mbuf's length, growing only into its trailing space (and shows what stood there).
    /// The packet length is left alone. Panics beyond the room.
    #[inline]
    #[track_caller]
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.len() || len - self.len() <= self.trailing_space(),
            "mbuf length beyond its buffer"
        );
        // SAFETY: just checked.
        unsafe { (*self.raw()).m_len = len as u32 }
    }

    /// Grows the first mbuf by `n` bytes of its trailing space and returns them. The packet length is left
    /// alone. Panics beyond the room.
    #[inline]
    #[track_caller]
    pub fn extend_mut(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.trailing_space(), "mbuf length beyond its buffer");
        let len = self.len();
        // SAFETY: just checked, and that there is trailing space says that the buffer is ours to write.
        unsafe {
            (*self.raw()).m_len = (len + n) as u32;
            core::slice::from_raw_parts_mut(self.data_ptr().add(len), n)
        }
    }

    /// Grows the first mbuf by `n` bytes of its leading space, if there are, and the packet's length with it.
    /// Returns whether it did.
    #[inline]
    pub(crate) fn grow_front(&mut self, n: usize) -> bool {
        if n > self.leading_space() {
            return false;
        }
        // SAFETY: the leading space says that `n` bytes before the data are in the buffer.
        unsafe { self.set_data_raw(self.data_ptr().sub(n), self.len() + n) };
        if self.has_pkthdr() {
            self.pkthdr_mut().len += n as u32;
        }
        true
    }

    /// Puts the (empty) first mbuf's data where an object of `len` bytes ends the buffer.
    #[doc(alias = "m_align")]
    #[track_caller]
    pub fn align_end(&mut self, len: usize) {
        let (start, size) = self.buffer();
        assert!(
            self.is_empty() && len <= size,
            "m_align: not empty, or too long"
        );
        // SAFETY: the offset is at most `size`.
        unsafe { self.set_data_raw(start.add((size - len) & !(size_of::<usize>() - 1)), 0) }
    }

    /// Moves the start of the (empty) first mbuf's data `n` bytes on, to leave room for headers.
    #[track_caller]
    pub fn reserve_front(&mut self, n: usize) {
        assert!(
            self.is_empty() && n <= self.size() - self.offset_in_buffer(),
            "room for headers: not empty, or too long"
        );
        // SAFETY: just checked.
        unsafe { self.set_data_raw(self.data_ptr().add(n), 0) }
    }

    /// The second mbuf of the chain and what follows.
    #[doc(alias = "m_next")]
    #[inline]
    pub fn next(&self) -> Option<&Mbuf> {
        // SAFETY: invariant 1; borrowed as we are.
        unsafe { (*addr_of!((*self.raw()).m_next)).as_ref() }
    }

    /// The second mbuf of the chain and what follows, to change.
    #[inline]
    pub fn next_mut(&mut self) -> Option<&mut Mbuf> {
        // SAFETY: invariant 1; borrowed exclusively as we are.
        unsafe { (*addr_of_mut!((*self.raw()).m_next)).as_mut() }
    }

    /// Cuts the chain after its first mbuf and returns the rest.
    #[inline]
    pub fn take_next(&mut self) -> Option<Mbuf> {
        // SAFETY: invariant 1; exclusive.
        unsafe { (*addr_of_mut!((*self.raw()).m_next)).take() }
    }

    /// Hangs `rest` behind the first mbuf, freeing what hung there.
    #[inline]
    pub fn set_next(&mut self, rest: Option<Mbuf>) {
        drop(self.take_next());
        // SAFETY: invariant 1; exclusive. `None` is overwritten.
        unsafe { addr_of_mut!((*self.raw()).m_next).write(rest) }
    }

    /// Hangs `next` behind the mbuf `m`.
    ///
    /// # Safety
    /// `m` is a live mbuf that the caller holds exclusively, with none behind it.
    #[inline]
    pub(crate) unsafe fn link_next(m: NonNull<RawMbuf>, next: Option<Mbuf>) {
        // SAFETY: the caller's promise; `None` is overwritten.
        unsafe { addr_of_mut!((*m.as_ptr()).m_next).write(next) }
    }

    /// The last mbuf of the chain.
    #[doc(alias = "m_last")]
    pub fn last_mut(&mut self) -> &mut Mbuf {
        let mut last = NonNull::from(self);
        // SAFETY: each is reached from `self`, borrowed exclusively, and only one is in hand at a time. (In
        // references: `while let Some(next) = last.next_mut()` is refused by today's borrow checker.)
        unsafe {
            while let Some(next) = last.as_mut().next_mut() {
                last = NonNull::from(next);
            }
            last.as_mut()
        }
    }

    /// The mbufs of the chain in order, each as the head of the rest.
    #[inline]
    pub fn iter(&self) -> MbufIter<'_> {
        MbufIter(Some(self))
    }
}

/// The mbufs of a chain.
#[derive(Clone)]
pub struct MbufIter<'a>(Option<&'a Mbuf>);

impl<'a> Iterator for MbufIter<'a> {
    type Item = &'a Mbuf;

    #[inline]
    fn next(&mut self) -> Option<&'a Mbuf> {
        let m = self.0?;
        self.0 = m.next();
        Some(m)
    }
}

impl<'a> IntoIterator for &'a Mbuf {
    type Item = &'a Mbuf;
    type IntoIter = MbufIter<'a>;

    fn into_iter(self) -> MbufIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut mbuf = f.debug_struct("Mbuf");
        mbuf.field("flags", &self.flags());
        if self.has_pkthdr() {
            mbuf.field("pkthdr", self.pkthdr());
        }
        mbuf.field("len", &self.length())
            .field("data", &self.data())
            .field("next", &self.next().map(Mbuf::len))
            .finish()
    }
}

/// A queue of packets, linked through `m_nextpkt`.
#[doc(alias = "mbufq")]
#[derive(Default)]
pub struct MbufQueue {
    head: Option<Mbuf>,
    /// The last packet, if there is one: part of what `head` owns.
    tail: Option<NonNull<RawMbuf>>,
    len: usize,
}

// SAFETY: `tail` points into the chain that `head` owns.
unsafe impl Send for MbufQueue {}
// SAFETY: as above; nothing is written through `&MbufQueue`.
unsafe impl Sync for MbufQueue {}

impl Mbuf {
    /// The next packet of the queue that this one is in.
    fn nextpkt(&self) -> Option<&Mbuf> {
        // SAFETY: invariant 1; borrowed as we are.
        unsafe { (*addr_of!((*self.raw()).m_nextpkt)).as_ref() }
    }

    fn take_nextpkt(&mut self) -> Option<Mbuf> {
        // SAFETY: invariant 1; exclusive.
        unsafe { (*addr_of_mut!((*self.raw()).m_nextpkt)).take() }
    }

    /// Links `next` behind the packet `m`.
    ///
    /// # Safety
    /// `m` is a live packet that the caller holds exclusively, with no next packet.
    unsafe fn link_nextpkt(m: NonNull<RawMbuf>, next: Option<Mbuf>) {
        // SAFETY: the caller's promise; `None` is overwritten.
        unsafe { addr_of_mut!((*m.as_ptr()).m_nextpkt).write(next) }
    }
}

impl MbufQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            head: None,
            tail: None,
            len: 0,
        }
    }

    /// Appends a packet.
    #[doc(alias = "mbufq_enqueue")]
    #[inline]
    pub fn push(&mut self, m: Mbuf) {
        let raw = m.0;
        match self.tail {
            // SAFETY: `tail` is the last of what `head` owns, so that it has no next packet.
            Some(tail) => unsafe { Mbuf::link_nextpkt(tail, Some(m)) },
            None => self.head = Some(m),
        }
        self.tail = Some(raw);
        self.len += 1;
    }

    /// Puts a packet back at the front.
    #[doc(alias = "mbufq_prepend")]
    pub fn push_front(&mut self, m: Mbuf) {
        let raw = m.0;
        // SAFETY: `m` is ours, and a packet outside a queue has no next packet.
        unsafe { Mbuf::link_nextpkt(raw, self.head.take()) };
        self.head = Some(m);
        self.tail.get_or_insert(raw);
        self.len += 1;
    }

    /// Takes the first packet.
    #[doc(alias = "mbufq_dequeue")]
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        let mut m = self.head.take()?;
        self.head = m.take_nextpkt();
        if self.head.is_none() {
            self.tail = None;
        }
        self.len -= 1;
        Some(m)
    }

    /// The first packet.
    pub fn first(&self) -> Option<&Mbuf> {
        self.head.as_ref()
    }

    /// Appends all of `other`, leaving it empty.
    #[doc(alias = "mbufq_concat")]
    pub fn append(&mut self, other: &mut MbufQueue) {
        let other = core::mem::take(other);
        let (head, tail, len) = other.into_parts();
        let Some(head) = head else { return };
        match self.tail {
            // SAFETY: as in `push`.
            Some(last) => unsafe { Mbuf::link_nextpkt(last, Some(head)) },
            None => self.head = Some(head),
        }
        self.tail = tail;
        self.len += len;
    }

    fn into_parts(mut self) -> (Option<Mbuf>, Option<NonNull<RawMbuf>>, usize) {
        (self.head.take(), self.tail.take(), self.len)
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Frees all packets.
    #[doc(alias = "mbufq_drain")]
    pub fn clear(&mut self) {
        while let Some(m) = self.pop() {
            drop(m);
        }
    }

    /// The packets in order.
    pub fn iter(&self) -> impl Iterator<Item = &Mbuf> {
        core::iter::successors(self.head.as_ref(), |m| m.nextpkt())
    }
}

impl Drop for MbufQueue {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Iterator for MbufQueue {
    type Item = Mbuf;

    fn next(&mut self) -> Option<Mbuf> {
        self.pop()
    }
}

impl Extend<Mbuf> for MbufQueue {
    fn extend<I: IntoIterator<Item = Mbuf>>(&mut self, packets: I) {
        packets.into_iter().for_each(|m| self.push(m));
    }
}

impl TagList {
    /// No tags.
    pub const fn new() -> Self {
        Self(None)
    }

    /// The tags, last attached first.
    pub fn iter(&self) -> impl Iterator<Item = &MTag> {
        core::iter::successors(self.0.as_deref(), |tag| tag.next.as_deref())
    }

    /// Finds a tag.
    #[doc(alias = "m_tag_locate")]
    pub fn find(&self, cookie: u32, id: u16) -> Option<&MTag> {
        self.iter().find(|tag| (tag.cookie, tag.id) == (cookie, id))
    }

    /// Attaches a tag in front of the others.
    #[doc(alias = "m_tag_prepend")]
    pub fn attach(&mut self, cookie: u32, id: u16, payload: Box<[u8]>) {
        let next = self.0.take();
        self.0 = Some(Box::new(MTag {
            next,
            cookie,
            id,
            payload,
        }));
    }

    /// Detaches a tag.
    #[doc(alias = "m_tag_delete")]
    pub fn remove(&mut self, cookie: u32, id: u16) -> Option<Box<MTag>> {
        let mut link = &mut self.0;
        while link
            .as_ref()
            .is_some_and(|tag| (tag.cookie, tag.id) != (cookie, id))
        {
            link = &mut link.as_mut()?.next;
        }
        let mut found = link.take()?;
        *link = found.next.take();
        Some(found)
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Clone for TagList {
    /// Copies all tags (`m_tag_copy_chain`).
    fn clone(&self) -> Self {
        let mut copy = Self::new();
        let mut end = &mut copy.0;
        for tag in self.iter() {
            let tag = MTag {
                next: None,
                cookie: tag.cookie,
                id: tag.id,
                payload: tag.payload.clone(),
            };
            end = &mut end.insert(Box::new(tag)).next;
        }
        copy
    }
}

impl Drop for TagList {
    fn drop(&mut self) {
        // One by one: a long list must not recurse.
        while let Some(mut tag) = self.0.take() {
            self.0 = tag.next.take();
        }
    }
}
