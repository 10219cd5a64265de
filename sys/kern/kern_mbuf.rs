//! Where mbufs and clusters come from and go to.
//!
//! FreeBSD: sys/kern/kern_mbuf.c, sys/sys/mbuf.h (m_get and its kin)
//! Differs from FreeBSD: what the zones' constructors do there is done here after allocation, where the size and kind
//! are known; a chain is freed in one critical section.

use crate::errno::Errno;
use crate::kern::kern_sysctl::{kenv, root};
use crate::kern::uipc_mbuf::Builder;
use crate::machine::atomic::{AtomicU32, Ordering, fence};
use crate::machine_local;
use crate::mbuf::{
    ClusterSize, ExtStorage, ExtType, How, MAX_LINKHDR, MCLBYTES, MExt, MFlags, MINCLSIZE,
    MJUM9BYTES, MJUM16BYTES, MJUMPAGESIZE, MSIZE, Mbuf, NoBufs, PktHdr, RawMbuf, TagList,
};
use crate::param::PAGE_SIZE;
use crate::sysctl::{Procedure, ReadOnly};
use crate::vm::uma::{self, Hooks, Zone, ZoneStats};
use crate::vm::uma_cache::OnCpu;
use crate::vm::vm_page;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use core::mem::MaybeUninit;
use core::ptr::{NonNull, addr_of_mut};

/// The zones of mbufs and clusters.
struct MbZones {
    mbuf: Zone,
    clust: Zone,
    /// mbufs with a cluster attached, kept joined while they are cached.
    pack: Zone,
    jumbop: Zone,
    jumbo9: Zone,
    jumbo16: Zone,
}

machine_local! {
    static ZONES: MbZones = MbZones {
        mbuf: Zone::new("mbuf", MSIZE, MSIZE).with_warning("kern.ipc.nmbufs limit reached", None),
        clust: Zone::new("mbuf_cluster", MCLBYTES, MCLBYTES)
            .with_warning("kern.ipc.nmbclusters limit reached", None),
        pack: Zone::new_secondary(
            "mbuf_packet",
            MSIZE,
            || &zones().mbuf,
            Hooks {
                ctor: None,
                dtor: None,
                init: Some(mb_zinit_pack),
                fini: Some(mb_zfini_pack),
            },
        )
        .holding(|| &zones().clust),
        jumbop: Zone::new("mbuf_jumbo_page", MJUMPAGESIZE, MJUMPAGESIZE)
            .with_warning("kern.ipc.nmbjumbop limit reached", None),
        jumbo9: Zone::new("mbuf_jumbo_9k", MJUM9BYTES, 1024)
            .with_warning("kern.ipc.nmbjumbo9 limit reached", None),
        jumbo16: Zone::new("mbuf_jumbo_16k", MJUM16BYTES, MJUM16BYTES)
            .with_warning("kern.ipc.nmbjumbo16 limit reached", None),
    };
}

#[inline(always)]
fn zones() -> &'static MbZones {
    ZONES.get()
}

impl MbZones {
    /// Sets the limits: what the kernel's command line says, else shares of the memory that is for mbufs.
    #[doc(alias = "tunable_mbinit")]
    fn set_limits(&'static self, maxmbufmem: usize) {
        let clusters: usize = CLUSTER_LIMITS
            .iter()
            .map(|limit| {
                let max = match tunable(limit.name) {
                    None | Some(0) => maxmbufmem / limit.size / limit.share,
                    Some(max) => max,
                };
                (limit.zone)(self).set_max(max)
            })
            .sum();
        // As many mbufs as there are clusters of all sizes, at least.
        let mbufs = match tunable(NMBUFS.name) {
            Some(mbufs) if mbufs >= clusters => mbufs,
            _ => clusters.max(maxmbufmem / NMBUFS.size / NMBUFS.share),
        };
        self.mbuf.set_max(mbufs);
    }

