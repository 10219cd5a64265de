//! The mbuf: 256 bytes that carry packet data or point at it.
//!
//! FreeBSD: sys/sys/mbuf.h
//! Differs from FreeBSD: `Mbuf` owns a whole chain and frees it when dropped; what may be written is decided by
//! `&mut` and the reference count together. The layout is FreeBSD 14's.
//!
//! Here stand the type, its fields and what follows from them; `kern/kern_mbuf.rs` makes and frees mbufs,
//! `kern/uipc_mbuf.rs` has the algorithms.

use alloc::boxed::Box;
use bitflags::bitflags;
use core::mem::{MaybeUninit, offset_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;

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

/// The chain is shorter than asked for, or there was no mbuf to gather it in; it is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Short;

/// What is known of a packet: stands in its first mbuf.
#[repr(C)]
#[derive(Debug, Default)]
#[doc(alias = "m_pkthdr")]
pub struct PktHdr {
    /// Interface it came in by.
    pub rcvif: IfIndex,
    /// Generation of that index, so that a reused index is noticed.
    pub rcvgen: u16,
    _pad0: u32,
    /// Lowest interface it came in by, under a vlan or lagg.
    pub leaf_rcvif: IfIndex,
    /// Generation of that index.
    pub leaf_rcvgen: u16,
    _pad1: u32,
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

impl PktHdr {
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
    m_next: Option<Mbuf>,
    m_nextpkt: Option<Mbuf>,
    m_data: *mut u8,
    m_len: u32,
    m_type_flags: u32,
    body: MaybeUninit<[u8; MLEN]>,
}

/// External storage: stands behind the packet header's place whether there is one or not.
#[repr(C)]
pub(crate) struct MExt {
    /// The count itself, if this mbuf owns the storage (`EMBREF`).
    pub(crate) count: AtomicU32,
    pub(crate) size: u32,
    /// The mbuf that owns the storage and its count; itself if `EMBREF`.
    pub(crate) owner: *mut RawMbuf,
    pub(crate) buf: *mut u8,
    pub(crate) ext_type: u8,
    pub(crate) arg: MaybeUninit<[usize; 2]>,
}

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
#[repr(transparent)]
#[doc(alias = "struct mbuf")]
pub struct Mbuf(NonNull<RawMbuf>);

// SAFETY: an `Mbuf` is the only handle of its chain. What chains share (external storage) is written only while
// its atomic count is 1, and read-only otherwise.
unsafe impl Send for Mbuf {}
// SAFETY: through `&Mbuf` nothing is written but the atomic reference count.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    fn raw(&self) -> *mut RawMbuf {
        self.0.as_ptr()
    }

    /// Flags of the first mbuf.
    #[inline]
    pub fn flags(&self) -> MFlags {
        todo!()
    }

    /// Replaces the flags that are not about storage; `EXT`, `PKTHDR`, `NOFREE` and `EXTPG` stay as they are.
    #[inline]
    pub fn set_flags(&mut self, flags: MFlags) {
        let _ = flags;
        todo!()
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
        self.clear_flags(MFlags::PROTOFLAGS);
    }

    /// What the first mbuf holds.
    pub fn mtype(&self) -> MbufType {
        todo!()
    }

    /// Says what the first mbuf holds.
    pub fn set_mtype(&mut self, mtype: MbufType) {
        let _ = mtype;
        todo!()
    }

    /// Bytes in the first mbuf.
    #[inline]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether the first mbuf is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in the whole chain.
    #[doc(alias = "m_length")]
    pub fn length(&self) -> usize {
        todo!()
    }

    /// Whether this is a packet.
    #[inline]
    pub fn has_pkthdr(&self) -> bool {
        self.flags().contains(MFlags::PKTHDR)
    }

    /// The packet header. Panics without one: to ask for it is a mistake of the caller, not of the packet.
    #[inline]
    pub fn pkthdr(&self) -> &PktHdr {
        todo!()
    }

    /// The packet header, to change.
    #[inline]
    pub fn pkthdr_mut(&mut self) -> &mut PktHdr {
        todo!()
    }

    /// Length of the packet by its header.
    #[inline]
    pub fn pkt_len(&self) -> usize {
        self.pkthdr().len as usize
    }

    /// Sets the packet's length.
    #[inline]
    pub fn set_pkt_len(&mut self, len: usize) {
        self.pkthdr_mut().len = len as u32;
    }

    /// The first mbuf's bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        todo!()
    }

    /// The first mbuf's bytes, to write. Panics if they are shared: ask `writable`, or `unshare` first.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        todo!()
    }

    /// Whether the first mbuf's bytes may be written: not read-only and not shared.
    #[doc(alias = "M_WRITABLE")]
    #[inline]
    pub fn writable(&self) -> bool {
        todo!()
    }

    /// Bytes that fit before the first mbuf's data; 0 if it may not be written.
    #[doc(alias = "M_LEADINGSPACE")]
    #[inline]
    pub fn leading_space(&self) -> usize {
        todo!()
    }

    /// Bytes that fit after the first mbuf's data; 0 if it may not be written.
    #[doc(alias = "M_TRAILINGSPACE")]
    #[inline]
    pub fn trailing_space(&self) -> usize {
        todo!()
    }

    /// Bytes of the first mbuf's buffer, used or not.
    #[doc(alias = "M_SIZE")]
    pub fn size(&self) -> usize {
        todo!()
    }

    /// Sets the first mbuf's length, growing only into its trailing space (and shows what stood there).
    /// The packet length is left alone. Panics beyond the room.
    pub fn set_len(&mut self, len: usize) {
        let _ = len;
        todo!()
    }

    /// Grows the first mbuf by `n` bytes of its trailing space and returns them. The packet length is left
    /// alone. Panics beyond the room.
    pub fn extend_mut(&mut self, n: usize) -> &mut [u8] {
        let _ = n;
        todo!()
    }

    /// Puts the (empty) first mbuf's data where an object of `len` bytes ends the buffer.
    #[doc(alias = "m_align")]
    pub fn align_end(&mut self, len: usize) {
        let _ = len;
        todo!()
    }

    /// Moves the start of the (empty) first mbuf's data `n` bytes on, to leave room for headers.
    pub fn reserve_front(&mut self, n: usize) {
        let _ = n;
        todo!()
    }

    /// The second mbuf of the chain and what follows.
    #[doc(alias = "m_next")]
    #[inline]
    pub fn next(&self) -> Option<&Mbuf> {
        todo!()
    }

    /// The second mbuf of the chain and what follows, to change.
    #[inline]
    pub fn next_mut(&mut self) -> Option<&mut Mbuf> {
        todo!()
    }

    /// Cuts the chain after its first mbuf and returns the rest.
    #[inline]
    pub fn take_next(&mut self) -> Option<Mbuf> {
        todo!()
    }

    /// Hangs `rest` behind the first mbuf, freeing what hung there.
    pub fn set_next(&mut self, rest: Option<Mbuf>) {
        let _ = rest;
        todo!()
    }
}

