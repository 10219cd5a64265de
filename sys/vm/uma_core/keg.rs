//! Kegs: pages cut into items.
//!
//! FreeBSD: sys/vm/uma_core.c (keg_*, slab_*), sys/vm/uma_int.h
//! Differs from FreeBSD: every page of a slab leads to its header (`vm_page::vtoslab`), also where that is inside; one
//! memory domain.

use super::{Hooks, Zone, ZoneFlags};
use crate::kern::kern_mutex::SpinMutex;
use crate::kern::kern_synch::{WChan, wakeup, wakeup_one};
use crate::kern::lock_order::UmaKeg;
#[cfg(debug_assertions)]
use crate::machine::atomic::AtomicU64;
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::machine_local;
use crate::param::{PAGE_SIZE, round_up};
use crate::vm::uma::How;
use crate::vm::{uma_dbg, vm_page};
use core::mem::size_of;
use core::ptr::{self, NonNull};

/// Most items in a slab.
const SLAB_ITEMS: usize = 512;
/// Most pages in a slab made for the sake of little waste.
const SLAB_PAGES: usize = 16;

machine_local! {
    /// Headers of slabs that have no room for them.
    static SLAB_ZONE: Zone = Zone::new("UMA Slabs", size_of::<Slab>(), 16).with_flags(ZoneFlags::INTERNAL);
}

/// Makes the zone of slab headers.
pub(super) fn startup() {
    SLAB_ZONE.get();
}

/// A slab's header, at its end or elsewhere.
#[doc(alias = "uma_slab")]
pub(in crate::vm) struct Slab {
    next: *mut Slab,
    prev: *mut Slab,
    /// Whose it is.
    #[cfg(debug_assertions)]
    keg: *const Keg,
    mem: NonNull<u8>,
    free_count: u32,
    /// One bit for each free item.
    free: [u64; SLAB_ITEMS / 64],
    /// One bit for each item in a user's hands.
    #[cfg(debug_assertions)]
    #[doc(alias = "us_debugfree")]
    used: [AtomicU64; SLAB_ITEMS / 64],
}

/// How items lie in slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KegLayout {
    /// Distance between items.
    pub(super) rsize: usize,
    /// Pages per slab, a power of two.
    pub(super) pages: usize,
    /// Items per slab.
    pub(super) items: usize,
    /// Where the header is; `None` if it is not in the slab.
    pub(super) header_at: Option<usize>,
}