    /// Raises a limit.
    ///
    /// # Errors
    /// `EINVAL` to lower it, or to allow more clusters when there may be fewer mbufs than clusters already.
    #[doc(alias = "sysctl_nmbclusters")]
    fn raise(&'static self, limit: &MbLimit, max: usize) -> Result<(), Errno> {
        let zone = (limit.zone)(self);
        if max == zone.max() {
            return Ok(());
        }
        let clusters: usize = CLUSTER_LIMITS
            .iter()
            .map(|limit| (limit.zone)(self).max())
            .sum();
        let is_mbufs = limit.name == NMBUFS.name;
        if max < zone.max() || !(is_mbufs || self.mbuf.max() >= clusters) {
            return Err(Errno::EINVAL);
        }
        zone.set_max(max);
        Ok(())
    }

    #[inline]
    fn cluster(&self, size: ClusterSize) -> &Zone {
        match size {
            ClusterSize::K2 => &self.clust,
            ClusterSize::K4 => &self.jumbop,
            ClusterSize::K9 => &self.jumbo9,
            ClusterSize::K16 => &self.jumbo16,
        }
    }
}

/// A limit, `kern.ipc.nmb*`.
struct MbLimit {
    name: &'static str,
    about: &'static str,
    zone: fn(&'static MbZones) -> &'static Zone,
    /// Bytes of an item.
    size: usize,
    /// The part of the memory for mbufs that it is by default, as a divisor.
    share: usize,
}

const NMBUFS: MbLimit = MbLimit {
    name: "kern.ipc.nmbufs",
    about: "Maximum number of mbufs allowed",
    zone: |zones| &zones.mbuf,
    size: MSIZE,
    share: 5,
};

const CLUSTER_LIMITS: [MbLimit; 4] = [
    MbLimit {
        name: "kern.ipc.nmbclusters",
        about: "Maximum number of mbuf clusters allowed",
        zone: |zones| &zones.clust,
        size: MCLBYTES,
        share: 4,
    },
    MbLimit {
        name: "kern.ipc.nmbjumbop",
        about: "Maximum number of mbuf page size jumbo clusters allowed",
        zone: |zones| &zones.jumbop,
        size: MJUMPAGESIZE,
        share: 4,
    },
    MbLimit {
        name: "kern.ipc.nmbjumbo9",
        about: "Maximum number of mbuf 9k jumbo clusters allowed",
        zone: |zones| &zones.jumbo9,
        size: MJUM9BYTES,
        share: 6,
    },
    MbLimit {
        name: "kern.ipc.nmbjumbo16",
        about: "Maximum number of mbuf 16k jumbo clusters allowed",
        zone: |zones| &zones.jumbo16,
        size: MJUM16BYTES,
        share: 6,
    },
];

/// What the kernel's command line says.
fn tunable(name: &str) -> Option<usize> {
    kenv().get(name)?.parse().ok()
}

/// Bytes that mbufs and clusters may take: half the memory, or what the command line says, but at most three quarters.
fn maxmbufmem() -> usize {
    let realmem = vm_page::stats().total * PAGE_SIZE;
    let asked = tunable("kern.ipc.maxmbufmem").filter(|&bytes| bytes > 0);
    asked.unwrap_or(realmem / 2).min(realmem / 4 * 3)
}

/// Makes the zones, and puts their limits into the sysctl tree, `kern.ipc.nmb*`. They may be raised at run time; the kernel's
/// command line may lower them too.
pub fn mbinit() {
    uma::startup();
    let maxmbufmem = maxmbufmem();
    zones().set_limits(maxmbufmem);
    for limit in [NMBUFS].into_iter().chain(CLUSTER_LIMITS) {
        let (name, about, zone) = (limit.name, limit.about, limit.zone);
        let read = move || format!("{}", zone(zones()).max());
        let write = move |value: &str| {
            let max = value.parse().map_err(|_| Errno::EINVAL)?;
            zones().raise(&limit, max)
        };
        root().register(name, Arc::new(Procedure::new(about, read, write)));
    }
    let memory = ReadOnly::new(
        "Maximum real memory allocatable to various mbuf types",
        move || format!("{maxmbufmem}"),
    );
    root().register("kern.ipc.maxmbufmem", Arc::new(memory));
}

/// Joins an mbuf that enters the packet zone with a cluster.
fn mb_zinit_pack(item: NonNull<u8>, how: How) -> bool {
    // The zone asks for many at a time and gives up at the first that fails.
    let Some(cluster) = zones().clust.alloc(how) else {
        return false;
    };
    let m: *mut RawMbuf = item.as_ptr().cast();
    // SAFETY: the item is an mbuf's memory, ours.
    unsafe { attach(m, cluster, MCLBYTES, ExtType::Packet) };
    true
}

/// Separates an mbuf that leaves the packet zone from its cluster.
fn mb_zfini_pack(item: NonNull<u8>) {
    let m: *mut RawMbuf = item.as_ptr().cast();
    // SAFETY: `mb_zinit_pack` attached it, and `mb_free_ext` left it attached.
    unsafe {
        zones()
            .clust
            .free(NonNull::new_unchecked((*RawMbuf::ext(m)).buf))
    };
}

/// Makes `m` the owner of `size` bytes at `buf`.
///
/// # Safety
/// `m` is memory for an mbuf, and both are the caller's.
#[inline(always)]
unsafe fn attach(m: *mut RawMbuf, buf: NonNull<u8>, size: usize, ext_type: ExtType) {
    // SAFETY: the promise.
    unsafe {
        RawMbuf::ext(m).write(MExt {
            count: AtomicU32::new(1),
            size: size as u32,
            owner: m,
            buf: buf.as_ptr(),
            ext_type,
            storage: MaybeUninit::uninit(),
        });
    }
}

impl Mbuf {
    /// Makes the item an empty mbuf with these flags.
    ///
    /// # Safety
    /// The item is memory for an mbuf, the caller's, with external storage attached if the flags say so.
    #[inline(always)]
    unsafe fn from_item(item: NonNull<u8>, data: *mut u8, flags: MFlags) -> Mbuf {
        let m = item.cast::<RawMbuf>();
        // SAFETY: the promise.
        unsafe {
            RawMbuf::init(m.as_ptr(), data, flags);
            if flags.contains(MFlags::PKTHDR) {
                RawMbuf::pkthdr(m.as_ptr()).write(PktHdr::new());
            }
            Mbuf::from_raw(m)
        }
    }