/// A queue of packets, linked through `m_nextpkt`.
#[doc(alias = "mbufq")]
#[derive(Default)]
pub struct MbufQueue {
    head: Option<Mbuf>,
    tail: Option<NonNull<RawMbuf>>,
    len: usize,
}

// SAFETY: `tail` points into the chain that `head` owns.
unsafe impl Send for MbufQueue {}
// SAFETY: as above; nothing is written through `&MbufQueue`.
unsafe impl Sync for MbufQueue {}

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
    pub fn push(&mut self, m: Mbuf) {
        let _ = m;
        todo!()
    }

    /// Puts a packet back at the front.
    #[doc(alias = "mbufq_prepend")]
    pub fn push_front(&mut self, m: Mbuf) {
        let _ = m;
        todo!()
    }

    /// Takes the first packet.
    #[doc(alias = "mbufq_dequeue")]
    pub fn pop(&mut self) -> Option<Mbuf> {
        todo!()
    }

    /// The first packet.
    pub fn first(&self) -> Option<&Mbuf> {
        self.head.as_ref()
    }

    /// The first packet, to change.
    pub fn first_mut(&mut self) -> Option<&mut Mbuf> {
        self.head.as_mut()
    }

    /// Appends all of `other`, leaving it empty.
    #[doc(alias = "mbufq_concat")]
    pub fn append(&mut self, other: &mut MbufQueue) {
        let _ = other;
        todo!()
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Frees all packets.
    #[doc(alias = "mbufq_drain")]
    pub fn clear(&mut self) {
        todo!()
    }

    /// The packets in order.
    pub fn iter(&self) -> impl Iterator<Item = &Mbuf> {
        core::iter::empty()
    }
}

impl TagList {
    /// Finds a tag.
    #[doc(alias = "m_tag_locate")]
    pub fn find(&self, cookie: u32, id: u16) -> Option<&MTag> {
        let _ = (&self.0, cookie, id);
        todo!()
    }

    /// Attaches a tag in front of the others.
    #[doc(alias = "m_tag_prepend")]
    pub fn attach(&mut self, cookie: u32, id: u16, payload: Box<[u8]>) {
        let _ = MTag {
            next: None,
            cookie,
            id,
            payload,
        };
        todo!()
    }

    /// Detaches a tag.
    #[doc(alias = "m_tag_delete")]
    pub fn remove(&mut self, cookie: u32, id: u16) -> Option<Box<MTag>> {
        let _ = (cookie, id);
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}