impl KegLayout {
    /// The smallest slab that wastes at most a tenth, with the header inside if possible.
    #[doc(alias = "keg_layout")]
    pub(super) const fn new(size: usize, align: usize) -> Self {
        let unit = if align < 8 { 8 } else { align };
        let rsize = round_up(size + uma_dbg::red_zone(align), unit);
        let header = round_up(size_of::<Slab>(), 16);
        let mut pages = 1;
        while pages <= SLAB_PAGES {
            let bytes = pages * PAGE_SIZE;
            if bytes > header {
                let items = min((bytes - header) / rsize, SLAB_ITEMS);
                // With as many items as the bitmap holds, the rest is no waste of layout.
                if items > 0 && (bytes - items * rsize <= bytes / 10 || items == SLAB_ITEMS) {
                    return Self {
                        rsize,
                        pages,
                        items,
                        header_at: Some(bytes - header),
                    };
                }
            }
            pages *= 2;
        }
        let mut pages = round_up(rsize, PAGE_SIZE).next_power_of_two() / PAGE_SIZE;
        if pages < SLAB_PAGES {
            pages = SLAB_PAGES;
        }
        Self {
            rsize,
            pages,
            items: min(pages * PAGE_SIZE / rsize, SLAB_ITEMS),
            header_at: None,
        }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// A doubly linked list of slabs.
struct SlabList(*mut Slab);

impl SlabList {
    /// # Safety
    /// `slab` is live, in no list, and protected by the keg's lock like the list.
    unsafe fn insert(&mut self, slab: *mut Slab) {
        // SAFETY: the promise; what is in the list is live.
        unsafe {
            (*slab).prev = ptr::null_mut();
            (*slab).next = self.0;
            if !self.0.is_null() {
                (*self.0).prev = slab;
            }
        }
        self.0 = slab;
    }

    /// # Safety
    /// `slab` is in this list, protected by the keg's lock.
    unsafe fn remove(&mut self, slab: *mut Slab) {
        // SAFETY: the promise; its neighbours are live.
        unsafe {
            let (next, prev) = ((*slab).next, (*slab).prev);
            if prev.is_null() {
                self.0 = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
        }
    }
}

/// What the keg's lock protects.
pub(super) struct KegState {
    /// Some items free.
    partial: SlabList,
    /// All items free.
    free: SlabList,
    free_slabs: usize,
    slabs: usize,
    /// Items in the hands of zones.
    out: usize,
    /// Most items that may be in the hands of zones; 0 for no limit.
    max: usize,
    /// Threads that have slept for an item and have none yet.
    pub(super) waiting: usize,
    /// Free items that are only for who says so.
    reserve: usize,
}

// SAFETY: the pointers lead to slabs that the keg owns.
unsafe impl Send for KegState {}

impl KegState {
    /// The limit, 0 for none.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// How many items the limit leaves to somebody.
    pub(super) fn room(&self, claim: Claim) -> usize {
        if self.max == 0 {
            return usize::MAX;
        }
        let room = self.max.saturating_sub(self.out);
        match claim {
            Claim::Ordinary | Claim::Reserve => room.saturating_sub(self.waiting),
            Claim::Slept => room,
        }
    }
}

/// What who asks for items may take.
#[derive(Clone, Copy)]
pub(super) enum Claim {
    /// What is neither reserved nor, under a limit, for those who have slept for it.
    Ordinary,
    /// What is reserved, too.
    Reserve,
    /// Its turn has come.
    Slept,
}

/// Why there is no item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shortage {
    /// As many exist as may.
    Limit,
    /// No pages, or an item could not be made ready.
    Memory,
}

/// Cuts pages into items, for a zone and those that share its keg.
#[doc(alias = "uma_keg")]
pub(in crate::vm) struct Keg {
    pub(super) name: &'static str,
    pub(super) size: usize,
    pub(super) align: usize,
    pub(super) layout: KegLayout,
    pub(super) flags: ZoneFlags,
    /// Called when an item's slab is made, and before it is given back.
    pub(super) init: Option<fn(NonNull<u8>, How) -> bool>,
    pub(super) fini: Option<fn(NonNull<u8>)>,
    pub(super) state: SpinMutex<KegState, UmaKeg>,
    /// Threads that sleep until an item comes back, or are about to.
    pub(super) sleepers: AtomicU32,
}

/// What a keg holds, for reports.
pub(super) struct KegCounts {
    pub(super) pages: usize,
    pub(super) free_items: usize,
    pub(super) free_slabs: usize,
    pub(super) out: usize,
    pub(super) max: usize,
    pub(super) reserve: usize,
    pub(super) sleepers: u32,
}

impl Keg {
    pub(super) const fn new(name: &'static str, size: usize, align: usize) -> Self {
        Self {
            name,
            size,
            align,
            layout: KegLayout::new(size, align),
            flags: ZoneFlags::empty(),
            init: None,
            fini: None,
            state: SpinMutex::new(KegState {
                partial: SlabList(ptr::null_mut()),
                free: SlabList(ptr::null_mut()),
                free_slabs: 0,
                slabs: 0,
                out: 0,
                max: 0,
                waiting: 0,
                reserve: 0,
            }),
            sleepers: AtomicU32::new(0),
        }
    }

    pub(super) const fn set_hooks(&mut self, hooks: &Hooks) {
        self.init = hooks.init;
        self.fini = hooks.fini;
    }

    /// Whether free items are filled with junk: not if they stay initialised.
    pub(super) const fn trashes(&self) -> bool {
        let keeps = ZoneFlags::ZINIT.bits() | ZoneFlags::SMR.bits();
        self.init.is_none() && self.flags.bits() & keeps == 0
    }

    /// Hands up to `want` items to `put`; at least one, or there is none to be had.
    #[doc(alias = "zone_import")]
    #[doc(alias = "keg_fetch_slab")]
    pub(super) fn take(
        &self,
        want: usize,
        how: How,
        claim: Claim,
        mut put: impl FnMut(NonNull<u8>),
    ) -> Result<(), Shortage> {
        loop {
            let mut keg = self.state.lock();
            let mut want = want.min(keg.room(claim));
            if want == 0 {
                return Err(Shortage::Limit);
            }
            if self.sleepers.load(Ordering::Relaxed) > 0 {
                // Others wait for what we do not need at once.
                want = 1;
            }
            let free = keg.slabs * self.layout.items - keg.out;
            let kept = match claim {
                Claim::Reserve => 0,
                Claim::Ordinary | Claim::Slept => keg.reserve,
            };
            let want = want.min(free.saturating_sub(kept));
            if want > 0 {
                self.take_from_slabs(&mut keg, want, &mut put);
                return Ok(());
            }
            drop(keg);
            let slab = self.slab_alloc(how).ok_or(Shortage::Memory)?;
            // SAFETY: fresh from `slab_alloc`, ours.
            unsafe { self.slab_insert(slab) };
        }
    }

    /// Takes `want` items; there are as many.
    fn take_from_slabs(&self, keg: &mut KegState, want: usize, put: &mut impl FnMut(NonNull<u8>)) {
        let mut taken = 0;
        while taken < want {
            if keg.partial.0.is_null() {
                let slab = keg.free.0;
                // SAFETY: there are free items, thus if no slab is partly free, one is all free; then it is in no list.
                unsafe {
                    keg.free.remove(slab);
                    keg.partial.insert(slab);
                }
                keg.free_slabs -= 1;
            }
            let slab = keg.partial.0;
            // SAFETY: slabs in lists are live and protected by the lock we hold.
            unsafe {
                while taken < want && (*slab).free_count > 0 {
                    put(self.slab_take(slab));
                    taken += 1;
                }
                if (*slab).free_count == 0 {
                    keg.partial.remove(slab);
                }
            }
        }
        keg.out += taken;
    }

    /// # Safety
    /// `slab` is live, ours by the lock, and has a free item.
    #[doc(alias = "slab_alloc_item")]
    unsafe fn slab_take(&self, slab: *mut Slab) -> NonNull<u8> {
        // SAFETY: the promise; the index of a bit is that of an item in the slab.
        unsafe {
            let free = &mut (*slab).free;
            let word = free.iter().position(|&bits| bits != 0).unwrap_unchecked();
            let bit = free[word].trailing_zeros() as usize;
            free[word] &= !(1 << bit);
            (*slab).free_count -= 1;
            (*slab).mem.add((word * 64 + bit) * self.layout.rsize)
        }
    }

    /// Takes items back.
    ///
    /// # Safety
    /// They are this keg's, and nobody uses them any more.
    #[doc(alias = "slab_free_item")]
    pub(super) unsafe fn give(&self, items: impl Iterator<Item = NonNull<u8>>) {
        let mut keg = self.state.lock();
        let mut given = 0;
        for item in items {
            // SAFETY: the slab of an item of ours is live; the lock protects it and the lists.
            unsafe {
                let (slab, index) = self.slab_of(item);
                (*slab).free[index / 64] |= 1 << (index % 64);
                (*slab).free_count += 1;
                let count = (*slab).free_count as usize;
                if count > 1 {
                    keg.partial.remove(slab);
                }
                if count == self.layout.items {
                    keg.free.insert(slab);
                    keg.free_slabs += 1;
                } else {
                    keg.partial.insert(slab);
                }
            }
            given += 1;
        }
        keg.out -= given;
        drop(keg);
        // Who sleeps has said so before it looked, under the lock.
        let sleepers = self.sleepers.load(Ordering::Relaxed) as usize;
        for _ in 0..sleepers.min(given) {
            wakeup_one(WChan::of(self));
        }
    }

    /// The slab that an item lies in, and the item's number there.
    ///
    /// # Safety
    /// `item` is this keg's.
    #[doc(alias = "vtoslab")]
    unsafe fn slab_of(&self, item: NonNull<u8>) -> (*mut Slab, usize) {
        let slab: *mut Slab = vm_page::vtoslab(item).cast();
        // SAFETY: while an item of it is out, every page of a slab leads to its header.
        let offset = unsafe { item.addr().get() - (*slab).mem.addr().get() };
        debug_assert_eq!(offset % self.layout.rsize, 0);
        (slab, offset / self.layout.rsize)
    }

    /// A slab with all items free and initialised, in no list yet.
    #[doc(alias = "keg_alloc_slab")]
    fn slab_alloc(&self, how: How) -> Option<*mut Slab> {
        let pages = self.layout.pages;
        let mem = vm_page::alloc_contig(pages, pages).or_else(|| {
            // Reclaiming frees items, for which it may need a bucket itself.
            if self.flags.contains(ZoneFlags::INTERNAL) {
                return None;
            }
            super::reclaim(super::Reclaim::Drain);
            vm_page::alloc_contig(pages, pages)
        })?;
        let slab: *mut Slab = match self.layout.header_at {
            // SAFETY: the layout puts it inside, aligned.
            Some(at) => unsafe { mem.add(at).as_ptr().cast() },
            None => match SLAB_ZONE.get().alloc(How::NoWait) {
                Some(header) => header.as_ptr().cast(),
                None => {
                    // SAFETY: just taken, not used.
                    unsafe { vm_page::free_contig(mem, pages) };
                    return None;
                }
            },
        };
        let mut free = [0; SLAB_ITEMS / 64];
        for index in 0..self.layout.items {
            free[index / 64] |= 1 << (index % 64);
        }
        // SAFETY: memory for a header, ours.
        unsafe {
            slab.write(Slab {
                next: ptr::null_mut(),
                prev: ptr::null_mut(),
                #[cfg(debug_assertions)]
                keg: self,
                mem,
                free_count: self.layout.items as u32,
                free,
                #[cfg(debug_assertions)]
                used: [const { AtomicU64::new(0) }; SLAB_ITEMS / 64],
            });
        }
        vm_page::set_slab(mem, pages, slab.cast());
        for index in 0..self.layout.items {
            // SAFETY: within the slab, ours.
            let item = unsafe { mem.add(index * self.layout.rsize) };
            // SAFETY: the item is ours, of this size.
            unsafe {
                if self.flags.contains(ZoneFlags::ZINIT) {
                    item.write_bytes(0, self.size);
                } else if self.trashes() {
                    uma_dbg::trash(self, item);
                }
            }
            if let Some(init) = self.init
                && !init(item, how)
            {
                // SAFETY: fresh, in no list; `index` of its items are initialised.
                unsafe { self.slab_free(slab, index) };
                return None;
            }
        }
        Some(slab)
    }

    /// Gives a slab's pages back.
    ///
    /// # Safety
    /// `slab` is this keg's, in no list, nobody uses its items, and the first `ready` of them are initialised.
    #[doc(alias = "keg_free_slab")]
    unsafe fn slab_free(&self, slab: *mut Slab, ready: usize) {
        // SAFETY: the promise.
        unsafe {
            let mem = (*slab).mem;
            for index in 0..ready {
                let item = mem.add(index * self.layout.rsize);
                if self.trashes() {
                    uma_dbg::check_trash(self, self.name, item);
                }
                if let Some(fini) = self.fini {
                    fini(item);
                }
            }
            vm_page::set_slab(mem, self.layout.pages, ptr::null_mut());
            if self.layout.header_at.is_none() {
                SLAB_ZONE.get().free(NonNull::new_unchecked(slab.cast()));
            }
            vm_page::free_contig(mem, self.layout.pages);
        }
    }

    /// # Safety
    /// `slab` came from `slab_alloc` of this keg and is in no list.
    unsafe fn slab_insert(&self, slab: *mut Slab) {
        let mut keg = self.state.lock();
        // SAFETY: the promise, under the lock.
        unsafe { keg.free.insert(slab) };
        keg.free_slabs += 1;
        keg.slabs += 1;
    }

    /// Gives the pages of free slabs back, as far as the reserve allows.
    #[doc(alias = "keg_drain")]
    pub(super) fn drain(&self) {
        if self.flags.contains(ZoneFlags::NOFREE) {
            return;
        }
        loop {
            let mut keg = self.state.lock();
            let slab = keg.free.0;
            let free_items = keg.slabs * self.layout.items - keg.out;
            if slab.is_null() || free_items < keg.reserve + self.layout.items {
                return;
            }
            // SAFETY: the first of `free`, so that nobody uses its items; out of the list it is ours.
            unsafe {
                keg.free.remove(slab);
                keg.free_slabs -= 1;
                keg.slabs -= 1;
                drop(keg);
                self.slab_free(slab, self.layout.items);
            }
        }
    }

    /// Makes slabs for `items` items ahead of time; false if memory ran out.
    pub(super) fn prealloc(&self, items: usize) -> bool {
        for _ in 0..items.div_ceil(self.layout.items) {
            let Some(slab) = self.slab_alloc(How::NoWait) else {
                return false;
            };
            // SAFETY: fresh from `slab_alloc`, ours.
            unsafe { self.slab_insert(slab) };
        }
        true
    }

    pub(super) fn set_reserve(&self, items: usize) {
        self.state.lock().reserve = items;
    }

    pub(super) fn set_max(&self, max: usize) {
        let mut keg = self.state.lock();
        keg.max = max;
        drop(keg);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            wakeup(WChan::of(self));
        }
    }

    pub(super) fn counts(&self) -> KegCounts {
        let keg = self.state.lock();
        KegCounts {
            pages: keg.slabs * self.layout.pages,
            free_items: keg.slabs * self.layout.items - keg.out,
            free_slabs: keg.free_slabs,
            out: keg.out,
            max: keg.max,
            reserve: keg.reserve,
            sleepers: self.sleepers.load(Ordering::Relaxed),
        }
    }

    pub(in crate::vm) const fn rsize(&self) -> usize {
        self.layout.rsize
    }

    pub(in crate::vm) const fn size(&self) -> usize {
        self.size
    }

    /// Notes that an item is or is not in use, and returns whether it was; `Err` if there is no such item.
    #[cfg(debug_assertions)]
    pub(in crate::vm) fn mark(&self, item: NonNull<u8>, used: bool) -> Result<bool, NotAnItem> {
        let slab: *mut Slab = vm_page::vtoslab(item).cast();
        if slab.is_null() {
            return Err(NotAnItem::NoSlab);
        }
        // SAFETY: what a page leads to is a slab, and it is live unless the caller has freed the item long ago.
        unsafe {
            if !ptr::eq((*slab).keg, self) {
                return Err(NotAnItem::Of((*(*slab).keg).name));
            }
            let offset = item.addr().get() - (*slab).mem.addr().get();
            let index = offset / self.layout.rsize;
            if !offset.is_multiple_of(self.layout.rsize) || index >= self.layout.items {
                return Err(NotAnItem::Unaligned);
            }
            let (word, bit) = (&(*slab).used[index / 64], 1 << (index % 64));
            let was = if used {
                word.fetch_or(bit, Ordering::Relaxed)
            } else {
                word.fetch_and(!bit, Ordering::Relaxed)
            };
            Ok(was & bit != 0)
        }
    }
}

/// Why an address is not that of an item of a keg.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::vm) enum NotAnItem {
    /// Its page belongs to no keg.
    NoSlab,
    /// It is another keg's.
    Of(&'static str),
    /// It points into the middle of one.
    Unaligned,
}