    /// An empty mbuf without packet header.
    #[doc(alias = "m_get")]
    #[inline]
    pub fn get(how: How) -> Option<Mbuf> {
        let item = zones().mbuf.alloc(how)?;
        // SAFETY: of the mbuf zone, and fresh.
        unsafe {
            let data = RawMbuf::dat(item.as_ptr().cast());
            Some(Mbuf::from_item(item, data, MFlags::empty()))
        }
    }

    /// An empty packet without cluster.
    #[doc(alias = "m_gethdr")]
    #[inline]
    pub fn gethdr(how: How) -> Option<Mbuf> {
        let item = zones().mbuf.alloc(how)?;
        // SAFETY: of the mbuf zone, and fresh.
        unsafe {
            let data = RawMbuf::pktdat(item.as_ptr().cast());
            Some(Mbuf::from_item(item, data, MFlags::PKTHDR))
        }
    }

    /// An empty packet with a 2k cluster.
    #[doc(alias = "m_getcl")]
    #[inline]
    pub fn getcl(how: How) -> Option<Mbuf> {
        Self::get_packet(how, MFlags::PKTHDR)
    }

    #[inline]
    fn get_packet(how: How, flags: MFlags) -> Option<Mbuf> {
        let item = zones().pack.alloc(how)?;
        // SAFETY: of the packet zone, thus with a cluster attached, and fresh.
        unsafe {
            let data = (*RawMbuf::ext(item.as_ptr().cast())).buf;
            Some(Mbuf::from_item(item, data, flags | MFlags::EXT))
        }
    }

    /// An empty packet with a cluster of `size`.
    #[doc(alias = "m_getjcl")]
    pub fn getjcl(how: How, size: ClusterSize) -> Option<Mbuf> {
        Self::get_cluster(how, size, MFlags::PKTHDR)
    }

    /// An empty mbuf without packet header, with a cluster of `size`.
    pub fn getcl_nohdr(how: How, size: ClusterSize) -> Option<Mbuf> {
        Self::get_cluster(how, size, MFlags::empty())
    }

    fn get_cluster(how: How, size: ClusterSize, flags: MFlags) -> Option<Mbuf> {
        let ext_type = match size {
            ClusterSize::K2 => return Self::get_packet(how, flags),
            ClusterSize::K4 => ExtType::Jumbop,
            ClusterSize::K9 => ExtType::Jumbo9,
            ClusterSize::K16 => ExtType::Jumbo16,
        };
        let zones = zones();
        let item = zones.mbuf.alloc(how)?;
        let Some(cluster) = zones.cluster(size).alloc(how) else {
            // SAFETY: just allocated.
            unsafe { zones.mbuf.free(item) };
            return None;
        };
        // SAFETY: of the mbuf zone, and fresh, as is the cluster.
        unsafe {
            attach(item.as_ptr().cast(), cluster, size.bytes(), ext_type);
            Some(Mbuf::from_item(item, cluster.as_ptr(), flags | MFlags::EXT))
        }
    }

    /// A chain of empty mbufs with room for `len` bytes, in few pieces; with a packet header if `pkthdr`.
    ///
    /// Differs from FreeBSD: 16k clusters are used for long chains while there are any, not only page-sized ones.
    #[doc(alias = "m_getm2")]
    pub fn getm2(how: How, len: usize, pkthdr: bool) -> Option<Mbuf> {
        let flags = if pkthdr {
            MFlags::PKTHDR
        } else {
            MFlags::empty()
        };
        let head = Self::get_piece(how, len, flags)?;
        let mut room = head.size();
        if room >= len {
            return Some(head);
        }
        let mut chain = Builder::new();
        chain.push(head);
        while room < len {
            let piece = Self::get_piece(how, len - room, MFlags::empty())?;
            room += piece.size();
            chain.push(piece);
        }
        chain.finish()
    }

    /// One empty mbuf, as large as is useful for `len` bytes.
    fn get_piece(how: How, len: usize, flags: MFlags) -> Option<Mbuf> {
        if len < MINCLSIZE {
            return if flags.contains(MFlags::PKTHDR) {
                Self::gethdr(how)
            } else {
                Self::get(how)
            };
        }
        if len > MJUMPAGESIZE {
            let large = if len > MJUM9BYTES {
                ClusterSize::K16
            } else {
                ClusterSize::K9
            };
            if let Some(m) = Self::get_cluster(How::NoWait, large, flags) {
                return Some(m);
            }
        }
        let size = if len > MCLBYTES {
            ClusterSize::K4
        } else {
            ClusterSize::K2
        };
        Self::get_cluster(how, size, flags)
    }

    /// A packet with a copy of `bytes`, and room for a link header before them.
    #[doc(alias = "m_devget")]
    pub fn from_bytes(bytes: &[u8], how: How) -> Option<Mbuf> {
        let mut m = Self::getm2(how, MAX_LINKHDR + bytes.len(), true)?;
        m.reserve_front(MAX_LINKHDR);
        if !m.append(bytes) {
            return None;
        }
        Some(m)
    }

    /// A packet that refers to the bytes of `storage`; they are read-only.
    #[doc(alias = "m_extadd")]
    pub fn from_storage(storage: Box<dyn ExtStorage>, how: How) -> Result<Mbuf, NoBufs> {
        let bytes = NonNull::from(storage.bytes());
        let len = u32::try_from(bytes.len()).map_err(|_| NoBufs)?;
        let item = zones().mbuf.alloc(how).ok_or(NoBufs)?;
        let m: *mut RawMbuf = item.as_ptr().cast();
        // SAFETY: the mbuf is fresh; the bytes stay where they are as long as the storage lives, which is until the last
        // reference is dropped, and nothing writes storage of type `External`.
        unsafe {
            attach(m, bytes.cast(), bytes.len(), ExtType::External);
            (*RawMbuf::ext(m)).storage.write(Box::into_raw(storage));
            let flags = MFlags::PKTHDR | MFlags::EXT | MFlags::RDONLY;
            let mut m = Mbuf::from_item(item, bytes.as_ptr().cast(), flags);
            m.set_data_raw(bytes.as_ptr().cast(), bytes.len());
            m.pkthdr_mut().len = len;
            Ok(m)
        }
    }
}

impl Drop for Mbuf {
    /// Frees the chain.
    #[doc(alias = "m_freem")]
    #[inline]
    fn drop(&mut self) {
        // SAFETY: ours, and this is the end of it.
        unsafe { m_freem(NonNull::new_unchecked(self.raw())) }
    }
}

/// mbufs freed before a thread that waits for this CPU gets it.
const FREE_BATCH: usize = 32;

/// # Safety
/// `m` heads a chain that the caller gives up.
unsafe fn m_freem(m: NonNull<RawMbuf>) {
    let zones = zones();
    let mut here = OnCpu::enter();
    let mut chain = Some(m);
    let mut batch = 0;
    while let Some(m) = chain {
        // SAFETY: the promise, for each mbuf of the chain.
        unsafe {
            chain = (*addr_of_mut!((*m.as_ptr()).m_next))
                .take()
                .map(Mbuf::into_raw);
            here = m_free(zones, here, m);
        }
        batch += 1;
        if batch == FREE_BATCH && chain.is_some() {
            batch = 0;
            drop(here);
            here = OnCpu::enter();
        }
    }
}

/// Frees one mbuf, cut off its chain.
///
/// # Safety
/// It is the caller's to give up.
#[inline(always)]
unsafe fn m_free(zones: &'static MbZones, mut here: OnCpu, m: NonNull<RawMbuf>) -> OnCpu {
    let p = m.as_ptr();
    // SAFETY: the promise, and the invariants of `Mbuf`.
    unsafe {
        let flags = RawMbuf::flags(p);
        if flags.contains(MFlags::PKTHDR) && !(*RawMbuf::pkthdr(p)).tags.is_empty() {
            here = m_tag_delete_chain(here, addr_of_mut!((*RawMbuf::pkthdr(p)).tags));
        }
        if !flags.contains(MFlags::EXT) {
            return zones.mbuf.free_here(here, m.cast());
        }
        // One reference is ours, and only who holds one can make another: where it is the only one, no atomic operation is
        // needed. An mbuf and its cluster go back to the packet zone as they are.
        let ext = RawMbuf::ext(p);
        if (*ext).owner == p
            && (*ext).ext_type == ExtType::Packet
            && (*ext).count.load(Ordering::Acquire) == 1
        {
            return zones.pack.free_here(here, m.cast());
        }
        mb_free_ext(zones, here, p)
    }
}

/// Frees a packet's tags, outside the critical section.
///
/// # Safety
/// The list is the caller's to give up.
#[cold]
#[inline(never)]
unsafe fn m_tag_delete_chain(here: OnCpu, tags: *mut TagList) -> OnCpu {
    drop(here);
    // SAFETY: the promise.
    drop(unsafe { tags.replace(TagList::new()) });
    OnCpu::enter()
}

/// Drops an mbuf's reference to external storage, and frees what nobody refers to any more: the storage and its owner if
/// the reference was the last, and the mbuf if it is not the owner itself, which otherwise waits for the last.
///
/// # Safety
/// The mbuf is the caller's to give up, and has external storage.
#[inline(never)]
unsafe fn mb_free_ext(zones: &'static MbZones, mut here: OnCpu, m: *mut RawMbuf) -> OnCpu {
    // SAFETY: invariants of `Mbuf`: the owner lives while it is referred to, as it is until the count says otherwise; whoever
    // brings the count to zero is the last.
    unsafe {
        let owner = (*RawMbuf::ext(m)).owner;
        let count = &(*RawMbuf::ext(owner)).count;
        let last = count.load(Ordering::Acquire) == 1 || {
            count.fetch_sub(1, Ordering::Release) == 1 && {
                fence(Ordering::Acquire);
                count.store(1, Ordering::Relaxed);
                true
            }
        };
        if last {
            here = mb_free_owner(zones, here, owner);
        }
        if owner != m {
            here = zones.mbuf.free_here(here, NonNull::new_unchecked(m).cast());
        }
        here
    }
}

/// Frees external storage and the mbuf that owns it.
///
/// # Safety
/// Nobody refers to the storage any more, and its count is 1, as the packet zone keeps it.
#[inline(always)]
unsafe fn mb_free_owner(zones: &'static MbZones, here: OnCpu, owner: *mut RawMbuf) -> OnCpu {
    // SAFETY: the promise, and the invariants of `Mbuf`.
    unsafe {
        let ext = RawMbuf::ext(owner);
        let item = NonNull::new_unchecked(owner).cast();
        let buf = NonNull::new_unchecked((*ext).buf);
        let here = match (*ext).ext_type {
            ExtType::Packet => return zones.pack.free_here(here, item),
            ExtType::Jumbop => zones.jumbop.free_here(here, buf),
            ExtType::Jumbo9 => zones.jumbo9.free_here(here, buf),
            ExtType::Jumbo16 => zones.jumbo16.free_here(here, buf),
            ExtType::External => {
                drop(here);
                drop(Box::from_raw((*ext).storage.assume_init()));
                OnCpu::enter()
            }
        };
        zones.mbuf.free_here(here, item)
    }
}

/// One kind of memory in `netstat -m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MbZoneStat {
    /// In use.
    pub current: u64,
    /// Free in caches and slabs.
    pub cache: u64,
    /// Most that may exist.
    pub max: u64,
    /// Requests refused.
    pub denied: u64,
    /// Requests that slept.
    pub delayed: u64,
}

impl MbZoneStat {
    /// In use or cached.
    pub fn total(&self) -> u64 {
        self.current + self.cache
    }
}

impl From<ZoneStats> for MbZoneStat {
    fn from(stats: ZoneStats) -> Self {
        Self {
            current: stats.used,
            cache: stats.free,
            max: stats.limit,
            denied: stats.fails,
            delayed: stats.sleeps,
        }
    }
}

/// The numbers of `netstat -m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "mbstat")]
pub struct MbufStat {
    /// mbufs, those of packets included.
    pub mbuf: MbZoneStat,
    /// 2k clusters, those of packets included.
    pub cluster: MbZoneStat,
    /// mbuf and cluster pairs of the packet zone.
    pub packet: MbZoneStat,
    /// Page-sized clusters.
    pub jumbop: MbZoneStat,
    /// 9k clusters.
    pub jumbo9: MbZoneStat,
    /// 16k clusters.
    pub jumbo16: MbZoneStat,
}

impl MbufStat {
    /// Counts now. Exact while nobody allocates or frees.
    pub fn snapshot() -> MbufStat {
        let zones = zones();
        let packet = MbZoneStat::from(zones.pack.stats());
        let mbuf = MbZoneStat::from(zones.mbuf.stats());
        let cluster = MbZoneStat::from(zones.clust.stats());
        MbufStat {
            mbuf: MbZoneStat {
                current: mbuf.current + packet.current,
                cache: mbuf.cache + packet.cache,
                ..mbuf
            },
            // To the cluster zone, what lies joined in the packet zone is in use.
            cluster: MbZoneStat {
                current: cluster.current.saturating_sub(packet.cache),
                cache: cluster.cache + packet.cache,
                ..cluster
            },
            packet,
            jumbop: zones.jumbop.stats().into(),
            jumbo9: zones.jumbo9.stats().into(),
            jumbo16: zones.jumbo16.stats().into(),
        }
    }

    /// mbufs and clusters of all sizes in use; equal before and after means that nothing leaked.
    pub fn in_use(&self) -> (u64, u64) {
        (
            self.mbuf.current,
            self.cluster.current + self.jumbop.current + self.jumbo9.current + self.jumbo16.current,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;

    fn limit(name: &str) -> usize {
        let text = root().get(&format!("kern.ipc.{name}"));
        text.and_then(|text| text.parse().ok()).unwrap()
    }

    fn set(name: &str, value: usize) -> Result<(), Errno> {
        let set = root().set(&format!("kern.ipc.{name}"), &format!("{value}"));
        set.map(|_| ())
    }

    /// The sum of the limits of clusters.
    fn clusters() -> usize {
        ["nmbclusters", "nmbjumbop", "nmbjumbo9", "nmbjumbo16"]
            .iter()
            .map(|name| limit(name))
            .sum()
    }

    #[test]
    fn limits_follow_from_the_memory_that_is_for_mbufs() {
        Machine::builder().memory(64 << 20).run(|| {
            let memory = limit("maxmbufmem");
            assert_eq!(memory, vm_page::stats().total * PAGE_SIZE / 2);
            assert_eq!(limit("nmbclusters"), memory / MCLBYTES / 4);
            assert_eq!(limit("nmbjumbop"), memory / MJUMPAGESIZE / 4);
            assert_eq!(limit("nmbjumbo9"), memory / MJUM9BYTES / 6);
            assert_eq!(limit("nmbjumbo16"), memory / MJUM16BYTES / 6);
            assert_eq!(limit("nmbufs"), (memory / MSIZE / 5).max(clusters()));
        });
    }

    #[test]
    fn the_command_line_says_how_much_memory_is_for_mbufs_up_to_three_quarters() {
        for (asked, found) in [(8 << 20, 8 << 20), (1 << 30, usize::MAX)] {
            let tunable = format!("kern.ipc.maxmbufmem={asked}");
            Machine::builder()
                .memory(64 << 20)
                .tunables(&tunable)
                .run(move || {
                    let most = vm_page::stats().total * PAGE_SIZE / 4 * 3;
                    assert_eq!(limit("maxmbufmem"), most.min(found));
                    assert_eq!(limit("nmbclusters"), most.min(found) / MCLBYTES / 4);
                });
        }
    }

    #[test]
    fn with_more_clusters_on_the_command_line_there_are_mbufs_for_them() {
        let tunables = "kern.ipc.nmbclusters=1000000 kern.ipc.nmbjumbo16=0 kern.ipc.nmbufs=100";
        Machine::builder()
            .memory(64 << 20)
            .tunables(tunables)
            .run(|| {
                assert_eq!(limit("nmbclusters"), 1_000_000);
                assert!(limit("nmbjumbo16") > 0, "0 asks for the default");
                assert_eq!(limit("nmbufs"), clusters());
            });
    }

    #[test]
    fn limits_may_be_raised_while_there_are_mbufs_for_all_clusters() {
        Machine::builder().memory(64 << 20).run(|| {
            let (mbufs, small) = (limit("nmbufs"), limit("nmbclusters"));
            assert_eq!(set("nmbclusters", small), Ok(()), "as it is");
            assert_eq!(set("nmbclusters", small - 1), Err(Errno::EINVAL));
            assert_eq!(set("nmbclusters", small + 1), Ok(()));
            assert_eq!(set("nmbclusters", mbufs), Ok(()), "as many as they were");
            assert_eq!(set("nmbjumbop", mbufs), Err(Errno::EINVAL), "too few mbufs");
            assert_eq!(set("nmbufs", 1), Err(Errno::EINVAL));
            assert_eq!(set("nmbufs", clusters()), Ok(()));
            assert_eq!(set("nmbjumbop", mbufs), Ok(()));
            assert_eq!(zones().clust.max(), mbufs);
        });
    }
}
